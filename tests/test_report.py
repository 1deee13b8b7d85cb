import csv
import re

import matplotlib.image
import numpy as np
import pytest
from helpers import CURVES, call, refused, swept

from jaxddpg import plotting, report, statistics
from jaxddpg.experiment import sweep

REFERENCES = {"random": -1200.0, "best known": -200.0}


def curves(label, environment="Pendulum-v1", middle=0.0, members=6, seed=0, references=REFERENCES, **values):
    rng = np.random.default_rng(seed)
    metrics = {name: middle + rng.normal(size=(3, members)) for name in CURVES}
    seeds = range(seed, seed + members)
    return plotting.Curves(label, np.arange(3) * 50, metrics, references, values, environment, seeds)


def written(runs, directory):
    report.write(runs, [report.Source("runs/a", "jaxddpg train runs/a/config.yaml", {})], "jaxddpg report", directory)
    return (directory / report.PAGE).read_text()


def table(text, column):
    """The rows of the table that has this column."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    (start,) = [number for number, row in enumerate(rows) if column in row]
    names, found = rows[start], []
    for row in rows[start + 2 :]:
        if len(row) != len(names) or set(row[0]) == {"-"}:
            break
        found.append(dict(zip(names, row, strict=True)))
    return found


def test_every_seed_is_in_the_table(tmp_path):
    runs = [curves("a", tau=0.1), curves("b", members=3, seed=9, tau=0.2)]
    written(runs, tmp_path)
    with (tmp_path / report.TABLE).open() as file:
        rows = [*csv.DictReader(file)]
    assert [(row["method"], row["tau"], row["seed"]) for row in rows] == [
        *(("a", "0.1", f"{seed}") for seed in range(6)),
        *(("b", "0.2", f"{seed}") for seed in range(9, 12)),
    ]
    returns = np.concatenate([run.returns for run in runs], axis=1)
    np.testing.assert_allclose([float(row["final_return"]) for row in rows], returns[-1])
    np.testing.assert_allclose([float(row["best_return"]) for row in rows], returns.max(0))
    np.testing.assert_allclose([float(row["best_env_steps"]) for row in rows], 50 * returns.argmax(0))


def test_methods_are_told_with_their_intervals(tmp_path):
    runs = [curves("a"), curves("b", middle=100.0, seed=3)]
    text = written(runs, tmp_path)
    for run, row in zip(runs, table(text, "median"), strict=True):
        low, high = statistics.confidence_interval(run.returns[-1])
        told = [float(number) for number in re.findall(r"-?[\d.]+", row["IQM [95 %]"])]
        assert told[0] == pytest.approx(float(statistics.interquartile_mean(run.returns[-1])), rel=1e-3)
        np.testing.assert_allclose(told[1:], [low, high], atol=0.3)
        assert (row["method"], row["seeds"], row["diverged"], row["not finite"]) == (run.label, "6", "0", "0")
    (pair,) = table(text, "is above")
    assert pair == {"method": "a", "is above": "b", "with probability [95 %]": "0 [0, 0]"}
    for picture in re.findall(r"\]\((\w+\.png)\)", text):
        assert matplotlib.image.imread(tmp_path / picture)[..., :3].std() > 0.01
    assert "random -1200, best known -200" in text


def test_a_method_in_several_environments_is_one_method(tmp_path):
    """Scores are scaled by what is known of each; the pooled mean is that of all seeds of all environments."""
    other = {"random": 0.0, "best known": 50.0}
    runs = [curves("a", middle=-700), curves("a", "Reacher-misc", 25, seed=1, references=other)]
    runs += [curves("b", middle=-200), curves("b", "Reacher-misc", 50, seed=2, references=other)]
    text = written(runs, tmp_path)
    after = text[text.index("## Over all environments") :]
    rows = table(after, "IQM [95 %]")
    assert [row["method"] for row in rows] == ["a", "b"]
    assert float(rows[0]["IQM [95 %]"].split()[0]) == pytest.approx(0.5, abs=0.02)
    assert float(rows[1]["IQM [95 %]"].split()[0]) == pytest.approx(1.0, abs=0.02)
    assert text.count("![Curves]") == 2


def test_without_references_environments_stay_apart(tmp_path):
    runs = [curves("a"), curves("a", "own:cart", references={})]
    assert "Over all" not in written(runs, tmp_path)


def test_a_seed_that_diverged_counts_as_the_worst(tmp_path):
    run = curves("a", members=4)
    for values in run.metrics.values():
        values[-1, 0] = np.nan
    (row,) = table(written([run], tmp_path), "median")
    assert row["diverged"] == "1"
    assert row["worst and best seed"].startswith("not finite to ")
    expected = np.sort(run.returns[-1, 1:])[:2].mean()
    assert float(row["IQM [95 %]"].split()[0]) == pytest.approx(expected, rel=1e-3)


def test_the_command_reports_runs_and_sweeps(several, tmp_path):
    (result,) = sweep(swept({"noise.scale": [0.1, 0.2]}), tmp_path / "mine")
    code, out, err = call("report", several[0], tmp_path / "mine", "--output", tmp_path / "report")
    assert (code, out) == (0, f"{tmp_path}/report/report.md\n"), err
    text = (tmp_path / "report" / "report.md").read_text()
    methods = [row["method"] for row in table(text, "median")]
    assert methods[:2] == ["sweep: scale 0.1, batch_size 4", "sweep: scale 0.2, batch_size 4"]
    assert methods[6:] == ["mine: scale 0.1", "mine: scale 0.2"]
    told = [float(row["IQM [95 %]"].split()[0]) for row in table(text, "median")[6:]]
    np.testing.assert_allclose(told, [v["final_return_iqm"] for v in result.summary["variants"]], rtol=1e-3)
    commands = [row["command"] for row in table(text, "command")]
    assert commands == 2 * [f"`jaxddpg sweep {several[0]}/sweep.yaml`"] + [
        f"`jaxddpg sweep {tmp_path}/mine/config.yaml`"
    ]
    assert f"`jaxddpg report {several[0]} {tmp_path}/mine --output {tmp_path}/report`" in text


def test_what_cannot_be_reported_is_said(tmp_path):
    (tmp_path / "file").touch()
    assert refused(call("report", tmp_path / "none"), "holds no run") == []
    assert refused(call("report", tmp_path / "none", "--output", tmp_path / "file"), "holds no run") == []
