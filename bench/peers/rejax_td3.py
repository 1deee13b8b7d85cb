"""rejax's TD3 in `bench/peers.py`, with networks of the size that is asked for."""

import serve  # noqa: I001, first, for it starts the clock

from collections.abc import Callable, Iterator
from typing import Any


def make(spec: dict[str, Any], **settings: Any) -> Any:
    import numpy as np
    from flax import linen as nn
    from rejax import get_algo
    from rejax.networks import DeterministicPolicy, QNetwork

    algorithm = get_algo("td3").create(
        env="Pendulum-v1", num_envs=1, batch_size=spec["batch_size"], buffer_size=spec["capacity"], **settings
    )
    space = algorithm.action_space
    layers = (spec["hidden"], spec["hidden"])
    return algorithm.replace(
        actor=DeterministicPolicy(
            np.prod(space.shape), (space.low, space.high), hidden_layer_sizes=layers, activation=nn.relu
        ),
        critic=QNetwork(hidden_layer_sizes=layers, activation=nn.relu),
    )


def prepare(spec: dict[str, Any]) -> Callable[[], int]:
    import jax
    import numpy as np
    import optax

    delay = 2
    algorithm = make(spec, policy_delay=delay, fill_buffer=max(1_000, spec["batch_size"]), learning_rate=1e-3)
    keys = jax.random.split(jax.random.PRNGKey(0), spec["members"])

    def steps(state: Any, count: int) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, state: algorithm.train_iteration(state), state)

    def fill(_: Any, state: Any) -> Any:
        """A step of its warm-up without the updates, which under vmap it makes and drops."""
        state, transitions = algorithm.collect_transitions(state, uniform=True)
        return state.replace(replay_buffer=state.replay_buffer.extend(transitions))

    def init(key: Any) -> Any:
        # rejax begins to learn once more than `fill_buffer` steps are made.
        return jax.lax.fori_loop(0, algorithm.fill_buffer + 1, fill, algorithm.init_state(key))

    state = jax.jit(jax.vmap(init))(keys)
    chunk = jax.jit(jax.vmap(lambda state: steps(state, spec["updates"] // delay)), donate_argnums=0)

    def play() -> int:
        nonlocal state
        state = jax.block_until_ready(chunk(state))
        return int(np.sum(optax.tree.get(state.critic_ts.opt_state, "count")))

    return play


def learn(spec: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """With rejax's own settings for Pendulum where `spec` has none: one evaluation every 1,000 steps."""
    import jax

    algorithm = make(spec, policy_delay=spec["policy_delay"], **spec["settings"])
    state = algorithm.init_state(jax.random.PRNGKey(spec["seed"]))
    delay, every = spec["policy_delay"], 1_000

    @jax.jit
    def chunk(state: Any) -> Any:
        return jax.lax.fori_loop(0, every // delay, lambda _, state: algorithm.train_iteration(state), state)

    evaluate = jax.jit(lambda state: algorithm.eval_callback(algorithm, state, state.rng)[1].mean())
    for number in range(1, 60):
        state = chunk(state)
        yield number * every, float(evaluate(state))


if __name__ == "__main__":
    serve.main(prepare, learn)
