from . import settings, statistics
from .agents.copdac import COPDACState, copdac
from .agents.d4pg import D4PGState, d4pg
from .agents.ddpg import DDPGState, ddpg
from .agents.fasttd3 import FastTD3State, fasttd3
from .agents.td3 import TD3State, td3
from .config import ConfigError
from .config.build import build, make_agent, make_features
from .config.environment import make_environment
from .envs.brax import from_brax
from .envs.episodic import episodic
from .envs.gymnax import from_gymnax
from .envs.registry import register
from .parts import equations, features, noise, replay
from .parts.equations import actor_loss, compatible_advantage, critic_loss, soft_update, td_target
from .parts.networks import Actor, CategoricalCritic, Critic, FeatureNetwork
from .parts.normalization import normalized
from .runs.cache import enable_compilation_cache
from .runs.export import export
from .runs.load import evaluate, load_policy, render
from .runs.run import Result, RunError
from .runs.show import plot, write_report
from .runs.start import load, resume, resume_sweep, run, sweep
from .settings import Experiment, Member
from .training.loop import TrainingState, clock_at, make_trainer
from .training.population import Population
from .types import (
    Agent,
    Clock,
    Environment,
    Experience,
    Features,
    Noise,
    Replay,
    TimeStep,
    Trainer,
    Transition,
)

__all__ = [
    "Actor",
    "Agent",
    "COPDACState",
    "CategoricalCritic",
    "Clock",
    "ConfigError",
    "Critic",
    "D4PGState",
    "DDPGState",
    "Environment",
    "Experience",
    "Experiment",
    "FastTD3State",
    "FeatureNetwork",
    "Features",
    "Member",
    "Noise",
    "Population",
    "Replay",
    "Result",
    "RunError",
    "TD3State",
    "TimeStep",
    "Trainer",
    "TrainingState",
    "Transition",
    "actor_loss",
    "build",
    "clock_at",
    "compatible_advantage",
    "copdac",
    "critic_loss",
    "d4pg",
    "ddpg",
    "enable_compilation_cache",
    "episodic",
    "equations",
    "evaluate",
    "export",
    "fasttd3",
    "features",
    "from_brax",
    "from_gymnax",
    "load",
    "load_policy",
    "make_agent",
    "make_environment",
    "make_features",
    "make_trainer",
    "noise",
    "normalized",
    "plot",
    "register",
    "render",
    "replay",
    "resume",
    "resume_sweep",
    "run",
    "settings",
    "soft_update",
    "statistics",
    "sweep",
    "td3",
    "td_target",
    "write_report",
]
