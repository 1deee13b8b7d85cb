"""Environments of MuJoCo Playground (playground >= 0.2)."""

import functools
import json
from typing import Any

import jax

from jaxddpg.envs.brax import choose_opengl, from_brax, missing
from jaxddpg.types import Environment


def make(name: str, **parameters: Any) -> Environment:
    """An environment of MuJoCo Playground, e.g. "CartpoleSwingup", simulated by MJX in JAX.

    `parameters` are entries of its configuration, e.g. `episode_length`. Where the simulation fails, Playground ends
    the episode with observations that are NaN, at which a member is stopped.

    Raises:
        ValueError: Playground is not installed, or has no such environment or parameter.
    """
    environment = _built(name, json.dumps(parameters, sort_keys=True))
    return from_brax(environment, int(environment._config.episode_length))


@functools.cache  # building takes seconds, and each program that is traced asks for the environment
def _built(name: str, parameters: str) -> Any:
    choose_opengl()
    try:
        from mujoco_playground import registry
    except ModuleNotFoundError as error:
        raise missing("playground", error) from error
    if name not in registry.ALL_ENVS:
        raise ValueError(f"MuJoCo Playground has no {name}; it has {', '.join(registry.ALL_ENVS)}")
    overrides = json.loads(parameters)
    known = [entry for entry in registry.get_default_config(name) if entry not in ("action_repeat", "vision", "impl")]
    if unknown := [entry for entry in overrides if entry.split(".")[0] not in known]:
        raise ValueError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    with jax.ensure_compile_time_eval():
        environment = registry.load(name, config_overrides={"impl": "jax", **overrides})
    if (repeat := environment._config.get("action_repeat", 1)) != 1:
        raise ValueError(f"{name} repeats each action {repeat} times, which is not supported")
    return environment
