import os
import subprocess
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import jax
import numpy as np
import probes
import pytest

from jaxddpg.agents.ddpg import ddpg
from jaxddpg.parts import noise, replay
from jaxddpg.settings import DDPG, Actor, Critic, Evaluation, Training
from jaxddpg.training.loop import clock_at, make_trainer
from jaxddpg.training.population import Population

CONFIG = Training(num_envs=2, updates_per_step=Fraction(2), warmup_steps=8, steps_per_epoch=10, num_epochs=2)
AGENT = DDPG(batch_size=8, actor=Actor((8,)), critic=Critic((8,)))


def build(scale, environment=None):
    """A trainer whose only number is the scale of its noise."""
    environment = environment or probes.echo()
    parts = (ddpg(environment, AGENT), noise.gaussian(scale), replay.uniform(64))
    return make_trainer(environment, *parts, CONFIG, Evaluation(2))


def populate(scales, seeds, placement=1):
    """A population whose programs are kept for all tests here."""
    return Population(build, scales, seeds, placement, version=__name__)


@cache
def single():
    """The functions of a run by itself, compiled once for every seed and scale."""
    init = jax.jit(lambda key, scale: build(scale).init(key))
    return init, jax.jit(lambda key, clock, state, scale: build(scale).epoch(key, clock, state))


def run(seeds, placement=1, scales=None, epochs=2):
    """The gathered final state and metrics of a population."""
    population = populate(scales or [0.3] * len(seeds), seeds, placement)
    state = population.init()
    for epoch in range(1, epochs + 1):
        state, metrics = population.epoch(clock_at(CONFIG, epoch), state)
    return population.gather(state), metrics()


def test_members_are_independent_and_equal_to_a_run_alone():
    """Member k of a population is the run with its seed, by itself and in plain JAX."""
    (init, epoch), (state, metrics) = single(), run([3, 4, 5])
    for member, seed in enumerate((3, 4, 5)):
        key = jax.random.key(seed)
        expected = init(key, 0.3)
        for number in (1, 2):
            expected, output = epoch(key, clock_at(CONFIG, number), expected, 0.3)
        jax.tree.map(lambda a, b, k=member: np.testing.assert_allclose(a[k], b, atol=1e-5), state, expected)
        assert metrics["critic_loss"][member] == pytest.approx(float(output["critic_loss"]), rel=1e-3)


@pytest.mark.parametrize("placement", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_every_placement_gives_the_same_numbers(placement):
    """Five members on two devices: uneven in every placement, the padding hidden."""
    assert jax.local_device_count() == 2
    expected, expected_metrics = run(range(5), placement=1)
    state, metrics = run(range(5), placement)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), metrics, expected_metrics)
    assert metrics["q_mean"].shape == (5,)


def save(path, devices):
    """Leaves what ten members are after 200 updates on so many devices."""
    assert jax.local_device_count() == devices
    state, metrics = run(range(10), epochs=10)
    assert set(metrics["q_mean"].shape) == {10}
    np.savez(path, *jax.tree.leaves((state, metrics)))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_the_number_of_devices_changes_no_number(devices, tmp_path):
    save(tmp_path / "two.npz", 2)
    program = f"import test_population; test_population.save({str(tmp_path / 'other.npz')!r}, {devices})"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": f"{devices}"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=Path(__file__).parent)
    with np.load(tmp_path / "two.npz") as two, np.load(tmp_path / "other.npz") as other:
        assert two.files == other.files
        for name in two.files:
            np.testing.assert_allclose(two[name], other[name], atol=1e-5)


def test_the_same_placement_gives_the_same_bits():
    jax.tree.map(np.testing.assert_array_equal, run(range(3)), run(range(3)))


def test_members_may_differ_in_their_numbers():
    state, _ = run([0, 0, 1], scales=[0.3, 0.0, 0.3])
    same_seed_other_noise = state.replay.rows[0] != state.replay.rows[1]
    assert same_seed_other_noise.any()
    expected, _ = run([0, 1])
    np.testing.assert_array_equal(state.replay.rows[[0, 2]], expected.replay.rows)


def test_scatter_is_the_inverse_of_gather():
    population = populate([0.3] * 3, [0, 1, 2], 1)
    state = population.gather(population.init())
    jax.tree.map(np.testing.assert_array_equal, population.gather(population.scatter(state)), state)


def test_the_state_of_an_environment_may_have_arrays_without_elements():
    """They are left out. Each program takes what another returned, whether it comes from the host or not."""
    population = Population(lambda scale: build(scale, probes.foreign()), [0.3] * 3, [0, 1, 2])
    state = population.init()
    for epoch in (1, 2):
        state, _ = population.epoch(clock_at(CONFIG, epoch), state)
        state = population.copy(state, {0: 1}, {})
        on_host = population.gather(state)
        assert [leaf.shape for leaf in on_host.environment] == 2 * [(3, CONFIG.num_envs)]  # x and the time
        state = population.scatter(on_host)
    population.evaluate(clock_at(CONFIG, 2), state.agent)()


def test_a_state_given_away_cannot_be_used_again():
    population = populate([0.3] * 2, [0, 1], 1)
    state = population.init()
    population.epoch(clock_at(CONFIG, 1), state)
    with pytest.raises((RuntimeError, ValueError), match=r"delet|donat"):
        population.gather(state)


@pytest.mark.parametrize(
    ("members", "placement", "places", "block"),
    [(2, 8, 2, 1), (3, 1, 4, 1), (5, 3, 6, 3), (1, 1, 1, 1), (4, 3, 4, 2), (9, 3, 12, 3), (7, 2, 8, 2)],
)
def test_no_more_places_than_the_devices_need(members, placement, places, block):
    """On two devices, each with the same number of blocks."""
    population = populate([0.3] * members, range(members), placement)
    assert population.like.observation.shape[0] == places
    assert population.placement.block == block
    np.testing.assert_array_equal(population.gather(population.scatter(np.arange(members))), np.arange(members))


@pytest.mark.parametrize("placement", [1, 2, 3])
@pytest.mark.parametrize("sources", [{0: 4}, {1: 0, 2: 0, 4: 3}, {0: 1, 2: 3}, {}])
def test_members_are_copied_wherever_they_are(placement, sources):
    """To another device or to their own, to the bit, whatever the bits are; one program does it."""
    population = populate([0.3] * 5, range(5), placement)
    before = population.gather(population.init())
    odd = [np.float32(-0.0), np.float32(np.nan), np.uint32(0xFFC12345).view(np.float32), np.float32(1e-42)]
    before = before.replace(observation=np.resize(odd, before.observation.shape))
    after = population.gather(population.copy(population.scatter(before), sources, {0: 3}))
    for sources_, one, other in (
        (sources, after.replace(replay=()), before.replace(replay=())),
        ({0: 3}, after.replay, before.replay),
    ):
        taken = [sources_.get(member, member) for member in range(5)]
        jax.tree.map(
            lambda a, b, taken=taken: np.testing.assert_array_equal(a.view(np.uint8), b[taken].view(np.uint8)),
            one,
            other,
        )


def test_beside_the_state_a_copy_takes_two_members():
    """One is sent, one is received."""

    def build_large(scale):
        environment = probes.echo()
        parts = (ddpg(environment, AGENT), noise.gaussian(scale), replay.uniform(6_400))
        return make_trainer(environment, *parts, CONFIG, Evaluation(2))

    population = Population(build_large, [0.3] * 12, range(12), 1)
    state = population.init()
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(population.gather(state))) // 12
    population.copy(state, {0: 7}, {0: 7})
    analysis = population.programs["copy"].compiled.memory_analysis()
    assert analysis.alias_size_in_bytes >= 6 * own  # what a device holds is changed in place
    assert analysis.temp_size_in_bytes < 2.1 * own


@pytest.mark.parametrize("placement", [1, 2, 3])
def test_members_are_chosen_wherever_they_are(placement):
    population = populate([0.3] * 5, range(5), placement)
    one = population.gather(population.init()).agent
    other = jax.tree.map(lambda leaf: leaf[::-1], one)
    mask = np.array([True, False, False, False, True])
    chosen = population.choose(mask, *map(population.scatter_agents, (one, other)))
    taken = np.where(mask, np.arange(5), 4 - np.arange(5))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[taken]), population.gather(chosen), one)


def test_copies_go_on_with_keys_and_numbers_of_their_own():
    population = populate([0.3, 0.1, 0.2], [0, 1, 2], 1)
    start = population.copy(population.init(), {0: 1}, {0: 1})
    state, _ = population.epoch(clock_at(CONFIG, 1), start, population.with_settings([0.3, 0.4, 0.2]))
    state, (init, epoch) = population.gather(state), single()
    for member, (origin, scale) in enumerate([(1, 0.3), (1, 0.4), (2, 0.2)]):
        start = init(jax.random.key(origin), [0.3, 0.1, 0.2][origin])
        expected, _ = epoch(jax.random.key(member), clock_at(CONFIG, 1), start, scale)
        jax.tree.map(lambda a, b, k=member: np.testing.assert_allclose(a[k], b, atol=1e-5), state, expected)


@pytest.mark.parametrize("placement", [1, 2, 3])
def test_members_that_do_not_train_keep_their_agents_and_the_others_their_numbers(placement):
    population = populate([0.3] * 5, range(5), placement)
    state, _ = population.epoch(clock_at(CONFIG, 1), population.init())
    before = population.gather(state)
    whole, expected = population.epoch(clock_at(CONFIG, 2), population.scatter(before))
    program, running = population.programs["epoch"].compiled, np.array([True, False, True, True, False])
    state, metrics = population.epoch(clock_at(CONFIG, 2), state, population.with_settings([0.3] * 5, running))
    assert population.programs["epoch"].compiled is program
    for name, values in expected().items():
        np.testing.assert_array_equal(metrics()[name][running], values[running])
    after, whole = population.gather(state), population.gather(whole)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[running], b[running]), after, whole)
    for part in ("agent", "health"):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a[~running], b[~running]),
            getattr(after, part),
            getattr(before, part),
        )


@pytest.mark.parametrize(("settings", "seeds"), [(2, 3), (3, 2), (0, 0)])
def test_settings_and_seeds_that_do_not_match_are_refused(settings, seeds):
    sentence = f"there are {settings} settings and {seeds} seeds; pass one of each per member"
    with pytest.raises(ValueError, match=sentence):
        Population(lambda numbers: None, [{}] * settings, range(seeds))
