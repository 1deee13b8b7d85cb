"""From settings to records of functions: the agent, the trainer of one member, the population."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, assert_never

import jax
import jax.numpy as jnp

from jaxddpg import settings
from jaxddpg.agents.copdac import copdac
from jaxddpg.agents.d4pg import d4pg
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.agents.fasttd3 import fasttd3
from jaxddpg.agents.td3 import td3
from jaxddpg.config.environment import check_environment, digest, make_environment
from jaxddpg.config.reader import ConfigError
from jaxddpg.config.sweep import RunPlan
from jaxddpg.config.user_code import check_parameters, load_function, sentence
from jaxddpg.parts import features, noise, replay, sharding
from jaxddpg.parts.normalization import normalized
from jaxddpg.parts.structure import has_key, kind, mismatch
from jaxddpg.settings import Member
from jaxddpg.training.loop import clock_at, make_trainer
from jaxddpg.training.population import Population
from jaxddpg.types import (
    Agent,
    Environment,
    Experience,
    Features,
    Noise,
    Replay,
    State,
    Trainer,
    Transition,
    seed_key,
)


def check_member(member: Member) -> None:
    """Validates an environment, and the agent, noise and replay for it.

    Raises:
        ConfigError: as `check_environment`, or the agent does not suit the environment, or a part of the user's own
            cannot be used.
    """
    check_environment(member.environment)
    environment, num_shards = make_environment(member.environment), member.training.num_shards
    noise, replay = make_noise(environment, member.noise), make_replay(member.replay, num_shards)
    try:
        agent = make_agent(environment, member.agent)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            [f"{member.agent.algorithm} cannot be used with {member.environment.name}: {error}"]
        ) from error
    if isinstance(member.replay, settings.Replay | settings.LatestReplay):
        try:
            jax.eval_shape(replay.init, Experience.zeros(environment))
        except ValueError as error:
            shard = " of each shard" if num_shards > 1 else ""
            raise ConfigError([f"replay.capacity is {member.replay.capacity}, which makes{shard} {error}"]) from error
    if is_custom(member):
        try:
            _check_agent(agent, environment, member)
            _check_noise(noise, environment, member)
            _check_replay(replay, environment, member)
            trainer = build(member)
            state = jax.eval_shape(trainer.init, seed_key(0))
            if has_key(state):
                raise ValueError("their state has a PRNG key; use the keys that the functions receive")
            empty = [place for place, leaf in jax.tree_util.tree_leaves_with_path(state) if not leaf.size]
            if empty:
                place = jax.tree_util.keystr(empty[0])
                raise ValueError(f"their state has an array of size 0, state{place}; leave it out")
            jax.eval_shape(trainer.epoch, seed_key(0), clock_at(member.training, 1), state)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError([f"the parts of this experiment cannot be used: {sentence(error)}"]) from error


def is_custom(member: Member) -> bool:
    """Whether the agent, noise or replay is of the user's own."""
    custom = (settings.CustomAgent, settings.CustomNoise, settings.CustomReplay)
    return any(isinstance(section, custom) for section in (member.agent, member.noise, member.replay))


def _check_agent(agent: Agent, environment: Environment, member: Member) -> None:
    """ConfigError if an agent's functions, when they are traced, do not return what `Agent` says."""
    path = f"agent.algorithm {member.agent.algorithm}"
    if agent.batch_size != member.agent.batch_size:
        sizes = f"its batch_size is {agent.batch_size}, but agent.batch_size is {member.agent.batch_size}"
        _refuse(path, [f"{sizes}; make them equal"])
    state = jax.eval_shape(agent.init, seed_key(0))
    rows: Any = jax.ShapeDtypeStruct((member.agent.batch_size,), jnp.float32)
    observation: Any = jax.ShapeDtypeStruct((*rows.shape, environment.observation_size), jnp.float32)
    action: Any = jax.ShapeDtypeStruct((*rows.shape, environment.action_size), jnp.float32)
    batch = Transition(observation, action, rows, observation, rows)
    clock = clock_at(member.training, 1)
    after, metrics = jax.eval_shape(agent.update, seed_key(0), clock, state, batch)
    wanted = {
        "act": (jax.eval_shape(agent.act, state, observation), action.shape),
        "value": (jax.eval_shape(agent.value, state, observation), rows.shape),
        **{f"update's metric {name}": (leaf, ()) for name, leaf in metrics.items()},
        **{
            f"diagnostics' metric {name}": (leaf, ())
            for name, leaf in jax.eval_shape(agent.diagnostics, state, batch).items()
        },
    }
    errors = [
        f"it returns {name} with shape {list(found.shape)}, but it must be {list(shape)}"
        for name, (found, shape) in wanted.items()
        if found.shape != shape
    ]
    _refuse(path, [*errors, mismatch("init", state, "update", after)])


def _check_noise(noise: Noise, environment: Environment, member: Member) -> None:
    """ConfigError if a noise's functions, when they are traced, do not return what `Noise` says."""
    clock = clock_at(member.training, 1)
    shape = (clock.rows_per_step, environment.action_size)
    state = jax.eval_shape(lambda key: noise.init(key, shape), seed_key(0))
    after, sample = jax.eval_shape(noise.sample, seed_key(0), clock, state)
    reset = jax.eval_shape(noise.reset, seed_key(0), state, jax.ShapeDtypeStruct(shape[:1], bool))
    found = [mismatch("init", state, "sample", after), mismatch("init", state, "reset", reset)]
    if kind(sample) != (wanted := f"float32{list(shape)}"):
        found.append(f"sample returns the noise {kind(sample)}, but must return {wanted}")
    _refuse(f"noise.color {member.noise.color}", found)


def _check_replay(replay: Replay, environment: Environment, member: Member) -> None:
    """ConfigError if a replay's functions, when they are traced, do not return what `Replay` says."""
    clock, size = clock_at(member.training, 1), member.agent.batch_size // member.training.num_shards
    example = Experience.zeros(environment)
    state = jax.eval_shape(replay.init, example)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((clock.rows_per_step, *x.shape), x.dtype), example)
    found = [mismatch("init", state, "add", jax.eval_shape(replay.add, clock, state, rows))]
    sample = jax.eval_shape(lambda key, state: replay.sample(key, clock, state, size), seed_key(0), state)
    if not isinstance(sample, Experience):
        found.append(f"sample returns a {type(sample).__name__}, but must return an Experience")
    elif sample.reward.ndim != 2 or len(sample.reward) != size:
        found.append(f"sample returns rewards {kind(sample.reward)}, but must return rows [{size}, steps]")
    _refuse(f"replay.sampling {member.replay.sampling}", found)


def _refuse(part: str, errors: Sequence[str]) -> None:
    """ConfigError if there are errors of a part; those that are empty are none."""
    if found := [f"{part} cannot be used: {error}" for error in errors if error]:
        raise ConfigError(found)


def make_agent(environment: Environment, section: Any, axis_name: str | None = None) -> Agent:
    """Makes the agent described by a section; `axis_name` is the mapped axis over which its batches are sharded, if
    any."""
    if isinstance(section, settings.CustomAgent):
        arguments = {"batch_size": section.batch_size, "axis_name": axis_name, **section.settings}
        return _custom(Agent, "agent.algorithm", section.algorithm, environment, settings=arguments)
    agent = AGENTS[type(section)](environment, section, axis_name)
    if getattr(section, "normalize_observations", False):
        return normalized(agent, environment.observation_size, axis_name)
    return agent


def _custom(kind: type, path: str, place: str, *arguments: Any, settings: Mapping[str, Any]) -> Any:
    """What a user's function returns; ConfigError if it fails or returns no record of this kind."""
    try:
        function = load_function(place)
        check_parameters(function, settings)
        found = function(*arguments, **settings)
        if not isinstance(found, kind):
            raise ValueError(f"it returned {type(found).__name__}, but must return a jaxddpg.{kind.__name__}")
    except (Exception, SystemExit) as error:
        raise ConfigError([f"{path} {place} cannot be used: {sentence(error)}"]) from error
    return found


def _make_copdac(environment: Environment, section: settings.COPDAC, axis_name: str | None) -> Agent:
    return copdac(environment, make_features(environment, section.features), section, axis_name)


AGENTS: dict[type, Callable[[Environment, Any, str | None], Agent]] = {
    settings.DDPG: ddpg,
    settings.TD3: td3,
    settings.D4PG: d4pg,
    settings.FastTD3: fasttd3,
    settings.COPDAC: _make_copdac,
}
"""What makes the agent of each section."""


def make_features(
    environment: Environment, section: settings.Tiles | settings.Fourier | settings.Radial | settings.Polynomial
) -> Features:
    """The encoding that a section describes, on its ranges or else the environment's.

    Raises:
        ValueError: there is no finite range, or not one for each observation.
    """
    size = environment.observation_size
    stated = section.low or section.high
    if stated and len(section.low) != size:
        raise ValueError(
            f"agent.features.low and high have {len(section.low)} numbers, but there are {size} observations"
        )
    low, high = (section.low, section.high) if stated else (environment.observation_low, environment.observation_high)
    low, high = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), (size,)) for bound in (low, high))
    # Environments without bounds often state the largest float instead of infinity.
    ranged = (low > -1e30) & (low < high) & (high < 1e30)
    if not isinstance(ranged, jax.core.Tracer) and not bool(jnp.all(ranged)):
        raise ValueError(
            f"features require finite observation bounds, but low is {low} and high is {high}; set "
            "agent.features.low and agent.features.high, one number per observation, each low below its high"
        )
    match section:
        case settings.Tiles():
            return features.tiles(low, high, section.num_tilings, section.num_tiles)
        case settings.Fourier():
            return features.fourier(low, high, section.order)
        case settings.Radial():
            return features.radial(low, high, section.num_centers, section.width)
        case settings.Polynomial():
            return features.polynomial(low, high, section.order)
        case _:
            assert_never(section)


def make_noise(environment: Environment, section: Any) -> Noise:
    """Makes the exploration noise described by a section."""
    numbers = {name: value for name, value in vars(section).items() if name != "color"}
    match section:
        case settings.Noise():
            return noise.ornstein_uhlenbeck(**numbers)
        case settings.PinkNoise():
            return noise.pink(horizon=environment.episode_length, **numbers)
        case settings.LadderNoise():
            return noise.ladder(**numbers)
        case _:
            return _custom(Noise, "noise.color", section.color, settings=section.settings)


def make_replay(section: Any, num_shards: int = 1) -> Replay:
    """Makes the replay described by a section, or one of the shards of which it consists."""
    capacity = section.capacity // num_shards
    match section:
        case settings.Replay():
            return replay.uniform(capacity, section.steps)
        case settings.LatestReplay():
            return replay.latest(capacity)
        case _:
            return _custom(Replay, "replay.sampling", section.sampling, capacity, settings=section.settings)


def build(member: Member) -> Trainer:
    """Builds the trainer of one member (an `Experiment` is a `Member`). Inside `jit`, its settings may be traced."""
    trainer, num_shards = build_shard(member), member.training.num_shards
    return trainer if num_shards == 1 else sharding.vmap_shards(trainer, num_shards)


def build_shard(member: Member) -> Trainer:
    """The trainer of one of the shards of a member, to be run under the axis `sharding.AXIS`; of the member where it
    has only one."""
    environment, num_shards = make_environment(member.environment), member.training.num_shards
    return make_trainer(
        environment,
        make_agent(environment, member.agent, sharding.AXIS if num_shards > 1 else None),
        make_noise(environment, member.noise),
        make_replay(member.replay, num_shards),
        member.training,
        member.evaluation,
    )


def populate(run: RunPlan) -> Population:
    """The population of a run; ConfigError as `check_processes`."""
    check_processes(run.experiment.training.num_shards, [device.process_index for device in jax.devices()])
    section = run.experiment.population
    # Programs of the user's own functions are not kept, because their code may change between runs of a process.
    make = partial(build_shard) if is_custom(run.experiment) else build_shard
    members = [member.settings.member() for member in run.members]
    return Population(
        make,
        members,
        [member.seed for member in run.members],
        section.placement,
        run.experiment.training.num_shards,
        digest(members[0].environment),
    )


def check_processes(num_shards: int, owners: Sequence[int]) -> None:
    """ConfigError where the rows of devices for the shards of members leave a process without a device; `owners` are
    the processes of all devices."""
    count, row = len(owners), sharding.devices_each(num_shards, len(owners))
    if without := {*owners} - {*owners[: count // row * row]}:
        what = f"training.num_shards is {num_shards}, which leaves process {min(without)} none of the {count} devices"
        raise ConfigError([f"{what}; start fewer processes, or choose a num_shards that divides {count}"])


def state_like(run: RunPlan) -> State:
    """The shapes and types of the state of all members of a run, each leaf [M, ...]."""
    alone = jax.eval_shape(build(run.members[0].settings.member()).init, seed_key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(run.members), *leaf.shape), leaf.dtype), alone)
