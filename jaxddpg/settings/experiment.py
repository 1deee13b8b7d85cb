"""The settings of a member, and of an experiment."""

import dataclasses
from dataclasses import dataclass
from math import inf

from jaxddpg.settings.deep import D4PG, DDPG, TD3, ActorCritic, CustomAgent, FastTD3
from jaxddpg.settings.fields import Rule, setting
from jaxddpg.settings.linear import COPDAC
from jaxddpg.settings.sections import (
    Checkpoint,
    CustomNoise,
    CustomReplay,
    Environment,
    Evaluation,
    LadderNoise,
    LatestReplay,
    Noise,
    NoSelection,
    PinkNoise,
    Population,
    Replay,
    Reporting,
    Training,
)


@dataclass(frozen=True)
class Member:
    """The settings of one population member: everything the compiled program depends on."""

    environment: Environment = setting(Environment, "the environment")
    agent: DDPG | TD3 | D4PG | FastTD3 | COPDAC | CustomAgent = setting(DDPG, "the agent")
    noise: Noise | PinkNoise | LadderNoise | CustomNoise = setting(Noise, "exploration")
    replay: Replay | LatestReplay | CustomReplay = setting(Replay, "the replay buffer")
    training: Training = setting(Training, "the loop")
    evaluation: Evaluation = setting(Evaluation, "evaluation")

    def rules(self) -> list[Rule]:
        num_envs, batch_size, capacity = self.training.num_envs, self.agent.batch_size, self.replay.capacity
        critic_steps = getattr(self.agent, "critic_steps", 1)
        ratio = self.training.updates_per_step / critic_steps
        # The newest rows are split among the updates of a step; at random each update draws from all there are.
        share = ratio.numerator * critic_steps if isinstance(self.replay, LatestReplay) else 1
        needed, rows = share * batch_size, self.training.warmup_steps * num_envs
        first = f"batch needs agent.batch_size, {batch_size}" if share == 1 else f"{share} batches need {needed}"
        made, period, epoch = num_envs * ratio.denominator, ratio.denominator, self.training.steps_per_epoch
        return [
            *self._window_rules(),
            *self._shard_rules(),
            Rule(
                epoch % period == 0,
                ("training.steps_per_epoch", "training.updates_per_step", "agent.policy_delay"),
                f"but must be a multiple of the {period} steps between updates; use {-(-epoch // period) * period}",
            ),
            Rule(
                not isinstance(self.replay, LatestReplay) or needed >= made,
                ("agent.batch_size", "training.num_envs", "training.updates_per_step", "replay.sampling"),
                f"but {made} transitions are collected between updates and only the newest {needed} would be used; "
                f"use {-(-made // share)}, or replay.sampling: uniform",
            ),
            Rule(
                needed <= capacity,
                ("agent.batch_size", "replay.capacity", "training.updates_per_step"),
                f"{f'which {share} updates make {needed} rows, ' * (share > 1)}but must be at most replay.capacity, "
                f"{capacity}",
            ),
            Rule(
                rows >= needed,
                ("training.warmup_steps", "training.num_envs", "agent.batch_size", "training.updates_per_step"),
                f"which with {num_envs} environments fills {rows} rows, but the first {first}; use at least "
                f"{-(-needed // num_envs)} steps",
            ),
            Rule(
                capacity % num_envs == 0,
                ("replay.capacity", "training.num_envs"),
                f"but must be a multiple of training.num_envs, {num_envs}, because each vector step writes one row per "
                f"environment; use {-(-capacity // num_envs) * num_envs}",
            ),
        ]

    def _window_rules(self) -> list[Rule]:
        """Of n-step windows."""
        num_envs, capacity, steps = self.training.num_envs, self.replay.capacity, getattr(self.replay, "steps", 1)
        return [
            Rule(
                steps * num_envs <= capacity,
                ("replay.steps", "replay.capacity", "training.num_envs"),
                f"but the replay holds only {capacity // num_envs} vector steps; use a larger replay.capacity",
            ),
            Rule(
                steps <= self.training.warmup_steps,
                ("replay.steps", "training.warmup_steps"),
                f"but the warm-up has only {self.training.warmup_steps} vector steps; use a longer warm-up",
            ),
        ]

    def _shard_rules(self) -> list[Rule]:
        """Of the parts of batches."""
        batch_size, shards = self.agent.batch_size, self.training.num_shards
        microbatch_size = getattr(self.agent, "microbatch_size", 0)
        return [
            Rule(
                batch_size % shards == 0,
                ("agent.batch_size", "training.num_shards"),
                f"but must be a multiple of training.num_shards, {shards}; use {-(-batch_size // shards) * shards}",
            ),
            Rule(
                not microbatch_size or batch_size // shards % microbatch_size == 0,
                ("agent.microbatch_size", "agent.batch_size", "training.num_shards"),
                f"but must divide the per-shard batch size, {batch_size // shards}; use 0 to choose it automatically",
            ),
        ]

    def cautions(self) -> list[str]:
        """Warnings about valid settings that are probably unintended."""
        return [*self._early_decay(), *self._unused_precision()]

    def _unused_precision(self) -> list[str]:
        if not isinstance(self.agent, ActorCritic) or self.agent.precision == "float32":
            return []
        networks = (self.agent.actor, self.agent.critic)
        if any(network.architecture == "residual" or len(network.hidden_sizes) > 1 for network in networks):
            return []
        return [
            f"agent.precision is {self.agent.precision}, but has no effect: the actor and the critic have one hidden "
            "layer each, and the products of first and last layers are float32"
        ]

    def _early_decay(self) -> list[str]:
        end, env_steps = getattr(self.agent, "learning_rate_decay_steps", inf), self.training.env_steps
        fixed = [name for name in ("actor", "critic") if getattr(self.agent, f"final_{name}_learning_rate", None) == 0]
        if end >= env_steps or not fixed:
            return []
        rates = " and ".join(f"agent.final_{name}_learning_rate" for name in fixed)
        return [
            f"agent.learning_rate_decay_steps is {end:.0f}, but the run has {env_steps} env steps, and {rates} "
            f"{'are' if len(fixed) > 1 else 'is'} 0: in the last {env_steps - end:.0f} env steps the "
            f"{' and the '.join(fixed)} {'learn' if len(fixed) > 1 else 'learns'} nothing; train a new run with "
            f"--agent.learning_rate_decay_steps {env_steps}"
        ]


@dataclass(frozen=True)
class Experiment(Member):
    """One experiment: one member's settings, how many members, and where the results go."""

    population: Population = setting(Population, "the members")
    checkpoint: Checkpoint = setting(Checkpoint, "what is kept to resume from")
    reporting: Reporting = setting(Reporting, "further outputs")

    def rules(self) -> list[Rule]:
        selection, num_epochs = self.population.selection, self.training.num_epochs
        return [
            *super().rules(),
            Rule(
                isinstance(selection, NoSelection) or selection.interval <= num_epochs,
                ("population.selection.interval", "training.num_epochs"),
                f"but training.num_epochs is {num_epochs}, so selection would never run; use a smaller interval",
            ),
        ]

    def member(self) -> Member:
        """The part that the compiled program is made from."""
        return Member(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Member)})
