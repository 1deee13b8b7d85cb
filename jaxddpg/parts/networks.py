"""Networks (flax linen): actor and critic, initialized and normalized as in Lillicrap et al. 2015, sections 3 and 7;
functions of features, as in Silver et al. 2014."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxddpg.parts import products
from jaxddpg.types import Features, Key, Metrics, Params, Scalar


def _uniform(bound: Scalar) -> nn.initializers.Initializer:
    """U(-bound, bound)."""

    def init(key: Key, shape: tuple[int, ...], dtype: type = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _dense(
    size: int, inputs: jax.Array, bound: Scalar | None = None, dot_general: Callable = jax.lax.dot_general
) -> jax.Array:
    """A dense layer whose weights and biases start from U(-bound, bound); the default bound is 1 / sqrt(fan in)."""
    initializer = _uniform(inputs.shape[-1] ** -0.5 if bound is None else bound)
    return nn.Dense(size, kernel_init=initializer, bias_init=initializer, param_dtype=float, dot_general=dot_general)(
        inputs
    )


# flax's fast variance is E[x^2] - E[x]^2, which cancels in float32 where the mean is large: the standard deviation of
# observations of 10,000 +- 1 would be 331. Here the variance is the mean square of the distances from the mean.
_TWO_PASSES: dict[str, Any] = {"use_fast_variance": False, "param_dtype": float, "force_float32_reductions": False}


def _batch_norm(inputs: jax.Array, train: bool, axis_name: str | None) -> jax.Array:
    axis_name = axis_name if train else None
    return nn.BatchNorm(use_running_average=not train, axis_name=axis_name, **_TWO_PASSES)(inputs)


def _hidden(
    size: int, inputs: jax.Array, normalization: str, train: bool, axis_name: str | None, dot_general: Callable
) -> jax.Array:
    """A dense layer, its normalization ("none", "layer" or "batch") and its ReLU."""
    x = _dense(size, inputs, dot_general=dot_general)
    if normalization == "batch":
        x = _batch_norm(x, train, axis_name)
    elif normalization == "layer":
        x = nn.LayerNorm(**_TWO_PASSES)(x)
    return nn.relu(x)


def _residual(module: nn.Module, sizes: tuple[int, ...], inputs: jax.Array, precision: str) -> jax.Array:
    """A dense layer and one residual block per size, all of which are equal, then a layer normalization. Lee et al.
    2024, "SimBa" (arXiv 2410.09754), section 4."""
    normalize = lambda x: nn.LayerNorm(**_TWO_PASSES)(x)  # noqa: E731
    dense = partial(
        nn.Dense,
        param_dtype=float,
        kernel_init=nn.initializers.he_normal(),
        dot_general=products.dot_general(precision),
    )
    x = nn.Dense(sizes[0], param_dtype=float, kernel_init=nn.initializers.orthogonal())(inputs)
    for size in sizes:
        hidden = nn.relu(dense(4 * size)(normalize(x)))
        module.sow("intermediates", "hidden", hidden)
        x = x + dense(size)(hidden)
    return normalize(x)


class Actor(nn.Module):
    """mu: observation [..., O] -> action [..., A] in [-1, 1], by ReLU layers and a tanh.

    `normalization` is "none", "layer" (each hidden layer before its ReLU) or "batch" (the observation, too). With
    `train` a batch is normalized by its own statistics, which move the running averages ("batch_stats"); without it
    each row is normalized by those averages. `axis_name` is the mapped axis of the shards of a batch; None where the
    batch is whole. `architecture` is "mlp" or "residual", which has a block for each of the hidden sizes. `precision`,
    "float32" or "bfloat16", is that of the operands of all matrix products but those of the network's inputs and of the
    last layer.
    """

    action_size: int
    hidden_sizes: tuple[int, ...]
    normalization: str
    final_bound: Scalar
    axis_name: str | None = None
    architecture: str = "mlp"
    precision: str = "float32"

    @nn.compact
    def __call__(self, observation: jax.Array, train: bool = False) -> jax.Array:
        if self.architecture == "residual":
            x = _residual(self, self.hidden_sizes, observation, self.precision)
            return jnp.tanh(_dense(self.action_size, x, self.final_bound))
        x = _batch_norm(observation, train, self.axis_name) if self.normalization == "batch" else observation
        for layer, size in enumerate(self.hidden_sizes):
            dot_general = products.dot_general(self.precision if layer else "float32")
            x = _hidden(size, x, self.normalization, train, self.axis_name, dot_general)
            self.sow("intermediates", "hidden", x)
        return jnp.tanh(_dense(self.action_size, x, self.final_bound))


class _Critic(nn.Module):
    """The hidden layers of a critic.

    `action_layer` is the hidden layer at whose input the action joins: 0 or, as in the paper, 1. The other fields are
    those of the actor, but layers after the action has joined are not batch-normalized.
    """

    hidden_sizes: tuple[int, ...]
    action_layer: int
    normalization: str
    final_bound: Scalar
    axis_name: str | None = None
    architecture: str = "mlp"
    precision: str = "float32"

    def hidden(self, observation: jax.Array, action: jax.Array, train: bool) -> jax.Array:
        """The units [..., H] of the last hidden layer."""
        if self.architecture == "residual":
            return _residual(self, self.hidden_sizes, jnp.concatenate([observation, action], axis=-1), self.precision)
        x = _batch_norm(observation, train, self.axis_name) if self.normalization == "batch" else observation
        for layer, size in enumerate(self.hidden_sizes):
            joins = layer == self.action_layer
            x = jnp.concatenate([x, action], axis=-1) if joins else x
            dot_general = products.dot_general(self.precision if layer else "float32", joins * action.shape[-1])
            joined = self.normalization == "batch" and layer >= self.action_layer
            normalization = "none" if joined else self.normalization
            x = _hidden(size, x, normalization, train, self.axis_name, dot_general)
            self.sow("intermediates", "hidden", x)
        return x


class Critic(_Critic):
    """Q: observation [..., O], action [..., A] -> value [...]; see `_Critic` for the fields."""

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array, train: bool = False) -> jax.Array:
        return jnp.squeeze(_dense(1, self.hidden(observation, action, train), self.final_bound), axis=-1)


class CategoricalCritic(_Critic):
    """Z: observation [..., O], action [..., A] -> logits [..., K] of the distribution of the return on K atoms."""

    num_atoms: int = 51

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array, train: bool = False) -> jax.Array:
        return _dense(self.num_atoms, self.hidden(observation, action, train), self.final_bound)


def network(kind: type, section: Any, **fields: Any) -> Any:
    """Makes a module of this kind, with those of its fields that a section of settings has, and others."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in vars(section).items() if name in names}, **fields)


def diagnose(average: Callable, action: jax.Array, actor_units: Params, critic_units: Params) -> Metrics:
    """The diagnostics of networks on a batch.

    Args:
        average: averages a pytree over the shards of the batch.
        action: [B, A] of the policy.
        actor_units, critic_units: the collections that `network.apply(..., mutable=["intermediates"])` returns, arrays
            [..., B, H] of hidden units.
    """

    def dead_units(intermediates: Params) -> jax.Array:
        """The fraction of ReLU units that are zero on the entire batch."""
        zero = average([jnp.mean(units == 0, axis=-2) for units in jax.tree.leaves(intermediates)])
        return jnp.mean(jnp.concatenate([layer.ravel() for layer in zero]) == 1)

    return {
        "actor_saturation": average(jnp.mean(jnp.abs(action) > 0.99)),
        "actor_dead_units": dead_units(actor_units),
        "critic_dead_units": dead_units(critic_units),
    }


class FeatureNetwork(nn.Module):
    """f: observation [..., O] -> [..., outputs], linear in the features, or with sigmoid layers between.

    The last layer starts at zero; the first of several starts from U(-1, 1), the counterpart of 1 / sqrt(fan in) for
    features of norm 1. Silver et al. 2014, sections 5.2 (linear) and 5.3 (one hidden layer).
    """

    features: Features
    hidden_sizes: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        first, *others = (*self.hidden_sizes, self.outputs)
        start = _uniform(1.0) if others else nn.initializers.zeros
        x = self.features.dot(self.param("features", start, (self.features.size, first), float), observation)
        for layer, size in enumerate(others, 1):
            x = _dense(size, nn.sigmoid(x), 0.0 if layer == len(others) else None)
        return x
