"""What the pages and the examples show must run."""

import importlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from helpers import call, needs_library, thorough, variants

import jaxddpg
from jaxddpg import config
from jaxddpg.cli import main as cli
from jaxddpg.config import build
from jaxddpg.runs import start as start_module
from jaxddpg.training.loop import clock_at

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(experiment):
    """The trainer's state after its first epoch."""
    trainer, key = build.build(experiment), jax.random.key(0)
    return jax.jit(trainer.epoch)(key, clock_at(experiment.training, 1), jax.jit(trainer.init)(key))[0]


close = partial(np.testing.assert_allclose, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("num_steps", "num_envs", "updates"), [(4, 4, 2), (8, 1, 1)])
def test_one_page_gives_the_trainers_numbers(num_steps, num_envs, updates, monkeypatch):
    """With a short warm-up and small networks, after eight updates: later some gradient near zero has another sign, to
    which Adam gives its full step."""
    page, network = load_example("one_page"), {"hidden_sizes": [8, 8]}
    small = {"batch_size": 8, "actor": network, "critic": network}
    monkeypatch.setattr(page, "CONFIG", config.parse({"agent": small}).experiment.agent)
    monkeypatch.setattr(page, "WARMUP", 20)
    _, _, learner = page.train(num_steps, num_envs, updates)
    settings = config.parse(
        {
            "agent": small,
            "replay": {"capacity": 50_000},
            "training": {
                "num_envs": num_envs,
                "updates_per_step": updates,
                "warmup_steps": page.WARMUP,
                "steps_per_epoch": num_steps,
            },
        }
    ).experiment
    state = trained(settings)
    jax.tree.map(close, learner, state.agent)


@pytest.mark.slow
@pytest.mark.parametrize(("num_steps", "num_envs", "updates"), [(4, 4, 2), (8, 1, 1)])
def test_td3_on_one_page_gives_the_trainers_numbers(num_steps, num_envs, updates, monkeypatch):
    page, network = load_example("one_page_td3"), {"hidden_sizes": [8, 8]}
    monkeypatch.setattr(page, "HIDDEN_SIZES", (8, 8))
    monkeypatch.setattr(page, "BATCH_SIZE", 8)
    monkeypatch.setattr(page, "WARMUP", 20)
    _, _, policy, critics = page.train(num_steps, num_envs, updates)
    settings = config.parse(
        {
            "agent": {
                "algorithm": "td3",
                "actor_learning_rate": page.LEARNING_RATE,
                "critic_learning_rate": page.LEARNING_RATE,
                "batch_size": 8,
                "actor": network,
                "critic": network,
            },
            "replay": {"capacity": 50_000},
            "training": {
                "num_envs": num_envs,
                "updates_per_step": updates * page.DELAY,
                "warmup_steps": page.WARMUP,
                "steps_per_epoch": num_steps,
            },
        }
    ).experiment
    state = trained(settings)
    jax.tree.map(close, policy, state.agent.actor)
    jax.tree.map(close, jax.tree.map(lambda *x: np.stack(x), *critics), state.agent.critics)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_page", "one_page_td3"])
def test_one_page_runs_as_a_script(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "2"])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert "return" in capsys.readouterr().out


@pytest.mark.slow
def test_the_host_loop_stores_the_true_successor_of_a_truncated_step():
    """A pendulum turns by at most 0.4 in a step, but starts anywhere."""
    num_envs, num_steps, warmup = 3, 300, 110
    replay, returns = load_example("host_loop").train(num_steps=num_steps, num_envs=num_envs, warmup=warmup)
    rows = replay.unpack(replay.rows)
    ending = np.asarray(rows.ending).reshape(-1, num_envs)
    np.testing.assert_array_equal(ending.nonzero()[0], np.repeat([199, 399], num_envs))
    assert set(ending.ravel()) == {0, 1}
    assert len(returns) == 2 * num_envs
    before, after = (np.arctan2(x[:, 1], x[:, 0]) for x in (rows.observation, rows.next_observation))
    assert np.abs(np.angle(np.exp(1j * (after - before)))).max() < 0.41
    assert np.abs(np.diff(np.sort(np.abs(rows.action[: warmup * num_envs, 0])))).max() < 0.1  # uniform in the warm-up


@pytest.mark.slow
def test_a_sweep_is_a_vmap_over_its_numbers(tmp_path, monkeypatch):
    """Both ways of the example give a member the same numbers, and the way with statistics tells every variant."""
    monkeypatch.chdir(ROOT)
    example, short = load_example("sweep"), {"training.num_epochs": 1, "training.steps_per_epoch": 10}
    short |= {f"agent.{network}.hidden_sizes": [8] for network in ("actor", "critic")}
    variants = example.as_a_run(tmp_path / "run", short)
    told = [(variant["agent.tau"], variant["noise.scale"]) for variant in variants]
    np.testing.assert_allclose(
        told, [(tau, scale) for tau in (0.005, 0.0158114, 0.05) for scale in (0.1, 0.3)], rtol=1e-5
    )
    taus = np.array([0.005, 0.05], np.float32)
    states = example.by_vmap(taus, short)
    axes = {"population.sweep": {"agent.tau": [0.005, 0.05]}, "population.num_seeds": 2}
    result = start_module.run(config.read("configs/pendulum.yaml", short | axes).experiment)
    for member, same in ((0, 0), (1, 3)):
        jax.tree.map(
            lambda a, b, i=member, j=same: np.testing.assert_allclose(a[i], b[j], atol=1e-5),
            states.agent,
            result.agents,
        )


def shortened(whole):
    """What to change of an experiment so that it takes a few steps: two epochs where members are selected, else one."""
    selecting = whole.population.selection.method != "none"
    long_windows = getattr(whole.replay, "steps", 1) > 100  # they must fit into the warm-up; COPDAC has none
    return {
        "training.num_epochs": "2" if selecting else "1",
        "training.steps_per_epoch": "4",
        "training.warmup_steps": "130",
        "replay.capacity": str(min(2080, whole.replay.capacity)),
        "evaluation.num_episodes": "1",
        "population.num_seeds": "1",
        **({"population.selection.interval": "1"} if selecting else {}),
        **({"replay.steps": "100"} if long_windows else {}),
    }


def python_of(page):
    """The Python of a page, which is one script."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.mark.slow
@pytest.mark.parametrize("page", [*filter(python_of, PAGES)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(page), page.name, "exec"), {"__name__": page.stem})


SHOWN = [
    command
    for page in PAGES
    for command in re.findall(
        r"^(?:.*&& \.venv/bin/)?jaxddpg ((?:train|sweep) (?!.*--distributed).*)$", page.read_text(), re.MULTILINE
    )
]
SHOWN += [
    f"train {arguments}" for arguments in re.findall(r"\| `(configs/[^`]+)` \|", (ROOT / "README.md").read_text())
]


@pytest.mark.parametrize("command", SHOWN)
def test_the_commands_of_a_page_are_valid(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main([*shlex.split(command), "--print-config"]) == 0
    assert config.parse(yaml.safe_load(capsys.readouterr().out)).experiment


def test_readme_takes_two_minutes_to_read():
    assert len((ROOT / "README.md").read_text().split()) <= 1_000


def test_the_api_page_has_every_public_name():
    text = (ROOT / "docs" / "api.rst").read_text()
    listed = {*re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE)}
    modules = [importlib.import_module(name) for name in listed if "." in name]
    for name in jaxddpg.__all__:
        found = getattr(jaxddpg, name)
        assert (
            name in listed
            or found in modules
            or any(getattr(m, name, None) is found for m in modules)
            or (name == "settings")
        ), name


def anchors(page):
    """What the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_link_of_a_page_leads_somewhere(page):
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_file_named_on_a_page_exists(page):
    """Files with a folder, from the root or from the package."""
    for name in re.findall(r"`[^`\n]*?\b((?:\w+/)+\w+\.(?:py|yaml|sh|md))\b[^`\n]*`", page.read_text()):
        assert (ROOT / name).exists() or (ROOT / "jaxddpg" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_test_named_on_a_page_exists(page):
    text = page.read_text()
    module = None
    for named, test in re.findall(r"`(test_\w+)?(?:::(\w+))?`", text):
        module = named or module
        if module:
            path = ROOT / "tests" / f"{module}.py"
            assert path.exists()
            assert not test or re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), test


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_budget_in_a_configs_comment_is_true(path):
    said = re.search(r"# ([\d,]+) env steps and ([\d,]+) updates per member", path.read_text())
    training = config.read(path).experiment.training
    steps = (training.warmup_steps + training.num_epochs * training.steps_per_epoch) * training.num_envs
    updates = training.num_epochs * training.steps_per_epoch * training.updates_per_step
    assert [int(number.replace(",", "")) for number in said.groups()] == [steps, updates]


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
LIKE_OTHERS = ("pendulum_sweep", "pendulum_pbt", "bandit_10", "bandit_25")


@pytest.mark.parametrize(
    "path",
    # Each of the others is like another: the sweeps like the pendulum, smaller bandits like the largest.
    [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in LIKE_OTHERS else []) for path in CONFIGS],
)
def test_every_config_can_be_traced_as_it_is(path):
    """Start, epoch and evaluation of a member, in the sizes that the config names."""
    needs_library(config.read(path).experiment.environment.name)
    member = variants(config.read(path).experiment)[0].member()
    build.check_member(member)
    trainer, key = build.build(member), jax.random.key(0)
    state = jax.eval_shape(trainer.init, key)
    after, metrics = jax.eval_shape(trainer.epoch, key, clock_at(member.training, 1), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    evaluation = jax.eval_shape(trainer.evaluate, key, clock_at(member.training, 1), state.agent)
    assert {leaf.shape for leaf in jax.tree.leaves((metrics, evaluation))} == {()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lillicrap2015", "pendulum_pbt", "goddard", "silver2014/puddle_world"])
def test_one_config_of_each_kind_runs(name, tmp_path):
    path = ROOT / "configs" / f"{name}.yaml"
    result = start_module.run(config.read(path, shortened(config.read(path).experiment)).experiment, tmp_path / "run")
    assert np.isfinite(result.summary["final_return_iqm"])


@pytest.mark.slow
def test_pendulum_is_learned():
    """Random actions return about -1 200; a policy that cannot swing up stays below -800."""
    settings = config.read(
        ROOT / "configs" / "pendulum.yaml", {"training.num_epochs": 10, "population.num_seeds": 2}
    ).experiment
    assert min(member["final_return"] for member in start_module.run(settings).summary["members"]) > -300


def test_the_own_environment_can_be_used(monkeypatch):
    """As a run looks at it before it trains: what it computes, and a few of its episodes."""
    monkeypatch.syspath_prepend(ROOT)
    name = {"environment.name": "examples.own_environment:cart", "environment.parameters.push": "4.0"}
    build.check_member(config.read(ROOT / "configs" / "pendulum.yaml", name).experiment.member())


@pytest.mark.slow
def test_the_motor_can_be_used(monkeypatch):
    """An episode ends with reward -1 where the currents are too large; else the reward is between -0.6 and 0."""
    pytest.importorskip("exciting_environments")
    monkeypatch.syspath_prepend(ROOT)
    build.check_member(config.read(ROOT / "examples" / "motor.yaml").experiment.member())
    environment = load_example("motor").pmsm(episode_length=20)
    _, starts = jax.jit(jax.vmap(environment.reset))(jax.random.split(jax.random.key(1), 256))
    for d, q in ((0, 1), (8, 9)):  # currents and references
        radii = np.hypot(starts[:, d], starts[:, q])
        assert 0.85 < radii.max() <= 0.9001

    def episode(key):
        def step(state, key):
            action = jax.random.uniform(key, (2,), minval=-1.0)
            return environment.step(key, state, action)

        return jax.lax.scan(step, environment.reset(key)[0], jax.random.split(key, 20))[1]

    steps = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 32))
    rewards, terminated = np.asarray(steps.reward), np.asarray(steps.terminated)
    assert np.any(terminated)
    assert np.any(steps.truncated)
    np.testing.assert_array_equal(rewards[terminated], -1.0)
    assert np.all(rewards[~terminated] <= 0)
    assert np.all(rewards[~terminated] > -0.6)


@pytest.mark.slow
def test_the_own_environment_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = "train configs/pendulum.yaml --environment.name examples.own_environment:cart --training.num_epochs 1"
    flags = f"--training.steps_per_epoch 10 --num-seeds 1 --environment.parameters.push 4.0 --run-dir {tmp_path}/run"
    assert cli.main([*arguments.split(), *flags.split(), "--quiet"]) == 0


@pytest.mark.slow
def test_a_debug_run_finds_nothing_to_complain_of(tmp_path):
    """In a process of its own, since the checks stay switched on; no episode ends in the epoch."""
    flags = f"--debug --num-seeds 1 --training.num_epochs 1 --training.steps_per_epoch 5 --run-dir {tmp_path}/run"
    command = [sys.executable, "-m", "jaxddpg", "train", "configs/pendulum.yaml", *flags.split()]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def bench(script):
    command = [sys.executable, *f"bench/{script}".split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("scores", "README.md"),
        ("scores algorithms", "docs/algorithms.md"),
        ("scores family", "docs/algorithms.md"),
        ("scores precision", "docs/devices.md"),
        ("scores libraries", "docs/environments.md"),
        ("n_step", "docs/algorithms.md"),
        ("optima", "bench/README.md"),
        ("peers", "bench/README.md"),
        ("peers precision", "docs/devices.md"),
        ("pbt", "bench/README.md"),
        ("resets", "bench/README.md"),
        ("tpu", "bench/README.md"),
        ("silver2014", "docs/silver2014.md"),
    ],
)
def test_the_tables_of_a_page_are_those_of_the_committed_results(script, page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "bench")
    script, *of = script.split()
    monkeypatch.setattr(sys, "argv", [f"bench/{script}.py", "--table", *of])
    runpy.run_path(f"bench/{script}.py", run_name="__main__")
    table = capsys.readouterr().out.strip()
    assert table
    assert table in (ROOT / page).read_text()


def test_the_arguments_of_all_scores_are_accepted_and_spend_equal_env_steps(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "bench")
    scores = importlib.import_module("scores")
    env_steps = {}
    for name, arguments in scores.EXPERIMENTS.items():
        code, shown, error = call("train", *shlex.split(arguments), "--print-config")
        assert code == 0, f"{name}: {error}"
        training = config.parse(yaml.safe_load(shown)).experiment.training
        steps = training.warmup_steps + training.num_epochs * training.steps_per_epoch
        env_steps[name] = steps * training.num_envs
    for column in scores.CELLS.values():
        assert tuple(column) == scores.ORDER
        spent = [env_steps[name] for name, _ in column.values()]
        assert max(spent) < 1.01 * min(spent)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["ceiling", "resolve", "throughput", *map(thorough, ["profile_update", "startup", "gpu", "sweep"])]
)
def test_a_benchmark_runs(script):
    assert bench(f"{script}.py --smoke").strip()


@pytest.mark.slow
def test_peers_are_compared_by_the_updates_that_their_optimizers_count(monkeypatch):
    """The straightforward loop needs only what the tests need; the other peers bring environments of their own."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    peers = importlib.import_module("peers")
    monkeypatch.setattr(peers, "interpreter", lambda environment: sys.executable)
    spec = {"members": 2, "hidden": 8, "batch_size": 16, "capacity": 2_000, "updates": 3, "pinned": False}
    compared = peers.compare(spec, ["jaxddpg", "jaxddpg, bfloat16", "the loop"], rounds=2)
    assert [len(rates) for rates in compared["updates_per_second"].values()] == [2, 2, 2]
    floors = {"products alone": [1.0, 1.0], "products alone, bfloat16": [2.0, 2.0]}
    tiny = compared | {"updates_per_second": floors | compared["updates_per_second"]}
    assert "| the loop |" in peers.tables({"workloads": {"tiny": tiny}})


@pytest.mark.slow
@pytest.mark.thorough
def test_the_memory_benchmark_runs():
    assert json.loads(bench("memory.py --smoke"))["aliased_in_replays"] > 1
