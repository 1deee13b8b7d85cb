import contextlib
import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import yaml
from helpers import (
    GRID,
    RATES,
    SCALES,
    SEEDS,
    after,
    call,
    comparable,
    equal,
    faults,
    lines,
    programs,
    refused,
    reread,
    swept,
    swept_values,
    tiny,
    variants,
)

from jaxddpg import config
from jaxddpg.config import ConfigError, build
from jaxddpg.report import figures
from jaxddpg.report.curves import Curves
from jaxddpg.runs import directory as directory_module
from jaxddpg.runs import start as start_module
from jaxddpg.runs.load import evaluate, load_policy
from jaxddpg.runs.start import resume, resume_sweep, run, sweep
from jaxddpg.training.loop import clock_at
from jaxddpg.training.population import Population

VARIANTS = [{"agent.actor_learning_rate": rate, "noise.scale": scale} for rate in RATES for scale in SCALES]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    directory = tmp_path_factory.mktemp("grid") / "run"
    (result,) = sweep(swept(checkpoint={"interval_seconds": 0}), directory)
    return directory, result


def test_a_member_of_a_sweep_is_the_run_with_its_values(grid):
    """Every variant with every seed, seeds fastest; each equal to an experiment of its own."""
    for number in (0, 4):
        alone = run(
            config.parse(
                config.as_mapping(tiny(population={"seed": 7, "num_seeds": SEEDS})), VARIANTS[number]
            ).experiment
        )
        own = slice(number * SEEDS, (number + 1) * SEEDS)
        jax.tree.map(
            lambda a, b, own=own: np.testing.assert_allclose(a[own], b, atol=1e-6), grid[1].agents, alone.agents
        )
    actors = jax.tree.leaves(grid[1].agents.actor)[0]
    assert len({actor.tobytes() for actor in actors}) == len(actors)


def test_what_is_swept_is_told_with_every_row(grid):
    told = [(row["agent.actor_learning_rate"], row["noise.scale"], row["seed"]) for row in lines(grid[0])]
    expected = [(v["agent.actor_learning_rate"], v["noise.scale"], 7 + seed) for v in VARIANTS for seed in range(SEEDS)]
    assert told == 3 * expected
    summary = json.loads((grid[0] / "summary.json").read_text())
    assert [(m["noise.scale"], m["seed"]) for m in summary["members"]] == [entry[1:] for entry in expected]
    finals = np.array([member["final_return"] for member in summary["members"]]).reshape(-1, SEEDS)
    assert [variant["noise.scale"] for variant in summary["variants"]] == 2 * SCALES
    np.testing.assert_allclose([v["final_return_iqm"] for v in summary["variants"]], finals.mean(1), rtol=1e-6)


def test_evaluation_and_policies_are_those_of_the_variants(grid):
    rows = evaluate(grid[0], num_episodes=2)
    assert [row["noise.scale"] for row in rows] == [scale for scale in 2 * SCALES for _ in range(SEEDS)]
    observation = np.array([-0.4, 0.01], np.float32)
    actions = [load_policy(grid[0], member)(observation).item() for member in range(3)]
    assert len({*actions}) == 3


def test_the_evaluation_of_a_sweep_is_that_of_its_runs(several, tmp_path):
    directory = several[0]
    rows = evaluate(directory, num_episodes=2)
    names = sorted(path.name for path in directory.iterdir() if path.is_dir())
    assert [row.pop("run") for row in rows] == [name for name in names for _ in range(len(rows) // 2)]
    assert rows == [row for name in names for row in evaluate(directory / name, num_episodes=2)]
    code, out, err = call("evaluate", directory, "--num-episodes", "2", "--output", tmp_path / "found.csv")
    assert (code, err) == (0, "")
    with (tmp_path / "found.csv").open() as file:
        assert [float(row["return_mean"]) for row in csv.DictReader(file)] == [row["return_mean"] for row in rows]
    table = [line.split()[:4] for line in out.splitlines() if line.strip()[:1] == "0"]
    finals = np.array([row["return_mean"] for row in rows]).reshape(-1, SEEDS)
    expected = [[scale, size, SEEDS] for size in (4, 8) for scale in SCALES]
    assert [[float(cell) for cell in line[:3]] for line in table] == expected
    np.testing.assert_allclose([float(line[3]) for line in table], finals.mean(1), rtol=1e-4)


def test_the_evaluation_of_a_sweep_leaves_out_what_has_not_begun(several, tmp_path):
    shutil.copytree(several[0], tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "1_agent.batch_size=8")
    with pytest.warns(UserWarning, match=r"1_agent.batch_size=8 has no checkpoint yet; skipping it"):
        rows = evaluate(tmp_path / "sweep", num_episodes=1)
    assert {row["agent.batch_size"] for row in rows} == {4}
    shutil.rmtree(tmp_path / "sweep" / "0_agent.batch_size=4")
    with pytest.raises(ConfigError, match="has no checkpoint; was the sweep stopped"):
        evaluate(tmp_path / "sweep", num_episodes=1)


def test_each_run_of_a_sweep_says_which_it_is(several):
    assert "run 2 of 2: MountainCarContinuous-v0, 6 members" in several[1][2]


def test_a_swept_parameter_is_that_of_the_policys_environment(tmp_path):
    run(swept({"environment.parameters.max_action": [2.0, 4.0]}, population={"num_seeds": 1}), tmp_path / "run")
    bounds = [load_policy(tmp_path / "run", member)(np.zeros(2, np.float32)).item() for member in range(2)]
    assert bounds[0] == pytest.approx(0.75, abs=0.1)  # the middle of the Box, since the policy begins near 0
    assert bounds[1] == pytest.approx(1.75, abs=0.1)


def test_a_sweep_goes_on_where_it_was(grid, tmp_path):
    run(swept(checkpoint={"interval_seconds": 0}), tmp_path / "run", should_stop=after(2))
    result = resume(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(grid[0])
    equal(result, grid[1])


def test_a_sweep_of_numbers_is_one_compilation():
    """And no member speaks to another: nothing is sent between devices."""
    built = []

    def counted(member):
        built.append(member)
        return build.build(member)

    experiment = swept()
    members = [variant.member() for variant in variants(experiment) for _ in range(SEEDS)]
    population = Population(counted, members, [*range(SEEDS)] * 6)
    clock = clock_at(experiment.training, 1)
    population.compile(clock, False)
    population.epoch(clock, population.init())[1]()
    assert len(built) == 3
    text = population.programs["epoch"].compiled.as_text()
    assert "num_partitions=2" in text
    for collective in ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective"):
        assert collective not in text


def test_several_programs_run_one_after_the_other(several):
    """Each in a directory of its own, which says all of itself."""
    directory, (code, out, err) = several
    assert code == 0, err
    for number, size in enumerate((4, 8)):
        place = directory / f"{number}_agent.batch_size={size}"
        assert config.read_run(place).experiment.agent.batch_size == size
        told = [(row["agent.batch_size"], row["noise.scale"], row["seed"]) for row in lines(place)]
        assert told == 3 * [(size, scale, seed) for scale in SCALES for seed in (7, 8)]
    assert "run directory" in out
    table = [line.split()[:2] for line in out.splitlines() if line.strip()[:1] == "0"]
    assert table == [[f"{scale}", f"{size}"] for size in (4, 8) for scale in SCALES]


def test_an_interrupted_sweep_ends_as_if_it_had_not_been(several, tmp_path):
    sweep(config.read(several[0].parent / "sweep.yaml").experiment, tmp_path / "sweep")
    for name in ("0_agent.batch_size=4", "1_agent.batch_size=8"):
        assert comparable(tmp_path / "sweep" / name) == comparable(several[0] / name)


def test_the_order_of_axes_survives_the_file(tmp_path):
    experiment = swept({"noise.scale": SCALES, "agent.actor_learning_rate": RATES})
    again = reread(experiment, tmp_path)
    assert config.resolve(again).run().identities() == config.resolve(experiment).run().identities()
    assert [*again.population.sweep] == ["noise.scale", "agent.actor_learning_rate"]


def test_values_are_read_as_settings_are():
    experiment = swept({"agent.actor_learning_rate": ["1e-4", 1], "agent.critic.action_layer": [0]})
    assert swept_values(experiment) == [
        {"agent.actor_learning_rate": rate, "agent.critic.action_layer": 0} for rate in (1e-4, 1.0)
    ]


def test_one_value_that_gives_the_program_its_shape_is_no_second_program():
    (program,) = programs(swept({"agent.batch_size": [8], "noise.scale": SCALES})).values()
    assert program.agent.batch_size == 8
    assert len(variants(program)) == 3


def test_values_that_look_alike_are_programs_of_their_own():
    """What cannot stand in the name of a directory is left out of it, the sign of a number is not."""
    axis = {"environment.parameters.number": [-1, 1], "environment.parameters.text": ["a b", "a-b"]}
    experiment = config.parse({"environment": {"name": "module:make"}, "population": {"sweep": axis}}).experiment
    path, other = "environment.parameters.number", "environment.parameters.text"
    assert {
        name: (p.environment.parameters["number"], p.environment.parameters["text"])
        for name, p in programs(experiment).items()
    } == {
        f"0_{path}=-1,{other}=a-b": (-1, "a b"),
        f"1_{path}=-1,{other}=a-b": (-1, "a-b"),
        f"2_{path}=1,{other}=a-b": (1, "a b"),
        f"3_{path}=1,{other}=a-b": (1, "a-b"),
    }


def test_an_array_is_an_axis():
    experiment = swept({"noise.scale": np.array([0.1, 0.2])})
    assert swept_values(experiment) == [{"noise.scale": 0.1}, {"noise.scale": 0.2}]


def test_flags_name_axes():
    overrides = {
        "population.sweep.noise.scale": "[0.1, 0.2]",
        "population.sweep.agent.tau": "{linspace: [0.1, 0.3, 3]}",
    }
    experiment = config.parse({}, overrides).experiment
    assert experiment.population.sweep == {"noise.scale": [0.1, 0.2], "agent.tau": {"linspace": [0.1, 0.3, 3]}}
    assert config.resolve(experiment).num_members == 6


@pytest.mark.parametrize(
    ("sweep", "population", "said"),
    [
        ({"agent.tua": [0.1]}, {}, "population.sweep.agent.tua is not a member setting; did you mean agent.tau?"),
        ({"population.seed": [1]}, {}, "population.sweep.population.seed is not a member setting"),
        ({"agent.tau": 0.1}, {}, "population.sweep.agent.tau is 0.1, but must be a list of values"),
        ({"agent.tau": [0.1, 2]}, {}, "population.sweep: agent.tau is 2, but must be greater than 0 and at most 1"),
        ({"agent.batch_size": [4, 65]}, {}, "population.sweep: agent.batch_size is 65, but must be at most replay"),
        (
            {"agent.tau": {"uniform": [0.1, 0.2]}},
            {},
            "population.combine is grid, but agent.tau is a range; use combine: random",
        ),
        (
            {"agent.tau": {"uniform": [0.1, 0.2]}, "noise.scale": {"uniform": [0.1, 0.2]}},
            {},
            "population.combine is grid, but agent.tau and noise.scale are ranges; use combine: random",
        ),
        (
            {"agent.tau": [0.1], "noise.scale": [0.1, 0.2]},
            {"combine": "zip"},
            "population.combine is zip, which requires axes of equal length, but they have agent.tau 1",
        ),
        ({"agent.tau": [0.1]}, {"num_draws": 3}, "population.num_draws is 3, but population.combine is grid"),
        (
            {"agent.tau": [0.1]},
            {"combine": "random", "num_draws": 3},
            "population.sweep: only 1 distinct variants could be drawn, not 3",
        ),
        (
            {"agent.tau": ["1e-1", 0.1]},
            {},
            "population.sweep: the variant {agent.tau: 0.1} occurs twice; remove the duplicate",
        ),
        ({"agent.tau": {"linspace": [0.1, 0.2, 10**9]}}, {}, "population.sweep.agent.tau is {linspace: [0.1, 0.2, 1"),
        (
            {"agent.tau": {"linspace": [0.1, 0.2, 200]}, "noise.scale": {"linspace": [0.1, 0.2, 200]}},
            {},
            "population.combine is grid, which makes 40000 variants, but at most 10000",
        ),
        ({"agent.actor": [1]}, {}, "population.sweep.agent.actor is a section; name a setting in it, such as"),
        ([1], {}, "population.sweep is [1], but must be a mapping {name: value, ...}"),
        ({"environment.parameters.gravty": [1]}, {}, "population.sweep: environment.parameters.gravty is not"),
    ],
)
def test_faults_are_told(sweep, population, said):
    content = config.as_mapping(tiny(population={"num_seeds": 1}))
    content["population"] |= {"sweep": sweep} | population
    (fault, *_) = faults(content)
    assert fault.startswith(said)


def test_commands_refuse_what_the_other_does(tmp_path, several, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "swept.yaml"
    path.write_text(config.dump(swept()))
    assert refused(call("train", path), "population.sweep is set", "use `jaxddpg sweep`") == []
    path.write_text(config.dump(tiny()))
    assert refused(call("sweep", path), "population.sweep is empty", "list the settings to sweep") == []
    directory = several[0]
    said = call("sweep", directory.parent / "sweep.yaml", "--run-dir", directory, "--quiet")
    assert refused(said, "already contains a sweep") == []
    assert refused(call("render", directory), "choose one of its subdirectories") == []
    said = call("resume", directory, "--agent.gamma", "0.5", "--quiet")
    assert refused(said, "agent.gamma", "cannot be changed") == []
    assert not (tmp_path / "runs").exists()


def test_a_run_is_one_program():
    with pytest.raises(config.ConfigError, match=r"need 2 compiled programs"):
        run(swept({"agent.batch_size": [4, 8]}))


def test_the_final_returns_are_drawn_over_what_is_swept(grid, several, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    assert call("plot", grid[0])[0] == 0
    _, rate, scale, heat, *_ = drawn[-1].axes
    summary = grid[1].summary
    iqms = np.array([variant["final_return_iqm"] for variant in summary["variants"]]).reshape(2, 3)
    np.testing.assert_allclose(heat.images[0].get_array(), iqms.T, rtol=1e-6)
    assert (rate.get_xscale(), scale.get_xscale()) == ("log", "linear")
    middle = next(line for line in scale.lines if line.get_linestyle() == "-")
    np.testing.assert_allclose(middle.get_xdata(), SCALES)
    finals = np.array([member["final_return"] for member in summary["members"]]).reshape(2, 3, SEEDS)
    pooled = np.sort(finals.transpose(1, 0, 2).reshape(3, -1))
    np.testing.assert_allclose(middle.get_ydata(), pooled[:, 1:3].mean(1), rtol=1e-6)
    assert call("plot", several[0], grid[0], "--output", tmp_path / "all.png")[0] == 0
    assert [title for axes in drawn[-1].axes if (title := axes.get_title())] == [
        "Return",
        *(f"Sensitivity to {name}" for name in ("noise.scale", "agent.batch_size", "agent.actor_learning_rate")),
        "Final return, IQM (sweep)",
        "Final return, IQM (run)",
    ]


def test_a_diverged_member_is_told_with_its_values(tmp_path):
    path = tmp_path / "wild.yaml"
    wild = swept({"agent.critic_learning_rate": [1e-3, 1e38]}, population={"num_seeds": 1})
    path.write_text(config.dump(wild))
    code, _, err = call("sweep", path, "--run-dir", tmp_path / "run")
    assert code == 0
    assert "member with seed 7, agent.critic_learning_rate 1e+38 diverged at env step" in err


def test_a_dumped_sweep_is_plain_yaml():
    content = yaml.safe_load(config.dump(swept()))
    assert config.parse(content).experiment == swept()
    assert dataclasses.asdict(swept())["population"]["sweep"] == GRID


@pytest.mark.slow
def test_a_change_holds_for_every_program_however_often_interrupted(tmp_path):
    """And one that cannot hold for all changes none."""
    axes = {"agent.batch_size": [4, 8]}
    sweep(swept(axes, checkpoint={"interval_seconds": 0}), tmp_path / "sweep")
    more = {"training.num_epochs": 4}
    resume_sweep(tmp_path / "sweep", more, should_stop=after(2))
    resume_sweep(tmp_path / "sweep")
    epochs = [
        lines(tmp_path / "sweep" / name)[-1]["epoch"] for name in ("0_agent.batch_size=4", "1_agent.batch_size=8")
    ]
    assert epochs == [4, 4]
    before = (tmp_path / "sweep" / "sweep.yaml").read_text()
    with pytest.raises(config.ConfigError, match="the run has already reached epoch 4"):
        resume_sweep(tmp_path / "sweep", {"training.num_epochs": 1})
    assert (tmp_path / "sweep" / "sweep.yaml").read_text() == before


def test_an_infinite_value_is_told_and_drawn(tmp_path):
    run(swept({"agent.max_grad_norm": [1.0, float("inf")]}, population={"num_seeds": 1}), tmp_path / "run")
    assert [row["agent.max_grad_norm"] for row in lines(tmp_path / "run")[:2]] == [1.0, "inf"]
    assert call("plot", tmp_path / "run")[0] == 0
    assert call("report", tmp_path / "run", "--output", tmp_path / "report")[0] == 0


def test_a_text_on_an_axis_is_that_text():
    axis = {"environment.parameters.mode": ["on", "null", "[a]"]}
    experiment = config.parse({"environment": {"name": "module:make"}, "population": {"sweep": axis}}).experiment
    assert [v.environment.parameters["mode"] for v in variants(experiment)] == ["on", "null", "[a]"]


def test_numbers_of_two_kinds_are_programs_of_their_own():
    """A whole number is static to a factory of one's own, a float is traced."""
    axis = {"environment.parameters.k": [1.5, 2]}
    experiment = config.parse({"environment": {"name": "module:make"}, "population": {"sweep": axis}}).experiment
    assert len(programs(experiment)) == 2


def test_a_tag_is_no_axis():
    content = {"population": {"sweep": {"agent.algorithm": ["ddpg", "copdac"]}}}
    (fault,) = faults(content)
    assert fault.startswith("population.sweep.agent.algorithm determines which settings exist")


def test_what_has_not_begun_is_left_out_of_pictures(several, tmp_path):
    shutil.copytree(several[0], tmp_path / "sweep")
    (tmp_path / "sweep" / "1_agent.batch_size=8" / "metrics.jsonl").write_text("")
    assert call("plot", tmp_path / "sweep")[0] == 0
    (tmp_path / "sweep" / "0_agent.batch_size=4" / "metrics.jsonl").unlink()
    assert refused(call("plot", tmp_path / "sweep"), "there is no complete epoch yet") == []


def test_the_band_is_that_of_seeds_and_not_of_settings():
    """Variants far apart whose seeds agree: the interval of what they share is narrow."""
    runs = [
        Curves("", np.arange(1), {"eval/return_mean": np.full((1, 5), level)}, {}, {"a": 1.0, "b": level})
        for level in (-140.0, -150.0, -700.0, -1400.0)
    ]
    runs += [run._replace(values=run.values | {"a": 2.0}) for run in runs]
    figure = figures.Figure()
    axes = figure.subplots()
    figures._sensitivity(axes, runs, "a")
    heights = np.concatenate([path.vertices[:, 1] for band in axes.collections for path in band.get_paths()])
    assert np.ptp(heights) == 0


def test_a_sweep_that_is_refused_has_written_nothing(tmp_path):
    """Two that start together both find the directory free; only the one that holds the lock may write there."""
    with directory_module.locked(tmp_path / "sweep"):
        with pytest.raises(ConfigError, match="another process is training"):
            sweep(swept({"agent.batch_size": [4, 8]}), tmp_path / "sweep")
        assert [path.name for path in (tmp_path / "sweep").iterdir()] == [".lock"]


def test_a_sweep_begun_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    """The other one has begun and ended between the first look at the directory and the lock."""
    locked = directory_module.locked

    @contextlib.contextmanager
    def late(directory):
        with locked(directory):
            (directory / "sweep.yaml").write_text("the other's")
            yield

    monkeypatch.setattr(start_module, "locked", late)
    with pytest.raises(ConfigError, match="already contains a sweep"):
        sweep(swept({"agent.batch_size": [4, 8]}), tmp_path / "sweep")
    assert (tmp_path / "sweep" / "sweep.yaml").read_text() == "the other's"
