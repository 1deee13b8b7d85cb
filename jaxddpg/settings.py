"""The settings of an experiment: its sections, and for each setting its default, its meaning and its rule.

A setting typed `Scalar` is a number that the compiled program takes as input: changing or sweeping it never compiles
again. All other settings are static. Each section is a pytree whose leaves are its traced settings. This module
does not import JAX, so that help and configuration errors never wait for it.
"""

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Annotated, Any, Literal, NamedTuple

import wrapt

Scalar = Annotated[float, "traced"]
AXIS_FORM = (
    "a list of values, {linspace: [first, last, num]}, {geomspace: [first, last, num]}, or, for random draws, "
    "{uniform: [low, high]} or {loguniform: [low, high]}"
)
"""What describes the values of a swept setting."""
MAX_VARIANTS = 10_000
"""Of a sweep; more are almost certainly a mistake."""


class Rule(NamedTuple):
    """A rule between settings. A section that has any lists them in a method `rules`."""

    holds: bool
    names: tuple[str, ...]
    """The settings involved, relative to the section; the message starts with the first."""
    words: str
    """The sentence after "NAME is VALUE, "."""


def setting(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A settings field with a default, a description and constraints; for a list, the constraints apply to each entry.

    A number may be infinite only where that is its neutral default.
    """
    rule = {"at least": at_least, "greater than": above, "at most": at_most}
    metadata = {"meaning": meaning, "rule": {words: bound for words, bound in rule.items() if bound is not None}}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Environment:
    """The environment (a single instance)."""

    name: str = setting("Pendulum-v1", "a gymnax environment name, or `package.module:factory` for a custom one")
    parameters: Mapping[str, Any] = setting(
        dict, "environment parameters by name; floats are traced, other values static"
    )


def _layer_normalization(normalization: str, hidden_sizes: tuple[int, ...]) -> Rule:
    return Rule(
        normalization != "layer" or min(hidden_sizes) > 1,
        ("normalization", "hidden_sizes"),
        "but layer normalization makes a single unit constant, so nothing is learned; use at least 2 units",
    )


_ARCHITECTURE = "mlp, or residual blocks with layer normalization (SimBa), one for each of the hidden sizes"


def _blocks(architecture: str, normalization: str, hidden_sizes: tuple[int, ...], action_layer: int = 0) -> list[Rule]:
    """The rules of residual blocks."""
    residual = architecture == "residual"
    return [
        Rule(
            not residual or len({*hidden_sizes}) == 1,
            ("hidden_sizes", "architecture"),
            "but residual blocks must have equal sizes",
        ),
        Rule(
            not residual or normalization == "none",
            ("normalization", "architecture"),
            "but residual blocks have a layer normalization of their own; use none",
        ),
        Rule(
            not residual or action_layer == 0,
            ("action_layer", "architecture"),
            "but in front of residual blocks the action joins the observation; use 0",
        ),
    ]


@dataclass(frozen=True)
class Actor:
    """The policy network."""

    hidden_sizes: tuple[int, ...] = setting((256, 256), "units of each hidden layer", at_least=1)
    normalization: Literal["none", "layer", "batch"] = setting("none", "normalization of the hidden layers")
    final_bound: Scalar = setting(3e-3, "the last layer is initialized from U(-final_bound, final_bound)", at_least=0)
    architecture: Literal["mlp", "residual"] = setting("mlp", _ARCHITECTURE)

    def rules(self) -> list[Rule]:
        return [
            _layer_normalization(self.normalization, self.hidden_sizes),
            *_blocks(self.architecture, self.normalization, self.hidden_sizes),
        ]


@dataclass(frozen=True)
class Critic:
    """The action-value network."""

    hidden_sizes: tuple[int, ...] = setting((256, 256), "units of each hidden layer", at_least=1)
    action_layer: int = setting(
        0, "index of the hidden layer that takes the action as an extra input", at_least=0, at_most=1
    )
    normalization: Literal["none", "layer", "batch"] = setting("none", "normalization of the hidden layers")
    final_bound: Scalar = setting(3e-3, "the last layer is initialized from U(-final_bound, final_bound)", at_least=0)
    weight_decay: Scalar = setting(0.0, "L2 coefficient on the weights, added to the gradient", at_least=0)
    architecture: Literal["mlp", "residual"] = setting("mlp", _ARCHITECTURE)

    def rules(self) -> list[Rule]:
        return [
            Rule(
                self.action_layer < len(self.hidden_sizes),
                ("action_layer", "hidden_sizes"),
                f"but the critic has only {len(self.hidden_sizes)} hidden layer; use 0",
            ),
            _layer_normalization(self.normalization, self.hidden_sizes),
            *_blocks(self.architecture, self.normalization, self.hidden_sizes, self.action_layer),
        ]


@dataclass(frozen=True)
class ActorCritic:
    """The settings that agents with an actor and a critic network share."""

    algorithm: str = setting("", "the algorithm")
    gamma: Scalar = setting(0.99, "discount factor", at_least=0, at_most=1)
    tau: Scalar = setting(0.005, "soft target update rate (Polyak averaging)", above=0, at_most=1)
    actor_learning_rate: Scalar = setting(3e-4, "Adam step size", above=0)
    critic_learning_rate: Scalar = setting(3e-4, "Adam step size", above=0)
    final_actor_learning_rate: Scalar = setting(
        0.0, "final learning rate, after linear decay over learning_rate_decay_steps", at_least=0
    )
    final_critic_learning_rate: Scalar = setting(
        0.0, "final learning rate, after linear decay over learning_rate_decay_steps", at_least=0
    )
    learning_rate_decay_steps: Scalar = setting(inf, "env steps of linear learning-rate decay; inf: constant", above=0)
    batch_size: int = setting(256, "transitions per gradient step of the critic", at_least=1)
    microbatch_size: int = setting(
        0,
        "microbatch size for gradient accumulation; 0: automatic (on CPU, the largest divisor of the batch size from "
        "256 to 512; otherwise the whole batch)",
        at_least=0,
    )
    reward_scale: Scalar = setting(1.0, "reward multiplier inside the agent", above=0)
    max_grad_norm: Scalar = setting(inf, "gradient clipping threshold (global norm); inf: no clipping", above=0)
    decoupled_weight_decay: Scalar = setting(
        0.0, "fraction of each weight that a step subtracts, times the learning rate (AdamW)", at_least=0
    )
    normalize_observations: bool = setting(False, "scale observations to mean 0 and variance 1 by running statistics")
    actor: Actor = setting(Actor, "the policy network")
    critic: Critic = setting(Critic, "the action-value network")


@dataclass(frozen=True)
class DDPG(ActorCritic):
    """Deep deterministic policy gradient (Lillicrap et al. 2015)."""

    algorithm: Literal["ddpg"] = setting("ddpg", "the algorithm")
    actor_learning_rate: Scalar = setting(1e-3, "Adam step size", above=0)
    critic_learning_rate: Scalar = setting(1e-3, "Adam step size", above=0)

    def rules(self) -> list[Rule]:
        whole = self.microbatch_size in (0, self.batch_size)
        normalizations = (self.actor.normalization, self.critic.normalization)
        return [
            Rule(
                whole or "batch" not in normalizations,
                ("microbatch_size", "actor.normalization", "critic.normalization"),
                "but batch normalization needs the statistics of the whole batch; use 0",
            ),
            Rule(
                self.batch_size > 1 or "batch" not in normalizations,
                ("batch_size", "actor.normalization", "critic.normalization"),
                "but batch normalization makes a single transition constant, so nothing is learned; use at least 2",
            ),
        ]


@dataclass(frozen=True)
class PlainActor(Actor):
    """A policy network without batch normalization."""

    normalization: Literal["none", "layer"] = setting("none", "normalization of the hidden layers")


@dataclass(frozen=True)
class PlainCritic(Critic):
    """An action-value network without batch normalization."""

    normalization: Literal["none", "layer"] = setting("none", "normalization of the hidden layers")


@dataclass(frozen=True)
class TD3Actor(PlainActor):
    """The policy network of TD3."""

    final_bound: Scalar = setting(0.0625, "the last layer is initialized from U(-final_bound, final_bound)", at_least=0)


@dataclass(frozen=True)
class TD3Critic(PlainCritic):
    """Each of the action-value networks of TD3."""

    final_bound: Scalar = setting(0.0625, "the last layer is initialized from U(-final_bound, final_bound)", at_least=0)


@dataclass(frozen=True)
class TD3(ActorCritic):
    """Twin delayed DDPG (Fujimoto et al. 2018)."""

    algorithm: Literal["td3"] = setting("td3", "the algorithm")
    num_critics: int = setting(2, "critics, of which the smallest value is the target", at_least=1)
    policy_delay: int = setting(2, "gradient steps of the critics for one of the actor and of the targets", at_least=1)
    target_noise: Scalar = setting(
        0.2, "standard deviation of the noise on the target policy's action, in units of half the range", at_least=0
    )
    target_noise_bound: Scalar = setting(0.5, "clipping threshold of that noise", at_least=0)
    actor: TD3Actor = setting(TD3Actor, "the policy network")
    critic: TD3Critic = setting(TD3Critic, "each of the action-value networks")

    @property
    def critic_steps(self) -> int:
        """Gradient steps of the critics in one update."""
        return self.policy_delay


def _support(v_min: float, v_max: float) -> Rule:
    return Rule(v_min < v_max, ("v_min", "v_max"), f"but must be below agent.v_max, {v_max}")


@dataclass(frozen=True)
class D4PG(ActorCritic):
    """Distributed distributional DDPG (Barth-Maron et al. 2018), in one process."""

    algorithm: Literal["d4pg"] = setting("d4pg", "the algorithm")
    actor_learning_rate: Scalar = setting(1e-4, "Adam step size", above=0)
    critic_learning_rate: Scalar = setting(1e-4, "Adam step size", above=0)
    num_atoms: int = setting(51, "atoms of the distribution of the return", at_least=2)
    v_min: Scalar = setting(-150.0, "value of the first atom, in units of the scaled reward")
    v_max: Scalar = setting(150.0, "value of the last atom, in units of the scaled reward")
    actor: PlainActor = setting(PlainActor, "the policy network")
    critic: PlainCritic = setting(PlainCritic, "the network of the distribution of the return")

    def rules(self) -> list[Rule]:
        return [_support(self.v_min, self.v_max)]


@dataclass(frozen=True)
class FastTD3Actor(PlainActor):
    """The policy network of FastTD3."""

    hidden_sizes: tuple[int, ...] = setting((512, 256, 128), "units of each hidden layer", at_least=1)
    final_bound: Scalar = setting(0.0173, "the last layer is initialized from U(-final_bound, final_bound)", at_least=0)


@dataclass(frozen=True)
class FastTD3Critic(PlainCritic):
    """Each of the two networks of FastTD3 for the distribution of the return."""

    hidden_sizes: tuple[int, ...] = setting((1024, 512, 256), "units of each hidden layer", at_least=1)
    final_bound: Scalar = setting(0.0625, "the last layer is initialized from U(-final_bound, final_bound)", at_least=0)


@dataclass(frozen=True)
class FastTD3(ActorCritic):
    """FastTD3 (Seo et al. 2025)."""

    algorithm: Literal["fasttd3"] = setting("fasttd3", "the algorithm")
    tau: Scalar = setting(0.1, "soft target update rate (Polyak averaging)", above=0, at_most=1)
    batch_size: int = setting(32_768, "transitions per gradient step of the critic", at_least=1)
    decoupled_weight_decay: Scalar = setting(
        0.1, "fraction of each weight that a step subtracts, times the learning rate (AdamW)", at_least=0
    )
    normalize_observations: bool = setting(True, "scale observations to mean 0 and variance 1 by running statistics")
    policy_delay: int = setting(2, "gradient steps of the critics for one of the actor", at_least=1)
    target_noise: Scalar = setting(
        0.001, "standard deviation of the noise on the next action, in units of half the range", at_least=0
    )
    target_noise_bound: Scalar = setting(0.5, "clipping threshold of that noise", at_least=0)
    clipped_double: bool = setting(True, "learn and ascend the smaller of both critics, not each its own and the mean")
    num_atoms: int = setting(101, "atoms of the distribution of the return", at_least=2)
    v_min: Scalar = setting(-250.0, "value of the first atom, in units of the scaled reward")
    v_max: Scalar = setting(250.0, "value of the last atom, in units of the scaled reward")
    actor: FastTD3Actor = setting(FastTD3Actor, "the policy network")
    critic: FastTD3Critic = setting(FastTD3Critic, "each of the networks of the distribution of the return")

    @property
    def critic_steps(self) -> int:
        """Gradient steps of the critics in one update."""
        return self.policy_delay

    def rules(self) -> list[Rule]:
        return [_support(self.v_min, self.v_max)]


@dataclass(frozen=True)
class Features:
    """Settings shared by all encodings: the observation ranges they scale from."""

    low: tuple[float, ...] = setting((), "lower bound of each observation; []: use the environment's")
    high: tuple[float, ...] = setting((), "upper bound of each observation; []: use the environment's")

    def rules(self) -> list[Rule]:
        paired = len(self.low) == len(self.high) and all(a < b for a, b in zip(self.low, self.high, strict=True))
        return [
            Rule(
                paired,
                ("low", "high"),
                f"but must have as many entries as high, {[*self.high]}, each below its counterpart",
            )
        ]


@dataclass(frozen=True)
class Tiles(Features):
    """Tile coding (Sutton & Barto 2018, section 9.5.4)."""

    encoding: Literal["tiles"] = setting("tiles", "binary features of offset grids")
    num_tilings: int = setting(
        8, "number of tilings, each with its own offset; powers of 2 give even offsets", at_least=1
    )
    num_tiles: int = setting(10, "tiles per dimension in each tiling", at_least=1)


@dataclass(frozen=True)
class Fourier(Features):
    """The cosine basis (Konidaris et al. 2011)."""

    encoding: Literal["fourier"] = setting("fourier", "cosines along and across the dimensions")
    order: int = setting(3, "highest frequency in half periods per range", at_least=0)


@dataclass(frozen=True)
class Radial(Features):
    """Normalized Gaussian radial basis functions on a grid."""

    encoding: Literal["radial"] = setting("radial", "Gaussian bumps that sum to 1")
    num_centers: int = setting(5, "centers per dimension", at_least=2)
    width: Scalar = setting(1.0, "standard deviation of each basis function, in grid spacings", above=0)


@dataclass(frozen=True)
class Polynomial(Features):
    """Monomials of the observation scaled to [-1, 1]."""

    encoding: Literal["polynomial"] = setting("polynomial", "products of observations, and a constant")
    order: int = setting(1, "highest total degree; 1 is the observation itself and a constant", at_least=0)


@dataclass(frozen=True)
class FeatureActor:
    """The policy on the features."""

    hidden_sizes: tuple[int, ...] = setting((), "units of each sigmoid layer; []: linear in the features", at_least=1)
    squash: Literal["none", "tanh"] = setting("none", "squashing function for the output")


@dataclass(frozen=True)
class Baseline:
    """The state-value function on the features."""

    hidden_sizes: tuple[int, ...] = setting((), "units of each sigmoid layer; []: linear in the features", at_least=1)


@dataclass(frozen=True)
class COPDAC:
    """Compatible off-policy deterministic actor-critic (Silver et al. 2014)."""

    algorithm: Literal["copdac"] = setting("copdac", "linear deterministic policy gradient")
    critic: Literal["q", "gq", "regression"] = setting(
        "q",
        "critic update: Q-learning, gradient Q-learning, or least squares on each batch (uses only the actor's "
        "learning rate)",
    )
    gradient: Literal["vanilla", "natural"] = setting("vanilla", "direction of the actor update")
    gamma: Scalar = setting(0.99, "discount factor", at_least=0, at_most=1)
    actor_learning_rate: Scalar = setting(1e-3, "learning rate of the policy weights (alpha_theta)", above=0)
    critic_learning_rate: Scalar = setting(1e-2, "alpha_w, of the compatible weights", above=0)
    baseline_learning_rate: Scalar = setting(0.1, "alpha_v, of the state-value weights", above=0)
    correction_learning_rate: Scalar = setting(1e-2, "alpha_u, of gradient Q-learning's second weights", above=0)
    batch_size: int = setting(1, "transitions per update", at_least=1)
    reward_scale: Scalar = setting(1.0, "reward multiplier inside the agent", above=0)
    max_grad_norm: Scalar = setting(
        inf, "clipping threshold for the norm of each step, before the learning rate; inf: no clipping", above=0
    )
    features: Tiles | Fourier | Radial | Polynomial = setting(Tiles, "the encoding of observations")
    actor: FeatureActor = setting(FeatureActor, "the policy on the features")
    baseline: Baseline = setting(Baseline, "the state-value function on the features")


@dataclass(frozen=True)
class Noise:
    """Ornstein-Uhlenbeck noise: x' = smoothing * x + scale * eps, in units of half the action range."""

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
    scale: Scalar = setting(0.3, "standard deviation, in units of half the action range", at_least=0)
    final_scale: Scalar = setting(0.0, "reached linearly after decay_steps", at_least=0)
    decay_steps: Scalar = setting(inf, "env steps of linear decay; inf: constant", above=0)


@dataclass(frozen=True)
class LadderNoise:
    """White noise with a standard deviation of its own in each environment and episode (Seo et al. 2025)."""

    color: Literal["ladder"] = setting("ladder", "white noise with a scale of its own in each environment and episode")
    min_scale: Scalar = setting(0.0, "lowest standard deviation, in units of half the action range", at_least=0)
    max_scale: Scalar = setting(0.4, "highest standard deviation, in units of half the action range", at_least=0)

    def rules(self) -> list[Rule]:
        return [
            Rule(
                self.min_scale <= self.max_scale,
                ("min_scale", "max_scale"),
                f"but must be at most noise.max_scale, {self.max_scale}",
            )
        ]


@dataclass(frozen=True)
class Replay:
    """The replay buffer."""

    sampling: Literal["uniform", "latest"] = setting("uniform", "uniform at random, or the newest transitions in order")
    capacity: int = setting(100_000, "transitions per member; a multiple of training.num_envs", at_least=1)
    steps: int = setting(1, "n of the n-step returns that are learned from", at_least=1)

    def rules(self) -> list[Rule]:
        return [
            Rule(
                self.steps == 1 or self.sampling == "uniform",
                ("steps", "sampling"),
                f"but replay.sampling is {self.sampling}, which gives single transitions; use 1, or sampling: uniform",
            )
        ]


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
    num_seeds: int = setting(1, "number of seeds; in a sweep, per variant", at_least=1)
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


@dataclass(frozen=True)
class Member:
    """The settings of one population member: everything the compiled program depends on."""

    environment: Environment = setting(Environment, "the environment")
    agent: DDPG | TD3 | D4PG | FastTD3 | COPDAC = setting(DDPG, "the agent")
    noise: Noise | PinkNoise | LadderNoise = setting(Noise, "exploration")
    replay: Replay = setting(Replay, "the replay buffer")
    training: Training = setting(Training, "the loop")
    evaluation: Evaluation = setting(Evaluation, "evaluation")

    def rules(self) -> list[Rule]:
        num_envs, batch_size, capacity = self.training.num_envs, self.agent.batch_size, self.replay.capacity
        critic_steps = getattr(self.agent, "critic_steps", 1)
        ratio = self.training.updates_per_step / critic_steps
        # The newest rows are split among the updates of a step; at random each update draws from all there are.
        share = ratio.numerator * critic_steps if self.replay.sampling == "latest" else 1
        needed, rows = share * batch_size, self.training.warmup_steps * num_envs
        first = f"batch needs agent.batch_size, {batch_size}" if share == 1 else f"{share} batches need {needed}"
        made, period, epoch = num_envs * ratio.denominator, ratio.denominator, self.training.steps_per_epoch
        shards = self.training.num_shards
        microbatch_size = getattr(self.agent, "microbatch_size", 0)
        return [
            Rule(
                epoch % period == 0,
                ("training.steps_per_epoch", "training.updates_per_step", "agent.policy_delay"),
                f"but must be a multiple of the {period} steps between updates; use {-(-epoch // period) * period}",
            ),
            Rule(
                self.replay.sampling == "uniform" or needed >= made,
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
            Rule(
                self.replay.steps * num_envs <= capacity,
                ("replay.steps", "replay.capacity", "training.num_envs"),
                f"but the replay holds only {capacity // num_envs} vector steps; use a larger replay.capacity",
            ),
            Rule(
                self.replay.steps <= self.training.warmup_steps,
                ("replay.steps", "training.warmup_steps"),
                f"but the warm-up has only {self.training.warmup_steps} vector steps; use a longer warm-up",
            ),
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


def _sections(section: type) -> Iterator[type]:
    """A settings class and all below it, alternatives too."""
    yield section
    for kind in typing.get_type_hints(section).values():
        for inner in typing.get_args(kind) or (kind,):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _sections(inner)


def _text(item: Any) -> str | None:
    """A static value as JSON text, which is hashable and distinguishes 1 from True; None for a value to be traced."""
    if not isinstance(item, int | str | list | tuple | Mapping):
        return None
    try:
        return json.dumps(item)
    except TypeError:  # it holds what JAX has put in the place of a number
        return None


def _flattening(section: type) -> tuple[Callable, Callable]:
    """The pytree flatten and unflatten functions of a settings class."""
    # By the default, not by the value: while JAX rebuilds a tree, a section may be any object.
    sections = {field.name for field in dataclasses.fields(section) if isinstance(field.default_factory, type)}

    def flatten(value: Any) -> tuple[tuple[dict[str, Any]], tuple]:
        numbers, structure = {}, []
        for field in dataclasses.fields(section):
            entry = getattr(value, field.name)
            if isinstance(entry, Mapping):
                texts = {name: _text(item) for name, item in entry.items()}
                static = {name: text for name, text in texts.items() if text is not None}
                numbers[field.name] = {name: item for name, item in entry.items() if name not in static}
                structure.append((field.name, tuple(sorted(static.items()))))
            elif field.type is Scalar or field.name in sections:
                numbers[field.name] = entry
            else:
                structure.append((field.name, entry))
        return (numbers,), tuple(structure)

    def unflatten(structure: tuple, children: tuple[dict[str, Any]]) -> Any:
        (numbers,) = children
        mappings = {
            name: {key: json.loads(item) for key, item in entry} for name, entry in structure if name in numbers
        }
        plain = {name: entry for name, entry in structure if name not in numbers}
        return section(**numbers | plain | {name: entry | numbers[name] for name, entry in mappings.items()})

    return flatten, unflatten


@wrapt.when_imported("jax")
def _register(jax: Any) -> None:
    """Makes every settings class a pytree: what it declares a `Scalar`, and the floats of a mapping, are leaves.

    Runs when JAX is first imported, so that help and configuration errors do not import it.
    """
    for section in dict.fromkeys(_sections(Member)):
        jax.tree_util.register_pytree_node(section, *_flattening(section))
