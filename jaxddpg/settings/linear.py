"""The agent on features, and the features."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from jaxddpg.settings.fields import Rule, Scalar, setting


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
