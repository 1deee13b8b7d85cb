"""Policies loaded from checkpoints: evaluation, inference functions and animations."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import config, settings
from jaxddpg.config import ConfigError, MemberPlan, RunPlan, with_values
from jaxddpg.config.build import make_agent, populate, state_like
from jaxddpg.config.environment import make_environment
from jaxddpg.parts.structure import kind
from jaxddpg.report import animation
from jaxddpg.report.rows import Row, best_row, identity, status, swept
from jaxddpg.report.scenes import Rollout, frames
from jaxddpg.runs import backend, checkpoint, memory, origin
from jaxddpg.runs.show import complete_rows
from jaxddpg.settings import Member
from jaxddpg.training.evaluation import causes
from jaxddpg.types import Clock, Environment, Key, State, TimeStep, rescale, seed_key

NEWEST, BEST = "newest", "best"


class MemberPolicy(NamedTuple):
    """The policy of one member of a run."""

    settings: Member
    environment: Environment
    state: State
    act: Callable[[jax.Array], jax.Array]
    """observation [..., O] -> action [..., A] in [-1, 1]"""

    def in_units(self, action: jax.Array) -> jax.Array:
        """An action [..., A] in the units of the environment."""
        return rescale(action, jnp.asarray(self.environment.action_low), jnp.asarray(self.environment.action_high))

    def policy(self, observation: jax.Array) -> jax.Array:
        """observation [..., O] -> action [..., A] in the units of the environment"""
        return self.in_units(self.act(observation))


def evaluate(directory: str | Path, num_episodes: int = 100, seed: int = 0, epoch: int | str = NEWEST) -> list[Row]:
    """Evaluates the policies of a run or a sweep without noise, on episodes that training never saw; a row per member.

    Diverged members have no return; for the others `unmeasured_by` names any non-finite quantity. In a sweep of several
    runs each row has the name of its run, and runs without a checkpoint are skipped with a warning.

    Args:
        epoch: which checkpoint: "newest", "best" (each member's policy at its best evaluation), or the number of a
            retained epoch.

    Raises:
        ConfigError: the directory holds no such checkpoint, or no episode is asked for or more than memory can hold.
    """
    if num_episodes < 1:
        raise ConfigError([f"--num-episodes is {num_episodes}, but must be at least 1"])
    _check_seed(seed)
    backend.start()
    directory = Path(directory)
    runs = config.read_run_or_sweep(directory).runs
    if len(runs) == 1:
        return _evaluate(directory, num_episodes, seed, epoch)
    found = {run.name: bool(checkpoint.epochs(directory / run.name)) for run in runs}
    if not any(found.values()):
        raise ConfigError([f"{directory} has no checkpoint; was the sweep stopped before its first epoch finished?"])
    for name, has_checkpoint in found.items():
        if not has_checkpoint:
            warnings.warn(f"{directory / name} has no checkpoint yet; skipping it", stacklevel=2)
    return [
        {"run": name} | row
        for name, has_checkpoint in found.items()
        if has_checkpoint
        for row in _evaluate(directory / name, num_episodes, seed, epoch)
    ]


def _evaluate(directory: Path, num_episodes: int, seed: int, epoch: int | str) -> list[Row]:
    """As `evaluate`, of one run."""
    found = load_policies(directory, epoch)
    section = settings.Evaluation(num_episodes)
    members = [member._replace(settings=replace(member.settings, evaluation=section)) for member in found.plan.members]
    plan = found.plan._replace(experiment=replace(found.plan.experiment, evaluation=section), members=members)
    length, population = make_environment(members[0].settings.environment).episode_length, populate(plan)
    like, at_once, _ = memory.held(population)
    memory.check_evaluation(plan.experiment, like, length, at_once, memory.free(), "--num-episodes")
    # Training's epochs count up from 0; these count down from the last there is.
    training = plan.experiment.training
    clock = Clock(np.uint32(2**32 - 1 - seed), np.uint32(0), training.num_envs, training.num_shards)
    metrics = population.evaluate(clock, population.scatter_agents(found.agents))()
    unmeasured_by = causes(metrics)
    return [
        {
            "epoch": found.epochs[index],
            **member,
            "num_episodes": num_episodes,
            "episode_seed": seed,
            "diverged": bool(found.diverged[index]),
            "unmeasured_by": "" if found.diverged[index] else unmeasured_by[index],
        }
        | {name: np.nan if found.diverged[index] else float(values[index]) for name, values in metrics.items()}
        for index, member in enumerate(found.identities)
    ]


def load_policy(
    directory: str | Path, member: int = 0, epoch: int | str = NEWEST
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """The deterministic policy of one member of a run: observation [..., O] -> action [..., A], in the units of the
    environment. It can be used under `jit` and `vmap`. `epoch` is as for `evaluate`; for a diverged member this is the
    policy before it diverged."""
    found = load_policies(Path(directory), epoch).member(member)
    size, policy_of_arrays = found.environment.observation_size, jax.jit(found.policy)

    def policy(observation: jax.typing.ArrayLike) -> jax.Array:
        given = jnp.asarray(observation, jnp.float32)
        if given.shape[-1:] != (size,):
            raise ValueError(f"observation has shape {given.shape}, but must be [..., {size}]")
        return policy_of_arrays(given)

    return policy


def render(directory: str | Path, path: str | Path, member: int = 0, seed: int = 0, epoch: int | str = NEWEST) -> None:
    """Draws one deterministic episode of the policy of one member as an animated GIF. `epoch` as for `evaluate`.

    Raises:
        ConfigError: the directory holds no such checkpoint or member, or the file cannot be written.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() != ".gif":
        raise ConfigError([f"--output {path} must end in .gif, e.g. rollout.gif"])
    config.check_output(path)
    _check_seed(seed)
    found = load_policies(Path(directory), epoch).member(member)
    rollout = _play(seed_key(seed), found)
    try:
        animation.draw(rollout, path)
    except OSError as error:
        raise ConfigError([f"--output {path} cannot be written: {error.strerror or error}"]) from error


def _play(key: Key, found: MemberPolicy) -> Rollout:
    """One deterministic episode."""
    environment, section = found.environment, found.settings.environment

    def step(carry: tuple[State, jax.Array], key: Key) -> tuple[tuple[State, jax.Array], tuple[Any, ...]]:
        before, observation = carry
        action = jnp.clip(found.act(observation), -1.0, 1.0)
        environment_state, time_step = environment.step(key, before, action)
        kept = before if environment.render else None
        return (environment_state, time_step.observation), (found.in_units(action), time_step, kept)

    @jax.jit
    def play(key: Key) -> tuple[jax.Array, tuple[jax.Array, TimeStep, State]]:
        reset_key, step_key = jax.random.split(key)
        environment_state, start = environment.reset(reset_key)
        keys = jax.random.split(step_key, environment.episode_length)
        return start, jax.lax.scan(step, (environment_state, start), keys)[1]

    start, (actions, time_steps, states) = jax.device_get(play(key))
    over = time_steps.terminated | time_steps.truncated
    length = int(over.argmax()) + 1 if over.any() else len(over)
    observations = np.concatenate([start[None], time_steps.final_observation[:length]])

    rollout = Rollout(section.name, observations, actions[:length], time_steps.reward[:length], section.parameters)
    if not environment.render:
        return rollout
    # The state after the last step is the first of the next episode, so the one before it is drawn twice.
    drawn = np.minimum(frames(length), length - 1)
    return rollout._replace(images=_rendered(section, environment, jax.tree.map(lambda leaf: leaf[drawn], states)))


def _rendered(section: settings.Environment, environment: Environment, states: State) -> np.ndarray | None:
    """The images of states [F, ...], or None, with a warning, where the environment fails to render them."""
    assert environment.render
    try:
        images = np.asarray(environment.render(states))
        count = len(jax.tree.leaves(states)[0])
        if images.ndim != 4 or images.shape[::3] != (count, 3) or images.dtype != np.uint8:
            raise ValueError(f"render must return uint8[{count}, H, W, 3], not {kind(images)}")
    except Exception as error:  # of a graphics library, or of the user's own code
        hint = ". Without a display MuJoCo needs EGL or OSMesa; the variable MUJOCO_GL selects one"
        warnings.warn(
            f"{section.name} cannot be rendered ({config.first_line(error)}); its observations are plotted instead"
            f"{hint if section.library else ''}",
            stacklevel=4,
        )
        return None
    return images


class Policies(NamedTuple):
    """The policies of all members, restored from a checkpoint."""

    plan: RunPlan
    """with the settings that the members had at the epoch of their policies"""
    identities: list[Row]
    """what distinguishes each member"""
    epochs: list[int]
    """[M]"""
    agents: State
    """each leaf [M, ...]"""
    diverged: np.ndarray
    """bool [M]"""

    def only(self, index: int) -> "Policies":
        """Those of one member; ConfigError if there is none of this index."""
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise ConfigError([f"member is {config.text(index)}, but must be a member index"])
        if not 0 <= index < len(self.plan.members):
            raise ConfigError([f"member is {index}, but must be at least 0 and below {len(self.plan.members)}"])
        part = slice(index, index + 1)
        return Policies(
            plan=self.plan._replace(members=self.plan.members[part]),
            identities=self.identities[part],
            epochs=self.epochs[part],
            agents=jax.tree.map(lambda leaf: leaf[part], self.agents),
            diverged=self.diverged[part],
        )

    def member(self, index: int) -> MemberPolicy:
        """The policy of one member; ConfigError as `only`."""
        one = self.only(index)
        return member_policy(one.plan.members[0].settings, jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), one.agents))

    def stacked_settings(self) -> Member:
        """The settings of all members, stacked: each number is [M]."""
        members = [member.settings.member() for member in self.plan.members]
        return jax.tree.map(lambda *numbers: np.stack(numbers), *members)

    def all_members(self, observations: jax.Array) -> jax.Array:
        """Observations [M, ..., O], those of each member -> actions [M, ..., A] in the units of the environment."""
        act = jax.vmap(lambda section, state, rows: member_policy(section, state).policy(rows))
        return act(self.stacked_settings(), self.agents, observations)


def member_policy(section: Member, state: State) -> MemberPolicy:
    """Builds a member's policy from its settings and its agent's state; either may be traced."""
    environment = make_environment(section.environment)
    agent = make_agent(environment, section.agent)

    def act(observation: jax.Array) -> jax.Array:
        # The barrier keeps XLA from rewriting (x - origin) - mean as x - (origin + mean), whose constant is rounded.
        return agent.act(jax.lax.optimization_barrier(state), observation)

    return MemberPolicy(section, environment, state, act)


def load_policies(directory: Path, epoch: int | str) -> Policies:
    """The policies of a checkpoint of a run."""
    plan = config.read_run(directory)
    backend.check_devices()
    states = _restored(plan, directory, epoch)
    epochs, diverged = states["epoch"].tolist(), states["health"].diverged
    if epoch == BEST:  # which was finite, unless there was no such evaluation
        diverged &= states["health"].step < plan.experiment.training.warmup_steps
    identities = plan.identities()
    if plan.selects:  # which changes settings; the rows record them
        rows, count = complete_rows(directory, plan), len(plan.members)
        last = rows[states["at"][0] * count :][:count]
        measured = [rows[epoch * count + member] for member, epoch in enumerate(epochs)]
        chosen = best_row(measured, "eval/return_mean")
        members = [
            MemberPlan(with_values(member.settings, swept(row)), member.seed, swept(row))
            for member, row in zip(plan.members, measured, strict=True)
        ]
        plan = plan._replace(members=members)
        identities = [
            identity(own) | {"status": "best" if member == chosen else status(row)}
            for member, (own, row) in enumerate(zip(measured, last, strict=True))
        ]
    return Policies(plan, identities, epochs, states["agent"], diverged)


def _restored(plan: RunPlan, directory: Path, epoch: int | str) -> dict[str, Any]:
    """The agents and the health of members, the epochs of these agents, and the epoch `at` which they were written,
    each leaf [M, ...]; where the newest checkpoint is damaged, of an older one, with a warning."""
    count = len(plan.members)
    shapes, reasons = state_like(plan), dict[int, str]()
    wanted = {"agent": shapes.agent, "health": shapes.health}
    if epoch == BEST:
        numbers = jax.ShapeDtypeStruct((count,), np.int32)
        wanted = {"best": {"agent": shapes.agent, "epoch": numbers}, "health": shapes.health}
    found = checkpoint.epochs(directory)
    while left := [candidate for candidate in _candidates(directory, epoch, found) if candidate not in reasons]:
        try:
            origin.check(checkpoint.origin(directory, left[0]), plan)
            state = checkpoint.restore(directory, left[0], wanted, partial=True)
        except checkpoint.DamagedError as error:
            # A run that is training may have removed it since, for a newer one.
            found = checkpoint.epochs(directory)
            if left[0] in found:
                reasons[left[0]] = str(error)
            continue
        except ConfigError:
            raise
        except ValueError as error:
            reasons[left[0]] = config.first_line(error)
            break
        if reasons:
            warnings.warn(
                f"{next(iter(reasons.values()))}; using the policies of epoch {left[0]} instead", stacklevel=4
            )
        at = np.full(count, left[0])
        policies = state.pop("best", {}) or {"agent": state.pop("agent"), "epoch": at}
        return policies | {"health": state["health"], "at": at}
    raise ConfigError([f"the policies of {directory} cannot be read: {next(iter(reasons.values()))}"])


def _candidates(directory: Path, epoch: int | str, found: Sequence[int]) -> Sequence[int]:
    """Which of the checkpoints that were found to try, one after the other."""
    if not found:
        raise ConfigError(
            [
                f"{directory} has no checkpoint; the run was stopped before its first one was written, or its "
                "checkpoints were deleted"
            ]
        )
    if epoch == BEST and checkpoint.holds(directory, found[0], "best") is False:
        raise ConfigError(
            [f"{directory} was written by an earlier version that did not store best policies; use {NEWEST}"]
        )
    if epoch in (NEWEST, BEST):
        return found
    if epoch not in found:
        raise ConfigError(
            [f"epoch is {config.text(epoch)}, but must be one of {NEWEST}, {BEST}, {', '.join(map(str, found))}"]
        )
    return [int(epoch)]


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise ConfigError([f"--seed is {seed}, but must be at least 0 and below 2^31"])
