"""Environments with Brax's interface (brax >= 0.14), which MuJoCo Playground has, too."""

import functools
import json
import os
import sys
import warnings
from collections.abc import Mapping
from ctypes.util import find_library
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg.envs.episodic import episodic
from jaxddpg.types import Environment, Key, State, seed_key

EPISODE_LENGTHS = {"pusher": 100, "reacher": 50}
"""Those of Gym's tasks, where they are not 1,000 steps; Brax itself has 1,000 for all."""
IMAGE_SIZE = 320
"""Pixels of a rendered image's width and height."""


def make(name: str, episode_length: int | None = None, **parameters: Any) -> Environment:
    """An environment of Brax, e.g. "inverted_pendulum"; its `parameters` are those of its constructor, e.g. `backend`.

    Raises:
        ValueError: Brax is not installed, or has no such environment.
    """
    environment = _built(name, json.dumps(parameters, sort_keys=True))
    return from_brax(environment, episode_length or EPISODE_LENGTHS.get(name, 1_000))


@functools.cache  # building takes seconds, and each program that is traced asks for the environment
def _built(name: str, parameters: str) -> Any:
    with warnings.catch_warnings(), jax.ensure_compile_time_eval():
        warnings.filterwarnings("ignore", "Brax System, piplines and environments")  # are no longer maintained
        choose_opengl()
        try:
            from brax import envs
        except ModuleNotFoundError as error:
            raise missing("brax", error) from error
        if name not in envs._envs:
            raise ValueError(f"Brax has no {name}; it has {', '.join(sorted(envs._envs))}")
        return envs.get_environment(name, **json.loads(parameters))


def missing(extra: str, error: ModuleNotFoundError) -> ValueError:
    """The error for a library that an extra installs."""
    return ValueError(f"the package {error.name} is not installed; use pip install 'jaxddpg[{extra}]'")


def from_brax(environment: Any, episode_length: int) -> Environment:
    """Makes an `Environment` of one with the `reset(rng)` and `step(state, action)` of `brax.envs.Env`.

    It must not be wrapped: Brax's wrappers start every episode of an environment in the same state and lose the
    successor of the last one. `done` is a termination; the time limit is added here. Actions are clipped to [-1, 1]. Of
    observations that are a dict, the entry "state" is taken.

    Args:
        environment: e.g. `brax.envs.get_environment("ant")`.
        episode_length: steps after which an episode is truncated.
    """

    def reset(key: Key) -> State:
        state = environment.reset(key)
        state.info.pop("rng", None)  # a key; `step` sets it to one of its own
        return state

    # The state is a list of arrays, without the classes of the library, whose structure may hold arrays.
    first = jax.eval_shape(reset, seed_key(0))
    like, structure = jax.tree.flatten(first)

    def leaves(state: Any) -> State:
        return [jnp.asarray(leaf, own.dtype) for leaf, own in zip(jax.tree.leaves(state), like, strict=True)]

    def step(key: Key, state: State, action: jax.Array) -> tuple[State, jax.Array, jax.Array]:
        state = jax.tree.unflatten(structure, state)
        state.info["rng"] = key
        state = environment.step(state, jnp.clip(action, -1.0, 1.0))
        state.info.pop("rng", None)
        return leaves(state), jnp.asarray(state.reward, jnp.float32), jnp.asarray(state.done, bool)

    def observe(state: State) -> jax.Array:
        return _array(jax.tree.unflatten(structure, state).obs)

    model = getattr(getattr(environment, "sys", environment), "mj_model", None)

    return episodic(
        lambda key: leaves(reset(key)),
        step,
        observe,
        observation_size=jax.eval_shape(_array, first.obs).size,
        action_size=int(environment.action_size),
        episode_length=episode_length,
        render=model and (lambda states: _images(model, jax.tree.unflatten(structure, states))),
    )


def _images(model: Any, states: Any) -> np.ndarray:
    """Images of states [F, ...] of Brax or MuJoCo Playground, from the model's first camera, if it has one."""
    import mujoco

    if hasattr(states, "pipeline_state"):
        columns = {"qpos": states.pipeline_state.q, "qvel": states.pipeline_state.qd}
    else:
        columns = {name: getattr(states.data, name) for name in ("qpos", "qvel", "mocap_pos", "mocap_quat")}
    data, images = mujoco.MjData(model), []
    with mujoco.Renderer(model, IMAGE_SIZE, IMAGE_SIZE) as renderer:
        for frame in range(len(columns["qpos"])):
            for name, values in columns.items():
                setattr(data, name, values[frame])
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera=0 if model.ncam else -1)
            images.append(renderer.render())
    return np.stack(images)


def choose_opengl() -> None:
    """Has MuJoCo draw without a display. It reads the variable when it is imported."""
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    if headless and not os.environ.get("MUJOCO_GL") and find_library("EGL"):
        os.environ["MUJOCO_GL"] = "egl"


def _array(observation: Any) -> jax.Array:
    """[O]"""
    state = observation["state"] if isinstance(observation, Mapping) else observation
    return jnp.ravel(state).astype(jnp.float32)
