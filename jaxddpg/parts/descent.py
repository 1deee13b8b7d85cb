"""One step of gradient descent on a batch, whose gradient may be computed by microbatches and averaged over shards."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxddpg import settings
from jaxddpg.parts import sharding
from jaxddpg.types import Params, Scalar

Loss = Callable[[Params, Any], tuple[jax.Array, tuple[Any, Params]]]
"""`loss(variables, batch) -> loss [], (aux, collections)`: whatever it returns is a mean over the batch. `aux` is any
pytree; `collections` are the flax variables beside "params" that the step replaces, such as "batch_stats"."""


class Step(NamedTuple):
    """The result of one step of an optimizer."""

    variables: Params
    optimizer_state: optax.OptState
    loss: jax.Array
    aux: Any
    gradient_norm: jax.Array
    """[] of the gradient before the optimizer transforms it, weight decay included."""


def adam(
    config: settings.ActorCritic, axis_name: str | None
) -> tuple[optax.GradientTransformation, Callable[..., Step]]:
    """Adam with the gradient clipping of `config`, and `descend` with it and with the other options of `config`."""
    optimizer = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam())
    return optimizer, partial(
        descend,
        optimizer=optimizer,
        microbatch_size=config.microbatch_size,
        decoupled_weight_decay=config.decoupled_weight_decay,
        axis_name=axis_name,
    )


def descend(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar,
    variables: Params,
    optimizer_state: optax.OptState,
    batch: Any,
    *,
    microbatch_size: int = 0,
    weight_decay: Scalar | None = None,
    decoupled_weight_decay: Scalar | None = None,
    axis_name: str | None = None,
) -> Step:
    """Takes one step down a loss.

    Args:
        loss: see `Loss`; it is differentiated with respect to `variables["params"]`.
        optimizer: maps the gradient to the update direction, which is scaled by the learning rate and subtracted.
        learning_rate: traced or not.
        variables: flax variables.
        batch: a pytree whose leaves are [B, ...]
        microbatch_size: microbatch size for sequential gradient accumulation; must divide B; 0 means
            `default_microbatch_size`.
        weight_decay: L2 coefficient: `weight_decay * kernel` is added to the gradient of each kernel.
        decoupled_weight_decay: `learning_rate * decoupled_weight_decay * kernel` is subtracted from each kernel, beside
            the step. Loshchilov & Hutter 2019, "Decoupled weight decay regularization" (AdamW).
        axis_name: the mapped axis of the shards of a batch, over which the loss, its aux and its gradient are averaged;
            None where the batch is whole.
    """
    params = variables["params"]

    def loss_of_params(params: Params, batch: Any) -> tuple[jax.Array, tuple[Any, Params]]:
        return loss({**variables, "params": params}, batch)

    mean = mean_gradient(loss_of_params, params, batch, microbatch_size or default_microbatch_size(_num_rows(batch)))
    (value, (aux, collections)), gradient = sharding.mean_over_shards(mean, axis_name)
    if weight_decay is not None:
        gradient = jax.tree_util.tree_map_with_path(partial(_decay, weight_decay), gradient, params)
    direction, optimizer_state = optimizer.update(gradient, optimizer_state)
    if decoupled_weight_decay is not None:
        direction = jax.tree_util.tree_map_with_path(partial(_decay, decoupled_weight_decay), direction, params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
    variables = {**variables, **collections, "params": params}
    return Step(variables, optimizer_state, value, aux, optax.tree.norm(gradient))


def _decay(rate: Scalar, path: tuple, gradient: jax.Array, parameter: jax.Array) -> jax.Array:
    # By name, because biases and scales of stacked networks have rank 2, too.
    return gradient + rate * parameter if path[-1].key == "kernel" else gradient


def _num_rows(batch: Any) -> int:
    """B"""
    return jax.tree.leaves(batch)[0].shape[0]


def mean_gradient(loss: Loss, params: Params, batch: Any, microbatch_size: int) -> Any:
    """`jax.value_and_grad(loss, has_aux=True)(params, batch)`, averaged over microbatches that are scanned."""
    differentiate = partial(jax.value_and_grad(loss, has_aux=True), params)
    if microbatch_size == _num_rows(batch):
        return differentiate(batch)
    microbatches = jax.tree.map(lambda x: x.reshape(-1, microbatch_size, *x.shape[1:]), batch)

    def add(total: Any, microbatch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiate(microbatch)), None

    shapes = jax.eval_shape(differentiate, jax.tree.map(lambda x: x[0], microbatches))
    total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), microbatches)
    return jax.tree.map(lambda x: x / _num_rows(microbatches), total)


def default_microbatch_size(batch_size: int) -> int:
    """On a CPU the largest divisor of the batch size from 256 to 512, whose activations stay in the cache of a core;
    the whole batch where there is none, and on accelerators."""
    on_cpu = jax.default_backend() == "cpu"
    return max((rows for rows in range(256, 513) if on_cpu and batch_size % rows == 0), default=batch_size)
