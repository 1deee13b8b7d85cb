"""Runs an exported policy with NumPy alone.

    from numpy_policy import load

    act = load("policy.npz")
    action = act(observation)  # [..., O] -> [..., A], in the units of the environment

The policies of M members together map [M, batch, O] to [M, batch, A]. `jaxddpg export` copies this file beside the
arrays that it reads.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np


def load(path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """The policy whose arrays are in a file; ValueError where an observation has the wrong shape."""
    with np.load(path) as file:
        arrays = dict(file)
    *members, size, _ = arrays["Dense_0/kernel"].shape
    depth = sum(name.startswith("Dense_") for name in arrays) // 2 - 1  # of the last layer

    def rounded(x: np.ndarray) -> np.ndarray:
        """To the nearest bfloat16, as float32."""
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)

    def dense(x: np.ndarray, index: int) -> np.ndarray:
        kernel = arrays[f"Dense_{index}/kernel"]
        if arrays["bfloat16"] and 0 < index < depth:
            x, kernel = rounded(x), rounded(kernel)
        return x @ kernel + arrays[f"Dense_{index}/bias"]

    def normalize(x: np.ndarray, kind: str, index: int) -> np.ndarray:
        """Layer or batch normalization, if the network has it here."""
        name = f"{kind}_{index}"
        if f"{name}/scale" not in arrays:
            return x
        if kind == "LayerNorm":
            mean, variance, epsilon = x.mean(-1, keepdims=True), x.var(-1, keepdims=True), 1e-6
        else:
            mean, variance, epsilon = arrays[f"{name}/mean"], arrays[f"{name}/var"], 1e-5
        return (x - mean) / np.sqrt(variance + epsilon) * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]

    def plain(x: np.ndarray) -> np.ndarray:
        x = normalize(x, "BatchNorm", 0)
        for index in range(depth):
            x = normalize(normalize(dense(x, index), "LayerNorm", index), "BatchNorm", index + 1)
            x = np.maximum(x, 0)
        return dense(x, depth)

    def residual(x: np.ndarray) -> np.ndarray:
        x, blocks = dense(x, 0), depth // 2
        for block in range(blocks):
            hidden = np.maximum(dense(normalize(x, "LayerNorm", block), 2 * block + 1), 0)
            x = x + dense(hidden, 2 * block + 2)
        return dense(normalize(x, "LayerNorm", blocks), depth)

    def act(observation: np.ndarray) -> np.ndarray:
        x = np.asarray(observation, np.float32)
        if x.shape[-1:] != (size,) or (members and (x.ndim != 3 or len(x) != members[0])):
            wanted = f"[{members[0]}, batch, {size}]" if members else f"[..., {size}]"
            raise ValueError(f"observation has shape {x.shape}, but must be {wanted}")
        if "observation_origin" in arrays:
            x = (x - arrays["observation_origin"] - arrays["observation_mean"]) / arrays["observation_deviation"]
            x = np.clip(x, -arrays["observation_bound"], arrays["observation_bound"])
        action = np.tanh(residual(x) if arrays["residual"] else plain(x))
        low, high = arrays["action_low"], arrays["action_high"]
        return np.clip((1 - action) / 2 * low + (1 + action) / 2 * high, low, high)

    return act
