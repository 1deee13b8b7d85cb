"""Properties of the programs of every algorithm."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxddpg import config, settings
from jaxddpg.config import build
from jaxddpg.training.loop import clock_at
from jaxddpg.training.population import Population

CAPACITY = 77_776  # a number that no other dimension of the program has
BASE = config.parse(
    {
        "environment": {"parameters": {"g": 10.0, "max_torque": 2.0, "max_steps_in_episode": 5}},
        "agent": {
            "batch_size": 8,
            "max_grad_norm": 1.0,
            "decoupled_weight_decay": 0.1,
            "learning_rate_decay_steps": 200,
            "final_actor_learning_rate": 1e-4,
            "final_critic_learning_rate": 1e-4,
            "actor": {"hidden_sizes": [8, 8], "normalization": "batch", "final_bound": 0.3},
            "critic": {"hidden_sizes": [8, 8], "action_layer": 1, "normalization": "batch", "weight_decay": 0.01},
        },
        "noise": {"final_scale": 0.1, "decay_steps": 200},
        "replay": {"capacity": CAPACITY},
        "training": {"num_envs": 2, "updates_per_step": 2, "warmup_steps": 8, "steps_per_epoch": 10, "num_epochs": 2},
        "evaluation": {"num_episodes": 2},
    }
).experiment
LINEAR = config.parse(
    config.as_mapping(BASE)
    | {
        "agent": {
            "algorithm": "copdac",
            "critic": "gq",
            "batch_size": 4,
            "max_grad_norm": 0.1,
            "features": {"encoding": "radial", "num_centers": 2},
        },
        "replay": {"sampling": "latest"},
    }
).experiment

TWIN = config.parse(
    config.as_mapping(BASE)
    | {
        "agent": {
            "algorithm": "td3",
            "batch_size": 8,
            "max_grad_norm": 1.0,
            "decoupled_weight_decay": 0.1,
            "target_noise": 0.4,
            "learning_rate_decay_steps": 200,
            "final_actor_learning_rate": 1e-4,
            "final_critic_learning_rate": 1e-4,
            "actor": {"hidden_sizes": [8, 8], "normalization": "layer", "final_bound": 0.3},
            "critic": {"hidden_sizes": [8, 8], "action_layer": 1, "normalization": "layer", "weight_decay": 0.01},
        },
        "replay": {"capacity": CAPACITY, "steps": 3},
    }
).experiment
DISTRIBUTIONAL = config.parse(
    config.as_mapping(TWIN)
    | {
        "agent": {
            "algorithm": "d4pg",
            "batch_size": 8,
            "max_grad_norm": 0.1,
            "decoupled_weight_decay": 0.1,
            "num_atoms": 5,
            "v_min": -20.0,
            "v_max": 10.0,
            "learning_rate_decay_steps": 200,
            "final_actor_learning_rate": 1e-5,
            "final_critic_learning_rate": 1e-5,
            "normalize_observations": True,
            "actor": {"hidden_sizes": [8, 8], "final_bound": 0.3},
            "critic": {"hidden_sizes": [8, 8], "weight_decay": 0.01, "final_bound": 0.3},
        },
    }
).experiment
FAST = config.parse(
    config.as_mapping(DISTRIBUTIONAL)
    | {
        "agent": config.as_mapping(DISTRIBUTIONAL)["agent"]
        | {"algorithm": "fasttd3", "target_noise": 0.4, "v_min": -20.0, "v_max": 10.0},
        "noise": {"color": "ladder", "min_scale": 0.1},
    }
).experiment
BASES = {"ddpg": BASE, "td3": TWIN, "d4pg": DISTRIBUTIONAL, "fasttd3": FAST, "copdac": LINEAR}


def count_of_numbers(section):
    """The settings that are declared traced numbers, in a section and below it."""
    fields = dataclasses.fields(section)
    inner = [getattr(section, field.name) for field in fields if dataclasses.is_dataclass(getattr(section, field.name))]
    return sum(field.type is settings.Scalar for field in fields) + sum(map(count_of_numbers, inner))


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_every_number_can_be_swept_in_one_compilation(base):
    """Each member has one number changed. All learn something else, and each function is traced once, however many
    members there are."""
    leaves, structure = jax.tree.flatten(base.member())
    members = [base.member()] + [
        jax.tree.unflatten(structure, [leaf * (0.9 if i == k else 1.0) for i, leaf in enumerate(leaves)])
        for k in range(len(leaves))
    ]
    built = []

    def counted(member):
        built.append(member)
        return build.build(member)

    population = Population(counted, members, [0] * len(members), at_once=2)
    population.compile(clock_at(base.training, 0), False)
    state = population.init()
    for epoch in (1, 2):
        state, _ = population.epoch(clock_at(base.training, epoch), state)
    population.evaluate(clock_at(base.training, 2), state.agent)()
    assert len(built) == 3  # init, epoch and evaluate
    state = population.gather(state)
    outcome = np.concatenate(
        [np.asarray(x).reshape(len(members), -1) for x in jax.tree.leaves((state.agent, state.replay))], axis=1
    )
    assert len(leaves) == count_of_numbers(base.member()) + 2  # and two floats of the environment
    for member, number in enumerate(leaves, start=1):
        assert np.any(outcome[member] != outcome[0]), f"leaf {member - 1}, {number}, has no effect"


def test_a_whole_number_a_name_and_a_switch_are_structure():
    for path, value in (("batch_size", 4), ("reward_scale", 2.0)):
        changed = dataclasses.replace(BASE, agent=dataclasses.replace(BASE.agent, **{path: value}))
        same_program = jax.tree.structure(changed.member()) == jax.tree.structure(BASE.member())
        assert same_program == (path == "reward_scale")
    longer = dataclasses.replace(
        BASE.environment, parameters={**BASE.environment.parameters, "max_steps_in_episode": 6}
    )
    assert jax.tree.structure(longer) != jax.tree.structure(BASE.environment)


@pytest.fixture(scope="module", params=BASES.values(), ids=BASES)
def trainer(request):
    return build.build(request.param.member())


@pytest.fixture(scope="module")
def state(trainer):
    return jax.jit(trainer.init)(jax.random.key(0))


def test_no_branch_on_the_hot_path(trainer, state):
    """A `cond` or a `select` around the replay would copy it once a population's state comes in batched; so would a
    write that is a scatter, on a TPU."""
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    replay = rf"\w+:\w+\[2,{len(state.replay.rows)}\][^\n]* = "
    keys = jax.random.split(jax.random.key(0), 2)
    many = jax.vmap(trainer.epoch, in_axes=(0, None, 0))
    text = str(jax.make_jaxpr(many)(keys, clock_at(BASE.training, 1), stacked))
    assert "scan" in text
    assert not re.search(r"\bcond\[", text)
    assert not re.search(f"{replay}(select_n|scatter)", text)
    assert re.search(f"{replay}dynamic_update_slice", text)


@pytest.mark.parametrize(
    ("base", "placement", "ratio", "num_envs"),
    [
        pytest.param(BASE, 1, "1", 1, marks=pytest.mark.slow),
        pytest.param(BASE, 1, "1/2", 1, marks=pytest.mark.slow),
        pytest.param(BASE, 2, "2", 2, marks=pytest.mark.slow),
        (LINEAR, 2, "2", 2),
        (TWIN, 2, "2", 2),
        pytest.param(DISTRIBUTIONAL, 2, "2", 2, marks=pytest.mark.slow),
        pytest.param(FAST, 2, "2", 2, marks=pytest.mark.slow),
    ],
)
def test_the_compiled_epoch_holds_one_replay_and_never_copies_it(base, placement, ratio, num_envs):
    overrides = {"training.num_envs": num_envs, "training.updates_per_step": ratio}
    member = config.parse(config.as_mapping(base), overrides).experiment.member()
    count = placement * jax.local_device_count()  # fewer would be spread over the devices in smaller blocks
    population = Population(build.build, [member] * count, range(count), placement)
    population.epoch(clock_at(member.training, 1), population.init())
    compiled = population.programs["epoch"].compiled
    memory = compiled.memory_analysis()
    width = 3 + 1 + 1 + 3 + 1
    replay_bytes = placement * CAPACITY * width * 4
    assert memory.alias_size_in_bytes > replay_bytes
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 0.01 * replay_bytes
    buffer = rf"= \w+\[(?:{placement},)?{CAPACITY * width}\][^ ]* (?:copy|scatter|convert|transpose)\("
    assert re.findall(buffer, compiled.as_text()) == []
    assert memory.temp_size_in_bytes < 0.5 * replay_bytes  # of a small replay; a second one would be all of it


HALF = {
    f"{name}, bfloat16": dataclasses.replace(base, agent=dataclasses.replace(base.agent, precision="bfloat16"))
    for name, base in BASES.items()
    if name != "copdac"
}
PUBLISHED = config.read(Path(__file__).parent.parent / "configs" / "fasttd3.yaml").experiment


@pytest.mark.parametrize(
    "experiment", [*BASES.values(), *HALF.values(), PUBLISHED], ids=[*BASES, *HALF, "fasttd3, published"]
)
def test_an_epoch_lowers_for_every_platform_without_having_it(experiment):
    """The published FastTD3 is too large for a CPU: none of its arrays is made here."""
    trainer, clock = build.build(experiment.member()), clock_at(experiment.training, 1)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(trainer.init, key)
    export = jax.export.export(jax.jit(trainer.epoch, donate_argnums=2), platforms=["cpu", "cuda", "tpu"])
    assert export(key, clock, state).platforms == ("cpu", "cuda", "tpu")


def test_an_epoch_returns_the_types_it_takes(trainer, state):
    after, _ = jax.eval_shape(trainer.epoch, jax.random.key(0), clock_at(BASE.training, 1), state)
    types = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), (state, after))
    assert jax.tree.structure(types[0]) == jax.tree.structure(types[1])
    assert types[0] == types[1]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_no_key_is_used_twice(trainer):
    with jax.debug_key_reuse(True):
        state = jax.jit(trainer.init)(jax.random.key(0))
        clock = clock_at(BASE.training, 1)
        state, _ = jax.jit(trainer.epoch)(jax.random.key(0), clock, state)
        jax.jit(trainer.evaluate)(jax.random.key(0), clock, state.agent)


def test_no_state_holds_a_key(state):
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state))


FUSIONS = {
    "0.10": {"ddpg": 374, "td3": 414, "d4pg": 397, "fasttd3": 498, "copdac": 125},
    "0.11": {"ddpg": 567, "td3": 632, "d4pg": 601, "fasttd3": 748, "copdac": 169},
}
"""Counted in the compiled epoch of one member with the flags of conftest.py, by minor release of JAX: what is launched
one by one."""


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", BASES)
def test_the_program_does_not_fall_to_pieces(algorithm):
    """A tenth more fusions than there were is a loss of speed that no timing on a busy machine would show."""
    recorded = FUSIONS.get(jax.__version__.rpartition(".")[0])
    if jax.default_backend() != "cpu" or recorded is None:
        pytest.skip("no count was recorded for this backend and release")
    sections = {"training": {"steps_per_epoch": 100}, "agent": {"algorithm": algorithm}}
    if algorithm == "copdac":
        sections |= {"agent": {"algorithm": "copdac", "batch_size": 1}, "replay": {"sampling": "latest"}}
    if algorithm == "fasttd3":
        sections["agent"] |= {"batch_size": 256}
    population = build.populate(config.resolve(config.parse(sections).experiment).run())
    population.epoch(clock_at(config.parse(sections).experiment.training, 1), population.init())
    counted = len(re.findall(r" fusion\(", population.programs["epoch"].compiled.as_text()))
    assert 0 < counted <= 1.1 * recorded[algorithm]
