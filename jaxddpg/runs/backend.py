"""Checks that JAX finds its devices and that its configuration supports a run."""

import os
import re

import jax

from jaxddpg.config import ConfigError, first_line
from jaxddpg.training.placement import use_all_cores

_UNSUITABLE = {
    "jax_disable_jit": "a run is compiled ahead of time",
    "jax_no_tracing": "a run is traced",
    "jax_enable_x64": "runs use 32-bit precision, and x64 would change the random numbers",
    "jax_numpy_dtype_promotion": "environments and libraries rely on the standard promotion of types",
    "jax_transfer_guard": "a run moves numbers between host and device",
    "jax_transfer_guard_host_to_device": "a run moves numbers from the host to the device",
    "jax_transfer_guard_device_to_host": "a run moves numbers from the device to the host",
    "jax_transfer_guard_device_to_device": "a run moves numbers between devices",
}
"""Why a run cannot be computed where one of these is set."""
_SUITABLE = (None, False, "standard", "allow", "log", "log_explicit")
_OF_DEVICES = "JAX_(PLATFORM|NUM_CPU|CUDA|ROCM|TPU|PJRT)|XLA_|(CUDA|NVIDIA|HIP|ROCR|TPU)_VISIBLE"
"""The variables that decide which devices JAX finds, and how it begins to use them."""


def start() -> None:
    """Initializes JAX's devices for a run, with one CPU device per core.

    Raises:
        ConfigError: as `check_devices`, or a run cannot be computed as JAX's variables say.
    """
    use_all_cores()
    errors = [
        f"{name.upper()} is {value}, but {reason}; {_undo(name)}"
        for name, reason in _UNSUITABLE.items()
        if (value := getattr(jax.config, name)) not in _SUITABLE
    ]
    if errors:
        raise ConfigError(errors)
    check_devices()


def check_devices() -> None:
    """ConfigError where JAX finds no device by what its variables say."""
    try:
        jax.devices()
    except Exception as error:  # of a plugin, whatever its type
        reason = f": {first_line(error)}" if str(error) else ""
        raise ConfigError([f"JAX found no devices{reason}; {_remedy()}"]) from error


def _undo(name: str) -> str:
    standard = {"jax_numpy_dtype_promotion": "standard"}.get(name, "allow" if "guard" in name else False)
    return "unset it" if name.upper() in os.environ else f"set {name} to {standard}"


def _remedy() -> str:
    names = [name for name in os.environ if re.match(_OF_DEVICES, name)]
    given = " and ".join(f"{name}={os.environ[name]}" for name in sorted(names))
    others = "install JAX for your device, e.g. pip install 'jaxddpg[cuda13]'"
    return f"correct or unset {given}, or {others}" if given else others
