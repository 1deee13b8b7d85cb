from . import (
    checkpoint,
    equations,
    evaluation,
    features,
    noise,
    plotting,
    rendering,
    replay,
    settings,
    statistics,
)
from .agents.copdac import COPDACState, copdac
from .agents.ddpg import DDPGState, ddpg
from .analysis import evaluate, load_policy, plot, render, write_report
from .composition import build, make_agent, make_environment, make_features
from .config import ConfigError
from .envs.episodic import episodic
from .envs.from_gymnax import from_gymnax
from .equations import actor_loss, compatible_advantage, critic_loss, soft_update, td_target
from .experiment import Result, RunError, load, resume, resume_sweep, run, sweep
from .networks import Actor, Critic, FeatureNetwork
from .population import Population, make_population
from .settings import Experiment, Member
from .training import TrainingState, clock_at, make_trainer
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
    "Clock",
    "ConfigError",
    "Critic",
    "DDPGState",
    "Environment",
    "Experience",
    "Experiment",
    "FeatureNetwork",
    "Features",
    "Member",
    "Noise",
    "Population",
    "Replay",
    "Result",
    "RunError",
    "TimeStep",
    "Trainer",
    "TrainingState",
    "Transition",
    "actor_loss",
    "build",
    "checkpoint",
    "clock_at",
    "compatible_advantage",
    "copdac",
    "critic_loss",
    "ddpg",
    "episodic",
    "equations",
    "evaluate",
    "evaluation",
    "features",
    "from_gymnax",
    "load",
    "load_policy",
    "make_agent",
    "make_environment",
    "make_features",
    "make_population",
    "make_trainer",
    "noise",
    "plot",
    "plotting",
    "render",
    "rendering",
    "replay",
    "resume",
    "resume_sweep",
    "run",
    "settings",
    "soft_update",
    "statistics",
    "sweep",
    "td_target",
    "write_report",
]
