from . import checkpoint, equations, noise, plotting, rendering, replay, settings, statistics
from .agents.ddpg import DDPGState, ddpg
from .composition import build, make_agent, make_environment
from .config import ConfigError
from .envs.from_gymnax import from_gymnax
from .equations import actor_loss, critic_loss, soft_update, td_target
from .evaluation import evaluate
from .experiment import Result, load, load_policy, plot, render, run
from .networks import Actor, Critic
from .population import Population, make_population
from .settings import Experiment, Member
from .training import TrainingState, clock_at, make_trainer
from .types import (
    Agent,
    Clock,
    Environment,
    Experience,
    Noise,
    Replay,
    TimeStep,
    Trainer,
    Transition,
)

__all__ = [
    "Actor",
    "Agent",
    "Clock",
    "ConfigError",
    "Critic",
    "DDPGState",
    "Environment",
    "Experience",
    "Experiment",
    "Member",
    "Noise",
    "Population",
    "Replay",
    "Result",
    "TimeStep",
    "Trainer",
    "TrainingState",
    "Transition",
    "actor_loss",
    "build",
    "checkpoint",
    "clock_at",
    "critic_loss",
    "ddpg",
    "equations",
    "evaluate",
    "from_gymnax",
    "load",
    "load_policy",
    "make_agent",
    "make_environment",
    "make_population",
    "make_trainer",
    "noise",
    "plot",
    "plotting",
    "render",
    "rendering",
    "replay",
    "run",
    "settings",
    "soft_update",
    "statistics",
    "td_target",
]
