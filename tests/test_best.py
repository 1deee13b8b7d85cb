"""The policies that are kept: those at the best evaluation of each member, and what is read while a run trains."""

import shutil

import jax
import numpy as np
import pytest
from helpers import after, equal, lines, tiny

from jaxddpg import config
from jaxddpg.config import ConfigError, build
from jaxddpg.runs import checkpoint
from jaxddpg.runs import load as load_module
from jaxddpg.runs.load import evaluate, load_policy
from jaxddpg.runs.start import resume, run
from jaxddpg.training.loop import TrainingState

EPOCHS, MEMBERS = 8, 3
SLOW = pytest.mark.slow
OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (20, 2))


def unsteady(**changes):
    """Steps so long that the return goes up and down, and one checkpoint that is kept."""
    training = vars(tiny().training) | {"num_epochs": EPOCHS, "steps_per_epoch": 8}
    agent = {"batch_size": 4, "actor_learning_rate": 0.03, "critic_learning_rate": 0.03}
    agent |= {network: {"hidden_sizes": [8]} for network in ("actor", "critic")}
    sections = {"training": training, "agent": agent, "checkpoint": {"interval_seconds": 0, "keep": 1}}
    return tiny(**sections | changes)


def actions(directory, epoch, members=MEMBERS):
    return np.stack([load_policy(directory, member, epoch)(OBSERVATIONS) for member in range(members)])


def agents(directory, epoch):
    """What all members have learned, each leaf [M, ...]."""
    return load_module.load_policies(directory, epoch).agents


def best_epochs(rows, members=MEMBERS):
    returns = np.array([row["eval/return_mean"] for row in rows], float).reshape(-1, members)
    return np.where(np.isfinite(returns), returns, -np.inf).argmax(0).tolist()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run's directory and result, and the directory of the same run with all of its checkpoints."""
    directory = tmp_path_factory.mktemp("kept")
    run(unsteady(checkpoint={"interval_seconds": 0, "keep": EPOCHS + 1}), directory / "every")
    return directory / "run", run(unsteady(), directory / "run"), directory / "every"


def expected(kept, rows):
    """The actions of each member's policy after the epoch that these rows say was its best."""
    return np.stack(
        [load_policy(kept[2], member, epoch)(OBSERVATIONS) for member, epoch in enumerate(best_epochs(rows))]
    )


def test_the_best_policies_are_those_of_each_members_best_evaluation(kept):
    directory, *_ = kept
    epochs = best_epochs(lines(directory))
    assert checkpoint.epochs(directory) == [EPOCHS]
    assert len({*epochs}) > 1  # else a best of all members together would do
    assert max(epochs) < EPOCHS  # and the newest would not
    np.testing.assert_array_equal(actions(directory, "best"), expected(kept, lines(directory)))
    assert [row["epoch"] for row in evaluate(directory, 2, epoch="best")] == epochs


@pytest.mark.parametrize("placement", [1, *(pytest.param(several, marks=SLOW) for several in (2, 3))])
def test_they_are_the_same_after_interruptions_and_wherever_members_lie(placement, kept, tmp_path):
    placed = unsteady(population={"seed": 7, "num_seeds": MEMBERS, "placement": placement})
    run(placed, tmp_path / "run", should_stop=after(3))
    resume(tmp_path / "run", should_stop=after(3))
    resume(tmp_path / "run")
    found = actions(tmp_path / "run", "best")
    np.testing.assert_allclose(found, expected(kept, lines(tmp_path / "run")), atol=1e-4)


@pytest.mark.parametrize(
    "method", [{"method": "pbt", "interval": 2, "share": 0.4}, {"method": "halving", "interval": 3}]
)
def test_where_members_are_selected_each_keeps_its_own(method, tmp_path):
    """A member that is replaced or paused has the best of its own evaluations."""
    rates = [1e-4, 1e-3, 1e-2, 3e-2, 1e-1]
    population = {"sweep": {"agent.actor_learning_rate": rates}, "seed": 3, "num_seeds": 1, "selection": method}
    run(
        unsteady(population=population, checkpoint={"interval_seconds": 0, "keep": 99}),
        tmp_path / "run",
        should_stop=after(5),
    )
    resume(tmp_path / "run")
    epochs = best_epochs(lines(tmp_path / "run"), len(rates))
    found = evaluate(tmp_path / "run", 2, epoch="best")
    assert [row["epoch"] for row in found] == epochs
    rows = {(row["epoch"], row["member"]): row for row in lines(tmp_path / "run")}
    for member, epoch in enumerate(epochs):
        rate = "agent.actor_learning_rate"
        assert found[member][rate] == rows[epoch, member][rate]
    returns = [rows[epoch, member]["eval/return_mean"] for member, epoch in enumerate(epochs)]
    assert [row["status"] == "best" for row in found] == [value == max(returns) for value in returns]
    every = {epoch: agents(tmp_path / "run", epoch) for epoch in {*epochs, "best"}}
    for member, epoch in enumerate(epochs):
        jax.tree.map(
            lambda then, best, member=member: np.testing.assert_array_equal(best[member], then[member]),
            every[epoch],
            every["best"],
        )


def test_a_member_that_diverged_has_its_best_policy_from_before(tmp_path):
    """The other does not."""
    population = {"num_seeds": 1, "sweep": {"agent.critic_learning_rate": [0.03, 1e38]}}
    run(unsteady(population=population), tmp_path / "run")
    assert [bool(row["diverged_by"]) for row in lines(tmp_path / "run")[-2:]] == [False, True]
    newest, best = (evaluate(tmp_path / "run", 2, epoch=epoch) for epoch in ("newest", "best"))
    assert np.isfinite([row["return_mean"] for row in newest]).tolist() == [True, False]
    assert np.isfinite([row["return_mean"] for row in best]).all()


def test_a_checkpoint_of_an_earlier_version_is_resumed_and_has_no_best(kept, tmp_path):
    run(unsteady(), tmp_path / "run", should_stop=after(4))
    like = dict(vars(build.state_like(config.resolve(unsteady()).run())))
    state = checkpoint.restore(tmp_path / "run", 3, like, partial=True)
    origin = checkpoint.origin(tmp_path / "run", 3)
    checkpoint.save(tmp_path / "run", 3, TrainingState(**state), origin)
    with pytest.raises(ConfigError, match="written by an earlier version that did not store best policies; use newest"):
        evaluate(tmp_path / "run", 2, epoch="best")
    whole = resume(tmp_path / "run")
    assert max(row["epoch"] for row in evaluate(tmp_path / "run", 2, epoch="best")) >= 3
    equal(whole, kept[1])


def test_a_run_is_read_while_it_trains(kept, tmp_path, monkeypatch, recwarn):
    """Twice the trainer removes what is about to be read, for a newer checkpoint: that is no damage."""
    shutil.copytree(kept[2], tmp_path / "run")
    for epoch in (7, 8):
        (tmp_path / "run" / "checkpoints" / f"{epoch}.json").rename(tmp_path / f"{epoch}.json")
    restore, newer = checkpoint.restore, iter([7, 8])

    def slow(run, epoch, like, partial=False):
        if following := next(newer, None):
            (tmp_path / f"{following}.json").rename(run / "checkpoints" / f"{following}.json")
            checkpoint.remove(run, epoch)
        return restore(run, epoch, like, partial)

    monkeypatch.setattr(checkpoint, "restore", slow)
    found = evaluate(tmp_path / "run", 2)
    assert [row["epoch"] for row in found] == [8] * MEMBERS
    assert len(recwarn) == 0
