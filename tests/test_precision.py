"""`agent.precision`: the products of hidden layers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxddpg import settings
from jaxddpg.agents.d4pg import d4pg
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.agents.fasttd3 import fasttd3
from jaxddpg.agents.td3 import td3
from jaxddpg.check import rates
from jaxddpg.parts import products
from jaxddpg.parts.networks import Actor, Critic
from jaxddpg.types import Clock, Environment, Transition

CLOCK = Clock(np.uint32(1), np.uint32(0), num_envs=1)
OBSERVATION, ACTION, HIDDEN, BATCH, ATOMS = 3, 4, (24, 40, 40), 16, 5
AGENTS = {
    "ddpg": (ddpg, settings.DDPG, {}),
    "td3": (td3, settings.TD3, {}),
    "d4pg": (d4pg, settings.D4PG, {"num_atoms": ATOMS}),
    "fasttd3": (fasttd3, settings.FastTD3, {"num_atoms": ATOMS}),
}


def agent_of(algorithm, precision, **others):
    make, section, fields = AGENTS[algorithm]
    default = section()
    networks = {name: type(getattr(default, name))(**{"hidden_sizes": HIDDEN} | others) for name in ("actor", "critic")}
    environment = Environment(reset=None, step=None, observation_size=OBSERVATION, action_size=ACTION, episode_length=1)
    return make(environment, section(batch_size=BATCH, precision=precision, **networks, **fields))


def batch_of(rows, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    return Transition(
        draw(rows, OBSERVATION), jnp.tanh(draw(rows, ACTION)), draw(rows), draw(rows, OBSERVATION), jnp.full(rows, 0.9)
    )


def updated(agent, state):
    return jax.jit(agent.update)(jax.random.key(1), CLOCK, state, batch_of(agent.batch_size))


def dots(text):
    """The factors and the result of each matrix product of a StableHLO program: [(shape, type)] * 3."""
    found = re.findall(r"stablehlo\.dot_general.*?: \((\S+), (\S+)\) -> (\S+)", text)
    return [
        [(tuple(map(int, x.split("x")[:-1])), x.split("x")[-1]) for x in re.findall(r"tensor<(\S+?)>", " ".join(f))]
        for f in found
    ]


@pytest.mark.parametrize("architecture", ["mlp", "residual"])
@pytest.mark.parametrize("algorithm", AGENTS)
def test_exactly_the_hidden_products_have_bfloat16_operands(algorithm, architecture):
    """Forward and in both products of the derivative; all sums are float32."""
    sizes = {"hidden_sizes": (24, 24)} if architecture == "residual" else {}
    found = {}
    for precision in ("float32", "bfloat16"):
        agent = agent_of(algorithm, precision, architecture=architecture, **sizes)
        state = jax.eval_shape(agent.init, jax.random.key(0))
        program = jax.jit(agent.update).lower(jax.random.key(1), CLOCK, state, batch_of(agent.batch_size)).as_text()
        found[precision] = dots(program)
    results = [sorted(sorted(result[0]) for *_, result in products) for products in found.values()]
    assert results[0] == results[1]
    kinds = set()
    for *factors, result in found["bfloat16"]:
        hidden = all(size in (2, BATCH, *HIDDEN, 96) for shape, _ in factors for size in shape)
        kinds.add(hidden)
        assert [kind for _, kind in factors] == ["bf16" if hidden else "f32"] * 2, (factors, result)
        assert result[1] == "f32"
    assert kinds == {False, True}


@pytest.mark.parametrize("algorithm", AGENTS)
def test_states_and_metrics_are_float32(algorithm):
    agents = [agent_of(algorithm, precision) for precision in ("float32", "bfloat16")]
    states = [jax.eval_shape(agent.init, jax.random.key(0)) for agent in agents]
    program = jax.jit(agents[1].update)
    after, metrics = jax.eval_shape(program, jax.random.key(1), CLOCK, states[1], batch_of(agents[1].batch_size))
    same = lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype)  # noqa: E731
    assert jax.tree.all(jax.tree.map(same, states[0], after))
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "d4pg"])
def test_soft_updates_do_not_vanish(algorithm):
    """They move a parameter by 0.005 of its distance to the online one, which in bfloat16, with a relative spacing of
    2^-8 to 2^-7, would mostly round to nothing."""
    agent = agent_of(algorithm, "bfloat16")
    state = agent.init(jax.random.key(0))
    after, _ = updated(agent, state)
    online, target = ("critics", "target_critics") if algorithm == "td3" else ("critic", "target_critic")
    mixed = jax.tree.map(lambda t, o: 0.995 * t + 0.005 * o, getattr(state, target), getattr(after, online))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), mixed, getattr(after, target))
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), getattr(state, target), getattr(after, target))
    assert jax.tree.all(moved)


@pytest.mark.parametrize("algorithm", AGENTS)
def test_float32_is_float32(algorithm):
    agent = agent_of(algorithm, "float32")
    state = jax.eval_shape(agent.init, jax.random.key(0))
    text = jax.jit(agent.update).lower(jax.random.key(1), CLOCK, state, batch_of(agent.batch_size)).as_text()
    assert "bf16" not in text


def rounded(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize(
    ("offset", "scale", "rows", "inputs", "outputs"),
    [(0.0, 1.0, 32, 24, 40), (1e4, 1.0, 32, 24, 40), (0.0, 1e-3, 7, 5, 3), (0.0, 1e4, 2, 1, 2), (0.0, 1.0, 1, 24, 1)],
)
def test_products_and_their_derivatives_against_numpy(offset, scale, rows, inputs, outputs):
    random = np.random.default_rng(0)
    x = (offset + scale * random.normal(size=(rows, inputs))).astype(np.float32)
    kernel = random.normal(size=(inputs, outputs)).astype(np.float32)
    gradient = (scale * random.normal(size=(rows, outputs))).astype(np.float32)
    dimensions = (((1,), (0,)), ((), ()))
    found, pull = jax.vjp(lambda x, k: products.dot_general("bfloat16")(x, k, dimensions), x, kernel)
    by_x, by_kernel = pull(jnp.asarray(gradient))

    def close(actual, one, other):
        size = np.abs(rounded(one)) @ np.abs(rounded(other))
        np.testing.assert_array_less(np.abs(actual - rounded(one) @ rounded(other)), 1e-5 * size + 1e-30)
        assert actual.dtype == np.float32

    close(found, x, kernel)
    close(by_x, gradient, kernel.T)
    close(by_kernel, x.T, gradient)
    assert np.any(rounded(x) != x)


@pytest.mark.parametrize(("rows", "size"), [(32, 24), (8, 3), (16, 1), (7, 5), (2, 4), (1, 1)])
@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_a_transpose_in_blocks_is_a_transpose(rows, size, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = jnp.arange(rows * size).reshape(rows, size)
    np.testing.assert_array_equal(products._transposed(x), np.asarray(x).T)


def test_members_and_further_dimensions_are_rows():
    """[M, T, B, K] and [M, K, N], the members mapped."""
    random = np.random.default_rng(0)
    x, kernel = jnp.asarray(random.normal(size=(3, 2, 5, 8))), jnp.asarray(random.normal(size=(3, 8, 4)))
    product = products.dot_general("bfloat16")

    def total(x, kernel):
        y = product(x, kernel, (((2,), (0,)), ((), ())))
        return jnp.sum(y * jnp.arange(y.size).reshape(y.shape)), y

    (_, found), gradients = jax.vmap(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(x, kernel)
    assert found.shape == (3, 2, 5, 4)
    for member in range(3):
        for step in range(2):
            expected = rounded(x[member, step]) @ rounded(kernel[member])
            np.testing.assert_allclose(found[member, step], expected, rtol=1e-4, atol=1e-5)
    weights = np.arange(2 * 5 * 4).reshape(2, 5, 4)
    expected = np.einsum("mtbk,tbn->mkn", rounded(x), rounded(weights))
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-4, atol=1e-3)
    assert gradients[0].shape == x.shape


@pytest.mark.parametrize("precision", ["bf16", "float16", ""])
def test_another_precision_is_refused(precision):
    with pytest.raises(ValueError, match=f"precision is {precision}, but must be float32 or bfloat16"):
        Actor(2, HIDDEN, "none", 0.3, precision=precision).init(jax.random.key(0), jnp.ones(3))


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 5, 6)])
def test_inputs_of_the_network_are_not_rounded(shape):
    """The last two features of x are: in the product and in both products of its derivative."""
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=size), jnp.float32) for size in (shape, (6, 3)))
    gradient = jnp.asarray(random.normal(size=(*shape[:-1], 3)), jnp.float32)
    product = products.dot_general("bfloat16", num_inputs=2)
    found, pull = jax.vjp(lambda x, kernel: product(x, kernel, None), x, kernel)
    by_x, by_kernel = pull(gradient)
    hidden, given, weights = rounded(x[..., :4]), np.asarray(x[..., 4:], float), np.asarray(kernel[4:], float)
    np.testing.assert_allclose(found, hidden @ rounded(kernel[:4]) + given @ weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_x[..., :4], rounded(gradient) @ rounded(kernel[:4]).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_x[..., 4:], np.asarray(gradient, float) @ weights.T, rtol=1e-5, atol=1e-6)
    rows = np.asarray(gradient, float).reshape(-1, 3)
    np.testing.assert_allclose(by_kernel[:4], hidden.reshape(-1, 4).T @ rounded(rows), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_kernel[4:], given.reshape(-1, 2).T @ rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("action_layer", [0, 1])
def test_a_critic_tells_actions_apart_that_round_to_the_same_bfloat16(action_layer):
    critic = Critic((8, 24)[action_layer - 1 :], action_layer, "none", 0.3, precision="bfloat16")
    actions, observations = jnp.linspace(0.901, 0.902, 41)[:, None], jnp.ones((41, OBSERVATION))
    assert len(np.unique(rounded(actions))) == 1
    values = critic.apply(critic.init(jax.random.key(0), observations, actions), observations, actions)
    assert len(np.unique(values)) > 20


def test_a_policy_of_one_observation_is_that_of_a_batch():
    network = Actor(2, HIDDEN, "none", 0.3, precision="bfloat16")
    observations = jax.random.normal(jax.random.key(0), (4, OBSERVATION))
    variables = network.init(jax.random.key(1), observations)
    one = jnp.stack([network.apply(variables, observation) for observation in observations])
    np.testing.assert_allclose(one, network.apply(variables, observations), atol=1e-6)


@pytest.mark.parametrize(("precision", "kind"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_the_rate_is_that_of_three_products(precision, kind):
    size = 16
    program = jax.jit(partial(rates._products, products.dot_general(precision)))
    found = dots(program.lower(jnp.zeros((size, size)), 1).as_text())
    square = (size, size)
    assert found == [[(square, kind), (square, kind), (square, "f32")]] * 3
    # Each number of a result is a sum of `size` products.
    assert rates.operations(size) == sum(2 * size * np.prod(result[0]) for *_, result in found)
