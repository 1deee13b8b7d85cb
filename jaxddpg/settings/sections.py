"""The sections of an experiment but the agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Any, Literal

from jaxddpg.settings.fields import AXIS_FORM, CUSTOM, MAX_MEMBERS, MAX_VARIANTS, Factory, Rule, Scalar, setting

LIBRARIES = ("brax", "playground")
"""Prefixes of names of environments. The module of `jaxddpg.envs` with that name has a function `make(name,
**parameters)`."""


@dataclass(frozen=True)
class Environment:
    """The environment (a single instance)."""

    name: str = setting(
        "Pendulum-v1",
        "a gymnax environment name, `playground:...`, `brax:...`, or `package.module:factory` for a custom one",
    )
    parameters: Mapping[str, Any] = setting(
        dict,
        "environment parameters by name; floats are traced, other values and those of Playground and Brax static",
    )

    @property
    def library(self) -> str:
        """The library that the prefix of the name stands for, as in brax:ant; "" for all other environments. The
        parameters of its environments are static."""
        prefix, colon, _ = self.name.partition(":")
        return prefix if colon and prefix in LIBRARIES else ""


@dataclass(frozen=True)
class Noise:
    """Ornstein-Uhlenbeck noise: x' = smoothing * x + scale * eps, for actions scaled to [-1, 1]."""

    color: Literal["ou"] = setting("ou", "Ornstein-Uhlenbeck noise, or with smoothing 0 white noise")
    smoothing: Scalar = setting(0.85, "0: Gaussian white noise; in between: Ornstein-Uhlenbeck", at_least=0, at_most=1)
    scale: Scalar = setting(0.2, "standard deviation; see scale_of", at_least=0)
    scale_of: Literal["innovation", "stationary"] = setting(
        "innovation", "whether scale is the standard deviation of the per-step innovation or of the stationary process"
    )
    final_scale: Scalar = setting(0.0, "reached linearly after decay_steps", at_least=0)
    decay_steps: Scalar = setting(inf, "env steps of linear decay; inf: constant", above=0)

    def rules(self) -> list[Rule]:
        return [
            Rule(
                self.scale_of == "innovation" or self.smoothing < 1,
                ("smoothing", "scale_of"),
                "but a random walk has no stationary deviation; use noise.scale_of: innovation",
            )
        ]


@dataclass(frozen=True)
class PinkNoise:
    """Noise with a spectrum of 1/f over the length of an episode (Eberhard et al. 2023)."""

    color: Literal["pink"] = setting("pink", "noise with a spectrum of 1/f over the length of an episode")
    scale: Scalar = setting(0.3, "standard deviation, for actions scaled to [-1, 1]", at_least=0)
    final_scale: Scalar = setting(0.0, "reached linearly after decay_steps", at_least=0)
    decay_steps: Scalar = setting(inf, "env steps of linear decay; inf: constant", above=0)


@dataclass(frozen=True)
class LadderNoise:
    """White noise with a standard deviation of its own in each environment and episode (Seo et al. 2025)."""

    color: Literal["ladder"] = setting("ladder", "white noise with a scale of its own in each environment and episode")
    min_scale: Scalar = setting(0.0, "lowest standard deviation, for actions scaled to [-1, 1]", at_least=0)
    max_scale: Scalar = setting(0.4, "highest standard deviation, for actions scaled to [-1, 1]", at_least=0)

    def rules(self) -> list[Rule]:
        return [
            Rule(
                self.min_scale <= self.max_scale,
                ("min_scale", "max_scale"),
                f"but must be at most noise.max_scale, {self.max_scale}",
            )
        ]


@dataclass(frozen=True)
class CustomNoise:
    """A noise of the user's."""

    color: Factory = setting(CUSTOM, "a function that returns a `jaxddpg.Noise`, called with noise.settings")
    settings: Mapping[str, Any] = setting(dict, "its arguments by name; floats are traced, other values static")


@dataclass(frozen=True)
class Replay:
    """The replay buffer, sampled uniformly."""

    sampling: Literal["uniform"] = setting("uniform", "uniformly at random")
    capacity: int = setting(100_000, "transitions per member; a multiple of training.num_envs", at_least=1)
    steps: int = setting(1, "n of the n-step returns that are learned from", at_least=1)


@dataclass(frozen=True)
class LatestReplay:
    """The replay buffer, of which the newest transitions are used in order."""

    sampling: Literal["latest"] = setting("latest", "the newest transitions in order")
    capacity: int = setting(100_000, "transitions per member; a multiple of training.num_envs", at_least=1)


@dataclass(frozen=True)
class CustomReplay:
    """A replay buffer of the user's."""

    sampling: Factory = setting(
        CUSTOM, "a function that returns a `jaxddpg.Replay`, called with the capacity of a shard and replay.settings"
    )
    capacity: int = setting(100_000, "transitions per member; a multiple of training.num_envs", at_least=1)
    settings: Mapping[str, Any] = setting(dict, "its other arguments by name; floats are traced, other values static")


@dataclass(frozen=True)
class Training:
    """The loop of one member. A vector step is one step of each of its environments."""

    num_envs: int = setting(1, "parallel environments per member", at_least=1)
    updates_per_step: Fraction = setting(
        Fraction(1), "gradient updates per vector step: k, or 1/k for one update every k steps", above=0
    )
    warmup_steps: int = setting(1_000, "vector steps of uniformly random actions before learning", at_least=0)
    steps_per_epoch: int = setting(1_000, "vector steps per epoch, i.e. between evaluations", at_least=1)
    num_epochs: int = setting(100, "epochs after the warm-up", at_least=1)
    num_shards: int = setting(
        1,
        "number of data-parallel shards per member (environments, replay and batches), each on its own device if "
        "there are enough",
        at_least=1,
    )

    def rules(self) -> list[Rule]:
        shards = self.num_shards
        last_step = self.warmup_steps + self.num_epochs * self.steps_per_epoch
        return [
            Rule(
                last_step < 2**32,
                ("num_epochs", "steps_per_epoch", "warmup_steps"),
                f"which makes {last_step} vector steps, but a run must have fewer than 2^32; use more "
                "training.num_envs and fewer steps",
            ),
            Rule(
                self.num_envs % shards == 0,
                ("num_envs", "num_shards"),
                f"but must be a multiple of training.num_shards, {shards}; use {-(-self.num_envs // shards) * shards}",
            ),
        ]

    @property
    def env_steps(self) -> int:
        """Total env steps of one member over the run, including warm-up."""
        return self.num_envs * (self.warmup_steps + self.num_epochs * self.steps_per_epoch)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of the deterministic policy, at the end of every epoch."""

    num_episodes: int = setting(32, "episodes per member", at_least=1)


@dataclass(frozen=True)
class NoSelection:
    """No member is replaced or stopped."""

    method: Literal["none"] = setting("none", "no member is replaced or stopped")


@dataclass(frozen=True)
class PopulationBased:
    """Population-based training (Jaderberg et al. 2017)."""

    method: Literal["pbt"] = setting("pbt", "the worst continue from the best, with perturbed settings")
    interval: int = setting(5, "epochs between selections", at_least=1)
    share: float = setting(
        0.25, "fraction of members (at least one) replaced by copies of the best", above=0, at_most=0.5
    )
    factors: tuple[float, ...] = setting(
        (0.8, 1.25), "each swept setting of a replaced member is multiplied by one of these, chosen at random", above=0
    )
    copy_replay: bool = setting(True, "also copy the replay buffer (always done for diverged members)")
    seed: int = setting(0, "seed for selection and perturbation", at_least=0)


@dataclass(frozen=True)
class Halving:
    """Successive halving (Jamieson & Talwalkar 2016)."""

    method: Literal["halving"] = setting("halving", "only the best continue, the others are stopped")
    interval: int = setting(5, "epochs between selections", at_least=1)
    reduction: int = setting(2, "1/reduction of the members continue, rounded up", at_least=2)


@dataclass(frozen=True)
class Population:
    """The members: every variant of the swept settings with every seed."""

    seed: int = setting(0, "first seed; members use consecutive seeds", at_least=0)
    num_seeds: int = setting(1, "number of seeds; in a sweep, per variant", at_least=1, at_most=MAX_MEMBERS)
    sweep: Mapping[str, Any] = setting(
        dict, f"swept settings by dotted path, such as noise.scale, each with its values: {AXIS_FORM}"
    )
    combine: Literal["grid", "zip", "random"] = setting(
        "grid", "how axes combine into variants: full grid, element-wise, or random draws"
    )
    num_draws: int = setting(1, "number of random draws", at_least=1, at_most=MAX_VARIANTS)
    draw_seed: int = setting(0, "seed for the random draws", at_least=0)
    selection: NoSelection | PopulationBased | Halving = setting(
        NoSelection, "which members are replaced or stopped between epochs"
    )
    placement: int = setting(
        0,
        "maximum number of members a device runs at once under vmap; 0: automatic (1 on CPU, otherwise all)",
        at_least=0,
    )
    on_divergence: Literal["freeze", "stop"] = setting(
        "freeze", "what to do when a member has non-finite values: freeze it, or stop the run"
    )

    @property
    def selects(self) -> bool:
        """Whether members are replaced or stopped in favor of others."""
        return not isinstance(self.selection, NoSelection)

    def rules(self) -> list[Rule]:
        return [
            Rule(
                self.combine == "random" or self.num_draws == 1,
                ("num_draws", "combine"),
                f"but population.combine is {self.combine}, which draws nothing; use random",
            )
        ]


@dataclass(frozen=True)
class Checkpoint:
    """Checkpointing."""

    interval_seconds: float = setting(30.0, "minimum seconds between checkpoints; 0: after every epoch", at_least=0)
    keep: int = setting(2, "number of newest checkpoints to keep; each also holds the best policies", at_least=1)


@dataclass(frozen=True)
class Reporting:
    """Additional logging backends."""

    tensorboard: bool = setting(False, "write TensorBoard event files into the run directory")
    wandb: bool = setting(False, "log to Weights & Biases (WANDB_MODE=offline works without a network)")
    wandb_project: str = setting("jaxddpg", "the Weights & Biases project")
