"""Stable-Baselines3 and SBX in `bench/peers.py`; `spec["package"]` and `spec["algorithm"]` say what."""

import serve  # noqa: I001, first, for it starts the clock

import importlib
from collections.abc import Callable, Iterator
from typing import Any


def make(spec: dict[str, Any], **settings: Any) -> Any:
    module = importlib.import_module(spec["package"])
    if spec.get("pinned"):
        importlib.import_module("torch").set_num_threads(1)
    settings = {
        "batch_size": spec["batch_size"],
        "buffer_size": spec["capacity"],
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": [spec["hidden"], spec["hidden"]]},
    } | settings
    return getattr(module, spec["algorithm"])(
        "MlpPolicy", "Pendulum-v1", seed=spec.get("seed", 0), device="cpu", **settings
    )


def counted(model: Any) -> int:
    """What the critic's optimizer has counted."""
    if hasattr(model.policy, "qf_state"):
        import optax

        return int(optax.tree_utils.tree_get(model.policy.qf_state.opt_state, "count"))
    return int(next(iter(model.critic.optimizer.state.values()))["step"])


def prepare(spec: dict[str, Any]) -> Callable[[], int]:
    import numpy as np

    noise = importlib.import_module("stable_baselines3.common.noise").NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    warmup = max(1_000, spec["batch_size"])
    model = make(spec, learning_starts=warmup, learning_rate=1e-3, action_noise=noise)
    model.learn(warmup)

    def play() -> int:
        model.learn(spec["updates"], reset_num_timesteps=False)
        return counted(model)

    return play


def learn(spec: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """One evaluation of 20 episodes every 1,000 steps, whose time does not count."""
    import time

    import gymnasium
    import numpy as np

    evaluation = importlib.import_module("stable_baselines3.common.evaluation")
    noise = importlib.import_module("stable_baselines3.common.noise").NormalActionNoise(np.zeros(1), np.full(1, 0.1))
    model = make(spec, action_noise=noise, **spec["settings"])
    environment = importlib.import_module("stable_baselines3.common.monitor").Monitor(gymnasium.make("Pendulum-v1"))
    for number in range(1, 60):
        model.learn(1_000, reset_num_timesteps=number == 1)
        start = time.perf_counter()
        mean, _ = evaluation.evaluate_policy(model, environment, n_eval_episodes=20)
        serve.STARTED += time.perf_counter() - start
        yield number * 1_000, float(mean)


if __name__ == "__main__":
    serve.main(prepare, learn)
