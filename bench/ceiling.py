"""What this machine can do at most, against which every throughput is quoted.

    python bench/ceiling.py

The matrix products of one core (at several sizes) and of all cores together, the bandwidth of its memory, the steps
of gymnax's Pendulum, and the floor of one update: the time that the matrix products of its hidden layers take alone, at
the fastest slice size. CPU seconds of a pinned process for one core, wall seconds for all cores. Writes
bench/results/ceiling.json.
"""

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import common

PRODUCTS = {"forward": 5, "input": 3, "weight": 2}
"""Products of the hidden layer in one update with two hidden layers per network: five networks are evaluated (both
targets, the critic, the actor, the critic of its action), three differentiated by their input, two by their weights."""


def fastest(run: Callable[[], None], repeats: int = 7) -> float:
    """The least CPU seconds of several calls."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def products(
    hidden: int, rows: int, count: int, kind: str = "forward", precision: str = "float32"
) -> Callable[[], None]:
    """A product of a hidden layer on a slice of rows, `count` times in one compiled loop. With bfloat16 factors, sums
    are accumulated in float32 and rounded to bfloat16 as the next factor."""
    import jax
    import jax.numpy as jnp

    activations = jax.random.normal(jax.random.key(0), (rows, hidden), dtype=precision)
    weights = (jax.random.normal(jax.random.key(1), (hidden, hidden)) / hidden**0.5).astype(precision)
    transposed = activations.T.copy()  # XLA's CPU products contract a last axis faster than a first one

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, preferred_element_type=jnp.float32).astype(precision)

    body, start = {
        "forward": (lambda x: product(x, weights), activations),
        "input": (lambda x: product(x, weights.T), activations),
        # What it multiplies has to change, or the compiler would take the product out of the loop.
        "weight": (lambda w: product(transposed, activations + w[0]) / rows, weights),
        "what the last adds": (lambda x: x + weights[0] * x[0], activations),
    }[kind]
    loop = jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, x: body(x), x))
    return lambda: jax.block_until_ready(loop(start))


def floor_seconds(hidden: int, batch_size: int, repeats: int = 7, precision: str = "float32") -> float:
    """CPU seconds that the hidden layers' products of one update take on one core, at the fastest slice size."""
    least = dict.fromkeys(PRODUCTS, math.inf)
    for rows in {min(batch_size, size) for size in (128, 256, 512, 1024)} | {batch_size}:
        count = max(1, 50 * 256 // rows)
        seconds = {
            kind: fastest(products(hidden, rows, count, kind, precision), repeats) / count * (batch_size / rows)
            for kind in (*PRODUCTS, "what the last adds")
        }
        seconds["weight"] -= seconds["what the last adds"]
        least = {kind: min(value, seconds[kind]) for kind, value in least.items()}
    return sum(number * least[kind] for kind, number in PRODUCTS.items())


def on_core(
    core: int, seconds: float, hidden: int, batch_size: int, precision: str, barrier: Any, results: Any
) -> None:
    """Makes the products of updates on one core for so long, and reports how many updates' worth a second were made."""
    alone(core)
    updates = 20
    runs = [products(hidden, batch_size, updates * number, kind, precision) for kind, number in PRODUCTS.items()]
    for run in runs:
        run()
    barrier.wait()
    start, made = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for run in runs:
            run()
        made += updates
    results.put(made / (time.perf_counter() - start))


def alone(core: int) -> None:
    """Keeps this process, whose JAX has not started, to one core and one thread."""
    os.sched_setaffinity(0, {core})
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"


def one_core(smoke: bool) -> dict[str, object]:
    import jax
    import jax.numpy as jnp

    from jaxddpg import from_gymnax

    gigaflops = {}
    for size in (64, 256) if smoke else (64, 256, 512, 1024, 2048):
        count = max(1, 2**27 // size**3)
        gigaflops[str(size)] = 2 * size**3 * count / fastest(products(size, size, count)) / 1e9
    large = jnp.zeros(2**20 if smoke else 2**26)
    # In place, time after time: a fresh result would be paid for by the pages that the system hands out.
    passes = 8
    add = jax.jit(lambda x: jax.lax.fori_loop(0, passes, lambda _, x: x + 1.0, x))
    bandwidth = 2 * passes * large.nbytes / fastest(lambda: jax.block_until_ready(add(large))) / 1e9
    environment, rates = from_gymnax("Pendulum-v1"), {}
    for num_envs in (1, 128) if smoke else (1, 16, 128, 1024, 8192):
        steps = max(10, (1_000 if smoke else 200_000) // num_envs)

        def play(key: jax.Array, num_envs: int = num_envs, steps: int = steps) -> jax.Array:
            state, _ = jax.vmap(environment.reset)(jax.random.split(key, num_envs))

            def step(state: object, key: jax.Array) -> tuple[object, jax.Array]:
                action_key, step_key = jax.random.split(key)
                action = jax.random.uniform(action_key, (num_envs, 1), minval=-1.0)
                state, after = jax.vmap(environment.step)(jax.random.split(step_key, num_envs), state, action)
                return state, jnp.sum(after.reward)

            return jax.lax.scan(step, state, jax.random.split(key, steps))[1]

        play = jax.jit(play)
        rates[str(num_envs)] = (
            num_envs * steps / fastest(lambda play=play: jax.block_until_ready(play(jax.random.key(0))))
        )
    floors = {
        f"{hidden}, batch {batch_size}, {precision}": 1 / floor_seconds(hidden, batch_size, precision=precision)
        for hidden, batch_size in ([(64, 256)] if smoke else [(64, 256), (64, 8192), (256, 256), (256, 8192)])
        for precision in ("float32", "bfloat16")
    }
    return {
        "gigaflops_by_size": gigaflops,
        "gigabytes_per_second": bandwidth,
        "env_steps_per_second_by_num_envs": rates,
        "floor_updates_per_second": floors,
    }


def all_cores(seconds: float, hidden: int = 256, batch_size: int = 256, precision: str = "float32") -> float:
    """Updates' worth of products per wall second on all cores at once, a process on each."""
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0))
    barrier, results = context.Barrier(len(cores)), context.Queue()
    arguments = (seconds, hidden, batch_size, precision, barrier, results)
    processes = [context.Process(target=on_core, args=(core, *arguments)) for core in cores]
    for process in processes:
        process.start()
    rates = [results.get() for _ in cores]
    for process in processes:
        process.join()
    return sum(rates)


def measure(smoke: bool, results: Any) -> None:
    alone(min(os.sched_getaffinity(0)))
    results.put(one_core(smoke))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small and short, writes nothing")
    smoke = parser.parse_args().smoke
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(smoke, results))
    process.start()
    result = results.get()
    process.join()
    result["all_cores_updates_per_second"] = all_cores(0.2 if smoke else 5.0)
    for name, value in result.items():
        shown = {key: f"{entry:,.1f}" for key, entry in value.items()} if isinstance(value, dict) else f"{value:,.1f}"
        print(f"{name}: {shown}")
    if not smoke:
        common.write("ceiling", result | common.facts())


if __name__ == "__main__":
    main()
