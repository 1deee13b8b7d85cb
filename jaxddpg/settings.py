"""The vocabulary of an experiment: its sections, and for each setting its default, its meaning and its rule.

A setting typed `Scalar` is a number that the compiled program takes as input: changing or sweeping it never compiles
again. Everything else gives the program its shape. This room imports nothing but the standard library, so help and
configuration errors never wait for JAX.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Annotated, Any, Literal

Scalar = Annotated[float, "traced"]


def setting(
    default: Any,
    meaning: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field with its default, its meaning and its rule; for a list of numbers the rule is that of each.

    A number may be infinite only where that is its neutral default.
    """
    rule = {"at least": at_least, "greater than": above, "at most": at_most}
    metadata = {"meaning": meaning, "rule": {words: bound for words, bound in rule.items() if bound is not None}}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Environment:
    """The world, one copy of it."""

    name: str = setting("Pendulum-v1", "a gymnax environment, or `package.module:factory` for one of your own")
    parameters: Mapping[str, Any] = setting(dict, "its parameters by name; floats are traced, the others static")


@dataclass(frozen=True)
class Actor:
    """The policy network."""

    hidden_sizes: tuple[int, ...] = setting((256, 256), "units of each hidden layer", at_least=1)
    normalization: Literal["none", "layer", "batch"] = setting("none", "of the hidden layers")
    final_bound: Scalar = setting(3e-3, "last layer starts from U(-bound, bound)", at_least=0)


@dataclass(frozen=True)
class Critic:
    """The action-value network."""

    hidden_sizes: tuple[int, ...] = setting((256, 256), "units of each hidden layer", at_least=1)
    action_layer: int = setting(0, "the hidden layer at whose input the action joins", at_least=0, at_most=1)
    normalization: Literal["none", "layer", "batch"] = setting("none", "of the hidden layers")
    final_bound: Scalar = setting(3e-3, "last layer starts from U(-bound, bound)", at_least=0)
    weight_decay: Scalar = setting(0.0, "L2 coefficient on the weights, added to the gradient", at_least=0)


@dataclass(frozen=True)
class DDPG:
    """Deep deterministic policy gradient (Lillicrap et al. 2015)."""

    algorithm: Literal["ddpg"] = setting("ddpg", "the learner")
    gamma: Scalar = setting(0.99, "discount factor", at_least=0, at_most=1)
    tau: Scalar = setting(0.005, "share of the online network in each soft target update", above=0, at_most=1)
    actor_learning_rate: Scalar = setting(1e-3, "Adam step size", above=0)
    critic_learning_rate: Scalar = setting(1e-3, "Adam step size", above=0)
    final_actor_learning_rate: Scalar = setting(0.0, "reached linearly after learning_rate_decay_steps", at_least=0)
    final_critic_learning_rate: Scalar = setting(0.0, "reached linearly after learning_rate_decay_steps", at_least=0)
    learning_rate_decay_steps: Scalar = setting(inf, "env steps; inf keeps the rates for ever", above=0)
    batch_size: int = setting(256, "transitions per update", at_least=1)
    reward_scale: Scalar = setting(1.0, "factor on the reward inside the learner", above=0)
    max_grad_norm: Scalar = setting(inf, "bound on the global norm of each gradient", above=0)
    actor: Actor = setting(Actor, "the policy network")
    critic: Critic = setting(Critic, "the action-value network")


@dataclass(frozen=True)
class Noise:
    """Exploration: x' = smoothing * x + scale * eps, in half-widths of the action Box."""

    smoothing: Scalar = setting(0.85, "0: Gaussian white noise; in between: Ornstein-Uhlenbeck", at_least=0, at_most=1)
    scale: Scalar = setting(0.2, "a standard deviation", at_least=0)
    scale_of: Literal["innovation", "stationary"] = setting("innovation", "deviation of eps's term, or of x itself")
    final_scale: Scalar = setting(0.0, "reached linearly after decay_steps", at_least=0)
    decay_steps: Scalar = setting(inf, "env steps; inf keeps the scale for ever", above=0)


@dataclass(frozen=True)
class Replay:
    """The memory of experience."""

    capacity: int = setting(100_000, "rows per member, a multiple of training.num_envs", at_least=1)


@dataclass(frozen=True)
class Training:
    """The loop of one member. A vector step is one step of each of its environments."""

    num_envs: int = setting(1, "parallel environments per member", at_least=1)
    updates_per_step: Fraction = setting(Fraction(1), "updates per vector step: k, or 1/k for one every k", above=0)
    warmup_steps: int = setting(1_000, "vector steps of uniformly random actions before learning", at_least=0)
    steps_per_epoch: int = setting(1_000, "vector steps from one evaluation to the next", at_least=1)
    num_epochs: int = setting(100, "epochs after the warm-up", at_least=1)


@dataclass(frozen=True)
class Evaluation:
    """The measure of the noiseless policy, at the end of every epoch."""

    num_episodes: int = setting(32, "episodes per member", at_least=1)


@dataclass(frozen=True)
class Population:
    """The members: independent seeds of one experiment."""

    seed: int = setting(0, "seed of the first member; the others count on from it", at_least=0)
    num_seeds: int = setting(1, "members", at_least=1)
    placement: int = setting(
        0, "at most so many members per device and dispatch; 0 picks: 1 on CPU, else all", at_least=0
    )


@dataclass(frozen=True)
class Reporting:
    """Where results go beside the run directory."""

    tensorboard: bool = setting(False, "write TensorBoard event files into the run directory")
    wandb: bool = setting(False, "log to Weights & Biases (WANDB_MODE=offline works without a network)")
    wandb_project: str = setting("jaxddpg", "the Weights & Biases project")


@dataclass(frozen=True)
class Member:
    """What one member of a population is: everything that the compiled program is made from."""

    environment: Environment = setting(Environment, "the world")
    agent: DDPG = setting(DDPG, "the learner")
    noise: Noise = setting(Noise, "exploration")
    replay: Replay = setting(Replay, "the memory")
    training: Training = setting(Training, "the loop")
    evaluation: Evaluation = setting(Evaluation, "the measure")


@dataclass(frozen=True)
class Experiment(Member):
    """One experiment: one member's settings, how many members, and where the results go."""

    population: Population = setting(Population, "the members")
    reporting: Reporting = setting(Reporting, "further outputs")

    def member(self) -> Member:
        """The part that the compiled program is made from."""
        return Member(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Member)})
