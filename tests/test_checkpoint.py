import json
import shutil
import string
import threading
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from flax.struct import PyTreeNode
from helpers import cut_a_file, empty_it, flip_a_byte

from jaxddpg.agents.ddpg import ddpg
from jaxddpg.runs import arrays, checkpoint
from jaxddpg.runs import distributed as hosts
from jaxddpg.runs.checkpoint import DamagedError
from jaxddpg.runs.writer import Writer
from jaxddpg.settings import DDPG, Actor, Critic
from jaxddpg.types import Environment, State

MEMBERS = 3


def learners():
    """The states of three small agents, as a run leaves them: leaves [M, ...] on the host."""
    sizes = Environment(reset=None, step=None, observation_size=3, action_size=2, episode_length=1)
    agent = ddpg(sizes, DDPG(actor=Actor((8,), "batch"), critic=Critic((8,))))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(agent.init))(jax.random.split(jax.random.key(0), MEMBERS)))


def same(restored, saved):
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)


def shapes(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def folder(run):
    return run / checkpoint.DIRECTORY


def test_agents_come_back_to_the_bit_with_their_structure(tmp_path):
    saved = learners()
    checkpoint.save(tmp_path, 5, saved)
    same(checkpoint.restore(tmp_path, 5, shapes(saved)), saved)


class Whole(PyTreeNode):
    agent: State
    world: State


def test_a_part_can_be_read_alone(tmp_path):
    saved = Whole(agent=learners(), world=(np.arange(6).reshape(3, 2), np.ones(3)))
    checkpoint.save(tmp_path, 1, saved)
    same(checkpoint.restore(tmp_path, 1, {"agent": shapes(saved.agent)}, partial=True), {"agent": saved.agent})
    same(checkpoint.restore(tmp_path, 1, shapes(saved)), saved)


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint32, np.uint8, np.bool_])
def test_types_and_extreme_values_come_back(kind, tmp_path):
    values = [0.0, 1.0] if kind == np.bool_ else [0, 1, 255] + [np.nan, np.inf, 1e-40] * (kind == np.float32)
    saved = {"leaf": np.array([values], kind)}
    checkpoint.save(tmp_path, 0, saved)
    restored = checkpoint.restore(tmp_path, 0, shapes(saved))["leaf"]
    assert restored.dtype == kind
    np.testing.assert_array_equal(restored, saved["leaf"])


def test_the_newest_come_first(tmp_path):
    """By number: as texts, 9 would follow 10."""
    assert checkpoint.epochs(tmp_path) == []
    for epoch in (9, 10, 2):
        checkpoint.save(tmp_path, epoch, {"epoch": np.full(1, epoch)})
    assert checkpoint.epochs(tmp_path) == [10, 9, 2]


def test_an_epoch_saved_again_is_replaced(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path, 3, {"leaf": np.full(1, value)})
    assert checkpoint.restore(tmp_path, 3, {"leaf": np.zeros(1)})["leaf"] == 2


@pytest.mark.parametrize("size", [4, 16])
def test_an_array_of_another_shape_is_refused(size, tmp_path):
    """Orbax alone would cut it off or fill it up with zeros."""
    checkpoint.save(tmp_path, 1, {"kernel": np.ones((MEMBERS, 8))})
    with pytest.raises(ValueError, match=rf"kernel.*float64\[3, 8\] on disk.*float64\[3, {size}\]"):
        checkpoint.restore(tmp_path, 1, {"kernel": np.zeros((MEMBERS, size))})


@pytest.mark.parametrize("partial", [False, True])
def test_a_state_of_other_arrays_is_refused(partial, tmp_path):
    """Orbax alone returns the shapes asked for in place of missing arrays."""
    checkpoint.save(tmp_path, 1, {"agent": {"mean": np.ones(MEMBERS)}})
    wanted = {"agent": {"mean": np.zeros(MEMBERS), "origin": np.zeros(MEMBERS)}}
    with pytest.raises(ValueError, match=r"holds other arrays than this agent has.*train a new run"):
        checkpoint.restore(tmp_path, 1, shapes(wanted), partial=partial)


def test_relative_paths_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path.relative_to(tmp_path), 1, {"leaf": np.ones(1)})
    assert (folder(tmp_path) / "1").is_dir()


def lose_a_file(path):
    next(p for p in (path / "d").iterdir()).unlink()


@pytest.mark.parametrize("harm", [flip_a_byte, cut_a_file, lose_a_file, empty_it, shutil.rmtree])
def test_damage_is_seen(harm, tmp_path):
    saved = {"leaf": np.random.default_rng(0).normal(size=(3, 1000))}
    checkpoint.save(tmp_path, 1, saved)
    harm(folder(tmp_path) / "1")
    with pytest.raises(DamagedError, match="the checkpoint of epoch 1 is damaged"):
        checkpoint.origin(tmp_path, 1)


def test_without_a_manifest_there_is_no_checkpoint(tmp_path):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, {"leaf": np.ones(1)})
    (folder(tmp_path) / "2.json").unlink()
    assert checkpoint.epochs(tmp_path) == [1]


@pytest.mark.parametrize("edit", [None, {"epoch": 3}, {"epoch": None}, {"names": "x"}, {"files": []}, {"origin": 1}])
def test_a_manifest_that_is_not_what_was_written_is_damage(edit, tmp_path):
    """It was there once: nothing beside it may be taken for the remains of an interrupted save."""
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, {"leaf": np.ones(1)})
    path = folder(tmp_path) / "2.json"
    path.write_text("" if edit is None else json.dumps(json.loads(path.read_text()) | edit))
    assert checkpoint.epochs(tmp_path) == [2, 1]
    assert checkpoint.holds(tmp_path, 2, "leaf") is None
    with pytest.raises(DamagedError, match="epoch 2 is damaged"):
        checkpoint.origin(tmp_path, 2)
    with Writer(tmp_path, keep=1):
        assert (folder(tmp_path) / "2").is_dir()


def test_a_file_that_others_left_is_no_damage(tmp_path):
    checkpoint.save(tmp_path, 1, {"leaf": np.ones(1)})
    (folder(tmp_path) / "1" / ".DS_Store").touch()
    checkpoint.origin(tmp_path, 1)
    assert checkpoint.restore(tmp_path, 1, {"leaf": np.ones(1)})["leaf"] == 1


def test_a_writer_removes_what_interrupted_saves_left(tmp_path):
    checkpoint.save(tmp_path, 1, {"leaf": np.ones(1)})
    for name in ("7", "2.orbax-checkpoint-tmp"):
        (folder(tmp_path) / name).mkdir()
    (folder(tmp_path) / "3.json.partial").touch()
    with Writer(tmp_path, keep=1):
        assert {path.name for path in folder(tmp_path).iterdir()} == {"1", "1.json"}


def test_a_writer_keeps_the_newest(tmp_path):
    with Writer(tmp_path, keep=2) as writer:
        for epoch in range(5):
            writer.begin(epoch, {"epoch": np.full(1, epoch)})
            writer.commit()
    assert checkpoint.epochs(tmp_path) == [4, 3]
    assert {path.name for path in folder(tmp_path).iterdir()} == {"4", "4.json", "3", "3.json"}
    assert writer.cost()["written"] == 5
    for epoch in (4, 3):
        assert checkpoint.restore(tmp_path, epoch, {"epoch": np.zeros(1, int)})["epoch"] == epoch


def test_a_writer_that_went_back_keeps_what_it_writes(tmp_path):
    """Newer checkpoints, which a run passed over, give way to the first that is written again."""
    for epoch in (30, 48, 50):
        checkpoint.save(tmp_path, epoch, {"leaf": np.ones(1)})
    with Writer(tmp_path, keep=2) as writer:
        writer.begin(31, {"leaf": np.ones(1)})
        writer.commit()
        writer.wait()
        assert checkpoint.epochs(tmp_path) == [31, 30]
        writer.begin(32, {"leaf": np.ones(1)})
        writer.commit()
        writer.begin(33, {"leaf": np.ones(1)})
        writer.commit()
    assert checkpoint.epochs(tmp_path) == [33, 32]


def test_what_is_saved_is_what_was_given_however_it_changes_later(tmp_path):
    """The state of the next epoch lies in other memory; only the array given must stay."""
    state = {"leaf": np.arange(1e6)}
    with Writer(tmp_path, keep=1) as writer:
        writer.begin(1, state)
        writer.commit()
        writer.begin(2, {"leaf": state["leaf"] + 1})
        writer.commit()
        writer.wait()
        np.testing.assert_array_equal(checkpoint.restore(tmp_path, 2, shapes(state))["leaf"], state["leaf"] + 1)


def test_the_parts_of_all_processes_share_the_disk(tmp_path, monkeypatch):
    """Of which this one holds none here."""
    leaf = mock.Mock(spec=jax.Array, nbytes=4 * 2**20, addressable_shards=[])
    free = mock.Mock(free=3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match="4,194,304 bytes are needed, 3,145,728 are free"):
        checkpoint._check_room(tmp_path, {"leaf": leaf})
    free.free = 5 * 2**20
    checkpoint._check_room(tmp_path, {"leaf": leaf})


def test_only_the_first_process_deletes_and_measures_what_all_have_written(tmp_path, monkeypatch):
    """Others may fail when the first has written the manifest, or find files that are no longer there."""
    checkpoint.save(tmp_path, 1, {"leaf": np.ones(1)})
    with monkeypatch.context() as patch:
        patch.setattr(hosts, "is_first", lambda: False)
        with pytest.raises(OSError, match="cannot be written: too late"), checkpoint._writing(folder(tmp_path) / "1"):
            raise TimeoutError("too late")
        patch.setattr(Path, "rglob", lambda *_: pytest.fail("the first process walks through the files"))
        checkpoint.save(tmp_path, 2, {"leaf": np.ones(1)})
    checkpoint.origin(tmp_path, 1)
    assert checkpoint.epochs(tmp_path) == [1]
    with pytest.raises(OSError, match="cannot be written: failed"), checkpoint._writing(folder(tmp_path) / "2"):
        raise OSError("failed")
    assert not (folder(tmp_path) / "2").exists()


def test_a_manifest_names_every_file(tmp_path):
    checkpoint.save(tmp_path, 1, {"leaf": np.ones(1)})
    content = json.loads((folder(tmp_path) / "1.json").read_text())
    on_disk = {str(p.relative_to(folder(tmp_path) / "1")) for p in (folder(tmp_path) / "1").rglob("*") if p.is_file()}
    assert set(content["files"]) == on_disk
    assert content["epoch"] == 1
    assert [checkpoint.holds(tmp_path, 1, name) for name in ("leaf", "best")] == [True, False]


@pytest.mark.parametrize("name", ["a\\b", "a\\", "[", "]", "gs:", "s3:"])
def test_a_path_that_would_be_read_as_another_is_refused(name, tmp_path):
    with pytest.raises(OSError, match="which the checkpoint library does not support; use another path"):
        checkpoint.save(tmp_path / name, 1, {"leaf": np.ones(1)})
    with pytest.raises(ValueError, match="which the checkpoint library does not support; use another path"):
        checkpoint.restore(tmp_path / name, 1, {"leaf": np.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_every_other_character_of_a_path_is_itself(tmp_path):
    others = "".join(sorted({*string.printable, *"é日"} - {*"[]\\/"}))
    for place in (tmp_path / f"{others}", tmp_path / "~" / "%41" / "$HOME" / "{a}"):
        place.mkdir(parents=True)
        checkpoint.save(place, 1, {"leaf": np.arange(3.0)})
        files = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert files == {path for path in folder(place).rglob("*") if path.is_file()}
        same(checkpoint.restore(place, 1, {"leaf": np.zeros(3)}), {"leaf": np.arange(3.0)})
        shutil.rmtree(place)


def test_a_checkpoint_that_is_removed_while_it_is_read_is_no_raw_error(tmp_path):
    """The trainer removes an older one at any moment, here between the checksums and Orbax."""
    checkpoint.save(tmp_path, 1, {"leaf": np.ones(1)})
    checkpoint.origin(tmp_path, 1)
    checkpoint.remove(tmp_path, 1)
    with pytest.raises(DamagedError, match="was removed while it was read"):
        checkpoint.restore(tmp_path, 1, {"leaf": np.ones(1)})


@pytest.mark.parametrize("shape", [(), (7, 11, 3), (5, 40), (200,)])
def test_arrays_of_several_chunks_come_back(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 100)
    state = {"array": np.random.default_rng(0).random(shape, np.float32)}
    checkpoint.save(tmp_path, 0, state)
    same(checkpoint.restore(tmp_path, 0, state), state)


@pytest.mark.parametrize("shape", [(7, 11, 3), (5, 40), (200,), (3, 2)])
def test_chunks_are_contiguous_and_hold_every_number_once(shape, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 100)
    whole, chunk = np.zeros(shape, np.float32), arrays.chunk_shape(shape, 4)
    for part in arrays.parts(shape, chunk):
        assert whole[part].nbytes <= 100
        assert whole[part].flags.c_contiguous
        whole[part] += 1
    assert (whole == 1).all()


def test_writing_takes_the_memory_of_a_few_chunks(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    state = {"array": np.random.default_rng(0).random((2, 2**25), np.float32)}
    checkpoint.save(tmp_path, 0, {"array": state["array"][:, :1]})
    before, used, is_over = resident(), [0], threading.Event()

    def watch():
        while not is_over.wait(0.005):
            used.append(resident() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        checkpoint.save(tmp_path, 1, state)
    finally:
        is_over.set()
        watching.join()
    assert max(used) < 0.75 * state["array"].nbytes  # written whole, it was three times as much
