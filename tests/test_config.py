import dataclasses
import random
import re
import subprocess
import sys
from fractions import Fraction
from math import inf
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from helpers import call, faults, refused, reread, swept_values, variants

import jaxddpg
from jaxddpg import config, settings
from jaxddpg.config import ConfigError
from jaxddpg.settings import Experiment

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
SCALES = [1e-7, 3e-4, 0.1, 1 / 3, 1.0]
HORIZONS = [1e-3, 5e5, 1e22, inf]


def sections(section):
    """A section and all those below it."""
    yield section
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(inner := getattr(section, field.name)):
            yield from sections(inner)


def random_experiment(seed):
    """Valid, every section changed, with values that YAML is known to misread."""
    rng = random.Random(seed)
    period = rng.choice([1, 2, 3])

    def sizes():
        return tuple(rng.randint(1, 300) for _ in range(rng.randint(2, 3)))

    return config.parse(
        {
            "environment": {"name": "Pendulum-v1", "parameters": {"g": rng.choice(SCALES), "max_steps_in_episode": 7}},
            "agent": {
                "gamma": rng.choice(SCALES),
                "tau": rng.choice(SCALES),
                "actor_learning_rate": rng.choice(SCALES),
                "final_critic_learning_rate": rng.choice(SCALES),
                "learning_rate_decay_steps": rng.choice(HORIZONS),
                "batch_size": rng.randint(1, 60),
                "max_grad_norm": rng.choice(HORIZONS),
                "actor": {"hidden_sizes": sizes(), "normalization": rng.choice(["none", "layer", "batch"])},
                "critic": {
                    "hidden_sizes": sizes(),
                    "action_layer": rng.choice([0, 1]),
                    "weight_decay": rng.choice(SCALES),
                },
            },
            "noise": {"smoothing": rng.random(), "scale_of": "stationary", "decay_steps": rng.choice(HORIZONS)},
            "replay": {"capacity": 60 * rng.randint(1, 9)},
            "training": {
                "num_envs": rng.choice([1, 2, 3, 4, 5]),
                "updates_per_step": rng.choice([Fraction(period), Fraction(1, period)]),
                "warmup_steps": 60,
                "steps_per_epoch": 6 * rng.randint(1, 9),
            },
            "population": {"seed": rng.randrange(2**31), "num_seeds": rng.randint(1, 99)},
            "reporting": {
                "tensorboard": rng.random() < 0.5,
                "wandb_project": rng.choice(["", "yes", "1e-3", "null", "a # b: c", "größe", "- x", "'\"", "007"]),
            },
        }
    ).experiment


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_comes_back_from_its_dump(path, tmp_path):
    experiment = config.read(path).experiment
    assert reread(experiment, tmp_path) == experiment


def test_there_are_shipped_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_as_it_is_meant(path):
    assert config.warnings_of(config.read(path).run()) == []


DECAYED = {
    "agent": {"learning_rate_decay_steps": 100_000},
    "training": {"num_envs": 4, "warmup_steps": 250, "steps_per_epoch": 495, "num_epochs": 50},
}


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        ({}, []),
        ({"training.num_epochs": 49}, []),
        ({"agent.learning_rate_decay_steps": inf, "training.num_epochs": 52}, []),
        (
            {"training.num_epochs": 52},
            [
                "agent.learning_rate_decay_steps is 100000, but the run has 103960 env steps, and "
                "agent.final_actor_learning_rate and agent.final_critic_learning_rate are 0: in the last 3960 env "
                "steps the actor and the critic learn nothing; train a new run with "
                "--agent.learning_rate_decay_steps 103960"
            ],
        ),
        (
            {"agent.learning_rate_decay_steps": 99_999, "agent.final_actor_learning_rate": 1e-5},
            [
                "agent.learning_rate_decay_steps is 99999, but the run has 100000 env steps, and "
                "agent.final_critic_learning_rate is 0: in the last 1 env steps the critic learns nothing; train a new "
                "run with --agent.learning_rate_decay_steps 100000"
            ],
        ),
        (
            {
                "training.num_epochs": 52,
                "agent.final_actor_learning_rate": 1e-5,
                "agent.final_critic_learning_rate": 1e-5,
            },
            [],
        ),
    ],
)
def test_a_run_longer_than_the_decay_of_its_rates_is_cautioned(overrides, sentences):
    assert config.warnings_of(config.parse(DECAYED, overrides).run()) == sentences
    for sentence in sentences:  # its remedy is one
        flag, value = re.search(r"--([a-z_.]+) (\d+)$", sentence).groups()
        assert config.warnings_of(config.parse(DECAYED, overrides | {flag: value}).run()) == []


@pytest.mark.parametrize(
    ("changes", "is_cautioned"),
    [
        ({}, True),
        ({"precision": "float32"}, False),
        ({"critic": {"hidden_sizes": [8, 8]}}, False),
        ({"actor": {"hidden_sizes": [8], "architecture": "residual"}}, False),
    ],
)
def test_a_precision_without_effect_is_cautioned(changes, is_cautioned):
    section = {"precision": "bfloat16", "actor": {"hidden_sizes": [8]}, "critic": {"hidden_sizes": [8]}}
    found = config.warnings_of(config.parse({"agent": section | changes}).run())
    assert [sentence.startswith("agent.precision is bfloat16, but has no effect") for sentence in found] == [
        True
    ] * is_cautioned


def test_a_sweep_says_of_how_many_variants_a_caution_is():
    sweep = {"agent.learning_rate_decay_steps": [1_000, 50_000, 100_000], "noise.scale": [0.1, 0.2]}
    (sentence,) = config.warnings_of(config.parse(DECAYED | {"population": {"sweep": sweep}}).run())
    assert sentence.startswith(
        "in 4 of 6 variants, the first of which says: agent.learning_rate_decay_steps is 1000, but"
    )


@pytest.mark.parametrize("seed", range(20))
def test_random_settings_come_back_from_their_dump(seed, tmp_path):
    experiment = random_experiment(seed)
    assert reread(experiment, tmp_path) == experiment


@pytest.mark.parametrize("algorithm", ["ddpg", "copdac"])
def test_a_dump_holds_every_setting_with_its_meaning(algorithm):
    experiment = config.parse({"agent": {"algorithm": algorithm}}).experiment
    dumped = config.dump(experiment)
    for section in sections(experiment):
        for field in dataclasses.fields(section):
            line = rf"^ *{field.name}:.*# {re.escape(field.metadata['meaning'])}$"
            assert re.search(line, dumped, re.MULTILINE)


FEATURES = {
    "tiles": {"num_tilings": 3, "low": [-1, 1e-7], "high": [0, 1]},
    "fourier": {"order": 2},
    "radial": {"width": 1 / 3},
    "polynomial": {"order": 0},
}


@pytest.mark.parametrize("encoding", FEATURES)
def test_each_alternative_of_a_section_comes_back_from_its_dump(encoding, tmp_path):
    agent = {"algorithm": "copdac", "features": {"encoding": encoding} | FEATURES[encoding]}
    experiment = config.parse({"agent": agent, "replay": {"sampling": "latest", "capacity": 8}}).experiment
    assert type(experiment.agent) is settings.COPDAC
    assert experiment.agent.features.encoding == encoding
    assert reread(experiment, tmp_path) == experiment


@pytest.mark.parametrize(
    ("agent", "sentence"),
    [
        (
            {"algorithm": "sac"},
            "agent.algorithm is sac, but must be one of ddpg, td3, d4pg, fasttd3, copdac, package.module:factory",
        ),
        (
            {"algorithm": ["ddpg"]},
            "agent.algorithm is [ddpg], but must be one of ddpg, td3, d4pg, fasttd3, copdac, package.module:factory",
        ),
        (
            {"algorithm": "copdac", "tau": 0.1},
            "agent.tau is a setting of algorithm ddpg or td3 or d4pg or fasttd3, but agent.algorithm is copdac",
        ),
        ({"features": {}}, "agent.features is a section of algorithm copdac, but agent.algorithm is ddpg"),
        (
            {"algorithm": "copdac", "features": {"num_tiles": 3, "encoding": "fourier"}},
            "agent.features.num_tiles is a setting of encoding tiles, but agent.features.encoding is fourier",
        ),
        (
            {"algorithm": "copdac", "features": {"low": [1.0], "high": [0.0]}},
            "agent.features.low is [1.0], but must have as many entries as high, [0.0], each below its counterpart",
        ),
        (
            {"algorithm": "copdac", "features": {"low": [1.0, 2.0], "high": [3.0]}},
            "agent.features.low is [1.0, 2.0], but must have as many entries as high, [3.0], "
            "each below its counterpart",
        ),
        (
            {"algorithm": "copdac", "critic": {"normalization": "none"}},
            "agent.critic is a section of algorithm ddpg or td3 or d4pg or fasttd3, but agent.algorithm is copdac",
        ),
        ({"algorithm": "copdac", "features": 3}, "agent.features must be a section with settings below it, not 3"),
        ({"algorithm": "copdac", "critic": "least"}, "agent.critic is least, but must be one of q, gq, regression"),
        (
            {"algorithm": "mine:agent", "batch_size": 8, "gamma": 0.9, "settings": {"a": None, "b": True}},
            "agent.algorithm is mine:agent, whose settings belong in agent.settings; replace the section: "
            "--agent '{algorithm: mine:agent, batch_size: 8, settings: {a: null, b: true}}'",
        ),
        (
            "{algorithm: copdac",
            "agent must be a section with settings below it, not '{algorithm: copdac'; it is a string",
        ),
    ],
)
def test_a_section_is_read_as_the_alternative_that_it_names(agent, sentence):
    (fault,) = faults({"agent": agent})
    assert sentence in fault


def test_an_unknown_algorithm_is_the_only_fault_of_its_section():
    """The default of another algorithm is not the user's: one that breaks a rule beside his settings is no fault."""
    content = {"agent": {"algorithm": "foo", "batch_size": 1}, "replay": {"capacity": 1}, "training": {"num_envs": 0}}
    assert [fault.split(" is ")[0] for fault in faults(content)] == ["agent.algorithm", "training.num_envs"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"training.updates_per_step": 4, "training.num_envs": 4, "agent.batch_size": 2, "replay.capacity": 4},
            "agent.batch_size is 2, which 4 updates make 8 rows, but must be at most replay.capacity, 4",
        ),
        (
            {"training.updates_per_step": 4, "training.warmup_steps": 1, "agent.batch_size": 2, "replay.capacity": 8},
            "training.warmup_steps is 1, which with 1 environments fills 1 rows, but the first 4 batches need 8; "
            "use at least 8 steps",
        ),
    ],
)
def test_the_newest_rows_are_shared_among_the_updates_of_a_step(overrides, sentence):
    assert sentence in faults({"replay": {"sampling": "latest"}}, overrides)
    config.parse({"replay": {"sampling": "uniform"}}, overrides | {"training.warmup_steps": 2})


def test_reading_back_keeps_the_types(tmp_path):
    read = reread(config.parse({"agent": {"gamma": 1, "actor": {"hidden_sizes": [8]}}}).experiment, tmp_path)
    assert (type(read.agent.gamma), type(read.agent.batch_size)) == (float, int)
    assert isinstance(read.training.updates_per_step, Fraction)
    assert isinstance(read.agent.actor.hidden_sizes, tuple)


def test_an_empty_section_is_its_defaults():
    assert config.parse({"agent": None}).experiment == Experiment()


@pytest.mark.parametrize(
    ("value", "read"),
    [("1e-3", 1e-3), ("1E2", 100.0), (5, 5.0), (".5", 0.5), ("inf", inf), (inf, inf), ("1_000.0", 1000.0)],
)
def test_what_spells_a_number_is_that_number(value, read):
    rate = config.parse({"agent": {"learning_rate_decay_steps": value}}).experiment.agent.learning_rate_decay_steps
    assert rate == read
    assert type(rate) is float


@pytest.mark.parametrize(("value", "read"), [("1e3", 1000), (400.0, 400), ("400_000", 400_000)])
def test_what_spells_a_whole_number_is_that_number(value, read):
    size = config.parse({"agent": {"batch_size": 4}, "training": {"num_epochs": value}}).experiment.training.num_epochs
    assert size == read
    assert type(size) is int


@pytest.mark.parametrize(
    ("value", "read"),
    [("1/4", Fraction(1, 4)), (0.25, Fraction(1, 4)), (1, Fraction(1)), (20, Fraction(20)), ("8", Fraction(8))],
)
def test_updates_per_step_is_k_or_one_over_k(value, read):
    assert config.parse({"training": {"updates_per_step": value}}).experiment.training.updates_per_step == read


def test_all_faults_are_found_at_once():
    content = {
        "agent": {"gamma": 1.1, "tau": 0, "gama": 0.9, "critic": {"hidden_sizes": []}},
        "training": {"num_envs": 0},
        "population": {"seed": True},
        "environment": {"name": "CartPole-v1"},
        "replay": {"capacity": 2.5},
    }
    found = " | ".join(faults(content))
    names = ("gamma", "tau", "gama", "critic.hidden_sizes", "num_envs", "population.seed", "CartPole-v1", "capacity")
    assert [name for name in names if name not in found] == []


def test_faults_of_values_and_between_values_are_reported_together():
    found = faults({"agent": {"tau": 2}, "training": {"num_envs": 3}, "replay": {"capacity": 1000}})
    assert len(found) == 2
    assert "agent.tau is 2" in found[0]
    assert "use 1002" in found[1]


def test_a_faulty_value_causes_no_second_fault():
    """A capacity that cannot be read cannot be too small for the batch either."""
    assert len(faults({"replay": {"capacity": "many"}, "training": {"num_envs": 7}})) == 1


@pytest.mark.parametrize("section", [{"replay": 5}, {"replay": {"capacity": None}}, {"replay": [1]}])
def test_a_faulty_section_causes_no_second_fault(section):
    assert len(faults({"training": {"num_envs": 7}} | section)) == 1


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("agent.gama", "did you mean agent.gamma?"),
        ("agnt.gamma", "did you mean agent?"),
        ("agent.batchsize", "did you mean agent.batch_size?"),
        ("agent.weight_decay", "did you mean agent.critic.weight_decay?"),
        ("training.capacity", "did you mean replay.capacity?"),
        ("agent.actor.sizes", "did you mean agent.actor.hidden_sizes?"),
        ("agent.hidden_sizes", "did you mean agent.actor.hidden_sizes or agent.critic.hidden_sizes?"),
        ("environment.foo", "environment has name, parameters"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(path, suggestion):
    (fault,) = faults({}, {path: "1"})
    assert "is not a setting" in fault
    assert suggestion in fault


def test_a_name_like_no_other_is_answered_with_the_section():
    """The section's own name makes all its settings look alike; that is no reason to suggest one."""
    (fault,) = faults({}, {"agent.xyzzy": "1"})
    assert "agent has algorithm, gamma, tau" in fault


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("Pendulum", ["environment.name is Pendulum", "did you mean Pendulum-v1", "package.module:factory"]),
        ("MountainCarContinous-v0", ["did you mean MountainCarContinuous-v0"]),
        ("xyzzy", ["try Pendulum-v1", "Swimmer-misc", "by jaxddpg.register in the Python process that then calls"]),
        ("CartPole-v1", ["discrete actions", "try Pendulum-v1", "Reacher-misc"]),
        ("MNISTBandit-bsuite", ["discrete actions"]),
    ],
)
def test_an_unsuitable_environment_is_answered_with_suitable_ones(name, fragments):
    (fault,) = faults({"environment": {"name": name}})
    assert [fragment for fragment in fragments if fragment not in fault] == []


@pytest.mark.parametrize(
    ("parameters", "fragments"),
    [
        ({"gg": 5}, ["environment.parameters.gg", "did you mean environment.parameters.g?"]),
        ({"foo": 5}, ["environment.parameters.foo is not a parameter; environment.parameters has max_speed, "]),
        ({"g": "heavy"}, ["environment.parameters.g is heavy", "must be a number"]),
        ({"g": True}, ["environment.parameters.g is true", "must be a number"]),
        ({"max_steps_in_episode": 2.5}, ["max_steps_in_episode is 2.5", "must be an integer"]),
    ],
)
def test_a_bad_environment_parameter_is_refused(parameters, fragments):
    (fault,) = faults({"environment": {"parameters": parameters}})
    assert [fragment for fragment in fragments if fragment not in fault] == []


def test_environment_parameters_get_their_declared_types():
    point = {"name": "PointRobot-misc", "parameters": {"max_force": 1, "dense_reward": True, "goal_radius": "1e-1"}}
    parameters = config.parse({"environment": point}).experiment.environment.parameters
    assert parameters == {"max_force": 1.0, "dense_reward": True, "goal_radius": 0.1}
    assert type(parameters["max_force"]) is float


def test_parameters_of_ones_own_environment_keep_their_kinds():
    """Whole numbers shape a program, floats are its inputs, and a text is a text whatever it spells."""
    own = {"name": "my.module:make", "parameters": {"links": 3, "wind": 1e-2, "wet": False, "label": "1e-2"}}
    parameters = config.parse({"environment": own}).experiment.environment.parameters
    assert parameters == {"links": 3, "wind": 0.01, "wet": False, "label": "1e-2"}
    assert [type(value) for value in parameters.values()] == [int, float, bool, str]


def test_a_flag_overrides_the_file_and_nothing_else():
    content = {"agent": {"gamma": 0.9, "tau": 0.1}}
    agent = config.parse(content, {"agent.gamma": "0.8"}).experiment.agent
    assert (agent.gamma, agent.tau) == (0.8, 0.1)
    assert content == {"agent": {"gamma": 0.9, "tau": 0.1}}


def test_a_flag_adds_a_parameter_to_those_of_the_file():
    content = {"environment": {"parameters": {"m": 2.0, "g": 9.0}}}
    parameters = config.parse(content, {"environment.parameters.g": "5"}).experiment.environment.parameters
    assert parameters == {"m": 2.0, "g": 5.0}


def test_a_flag_does_not_hide_a_faulty_section():
    assert any("agent must be a section" in fault for fault in faults({"agent": 3}, {"agent.gamma": "0.9"}))


def test_settings_made_in_python_obey_the_same_rules():
    experiment = Experiment()
    changed = dataclasses.replace(experiment, agent=dataclasses.replace(experiment.agent, gamma=2.0))
    with pytest.raises(ConfigError, match=r"agent\.gamma is 2\.0"):
        config.validate(changed)


def test_checking_changes_nothing():
    experiment = random_experiment(1)
    assert config.validate(experiment).experiment == experiment


def test_a_setting_given_twice_is_refused(tmp_path):
    """YAML itself would silently keep the last one."""
    (tmp_path / "twice.yaml").write_text("agent: {gamma: 0.9}\nagent: {tau: 0.1}\n")
    with pytest.raises(ConfigError, match="agent"):
        config.read(tmp_path / "twice.yaml")


@pytest.mark.parametrize("path", ["noise.scale", "agent.actor_learning_rate", "agent.actor.final_bound"])
def test_infinity_is_refused_where_it_is_not_the_neutral_value(path):
    (fault,) = faults({}, {path: ".inf"})
    assert f"{path} is .inf, but must be a finite number" in fault
    assert config.parse({}, {"agent.max_grad_norm": ".inf"}).experiment


def test_a_text_that_spells_a_tiny_number_is_read_at_once():
    assert "at least 1" in faults({}, {"training.num_epochs": "1e-999999999"})[0]


def test_a_count_that_no_machine_holds_is_refused():
    (fault,) = faults({}, {"training.num_epochs": "1e400"})
    assert "must be an integer below 2^31" in fault


@pytest.mark.parametrize("network", ["actor", "critic"])
@pytest.mark.parametrize(
    ("normalization", "hidden_size", "batch_size", "place", "reason", "remedy"),
    [
        ("batch", 8, 1, "agent.batch_size is 1, but batch", "a single transition constant", "use at least 2"),
        ("layer", 1, 64, "agent.{}.normalization is layer, but", "a single unit constant", "use at least 2 units"),
    ],
)
def test_a_normalization_over_one_value_is_refused(
    network, normalization, hidden_size, batch_size, place, reason, remedy
):
    """It gives 0 whatever the value, so that no weight ever moves."""
    section = {"normalization": normalization, "hidden_sizes": [4, hidden_size]}
    (sentence,) = faults({"agent": {"batch_size": batch_size, network: section}})
    assert sentence.startswith(place.format(network))
    assert f" normalization makes {reason}, so nothing is learned; " in sentence
    assert sentence.endswith(remedy)
    section["hidden_sizes"] = [4, 2]
    assert config.parse({"agent": {"batch_size": 2, network: section}}).experiment


@pytest.mark.parametrize(
    "imports", ["import jax; from jaxddpg import settings", "from jaxddpg import settings; import jax"]
)
def test_settings_are_pytrees_by_themselves(imports):
    """Whatever else is imported, and in whatever order: the leaves are the traced numbers."""
    program = f"""{imports}
import sys
assert "jaxddpg.config.build" not in sys.modules
changed = jax.tree.map(lambda x: 2 * x, settings.DDPG(gamma=0.25))
assert (changed.gamma, changed.critic.final_bound, changed.batch_size) == (0.5, 6e-3, 256)
assert jax.jit(lambda noise: noise.scale)(settings.Noise(scale=0.5)) == 0.5
world = settings.Environment("x", {{"m": 2.0, "n": 3}})
assert jax.tree.leaves(world) == [2.0]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("word", "number"),
    [("010", 10), ("008", 8), ("0100", 100), ("1_000", 1000), ("+5", 5), ("1e3", 1000), ("3.", 3), ("1.5e+1", 15)],
)
def test_decimal_digits_are_a_number_however_they_begin(word, number, tmp_path):
    """In a flag, in a file, on an axis and as a parameter; YAML 1.1 takes 010 for 8 and 008 for a text."""
    assert config.parse({}, {"population.seed": word}).experiment.population.seed == number
    (tmp_path / "a.yaml").write_text(
        f"environment: {{name: 'module:make', parameters: {{k: {word}}}}}\nreplay: {{capacity: 100_000}}\n"
        f"population: {{seed: {word}, sweep: {{agent.critic_learning_rate: [{word}], training.num_epochs: [{word}]}}}}"
    )
    experiment = config.read(tmp_path / "a.yaml").experiment
    assert (experiment.population.seed, experiment.environment.parameters) == (number, {"k": number})
    (values,) = swept_values(experiment)
    assert [*values.values()] == [number, number]


def test_numbers_padded_by_a_shell_are_different_seeds():
    seeds = [config.parse({}, {"population.seed": f"{seed:03d}"}).experiment.population.seed for seed in range(128)]
    assert seeds == [*range(128)]


@pytest.mark.parametrize("word", ["1:30", "0x10", "0b1", "0o17", "1__0", "1_", "9" * 5000, "2024-01-01", "2024-13-45"])
def test_what_is_written_in_other_ways_is_no_number(word, tmp_path):
    (fault,) = faults({}, {"training.num_epochs": word})
    assert re.fullmatch(r"training.num_epochs is '?[\w:-]+'?, but must be an integer in decimal digits \(.*", fault)
    assert faults({}, {"agent.gamma": word})
    (tmp_path / "a.yaml").write_text(f"training: {{num_epochs: {word}}}")
    with pytest.raises(ConfigError, match="in decimal digits"):
        config.read(tmp_path / "a.yaml")


def test_a_fraction_may_begin_with_its_point():
    assert config.parse({}, {"agent.gamma": ".5"}).experiment.agent.gamma == 0.5
    assert config.parse({}, {"training.updates_per_step": "1e-1"}).experiment.training.updates_per_step == Fraction(
        1, 10
    )


TEXTS = [
    "010",
    "008",
    "1:30",
    "0x10",
    "0b1",
    "1_000",
    "+5",
    ".5",
    "1e5",
    "1e-3",
    "inf",
    ".inf",
    "2024-01-01",
    "yes",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_like_a_number_comes_back_as_that_text(text, tmp_path):
    """For us and for every other reader of YAML."""
    own = {"name": "module:make", "parameters": {"label": text}}
    experiment = config.parse({"environment": own, "reporting": {"wandb_project": text}}).experiment
    assert reread(experiment, tmp_path) == experiment
    content = yaml.safe_load(config.dump(experiment))
    assert (content["reporting"]["wandb_project"], content["environment"]["parameters"]["label"]) == (text, text)


@pytest.mark.parametrize("tagged", ["!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!int [1]", "!!binary x"])
def test_a_value_that_its_tag_does_not_allow_is_refused(tagged, tmp_path):
    (tmp_path / "a.yaml").write_text(f"agent: {{gamma: {tagged}}}")
    with pytest.raises(ConfigError, match=r"a\.yaml is not valid YAML"):
        config.read(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "number", [np.float64(0.25), np.float32(0.25), np.array(0.25), jnp.float32(0.25), jnp.asarray(0.25)], ids=repr
)
def test_numbers_of_numpy_and_jax_are_numbers(number, tmp_path):
    own = {"name": "module:make", "parameters": {"wind": number}}
    sweep = {"noise.scale": [number, 2 * number], "agent.actor.hidden_sizes": [np.array([8, 4])]}
    experiment = config.parse({"environment": own, "population": {"sweep": sweep}}, {"agent.tau": number}).experiment
    assert (experiment.agent.tau, type(experiment.agent.tau)) == (0.25, float)
    assert experiment.environment.parameters == {"wind": 0.25}
    assert [variant.noise.scale for variant in variants(experiment)] == [0.25, 0.5]
    assert experiment == reread(experiment, tmp_path)


def test_whole_numbers_of_numpy_and_jax_are_whole():
    overrides = {
        "population.num_seeds": np.int64(3),
        "population.seed": jnp.int32(7),
        "replay.capacity": np.uint32(500),
    }
    experiment = config.parse({}, overrides | {"agent.actor.hidden_sizes": jnp.array([8, 4])}).experiment
    assert (experiment.population.num_seeds, experiment.population.seed, experiment.replay.capacity) == (3, 7, 500)
    assert experiment.agent.actor.hidden_sizes == (8, 4)


def test_the_points_of_numpy_are_an_axis(tmp_path):
    points = np.linspace(0.1, 0.3, 3)
    for axis in (points, [*points]):
        experiment = config.parse({"population": {"sweep": {"agent.tau": axis}}}).experiment
        assert reread(experiment, tmp_path) == config.validate(experiment).experiment == experiment
        np.testing.assert_allclose([variant.agent.tau for variant in variants(experiment)], points)


def unheard_of(): ...


@pytest.mark.parametrize("value", [unheard_of, object(), {1, 2}, b"bytes"], ids=["function", "object", "set", "bytes"])
@pytest.mark.parametrize(
    "path", ["agent.tau", "environment.name", "environment.parameters.g", "agent", "noise.scale_of"]
)
def test_what_no_setting_can_be_is_refused_in_a_sentence(path, value):
    (fault,) = faults({}, {path: value})
    assert re.match(rf"{path} (is|must be a section.* not) ['<b{{]", fault)


def test_a_parameter_of_ones_own_environment_can_be_written():
    own = {"name": "module:make", "parameters": {"table": [[1, 2.5], {"a": None}], "wet": True}}
    assert config.parse({"environment": own}).experiment.environment.parameters == own["parameters"]
    (fault,) = faults({"environment": own | {"parameters": {"f": [unheard_of]}}})
    assert fault.startswith("environment.parameters.f is [<function unheard_of")
    assert "but must be a number, a string, true or false, or a list of these" in fault


@pytest.mark.parametrize("value", [1e39, "1e39", -1e39, 1e-50, "1e-40", np.float64(1e39)])
@pytest.mark.parametrize("path", ["noise.final_scale", "environment.parameters.g", "environment.parameters.own"])
def test_a_number_that_a_program_of_32_bits_cannot_hold_is_refused(path, value):
    """It would count as infinite or as 0 there."""
    name = "module:make" if path.endswith("own") else "Pendulum-v1"
    (fault,) = faults({"environment": {"name": name}}, {path: value})
    assert "but must be " in fault
    assert float(value) < 0 or "0, or between 1.2e-38 and 3.4e38 in magnitude (the float32 range)" in fault
    for fine in (0, 1.2e-38, 3.4e38):
        config.parse({"environment": {"name": name}}, {path: fine})


def test_an_empty_name_is_quoted():
    (fault,) = faults({"environment": {"name": ""}})
    assert fault.startswith("environment.name is '', which is neither")


@pytest.mark.parametrize("given", ["configs/pendulum.yaml", None, {}])
@pytest.mark.parametrize("function", [jaxddpg.run, jaxddpg.sweep])
def test_what_is_no_experiment_is_refused_in_a_sentence(function, given, tmp_path):
    with pytest.raises(ConfigError, match=r"expected an Experiment, not .*; load one with jaxddpg\.load\(PATH\)"):
        function(given, tmp_path / "run")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("given", [None, {"agent": {}}, Experiment()], ids=["None", "dict", "Experiment"])
def test_what_is_no_path_is_refused_in_a_sentence(given):
    with pytest.raises(ConfigError, match="expected the path of a YAML file, not "):
        jaxddpg.load(given)


def test_a_file_that_cannot_be_read_is_refused_with_a_remedy(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"some.yaml cannot be read: Permission denied; make it readable$"):
        config.read(tmp_path / "some.yaml")


def test_a_setting_with_dots_is_refused_with_its_section():
    with pytest.raises(config.ConfigError) as error:
        config.parse({"agent.tau": 0.1, "agent": {"actor.hidden_sizes": [8]}})
    assert error.value.errors == [
        "agent.tau: dotted names are not allowed here; put tau in the section agent",
        "agent.actor.hidden_sizes: dotted names are not allowed here; put hidden_sizes in the section agent.actor",
    ]


@pytest.mark.parametrize("digits", ["\u0661", "\uff11"])
def test_digits_of_other_scripts_are_no_numbers(digits):
    with pytest.raises(config.ConfigError, match=r"agent\.tau is .*, but must be a number"):
        config.parse({}, {"agent.tau": digits})


def test_an_alias_inside_what_it_refers_to_is_refused(tmp_path):
    (tmp_path / "circle.yaml").write_text("agent: &a [*a]\n")
    assert refused(call("train", tmp_path / "circle.yaml"), "circle.yaml is not valid YAML: Circular reference") == []


def test_an_empty_file_is_no_experiment(tmp_path):
    (tmp_path / "empty.yaml").touch()
    assert refused(call("train", tmp_path / "empty.yaml"), "empty.yaml is empty; write at least the line") == []
    (tmp_path / "empty.yaml").write_text("# all defaults")
    assert config.read(tmp_path / "empty.yaml").experiment == Experiment()


@pytest.mark.parametrize(
    ("population", "sentence"),
    [
        ({"num_seeds": 10**9}, "population.num_seeds is 1000000000, but must be at least 1 and at most 100000"),
        (
            {"num_seeds": 60_000, "sweep": {"agent.tau": [0.1, 0.2]}},
            "population.num_seeds is 60000, and 2 variants make 120000 members, but at most 100000 are allowed",
        ),
    ],
)
def test_too_many_members_are_refused_before_any_is_made(population, sentence):
    (fault,) = faults({"population": population})
    assert sentence in fault
