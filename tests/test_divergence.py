import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from helpers import call, lines, summary_of, tiny

from jaxddpg import config
from jaxddpg.config import build
from jaxddpg.config import environment as environment_module
from jaxddpg.runs.load import evaluate, load_policy
from jaxddpg.runs.show import write_report
from jaxddpg.runs.start import resume, run
from jaxddpg.training.divergence import Divergence
from jaxddpg.training.loop import clock_at
from jaxddpg.training.population import Population

WARMUP, CHUNK, EPOCHS, MEMBERS, SPOILED = 10, 50, 4, 8, 3


def small(**changes):
    """One update per vector step, and as many of them in an epoch as in a chunk."""
    training = {"num_envs": 2, "warmup_steps": WARMUP, "steps_per_epoch": CHUNK, "num_epochs": EPOCHS}
    sections = {
        "environment": {"name": "probes:spoiled"},
        "agent": {"batch_size": 16, "actor": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}},
        "replay": {"capacity": 1_000},
        "training": training | {"updates_per_step": 1},
        "evaluation": {"num_episodes": 2},
        "population": {"num_seeds": MEMBERS},
    }
    return config.parse(sections | {name: sections.get(name, {}) | value for name, value in changes.items()}).experiment


def trained(parameters, placement, changes=None, epochs=EPOCHS):
    """The gathered states before the first and after each epoch, of a population whose member SPOILED has these
    parameters of the environment, and the text of its program."""
    clean = {"nan_at_step": jnp.inf, "inf_at_step": jnp.inf, "lost_at_step": jnp.inf}
    members = [
        small(environment={"parameters": clean | (parameters if member == SPOILED else {})}, **changes or {}).member()
        for member in range(MEMBERS)
    ]
    population = Population(build.build, members, range(MEMBERS), placement, version=__name__)
    state = population.init()
    states = [population.gather(state)]
    for epoch in range(1, epochs + 1):
        state, _ = population.epoch(clock_at(members[0].training, epoch), state)
        states.append(population.gather(state))
    # Where in the source an instruction comes from is told by lines and notes that hold the caller's line, too.
    text = re.sub(r", metadata=\{[^}]*\}|^\d+ .*\n", "", population.programs["epoch"].compiled.as_text(), flags=re.M)
    return states, text


@functools.cache
def clean(placement):
    return trained({}, placement)


def of(state, members):
    return jax.tree.map(lambda leaf: leaf[members], state)


OTHERS = [member for member in range(MEMBERS) if member != SPOILED]


@pytest.mark.parametrize(
    ("cause", "reason", "placement"),
    [
        pytest.param("nan_at_step", "reward", 1, marks=pytest.mark.slow),
        ("nan_at_step", "reward", MEMBERS),
        ("inf_at_step", "reward", MEMBERS),
        ("lost_at_step", "observation", MEMBERS),
    ],
)
def test_a_member_that_diverges_is_as_before_the_chunk_and_the_others_never_know(cause, reason, placement):
    """The fault is a traced number, so it is the same program; the other seven are equal to the bit."""
    at = WARMUP + 2 * CHUNK + 17
    (spoiled, program), (whole, same) = trained({cause: float(at)}, placement), clean(placement)
    assert program == same
    for state, expected in zip(spoiled, whole, strict=True):
        jax.tree.map(np.testing.assert_array_equal, of(state, OTHERS), of(expected, OTHERS))
    assert not whole[-1].health.diverged.any()
    assert Divergence.REASONS[spoiled[-1].health.reason[SPOILED]] == reason
    assert spoiled[-1].health.step[SPOILED] == at
    # The third chunk is spoiled, so the member stays as the second has left it.
    for epoch, expected in enumerate((0, 1, 2, 2, 2)):
        jax.tree.map(
            np.testing.assert_array_equal, of(spoiled[epoch].agent, SPOILED), of(whole[expected].agent, SPOILED)
        )


def test_a_parameter_or_a_loss_that_is_not_finite_is_seen():
    """A rate so large that the step leaves the range of the numbers: at the end of the chunk, or in the next loss."""
    changes = {"agent": {"critic_learning_rate": 1e38, "reward_scale": 1e30}}
    one_update = {"training": {"steps_per_epoch": 1, "warmup_steps": 20}}
    states, _ = trained({}, 1, changes | one_update, epochs=1)
    assert {Divergence.REASONS[reason] for reason in states[-1].health.reason} <= {"loss", "parameter"}
    jax.tree.map(np.testing.assert_array_equal, states[1].agent, states[0].agent)


def test_nan_weights_alone_are_a_reason():
    healthy = Divergence(jnp.zeros((), jnp.uint8), jnp.zeros((), jnp.uint32))
    clock = clock_at(small().training, 2)
    seen = healthy.update(clock, parameter={"w": jnp.array([1.0, jnp.nan])})
    assert (int(seen.reason), int(seen.step)) == (Divergence.REASONS.index("parameter"), WARMUP + CHUNK)
    later = seen.update(clock.after(5), reward=jnp.inf)
    assert (int(later.reason), int(later.step)) == (int(seen.reason), int(seen.step))
    assert not healthy.update(clock, reward={"w": jnp.ones(3), "n": jnp.arange(3)}).diverged


def spoiled_run(**population):
    """All members meet a reward that is not a number, in the second epoch."""
    at = float(WARMUP + CHUNK + 20)
    return small(environment={"name": "probes:spoiled", "parameters": {"nan_at_step": at}}, population=population)


def test_a_run_whose_members_all_diverge_ends_there_and_says_so(tmp_path):
    result = run(spoiled_run(num_seeds=2), tmp_path / "run")
    assert [row["epoch"] for row in result.rows[::2]] == [0, 1, 2]
    assert [member["diverged_by"] for member in result.summary["members"]] == ["reward"] * 2
    assert {member["diverged_at"] for member in result.summary["members"]} == {2 * (WARMUP + CHUNK + 21)}
    assert np.isnan(result.rows[-1]["eval/return_mean"])
    assert np.isfinite(result.rows[-3]["eval/return_mean"])
    assert lines(tmp_path / "run")[-1]["diverged_by"] == "reward"
    assert np.isfinite(load_policy(tmp_path / "run")([0.0])).all()  # as it was before
    assert np.isnan([row["return_mean"] for row in evaluate(tmp_path / "run", num_episodes=1)]).all()
    again = resume(tmp_path / "run")
    assert len(again.rows) == len(result.rows)


def test_one_of_several_stops_the_run_where_that_is_asked(tmp_path):
    (tmp_path / "spoiled.yaml").write_text(config.dump(spoiled_run(num_seeds=1, on_divergence="stop")))
    code, out, err = call("train", tmp_path / "spoiled.yaml", "--run-dir", tmp_path / "run")
    assert code == 1
    assert (
        f"member with seed 0 diverged at env step {2 * (WARMUP + CHUNK + 21)}: a reward was not finite, from the "
        in err
    )
    assert "environment's step; its last finite state is kept" in err
    assert "error: 1 of 1 members diverged; check the environment, which returned non-finite values" in err
    assert "diverged" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 2
    assert (tmp_path / "run" / "learning_curve.png").is_file()


@pytest.mark.parametrize("function", ["reset", "step"])
def test_an_observation_that_is_not_finite_names_the_function_that_gave_it(function):
    """The first one of the run, or that after the first step of all, which is in the warm-up."""
    at = {"reset": -1.0, "step": 0.0}[function]
    result = run(small(environment={"parameters": {"lost_at_step": at}}, population={"num_seeds": 1}))
    (member,) = result.summary["members"]
    assert (member["diverged_by"], member["diverged_in"], member["diverged_at"]) == ("observation", function, 2)
    assert [row["epoch"] for row in result.rows] == [0]


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory):
    """Rewards are not finite at a step that an evaluation comes to, but training does not."""
    at = {"nan_at_step": float(WARMUP + CHUNK), "limit": 100}
    changes = {"training": {"num_epochs": 1}, "population": {"num_seeds": 2}}
    directory = tmp_path_factory.mktemp("unmeasured")
    (directory / "it.yaml").write_text(config.dump(small(environment={"parameters": at}, **changes)))
    return directory / "run", call("train", directory / "it.yaml", "--run-dir", directory / "run")


def test_an_evaluation_that_is_not_finite_fails_and_is_no_divergence(unmeasured):
    directory, (code, out, err) = unmeasured
    assert code == 1
    assert "diverged" not in out + err
    cause = "a reward of the environment's step was not finite in the evaluation of the member with seed"
    assert f"warning: after epoch 0, {cause} 0\n" in err
    assert f"warning: in the last evaluation, {cause} 1\n" in err
    assert "error: 2 of 2 members have a non-finite evaluation" in err
    assert out.count("not finite") == 5  # of two members the last and the best, and the mean
    members = summary_of(directory)["members"]
    assert [member["unmeasured_by"] for member in members] == ["reward of the environment's step"] * 2
    assert [member["diverged_by"] for member in members] == ["", ""]


def test_what_is_made_of_a_run_that_was_not_measured_speaks_of_no_divergence(unmeasured, tmp_path):
    directory, _ = unmeasured
    code, out, err = call("evaluate", directory, "--num-episodes", 1)
    assert code == 1
    assert "diverged" not in out + err
    cause = "a reward of the environment's step was not finite in the evaluation of the member with seed"
    assert f"warning: {cause} 1" in err
    write_report([directory], tmp_path / "report")
    assert "| 0 | 2 |" in (tmp_path / "report" / "report.md").read_text()  # diverged, not finite


def test_one_member_without_a_finite_evaluation_is_a_warning(tmp_path):
    changes = {"training": {"num_epochs": 1}, "environment": {"parameters": {"limit": 100, "nan_at_step": 1e9}}}
    sweep = {"environment.parameters.nan_at_step": [float(WARMUP + CHUNK), 1e9]}
    (tmp_path / "it.yaml").write_text(config.dump(small(**changes, population={"num_seeds": 1, "sweep": sweep})))
    code, out, err = call("sweep", tmp_path / "it.yaml", "--run-dir", tmp_path / "run")
    assert code == 0
    assert "diverged" not in out + err
    assert err.count("warning: in the last evaluation, a reward") == 1


def test_diagnostics_say_what_is_saturated_and_dead():
    """A policy whose only hidden layer is zero everywhere, and whose output is at the end of its range."""
    member = tiny().member()
    environment = environment_module.make_environment(member.environment)
    agent = build.make_agent(environment, member.agent)
    state, key = agent.init(jax.random.key(0)), jax.random.key(1)
    batch = probes.batch(key, environment, 32)
    assert agent.diagnostics(state, batch)["actor_saturation"] == 0
    dead = jax.tree.map(jnp.copy, state.actor)
    dead["params"]["Dense_0"]["bias"] -= 1e6
    dead["params"]["Dense_1"]["bias"] += 1e6
    diagnostics = agent.diagnostics(state.replace(actor=dead), batch)
    assert (diagnostics["actor_dead_units"], diagnostics["actor_saturation"]) == (1, 1)
    assert diagnostics["critic_dead_units"] < 0.5
    half = jax.tree.map(jnp.copy, state.critic)
    half["params"]["Dense_0"]["bias"] = half["params"]["Dense_0"]["bias"].at[:4].add(-1e6).at[4:].add(1e6)
    assert agent.diagnostics(state.replace(critic=half), batch)["critic_dead_units"] == 0.5
