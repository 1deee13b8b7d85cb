"""The provenance of a checkpoint, and whether it matches the current code and settings."""

import warnings

import jax

from jaxddpg import config
from jaxddpg.config import ConfigError, RunPlan
from jaxddpg.config.environment import digest
from jaxddpg.runs.checkpoint import Origin
from jaxddpg.training.population import numerics


def of(plan: RunPlan, environment: str | None = None) -> Origin:
    """What the checkpoints of a run come from, here and now; `environment` is its digest, where it is known."""
    found = environment or digest(plan.members[0].settings.environment)
    traced_with = {"jax": jax.__version__, "platform": jax.default_backend()}
    return Origin(config.fixed_settings(plan.experiment), numerics(), {"sha256": found} | traced_with)


def check(before: Origin, plan: RunPlan, environment: str | None = None) -> None:
    """Raises ConfigError where a run is another one, and warns where its environment has changed."""
    config.check_unaltered(before.settings, plan.experiment)
    if not before.environment:
        return
    now = of(plan, environment)
    # Where JAX is another release, on another platform or set otherwise, the same code may be another computation.
    alike = now.environment | {"sha256": before.environment["sha256"]} == before.environment and now.jax == before.jax
    if alike and now.environment != before.environment:
        warnings.warn(
            f"the environment {plan.experiment.environment.name} differs from the one this run was trained in: its "
            "code or one of its dependencies has changed; restore the original, or start a new run",
            stacklevel=2,
        )


def check_jax(before: Origin) -> None:
    """Raises ConfigError where JAX is set so that a run would continue with other numbers."""
    now = numerics()
    errors = [
        f"the JAX option jax_{name} is {now.get(name)}, but this run was started with {old}, which affects its "
        "results; " + (f"set JAX_{name.upper()}={old}" if old is not None else f"unset JAX_{name.upper()}")
        for name, old in before.jax.items()
        if now.get(name) != old
    ]
    if errors:
        raise ConfigError(errors)
