import re

import jax
import pytest
from helpers import TINY, call, refused, tiny

from jaxddpg import config
from jaxddpg.config import ConfigError, build
from jaxddpg.runs import distributed as hosts
from jaxddpg.runs import memory
from jaxddpg.runs.start import run
from jaxddpg.training.loop import clock_at
from jaxddpg.training.population import Population


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The directory of a run of the tiny experiment, and its result."""
    directory = tmp_path_factory.mktemp("ran") / "run"
    return directory, run(tiny(), directory)


def shapes(experiment, members):
    init = build.build(experiment.member()).init
    return jax.eval_shape(jax.vmap(init), jax.random.split(jax.random.key(0), members))


def needed(experiment, members, copies=1, best=False):
    """Bytes, found out by asking for the least that is not refused."""
    like, low, high = shapes(experiment, members), 0, 2**40
    while low < high:
        middle = (low + high) // 2
        try:
            memory.check_state(experiment, like, copies, middle, best=best)
            high = middle
        except ConfigError:
            low = middle + 1
    return low


def test_what_is_counted_is_what_is_allocated(ran):
    experiment = tiny()
    count = experiment.population.num_seeds
    population = Population(build.build, [experiment.member()] * count, range(count))
    state = population.gather(population.init())
    counted = memory.bytes_by_part(state, count)
    assert sum(counted.values()) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert counted["agent.actor"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.agent.actor))
    assert counted["replay"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.replay))
    assert needed(experiment, count) == sum(counted.values())
    assert needed(experiment, count, copies=2) == 2 * sum(counted.values())
    agents = sum(leaf.nbytes for leaf in jax.tree.leaves(state.agent))
    assert needed(experiment, count, best=True) == sum(counted.values()) + agents
    result = ran[1]
    assert result.summary["state_bytes"] == counted
    assert result.summary["epoch_temporary_bytes"] > 0


@pytest.mark.parametrize("copies", [1, 2])
def test_the_remedies_fit_and_more_does_not(copies):
    experiment = tiny(replay={"capacity": 6_000}, population={"num_seeds": 5})
    free = int(0.7 * needed(experiment, 5, copies))
    with pytest.raises(ConfigError) as refusal:
        memory.check_state(experiment, shapes(experiment, 5), copies, free)
    remedies = re.search(r"replay.capacity to (\d+) or population.num_seeds to (\d+)$", refusal.value.errors[0])
    capacity, members = map(int, remedies.groups())
    more = capacity + experiment.training.num_envs
    assert needed(tiny(replay={"capacity": capacity}), 5, copies) <= free
    assert needed(tiny(replay={"capacity": more}), 5, copies) > free
    assert needed(experiment, members, copies) <= free < needed(experiment, members + 1, copies)


def test_the_largest_part_is_named():
    for changes, part in (
        ({"replay": {"capacity": 6_000}}, "replay buffers"),
        ({"agent": {"critic": {"hidden_sizes": [400, 400]}}}, "agent.critic_optimizer"),
    ):
        experiment = tiny(**changes)
        with pytest.raises(ConfigError, match=f"for the {part} of 3 members, but only 10 bytes is free"):
            memory.check_state(experiment, shapes(experiment, 3), 1, 10)


def test_what_the_epoch_takes_is_needed_beside_the_state():
    """It is more than the members that are computed, or less, in which case it is part of them."""
    experiment, like, temporary = tiny(), shapes(tiny(), 1), 10**6
    alone = needed(experiment, 1)
    memory.check_state(experiment, like, 1, alone + temporary, 0, False, temporary)
    with pytest.raises(ConfigError, match="the replay buffer of 1 member, but only"):
        memory.check_state(experiment, like, 1, alone + temporary - 1, 0, False, temporary)
    memory.check_state(experiment, like, 1, 2 * alone, 1, False, alone)


def test_what_the_compiled_epoch_takes_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda reserved=1: 10**15 if reserved else 0)
    with pytest.raises(ConfigError, match="but only 0 bytes is free"):
        run(tiny(), tmp_path / "run")
    monkeypatch.setattr(memory, "free", lambda reserved=1: 10**15)
    run(tiny(), tmp_path / "other")


def test_too_much_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "large.yaml").write_text("replay: {capacity: 400_000_000}\npopulation: {num_seeds: 100}\n")
    said = call("train", tmp_path / "large.yaml", "--quiet", "--run-dir", tmp_path / "run")
    assert refused(said, "this experiment needs ", " is free; reduce replay.capacity to ") == []
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_fit_the_host_of_an_accelerator_is_refused(monkeypatch):
    plan = config.resolve(tiny(replay={"capacity": 100_000})).run()
    population = build.populate(plan)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory, "free", lambda: 10**12)
    memory.check(plan, population, 200, on_disk=True)
    monkeypatch.setattr(memory, "free_on_host", lambda: 10**7)
    memory.check(plan, population, 200, on_disk=False)
    with pytest.raises(ConfigError, match=r"but only .* is free on the host; reduce replay.capacity"):
        memory.check(plan, population, 200, on_disk=True)


def test_free_memory_is_less_than_there_is():
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < memory.free() < total
    memory.check_state(tiny(), shapes(tiny(), 1), 2, None)  # where nobody knows, nothing is refused


def test_the_limits_of_all_control_groups_above_hold(tmp_path):
    """As SLURM nests them; the host's root has no such file."""
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    task = root / "system.slice" / "slurmstepd.scope" / "job_1" / "step_0" / "task_0"
    task.mkdir(parents=True)
    own.write_text("3:memory:/elsewhere\n0::/system.slice/slurmstepd.scope/job_1/step_0/task_0\n")
    limits = {task: "max", task.parent: "max", task.parents[1]: "4000", task.parents[2]: "9000"}
    for place, limit in limits.items():
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text("1000\n")
        (place / "memory.stat").write_text("anon 700\ninactive_file 300\n")
    assert [*memory._control_groups(own, root)] == [3300, 8300]
    own.write_text("0::/\n")  # in a container, the root of which is its own
    assert [*memory._control_groups(own, root)] == []
    (root / "memory.max").write_text("2000\n")
    (root / "memory.current").write_text("500\n")
    (root / "memory.stat").write_text("anon 500\n")
    assert [*memory._control_groups(own, root)] == [1500]
    assert [*memory._control_groups(tmp_path / "none", root)] == [1500]


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    alone = memory.free()
    monkeypatch.setattr(hosts, "_gathered", lambda name: [name, "elsewhere", name, name, name])
    hosts.processes_here.cache_clear()
    try:
        assert memory.free() < alone / 3
    finally:
        hosts.processes_here.cache_clear()


def test_what_is_counted_for_an_evaluation_is_nearly_what_it_takes():
    experiment = tiny(evaluation={"num_episodes": 4_000})
    trainer, like = build.build(experiment.member()), shapes(experiment, 1)
    agent = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), like.agent)
    clock = clock_at(experiment.training, 1)
    taken = jax.jit(trainer.evaluate).lower(jax.random.key(0), clock, agent).compile().memory_analysis()
    with pytest.raises(ConfigError, match=r"lower evaluation\.num_episodes to 3") as refusal:
        memory.check_evaluation(experiment, like, 10, 1, int(0.9 * taken.temp_size_in_bytes))
    fitting = int(re.search(r"(\d+)$", refusal.value.errors[0])[0])
    assert 3_500 < fitting < 4_000
    memory.check_evaluation(experiment, like, 10, 1, taken.temp_size_in_bytes)
    memory.check_evaluation(
        tiny(evaluation={"num_episodes": fitting}), like, 10, 1, int(0.9 * taken.temp_size_in_bytes)
    )
    with pytest.raises(ConfigError, match="10 steps, 2 members at a time"):
        memory.check_evaluation(experiment, like, 10, 2, taken.temp_size_in_bytes)
    memory.check_evaluation(experiment, like, 10, 1, None)


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--evaluation.num_episodes", 10**9], "for 1,000,000,000 episodes"),
        (["--environment.parameters.max_steps_in_episode", 10**8], "shorten the environment's episodes"),
    ],
)
def test_an_evaluation_that_does_not_fit_is_refused(flags, fragment, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 4 * 10**8)
    (tmp_path / "tiny.yaml").write_text(TINY)
    said = call("train", tmp_path / "tiny.yaml", "--quiet", "--run-dir", tmp_path / "run", *flags)
    assert refused(said, "the evaluation of this experiment needs ", fragment) == []
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_what_does_not_fit(ran):
    said = call("evaluate", ran[0], "--num-episodes", 10**10)
    fragments = ["for 10,000,000,000 episodes of at most 10 steps, 2 members at a time", "lower --num-episodes to "]
    assert refused(said, *fragments) == []  # one on each device
