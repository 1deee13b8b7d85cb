"""The agents with an actor and a critic network."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from jaxddpg.settings.fields import CUSTOM, Factory, Rule, Scalar, setting


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
    precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "of the operands of hidden layers' matrix products; sums, parameters, the products of the networks' inputs and "
        "the last layers are float32",
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
class CustomAgent:
    """An algorithm of the user's."""

    algorithm: Factory = setting(
        CUSTOM,
        "a function that returns a `jaxddpg.Agent`, called with the environment, batch_size, axis_name (of shards, or "
        "None) and agent.settings",
    )
    batch_size: int = setting(256, "transitions per update", at_least=1)
    settings: Mapping[str, Any] = setting(dict, "its other arguments by name; floats are traced, other values static")
