"""A table of known environments, so that names and parameters are checked without importing them, which takes seconds.

Tests compare it with the environments themselves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Known(NamedTuple):
    """A continuous environment."""

    parameters: dict[str, type]
    """The types of its parameters, by name."""
    random_return: float | None = None
    """The undiscounted return of uniformly random actions, where it is known."""
    optimal_return: float | None = None
    """That of the best policy known, or a bound."""
    factory: str = ""
    """`module:factory` of one of our own environments; empty for those of gymnax."""

    def references(self) -> dict[str, float]:
        """The known returns to compare a policy with, by name."""
        named = {"random": self.random_return, "best known": self.optimal_return}
        return {name: level for name, level in named.items() if level is not None}


CONTINUOUS = {
    "Pendulum-v1": Known(
        dict.fromkeys(("max_speed", "max_torque", "dt", "g", "m", "l"), float) | {"max_steps_in_episode": int},
        random_return=-1213.0,
        optimal_return=-138.1,
    ),
    "MountainCarContinuous-v0": Known(
        dict.fromkeys(
            (
                "min_action",
                "max_action",
                "min_position",
                "max_position",
                "max_speed",
                "goal_position",
                "goal_velocity",
                "power",
                "gravity",
            ),
            float,
        )
        | {"max_steps_in_episode": int},
        random_return=-33.1,
        optimal_return=98.4,  # bench/optima.py, with gamma 0.9999
    ),
    "Reacher-misc": Known(
        {"torque_scale": float, "dt": float, "max_steps_in_episode": int}, random_return=15.6, optimal_return=74.1
    ),
    "Swimmer-misc": Known({"dt": float, "max_steps_in_episode": int}, random_return=84.6, optimal_return=478.7),
    "PointRobot-misc": Known(
        {
            "max_force": float,
            "circle_radius": float,
            "dense_reward": bool,
            "goal_radius": float,
            "center_init": bool,
            "normalize_time": bool,
            "max_steps_in_episode": int,
        },
        random_return=0.2,
    ),
    "Bandit-silver": Known({"dimensions": int}, factory="jaxddpg.envs.silver2014:bandit"),
    "MountainCar-silver": Known({}, factory="jaxddpg.envs.silver2014:mountain_car"),
    "Pendulum-silver": Known({}, factory="jaxddpg.envs.silver2014:pendulum"),
    "PuddleWorld-silver": Known({}, factory="jaxddpg.envs.silver2014:puddle_world"),
    "DoubleIntegrator": Known(
        {}, random_return=-2200.0, optimal_return=-3.2, factory="jaxddpg.envs.integrator:double_integrator"
    ),
    "Rocket-goddard": Known({}, optimal_return=0.01275, factory="jaxddpg.envs.goddard:rocket"),  # docs/goddard.md
}

_PPO, _TD3 = "PPO, 100M env steps, while training", "TD3 in Gym's MuJoCo, 1M env steps"
PUBLISHED: dict[str, dict[str, float]] = {
    "playground:CartpoleBalance": {_PPO: 968.0},
    "playground:CartpoleSwingup": {_PPO: 729.0},
    "playground:CheetahRun": {_PPO: 883.0},
    "playground:HopperHop": {_PPO: 22.0},
    "playground:PendulumSwingup": {_PPO: 637.0},
    "playground:ReacherEasy": {_PPO: 955.0},
    "playground:WalkerWalk": {_PPO: 945.0},
    "brax:inverted_pendulum": {_TD3: 1000.0},
    "brax:inverted_double_pendulum": {_TD3: 9337.0},
}
"""Published returns, by algorithm. PPO: mean of four seeds' last 100 training returns in SLM-Lab's benchmarks
(https://github.com/kengz/SLM-Lab/blob/master/docs/BENCHMARKS.md), in Playground's Warp physics. TD3: Fujimoto et al.
2018, whose physics differ from Brax's."""

DISCRETE = (
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "MemoryChain-bsuite",
    "UmbrellaChain-bsuite",
    "DiscountingChain-bsuite",
    "MNISTBandit-bsuite",
    "SimpleBandit-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "BernoulliBandit-misc",
    "GaussianBandit-misc",
    "Pong-misc",
    "FrozenLake-misc",
)


def references(name: str) -> dict[str, float]:
    """The known returns to compare a policy with, by their names, of an environment with its default parameters."""
    return CONTINUOUS[name].references() if name in CONTINUOUS else PUBLISHED.get(name, {})


REGISTERED: dict[str, Callable[..., Any]] = {}
"""Factories of the environments registered in this process, by name."""


def register(name: str, environment: Any) -> None:
    """Gives an environment a name for `environment.name` in this process. A process that later resumes or evaluates a
    run with it has to register it, too. The last registration of a name holds.

    Args:
        environment: an `Environment`, one written for gymnax, or a function that returns either, which is called with
            `environment.parameters`.

    Raises:
        ValueError: the name is empty, has a colon, or stands for an environment of gymnax or of this package.
        TypeError: `environment` is none of these.
    """
    if not name:
        raise ValueError("an environment cannot be registered with an empty name; choose another")
    if ":" in name or name in CONTINUOUS or name in DISCRETE:
        reason = "colons are reserved for package.module:factory" if ":" in name else "that is a known environment"
        raise ValueError(f"an environment cannot be registered as {name}: {reason}; choose another name")

    def give(**parameters: Any) -> Any:
        if parameters:
            raise ValueError(
                "it was registered as an instance, which takes no parameters; register a factory function instead"
            )
        return environment

    is_factory = callable(environment) and not hasattr(environment, "default_params")
    if not is_factory and not hasattr(environment, "reset"):
        raise TypeError(f"an environment cannot be {environment!r}; register an Environment or a function of one")
    REGISTERED[name] = environment if is_factory else give
