import itertools
from functools import cache, partial

import jax
import numpy as np
import pytest
from helpers import faults

from jaxddpg.parts import descent
from jaxddpg.parts.networks import Actor, Critic
from jaxddpg.settings import TD3

RNG = np.random.default_rng(0)
OBSERVATION = (RNG.normal(size=(32, 5)) * 3 + 2).astype("f4")
ACTION = np.tanh(RNG.normal(size=(32, 2))).astype("f4")
init = jax.jit(lambda network, *inputs: network.init(jax.random.key(0), *inputs), static_argnums=0)
apply = jax.jit(lambda network, *inputs: network.apply(*inputs), static_argnums=0)
learn = jax.jit(lambda network, *inputs: network.apply(*inputs, train=True, mutable=["batch_stats"]), static_argnums=0)


@cache
def actor(normalization="none"):
    network = Actor(2, (64, 48), normalization, 3e-3)
    return network, init(network, OBSERVATION)


@cache
def critic(normalization="none", action_layer=0):
    network = Critic((64, 48), action_layer, normalization, 3e-3)
    return network, init(network, OBSERVATION, ACTION)


def test_actions_stay_in_the_box_for_any_weights():
    network, variables = actor()
    wild = jax.tree.map(lambda x: np.asarray(x) * np.float32(1e4) + 100, variables)
    assert np.all(np.abs(apply(network, wild, OBSERVATION)) <= 1)


def test_the_policy_is_deterministic_and_row_by_row():
    network, variables = actor("layer")
    together = apply(network, variables, OBSERVATION)
    np.testing.assert_array_equal(together, apply(network, variables, OBSERVATION))
    rows = np.stack([apply(network, variables, row) for row in OBSERVATION])
    np.testing.assert_allclose(rows, together, atol=1e-6)


def test_layers_start_uniform_within_the_papers_bounds():
    _, variables = critic(action_layer=1)
    params = variables["params"]
    assert params["Dense_1"]["kernel"].shape == (64 + 2, 48)
    for name, bound in (("Dense_0", 5**-0.5), ("Dense_1", 66**-0.5), ("Dense_2", 3e-3)):
        for leaf in params[name].values():
            assert np.max(np.abs(leaf)) <= bound
        kernel = np.asarray(params[name]["kernel"])
        assert np.abs(kernel).max() > 0.9 * bound
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.2)


@pytest.mark.parametrize(("action_layer", "shapes"), [(0, [(7, 64), (64, 48)]), (1, [(5, 64), (66, 48)])])
def test_the_action_joins_where_it_is_told(action_layer, shapes):
    _, variables = critic(action_layer=action_layer)
    assert [variables["params"][f"Dense_{k}"]["kernel"].shape for k in range(2)] == shapes


def test_batch_normalization_stands_where_the_paper_puts_it():
    _, variables = actor("batch")
    assert {k: v["mean"].shape for k, v in variables["batch_stats"].items()} == {
        "BatchNorm_0": (5,),
        "BatchNorm_1": (64,),
        "BatchNorm_2": (48,),
    }
    _, variables = critic("batch", action_layer=1)
    assert {k: v["mean"].shape for k, v in variables["batch_stats"].items()} == {
        "BatchNorm_0": (5,),
        "BatchNorm_1": (64,),
    }
    _, variables = critic("batch", action_layer=0)
    assert set(variables["batch_stats"]) == {"BatchNorm_0"}


@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_without_batch_normalization_there_are_no_statistics(normalization):
    assert set(actor(normalization)[1]) == set(critic(normalization)[1]) == {"params"}


def test_learning_normalizes_by_the_batch_and_moves_the_averages_towards_it():
    network, variables = actor("batch")
    output, learned = learn(network, variables, OBSERVATION)
    moved = learned["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(moved["mean"], 0.01 * OBSERVATION.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moved["var"], 0.99 + 0.01 * OBSERVATION.var(0), rtol=1e-4)
    shifted = learn(network, variables, OBSERVATION * 7 - 3)[0]
    np.testing.assert_allclose(shifted, output, atol=1e-5)  # the input's scale is normalized away


def test_running_averages_reach_the_datas_moments():
    network, variables = actor("batch")

    def step(variables, _):
        return {**variables, **learn(network, variables, OBSERVATION)[1]}, None

    variables, _ = jax.lax.scan(step, variables, length=1_500)
    statistics = variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], OBSERVATION.mean(0), rtol=1e-3)
    np.testing.assert_allclose(statistics["var"], OBSERVATION.var(0), rtol=1e-3)


def test_acting_uses_the_averages_so_no_row_sees_another():
    network, variables = actor("batch")
    alone = apply(network, variables, OBSERVATION[0])
    assert np.all(np.isfinite(alone))
    np.testing.assert_allclose(apply(network, variables, OBSERVATION)[0], alone, atol=1e-6)


UNFRIENDLY = [(0.0, 1.0, 256), (1e4, 1.0, 256), (1e3, 0.6, 64), (-1e4, 1.0, 2), (0.0, 1e-3, 256), (0.0, 1e4, 3)]
"""Offset, deviation and size of data, of which E[x^2] - E[x]^2 in float32 leaves nothing or too much."""


def few(fast, *others):
    """All combinations of sizes, of `others` and of precisions, all but those listed as slow tests."""
    combinations = [
        (*data, *rest) for data in UNFRIENDLY for rest in itertools.product(*others, (np.float32, np.float64))
    ]
    assert not {*fast} - {*combinations}
    return [values if values in fast else pytest.param(*values, marks=pytest.mark.slow) for values in combinations]


def unfriendly(offset, deviation, size, columns=5, dtype=np.float32):
    return (offset + deviation * np.random.default_rng(0).normal(size=(size, columns))).astype(dtype)


def standardized(values, axis, epsilon):
    """What a normalization makes of values, in NumPy's float64."""
    values = np.asarray(values, np.float64)
    return (values - values.mean(axis, keepdims=True)) / np.sqrt(values.var(axis, keepdims=True) + epsilon)


def normalizers(network, variables, kind, *inputs, **how):
    """The outputs of a network's layers of a kind, by their names, and the statistics to store."""
    _, captured = network.apply(
        variables,
        *inputs,
        capture_intermediates=lambda module, _: type(module).__name__ == kind,
        mutable=["intermediates", "batch_stats"],
        **how,
    )
    found = {name: layer["__call__"][0] for name, layer in captured["intermediates"].items() if name.startswith(kind)}
    return found, captured.get("batch_stats")


@pytest.mark.parametrize(
    ("offset", "deviation", "size", "shards", "dtype"),
    few(
        [
            (1e4, 1.0, 256, 1, np.float32),
            (1e4, 1.0, 256, 2, np.float64),
            (1e3, 0.6, 64, 2, np.float32),
            (-1e4, 1.0, 2, 2, np.float32),
            (-1e4, 1.0, 2, 1, np.float64),
            (0.0, 1e-3, 256, 1, np.float32),
            (0.0, 1e4, 3, 1, np.float32),
        ],
        (1, 2),
    ),
)
def test_batch_normalization_standardizes_whatever_the_offset(offset, deviation, size, shards, dtype):
    """Also where the batch falls into shards, whose own means differ: rows are in order, so that shards are unlike."""
    size += size % shards
    with jax.enable_x64(dtype == np.float64):
        rows = np.sort(unfriendly(offset, deviation, size, dtype=dtype), axis=0)
        network = Actor(2, (4,), "batch", 3e-3, axis_name="shards")
        variables = jax.jit(network.init)(jax.random.key(0), rows)
        parts = rows.reshape(shards, -1, rows.shape[1])
        learn = partial(normalizers, network, variables, "BatchNorm", train=True)
        found, stored = jax.jit(jax.vmap(learn, axis_name="shards"))(parts)
        normalized = np.asarray(found["BatchNorm_0"]).reshape(rows.shape)
        # The mean itself is rounded.
        tolerance = 1e3 * np.finfo(dtype).eps + 2 * np.spacing(dtype(abs(offset))) / rows.std(0).min()
        np.testing.assert_allclose(normalized, standardized(rows, 0, 1e-5), atol=tolerance)
        moved = {name: np.asarray(value[0], np.float64) for name, value in stored["BatchNorm_0"].items()}
        exact = rows.astype(np.float64)
        np.testing.assert_allclose(moved["mean"], 0.01 * exact.mean(0), rtol=1e-3, atol=1e-3 * deviation)
        np.testing.assert_allclose(moved["var"], 0.99 + 0.01 * exact.var(0), rtol=1e-3)


@pytest.mark.parametrize(
    ("offset", "deviation", "size", "network", "dtype"),
    few(
        [
            (1e4, 1.0, 256, "actor", np.float32),
            (1e4, 1.0, 256, "critic", np.float64),
            (-1e4, 1.0, 2, "actor", np.float64),
            (-1e4, 1.0, 2, "critic", np.float32),
            (0.0, 1e-3, 256, "critic", np.float32),
            (0.0, 1e4, 3, "actor", np.float32),
        ],
        ("actor", "critic"),
    ),
)
def test_layer_normalization_standardizes_whatever_the_offset(offset, deviation, size, network, dtype):
    """The first layer is replaced by one that passes the data on."""
    with jax.enable_x64(dtype == np.float64):
        values = unfriendly(offset, deviation, 7, columns=size, dtype=dtype)
        modules = {"actor": Actor(1, (size,), "layer", 3e-3), "critic": Critic((size,), 0, "layer", 3e-3)}
        inputs = [values] if network == "actor" else [values[:, :-1], values[:, -1:]]
        variables = jax.jit(modules[network].init)(jax.random.key(0), *inputs)
        variables["params"]["Dense_0"] = {"kernel": np.eye(size, dtype=dtype), "bias": np.zeros(size, dtype)}
        found, _ = jax.jit(partial(normalizers, modules[network], variables, "LayerNorm"))(*inputs)
        tolerance = 1e3 * np.finfo(dtype).eps + 2 * np.spacing(dtype(abs(offset))) / values.std(1).min()
        np.testing.assert_allclose(found["LayerNorm_0"], standardized(values, -1, 1e-6), atol=tolerance)


def normalized_rows(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_residual_blocks_are_those_of_simba(rows, offset):
    """Lee et al. 2024, section 4, in NumPy: dense, blocks of LN, dense 4H, ReLU, dense H, and a last LN."""
    rng = np.random.default_rng(0)
    observation = (offset + rng.normal(size=(rows, 3))).astype("f4")
    action = rng.uniform(-1, 1, (rows, 2)).astype("f4")
    actor = Actor(2, (8, 8), "none", 0.3, architecture="residual")
    critic = Critic((8, 8), 0, "none", 0.3, architecture="residual")
    for network, inputs in ((actor, (observation,)), (critic, (observation, action))):
        variables = network.init(jax.random.key(0), *inputs)
        params = jax.tree.map(lambda x: np.asarray(x, "f8"), variables["params"])
        dense = lambda n, x, params=params: x @ params[f"Dense_{n}"]["kernel"] + params[f"Dense_{n}"]["bias"]  # noqa: E731
        x = dense(0, np.hstack([np.asarray(i, "f8") for i in inputs]))
        for block in range(2):
            x = x + dense(2 * block + 2, np.maximum(dense(2 * block + 1, normalized_rows(x)), 0))
        expected = dense(5, normalized_rows(x))
        expected = np.tanh(expected) if network is actor else expected[:, 0]
        np.testing.assert_allclose(network.apply(variables, *inputs), expected, rtol=2e-3, atol=2e-4)
        shapes = [params[f"Dense_{n}"]["kernel"].shape[1] for n in range(6)]
        assert shapes[:5] == [8, 32, 8, 32, 8]


def test_decay_is_of_kernels_alone_also_in_stacked_networks():
    """With no gradient, a kernel shrinks by the rate times the decay in each step; biases and scales, of rank 2 once
    networks are stacked, do not."""
    critic = Critic((8, 8), 0, "layer", 0.3)
    keys = jax.random.split(jax.random.key(0), 2)
    variables = jax.vmap(lambda key: critic.init(key, np.zeros((1, 3)), np.zeros((1, 2))))(keys)
    optimizer, step = descent.adam(TD3(decoupled_weight_decay=0.1), None)
    state, start = optimizer.init(variables["params"]), variables
    flat = lambda variables: jax.tree_util.tree_leaves_with_path(variables["params"])  # noqa: E731
    for _ in range(3):
        done = step(
            lambda variables, batch: (0.0 * sum(x.sum() for x in jax.tree.leaves(variables)), (None, {})),
            learning_rate=0.5,
            variables=variables,
            optimizer_state=state,
            batch=np.zeros(4),
        )
        variables, state = done.variables, done.optimizer_state
    for (path, before), (_, after) in zip(flat(start), flat(variables), strict=True):
        factor = (1 - 0.5 * 0.1) ** 3 if path[-1].key == "kernel" else 1.0
        np.testing.assert_allclose(after, factor * before, rtol=1e-6)
    assert any(path[-1].key == "bias" and leaf.ndim == 2 for path, leaf in flat(start))


@pytest.mark.parametrize(
    ("actor", "said"),
    [
        ({"hidden_sizes": [8, 16]}, "agent.actor.hidden_sizes is [8, 16], but residual blocks must have equal sizes"),
        ({"normalization": "layer"}, "agent.actor.normalization is layer, but residual blocks have a layer"),
    ],
)
def test_residual_blocks_that_cannot_be_are_refused(actor, said):
    content = {"agent": {"actor": {"architecture": "residual"} | actor}}
    assert any(fault.startswith(said) for fault in faults(content)), faults(content)
