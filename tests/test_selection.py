"""Population-based training and successive halving: the rules, and runs whose members are selected."""

import json
import math
import random

import jax
import numpy as np
import pytest
from helpers import after, call, comparable, equal, lines, refused, tiny

from jaxddpg import config
from jaxddpg.config import ConfigError, build
from jaxddpg.report import curves, figures
from jaxddpg.runs import checkpoint, selection
from jaxddpg.runs.load import evaluate, load_policy
from jaxddpg.runs.selection import Choice
from jaxddpg.runs.start import resume, run
from jaxddpg.settings import Halving, PopulationBased

EPOCHS = 6
RATES = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
BASED = {"method": "pbt", "interval": 2, "share": 0.4, "factors": [0.5, 2.0]}
HALVED = {"method": "halving", "interval": 2}


def selecting(method, **changes):
    population = {"sweep": {"agent.actor_learning_rate": RATES}, "seed": 3, "num_seeds": 1, "selection": method}
    training = vars(tiny().training) | {"num_epochs": EPOCHS}
    population |= changes.pop("population", {})
    saving = {"interval_seconds": 0, "keep": EPOCHS + 1}
    return tiny(**{"training": training, "checkpoint": saving, "population": population} | changes)


def row(member, score, parent=-1, diverged_by="", **numbers):
    told = {"member": member, "eval/return_mean": score, "parent": member if parent == -1 else parent}
    return told | {"diverged_by": diverged_by} | numbers


def by_epoch(directory):
    found = lines(directory)
    count = 1 + max(row["member"] for row in found)
    return [found[start : start + count] for start in range(0, len(found), count)]


@pytest.fixture(scope="module")
def based(tmp_path_factory):
    """An uninterrupted run with population-based training: its method, directory and result."""
    directory = tmp_path_factory.mktemp("based") / "run"
    return BASED, directory, run(selecting(BASED), directory)


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """The same with successive halving."""
    directory = tmp_path_factory.mktemp("halved") / "run"
    return HALVED, directory, run(selecting(HALVED), directory)


@pytest.fixture(params=["based", "halved"])
def whole(request):
    return request.getfixturevalue(request.param)


def test_the_worst_go_on_from_the_best_with_other_numbers():
    section = PopulationBased(share=0.25, factors=(0.5, 2.0))
    scores = [3.0, 8.0, 1.0, 5.0, 7.0, 2.0, 6.0, 4.0]
    rows = [row(member, score, x=float(member + 1), y=10.0) for member, score in enumerate(scores)]
    parents, factors = set(), set()
    for epoch in range(1, 40):
        epoch *= section.interval
        chosen = selection.choose(section, epoch, rows, ["x", "y"], lambda values: True)
        for member, choice in enumerate(chosen):
            if member in (2, 5):
                parents.add(choice.parent)
                factors |= {(choice.settings["x"] / (choice.parent + 1), choice.settings["y"] / 10)}
                assert choice.replay == choice.parent
            else:
                assert choice == Choice(member, member)
        assert chosen == selection.choose(section, epoch, rows, ["x", "y"], lambda values: True)
    assert parents == {1, 4}
    assert factors == {(a, b) for a in (0.5, 2.0) for b in (0.5, 2.0)}


@pytest.mark.parametrize("lost", [{5}, {0, 1, 2}, {0, 1, 2, 3, 4}])
def test_a_diverged_member_is_always_replaced(lost):
    """However many there are, by one that did not diverge."""
    rows = [row(m, math.nan if m in lost else float(m), diverged_by="loss" if m in lost else "") for m in range(6)]
    chosen = selection.choose(PopulationBased(share=0.2, copy_replay=False), 5, rows, [], lambda values: True)
    replaced = {member for member, choice in enumerate(chosen) if choice.parent != member}
    assert lost <= replaced
    assert not lost & {choice.parent for choice in chosen}
    assert not lost & {choice.replay for choice in chosen}


def test_where_all_diverged_nobody_is_replaced():
    rows = [row(member, math.nan, diverged_by="loss") for member in range(4)]
    chosen = selection.choose(PopulationBased(), 5, rows, [], lambda values: True)
    assert chosen == [Choice(member, member) for member in range(4)]


def test_a_product_that_breaks_a_rule_is_not_taken():
    rows = [row(0, 1.0, gamma=0.9, rate=0.1), row(1, 0.0, gamma=0.5, rate=0.5)]
    section = PopulationBased(factors=(2.0,))
    chosen = selection.choose(section, 5, rows, ["gamma", "rate"], lambda values: values["gamma"] <= 1)
    assert chosen[1] == Choice(0, 0, {"gamma": 0.9, "rate": 0.2})


@pytest.mark.parametrize(("reduction", "expected"), [(2, [6, 3, 2, 1, 1]), (3, [4, 2, 1, 1, 1]), (12, [1, 1, 1, 1, 1])])
def test_halving_keeps_the_best(reduction, expected):
    scores = random.Random(0).sample(range(100), 12)
    rows, running = [row(member, float(score)) for member, score in enumerate(scores)], []
    for epoch in range(1, 6):
        section = Halving(interval=1, reduction=reduction)
        chosen = selection.choose(section, epoch, rows, [], lambda values: True)
        rows = [one | {"parent": choice.parent} for one, choice in zip(rows, chosen, strict=True)]
        running.append([one["member"] for one in rows if one["parent"] is not None])
    assert [len(members) for members in running] == expected
    for members in running:
        assert {*members} == {*sorted(range(12), key=lambda member: -scores[member])[: len(members)]}


def test_what_was_chosen_stands_in_the_rows(whole):
    """A choice follows from the rows before it; between choices every member goes on as itself or rests."""
    method, directory, result = whole
    epochs = by_epoch(directory)
    section = selecting(method).population.selection
    axes = ["agent.actor_learning_rate"]
    moved = 0
    for epoch in range(1, EPOCHS + 1):
        before, now = epochs[epoch - 1], epochs[epoch]
        choices = selection.choose(section, epoch - 1, before, axes, lambda values: True)
        for one, last, choice in zip(now, before, choices, strict=True):
            assert one["parent"] == choice.parent
            assert one["agent.actor_learning_rate"] == {**last, **choice.settings}["agent.actor_learning_rate"]
        if epoch not in (3, 5):
            assert all(choice.parent in (None, member) for member, choice in enumerate(choices))
        moved += sum(r["parent"] != r["member"] for r in now)
        for one, last in zip(now, before, strict=True):
            grown = one["env_steps"] - last["env_steps"]
            assert grown == (0 if one["parent"] is None else selecting(method).training.steps_per_epoch * 2)
            if one["parent"] is None:
                assert one["eval/return_mean"] == last["eval/return_mean"]
                assert one["train/critic_loss"] is None
    assert moved >= 2
    assert [member["agent.actor_learning_rate"] for member in result.summary["members"]] == [
        r["agent.actor_learning_rate"] for r in epochs[-1]
    ]
    finals = [member["final_return"] for member in result.summary["members"]]
    running = [r["member"] for r in epochs[-1] if r["parent"] is not None]
    assert result.summary["chosen"] in running
    assert finals[result.summary["chosen"]] == max(finals[member] for member in running)
    assert result.summary["env_steps_total"] == sum(r["env_steps"] for r in epochs[-1])


@pytest.mark.parametrize("interruptions", [pytest.param((3,), marks=pytest.mark.slow), (4, 1, 1)])
def test_selection_goes_on_to_the_bit(whole, interruptions, tmp_path):
    """Interrupted before a choice, after it and between."""
    method, directory, result = whole
    run(selecting(method), tmp_path / "run", should_stop=after(interruptions[0]))
    for epochs in interruptions[1:]:
        resume(tmp_path / "run", should_stop=after(epochs))
    again = resume(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(directory)
    equal(again, result)


@pytest.mark.slow
def test_every_placement_can_select(whole, tmp_path):
    """After so few steps rounding decides nothing, so that the choices are the same."""
    method, directory, result = whole
    other = run(selecting(method, population={"placement": 5}), tmp_path / "run")
    names = ("epoch", "member", "parent", "agent.actor_learning_rate", "env_steps")
    told = [[[r[name] for name in names] for r in lines(place)] for place in (directory, tmp_path / "run")]
    assert told[0] == told[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other.agents, result.agents)


def test_a_member_that_rests_is_as_it_was(halved):
    """Its policy and its state on disk are those of the epoch in which it stopped."""
    _, directory, _ = halved
    parents = [r["parent"] for r in by_epoch(directory)[3]]
    resting = [member for member, parent in enumerate(parents) if parent is None]
    assert len(resting) == 2
    observation = np.array([-0.4, 0.01], np.float32)
    for member in range(5):
        then, now = (load_policy(directory, member, epoch)(observation) for epoch in (2, 3))
        assert (then == now).all() == (member in resting)


@pytest.mark.parametrize("copy_replay", [True, False])
def test_the_replay_is_taken_over_or_kept(copy_replay, tmp_path):
    """Right after a choice a member's older rows are those of its parent, or its own."""
    experiment = selecting(BASED | {"copy_replay": copy_replay}, training=vars(tiny().training) | {"num_epochs": 3})
    run(experiment, tmp_path / "run")
    state = checkpoint.restore(
        tmp_path / "run", 3, {"replay": build.state_like(config.resolve(experiment).run()).replay}, partial=True
    )
    written = (
        experiment.training.warmup_steps + 2 * experiment.training.steps_per_epoch
    ) * experiment.training.num_envs
    assert written <= experiment.replay.capacity
    rows = np.asarray(state["replay"].rows)
    rows = rows.reshape(len(rows), experiment.replay.capacity, -1)[:, :written]
    moved = [(r["member"], r["parent"]) for r in by_epoch(tmp_path / "run")[3] if r["parent"] != r["member"]]
    assert moved
    for member, parent in moved:
        assert (rows[member] == rows[parent]).all() == copy_replay


def test_a_run_in_which_members_diverge_goes_on_from_those_that_did_not(tmp_path):
    rates = {"agent.critic_learning_rate": [1e-3, 1e30, 1e-3, 1e30], "agent.actor_learning_rate": RATES[:4]}
    experiment = selecting(BASED | {"share": 0.25}, population={"sweep": rates, "combine": "zip"})
    result = run(experiment, tmp_path / "run")
    epochs = by_epoch(tmp_path / "run")
    assert {r["member"] for r in epochs[2] if r["diverged_by"]} == {1, 3}
    assert [r["diverged_by"] for r in epochs[3]] == 4 * [""]
    assert all(math.isfinite(member["final_return"]) for member in result.summary["members"])


def test_evaluation_is_of_the_numbers_that_members_have(whole):
    _, directory, _ = whole
    rows = evaluate(directory, num_episodes=2)
    assert [r["agent.actor_learning_rate"] for r in rows] == [
        r["agent.actor_learning_rate"] for r in by_epoch(directory)[-1]
    ]
    assert [r["seed"] for r in rows] == [3, 4, 5, 6, 7]


def test_the_best_is_one_that_runs():
    """A member that rests may have a better last evaluation; the picture is of the lineage of one that runs."""
    rows = [row(m, score, parent=m) for m, score in enumerate([5.0, 9.0, 7.0])]
    rows += [row(0, 6.0, parent=0), row(1, 9.0, parent=None), row(2, 4.0, parent=0)]
    for place, one in enumerate(rows):
        one |= {"epoch": place // 3, "env_steps": 10 * (place // 3), "x": 1.0 + place}
    lineage = curves.lineage(rows, ["x"])
    run_ = curves.Curves("all", *curves.by_epoch(rows), {}, seeds=[0, 1, 2], lineage=lineage)
    best = curves.chosen(run_)
    assert (best.seeds, best.returns[-1].tolist()) == ([0], [6.0])


def test_a_picture_is_drawn_whoever_is_best(tmp_path):
    rows = [row(m, score, parent=m) for m, score in enumerate([5.0, 9.0])]
    rows += [row(0, math.nan, parent=0, diverged_by="loss"), row(1, 9.0, parent=None)]
    for place, one in enumerate(rows):
        one |= {"epoch": place // 2, "env_steps": 10 * (place // 2), "x": 1.0 + place}
    run_ = curves.Curves("all", *curves.by_epoch(rows), {}, lineage=curves.lineage(rows, ["x"]), seeds=[0, 1])
    for name in ("q_start_mean", "discounted_return_mean"):
        run_.metrics[f"eval/{name}"] = run_.returns
    figures.plot([run_], tmp_path / "one.png")
    figures.plot([run_, run_._replace(label="again")], tmp_path / "two.png")
    assert min((tmp_path / name).stat().st_size for name in ("one.png", "two.png")) > 10_000


def test_the_picture_and_the_report_tell_of_selection(whole, tmp_path):
    method, directory, _ = whole
    lineage = curves.lineage(lines(directory), ["agent.actor_learning_rate"])
    assert lineage.parents.shape == (EPOCHS + 1, 5)
    assert lineage.stopped.any() == (method is HALVED)
    call("plot", directory)
    assert (directory / "learning_curve.png").stat().st_size > 10_000
    call("report", directory, "--output", tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "run, best of 5 | 1 |" in page
    assert "Its return is biased upwards" in page


def test_a_selected_sweep_ends_with_its_best_member(tmp_path):
    (tmp_path / "pbt.yaml").write_text(config.dump(selecting(BASED)))
    code, out, _ = call("sweep", tmp_path / "pbt.yaml", "--run-dir", tmp_path / "run")
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    best = summary["members"][summary["chosen"]]
    assert f"best final member: seed {best['seed']}" in out
    assert "IQM of the final returns" not in out


@pytest.mark.parametrize(
    ("population", "fault"),
    [
        (
            {"sweep": {"agent.batch_size": [4, 8]}},
            "population.sweep.agent.batch_size cannot be swept where members are",
        ),
        ({"sweep": {"environment.parameters.power": [1e-3, 2e-3]}}, "must share one environment and one program"),
        ({"selection": {"method": "ptb"}}, "population.selection.method is ptb, but must be one of none, pbt, halving"),
        ({"selection": {"method": "pbt", "share": 0.7}}, "population.selection.share is 0.7, but must be greater than"),
        (
            {"selection": {"method": "pbt", "reduction": 2}},
            "population.selection.reduction is a setting of method halving, but population.selection.method is pbt; "
            "leave it out, or replace the section: --population.selection '{method: pbt}'",
        ),
        (
            {"selection": BASED | {"interval": 7}},
            "population.selection.interval is 7, but training.num_epochs is 6, so selection would never run",
        ),
        ({"sweep": {}, "num_seeds": 1}, "population.selection.method is pbt, but there is only one member"),
    ],
)
def test_what_cannot_be_selected_is_said(population, fault):
    with pytest.raises(ConfigError) as caught:
        selecting(BASED, population=population)
    assert any(fault in sentence for sentence in caught.value.errors)


@pytest.mark.parametrize("flag", ["population.selection.interval", "population.placement"])
def test_what_decides_who_is_selected_cannot_change(flag, based):
    """Placement too: rounding may decide between two members."""
    said = call("resume", based[1], f"--{flag}", "3")
    assert not refused(said, f"{flag} is 3", "which cannot be changed")
