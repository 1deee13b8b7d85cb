"""The settings of an experiment: its sections, and for each setting its default, its meaning and its rule.

A setting typed `Scalar` is a number that the compiled program takes as input: changing or sweeping it never compiles
again. All other settings are static. Each section is a pytree whose leaves are its traced settings. This package does
not import JAX, so that help and configuration errors never wait for it.
"""

from jaxddpg.settings import pytrees as _pytrees  # noqa: F401
from jaxddpg.settings.deep import (
    D4PG,
    DDPG,
    TD3,
    Actor,
    ActorCritic,
    Critic,
    FastTD3,
    FastTD3Actor,
    FastTD3Critic,
    PlainActor,
    PlainCritic,
    TD3Actor,
    TD3Critic,
)
from jaxddpg.settings.experiment import Experiment, Member
from jaxddpg.settings.fields import AXIS_FORM, MAX_VARIANTS, Rule, Scalar, setting
from jaxddpg.settings.linear import COPDAC, Baseline, FeatureActor, Features, Fourier, Polynomial, Radial, Tiles
from jaxddpg.settings.sections import (
    Checkpoint,
    Environment,
    Evaluation,
    Halving,
    LadderNoise,
    Noise,
    NoSelection,
    PinkNoise,
    Population,
    PopulationBased,
    Replay,
    Reporting,
    Training,
)

__all__ = [
    "AXIS_FORM",
    "COPDAC",
    "D4PG",
    "DDPG",
    "MAX_VARIANTS",
    "TD3",
    "Actor",
    "ActorCritic",
    "Baseline",
    "Checkpoint",
    "Critic",
    "Environment",
    "Evaluation",
    "Experiment",
    "FastTD3",
    "FastTD3Actor",
    "FastTD3Critic",
    "FeatureActor",
    "Features",
    "Fourier",
    "Halving",
    "LadderNoise",
    "Member",
    "NoSelection",
    "Noise",
    "PinkNoise",
    "PlainActor",
    "PlainCritic",
    "Polynomial",
    "Population",
    "PopulationBased",
    "Radial",
    "Replay",
    "Reporting",
    "Rule",
    "Scalar",
    "TD3Actor",
    "TD3Critic",
    "Tiles",
    "Training",
    "setting",
]
