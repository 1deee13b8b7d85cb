import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxddpg import checkpoint
from jaxddpg.agents.ddpg import ddpg
from jaxddpg.settings import DDPG, Actor, Critic
from jaxddpg.types import Environment

MEMBERS = 3


def learners():
    """The states of three small agents, as a run leaves them: leaves [M, ...] on the host."""
    sizes = Environment(reset=None, step=None, observation_size=3, action_size=2, episode_length=1)
    agent = ddpg(sizes, DDPG(actor=Actor((8,), "batch"), critic=Critic((8,))))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), MEMBERS)))


def same(restored, saved):
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, restored), saved)


def shapes(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def test_agents_come_back_to_the_bit_with_their_structure(tmp_path):
    saved = learners()
    checkpoint.save(tmp_path, 5, saved)
    same(checkpoint.restore(tmp_path, shapes(saved)), saved)


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint32, np.uint8, np.bool_])
def test_types_and_extreme_values_come_back(kind, tmp_path):
    values = [0.0, 1.0] if kind == np.bool_ else [0, 1, 255] + [np.nan, np.inf, 1e-40] * (kind == np.float32)
    saved = {"leaf": np.array([values], kind)}
    checkpoint.save(tmp_path, 0, saved)
    restored = checkpoint.restore(tmp_path, shapes(saved))["leaf"]
    assert restored.dtype == kind
    np.testing.assert_array_equal(restored, saved["leaf"])


def test_the_newest_is_taken(tmp_path):
    """By number: as texts, 9 would follow 10."""
    for epoch in (9, 10, 2):
        checkpoint.save(tmp_path, epoch, {"epoch": np.full(1, epoch)})
    assert checkpoint.restore(tmp_path, {"epoch": jnp.zeros(1, int)})["epoch"] == 10


def test_what_an_interrupted_save_left_is_ignored(tmp_path):
    checkpoint.save(tmp_path, 1, {"leaf": np.ones(1)})
    (tmp_path / checkpoint.DIRECTORY / "2.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.restore(tmp_path, {"leaf": np.zeros(1)})["leaf"] == 1


def test_an_epoch_saved_again_is_replaced(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, 3, {"leaf": np.full(1, value)})
    assert checkpoint.restore(tmp_path, {"leaf": np.zeros(1)})["leaf"] == 2


@pytest.mark.parametrize("folder", ["", checkpoint.DIRECTORY])
def test_a_run_without_a_checkpoint_is_a_clear_error(folder, tmp_path):
    (tmp_path / folder).mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} holds no checkpoint"):
        checkpoint.restore(tmp_path, {"leaf": np.zeros(1)})


@pytest.mark.parametrize("size", [4, 16])
def test_an_array_of_another_shape_is_refused(size, tmp_path):
    """Orbax alone would cut it off or fill it up with zeros."""
    checkpoint.save(tmp_path, 1, {"kernel": np.ones((MEMBERS, 8))})
    with pytest.raises(ValueError, match="shape"):
        checkpoint.restore(tmp_path, {"kernel": np.zeros((MEMBERS, size))})


def test_relative_paths_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path.relative_to(tmp_path), 1, {"leaf": np.ones(1)})
    assert (tmp_path / checkpoint.DIRECTORY / "1").is_dir()
