import contextlib
import csv
import dataclasses
import re
import shutil

import matplotlib.image
import numpy as np
import pytest
from helpers import CURVES, SCALES, call, refused, summary_of, swept, tiny

import jaxddpg
from jaxddpg import statistics
from jaxddpg.report import figures
from jaxddpg.report import page as report
from jaxddpg.report.curves import Curves, of_common_length
from jaxddpg.report.rows import read_rows
from jaxddpg.runs import show as show_module
from jaxddpg.runs import start as start_module

REFERENCES = {"random": -1200.0, "best known": -200.0}


def curves(label, environment="Pendulum-v1", middle=0.0, members=6, seed=0, references=REFERENCES, epochs=3, **values):
    rng = np.random.default_rng(seed)
    metrics = {name: middle + rng.normal(size=(epochs, members)) for name in CURVES}
    seeds = range(seed, seed + members)
    return Curves(label, np.arange(epochs) * 50, metrics, references, values, environment, seeds=seeds)


@contextlib.contextmanager
def empty_figures():
    """Has reports leave empty figures: to draw them takes most of the time of a small one."""
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("plot", "plot_profiles"):
            patch.setattr(figures, draw, lambda *arguments: arguments[-1].touch())
        yield


def written(runs, directory, drawn=False):
    """The page of a report, whose figures are drawn or left empty."""
    with contextlib.nullcontext() if drawn else empty_figures():
        report.write(
            runs, [report.Source("runs/a", "jaxddpg train runs/a/config.yaml", {})], "jaxddpg report", directory
        )
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


def powered(changed, power):
    """An experiment in an environment whose power is given."""
    environment = dataclasses.replace(
        changed.environment, parameters={**changed.environment.parameters, "power": power}
    )
    return dataclasses.replace(changed, environment=environment)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Runs in environments that differ in one parameter, a sweep of this parameter, and two sweeps of other settings.

    Of these one needs two programs. The others all need the same one.
    """
    place = tmp_path_factory.mktemp("tasks")
    for name, power in (("light/run", 1e-3), ("heavy/run", 2e-3)):
        start_module.run(powered(tiny(population={"num_seeds": 2}), power), place / name)
    start_module.sweep(
        swept({"environment.parameters.power": [1e-3, 2e-3]}, population={"num_seeds": 1}), place / "sweep"
    )
    several = powered(swept({"noise.scale": SCALES, "agent.batch_size": [4, 8]}), 1e-3)
    start_module.sweep(several, place / "several" / "sweep")
    start_module.sweep(powered(swept({"noise.scale": [0.1, 0.2]}), 1e-3), place / "mine")
    return place


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


def test_methods_have_their_intervals(tmp_path):
    runs = [curves("a"), curves("b", middle=100.0, seed=3)]
    text = written(runs, tmp_path, drawn=True)
    for run, row in zip(runs, table(text, "median"), strict=True):
        low, high = statistics.confidence_interval(run.returns[-1])
        found = [float(number) for number in re.findall(r"-?[\d.]+", row["IQM [95%]"])]
        assert found[0] == pytest.approx(float(statistics.interquartile_mean(run.returns[-1])), rel=1e-3)
        np.testing.assert_allclose(found[1:], [low, high], atol=0.3)
        assert (row["method"], row["seeds"], row["diverged"], row["not finite"]) == (run.label, "6", "0", "0")
    (pair,) = table(text, "is above")
    assert pair == {"method": "a", "is above": "b", "with probability [95%]": "0 [0, 0]"}
    for name in re.findall(r"\]\((\w+\.png)\)", text):
        assert matplotlib.image.imread(tmp_path / name)[..., :3].std() > 0.01
    assert "random -1200, best known -200" in text


def test_a_method_in_several_environments_is_one_method(tmp_path):
    """Scores are scaled by what is known of each; the pooled mean is that of all seeds of all environments."""
    other = {"random": 0.0, "best known": 50.0}
    runs = [curves("a", middle=-700), curves("a", "Reacher-misc", 25, seed=1, references=other)]
    runs += [curves("b", middle=-200), curves("b", "Reacher-misc", 50, seed=2, references=other)]
    text = written(runs, tmp_path, drawn=True)
    pooled = text[text.index("## Over all environments") :]
    rows = table(pooled, "IQM [95%]")
    assert [row["method"] for row in rows] == ["a", "b"]
    assert float(rows[0]["IQM [95%]"].split()[0]) == pytest.approx(0.5, abs=0.02)
    assert float(rows[1]["IQM [95%]"].split()[0]) == pytest.approx(1.0, abs=0.02)
    assert text.count("![Curves]") == 2
    for name in re.findall(r"\]\((\w+\.png)\)", text):
        assert (tmp_path / name).stat().st_size > 10_000


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
    assert float(row["IQM [95%]"].split()[0]) == pytest.approx(expected, rel=1e-3)


def test_the_command_reports_runs_and_sweeps(tasks, tmp_path):
    several, mine = tasks / "several" / "sweep", tasks / "mine"
    code, out, err = call("report", several, mine, "--output", tmp_path / "report")
    assert code == 0, err
    environment, heading, *rows, path = out.splitlines()
    assert environment.startswith("MountainCarContinuous-v0 (")
    assert path == f"{tmp_path}/report/report.md"
    text = (tmp_path / "report" / "report.md").read_text()
    methods = [row["method"] for row in table(text, "median")]
    shown = ["method", "seeds", "IQM [95%]", "worst and best seed"]  # what a narrow terminal has room for
    assert [*map(str.split, rows)] == [" ".join(row[n] for n in shown).split() for row in table(text, "median")]
    assert heading.split() == " ".join(shown).split()
    assert methods[:2] == ["sweep: scale 0.1, batch_size 4", "sweep: scale 0.2, batch_size 4"]
    assert methods[6:] == ["mine: scale 0.1", "mine: scale 0.2"]
    means = [float(row["IQM [95%]"].split()[0]) for row in table(text, "median")[6:]]
    np.testing.assert_allclose(means, [v["final_return_iqm"] for v in summary_of(mine)["variants"]], rtol=1e-3)
    commands = [row["command"] for row in table(text, "command")]
    assert commands == 2 * [f"`jaxddpg sweep {several}/sweep.yaml`"] + [f"`jaxddpg sweep {mine}/config.yaml`"]
    assert f"`jaxddpg report {several} {mine} --output {tmp_path}/report`" in text


def test_what_cannot_be_reported_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert refused(call("report", tmp_path / "none"), "is not a run directory") == []
    assert refused(call("report", tmp_path / "none", "--output", tmp_path / "file"), "is not a run directory") == []


@pytest.mark.parametrize("name", ["report.md", "returns.csv"])
def test_a_file_that_is_no_report_is_not_replaced(name, tasks, tmp_path):
    (tmp_path / name).write_text("mine")
    said = call("report", tasks / "light" / "run", "--output", tmp_path)
    assert refused(said, f"has a {name} that is no report of jaxddpg; choose another directory") == []
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_damaged_line_amid_the_metrics_is_told(tmp_path):
    lines = [f'{{"epoch": {epoch}, "member": 0, "env_steps": 1}}' for epoch in range(4)]
    (tmp_path / "torn").write_text("\n".join([*lines, lines[0][:9]]))
    assert len(read_rows(tmp_path / "torn")) == 4  # as an interruption leaves it, without a warning
    (tmp_path / "broken").write_text("\n".join([*lines[:2], "{", *lines[2:]]))
    with pytest.warns(UserWarning, match=r"^line 3 of 5 of .*broken is damaged; it and those after it are not used$"):
        assert len(read_rows(tmp_path / "broken")) == 2


def test_an_empty_config_of_a_run_is_refused(tasks, tmp_path):
    shutil.copytree(tasks / "light" / "run", tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("")
    assert refused(call("report", tmp_path / "run", "--output", tmp_path / "report"), "config.yaml is empty") == []


def test_runs_of_different_length_are_compared_where_all_have_been(tmp_path):
    """The longer one improves later, which must not count against the shorter."""
    short, long = curves("short", epochs=3), curves("long", epochs=7, seed=1, middle=-5.0)
    for values in long.metrics.values():
        values[4:] += 100.0
    text = written([short, long], tmp_path)
    assert "**Runs of different length** are compared at 100 env steps" in text
    rows = table(text, "median")
    assert [row["env steps per seed"] for row in rows] == ["100", "100"]
    expected = float(statistics.interquartile_mean(long.returns[2]))
    assert float(rows[1]["IQM [95%]"].split()[0]) == pytest.approx(expected, rel=1e-3)
    (pair,) = table(text, "is above")
    assert pair["with probability [95%]"] == "1 [1, 1]"
    with (tmp_path / report.TABLE).open() as file:
        assert [row["env_steps"] for row in csv.DictReader(file)] == ["100"] * 6 + ["300"] * 6
    assert "different length" not in written([short, curves("other", epochs=3)], tmp_path)


def test_a_run_whose_evaluations_lie_elsewhere_counts_up_to_the_common_step():
    """At 100 env steps the other was last evaluated at 70."""
    one, other = curves("one", epochs=3), curves("other", epochs=9)._replace(env_steps=np.arange(9) * 35)
    cut = of_common_length([one, other])
    assert [run.env_steps[-1] for run in cut] == [100, 70]
    np.testing.assert_array_equal(cut[1].returns, other.returns[:3])
    late = curves("late", epochs=3)._replace(env_steps=np.array([500, 600, 700]))
    assert [run.env_steps[-1] for run in of_common_length([one, late])] == [100, 500]


@pytest.mark.parametrize(("members", "warned"), [(1, False), (2, True), (4, True), (5, False)])
def test_a_warning_names_methods_of_few_seeds(members, warned, tmp_path):
    text = written([curves("a"), curves("b", members=members)], tmp_path)
    assert (
        "1 of 2 methods have fewer than 5 seeds; with so few, a confidence interval is little more than" in text
    ) == warned


def grid(level, source):
    """A sweep of two settings whose returns are all about one level."""
    return [
        curves(f"{source}: {tau}, {scale}", middle=level, tau=tau, scale=scale)._replace(source=source)
        for tau in (0.1, 0.2)
        for scale in (1.0, 2.0)
    ]


def test_sweeps_of_two_methods_are_not_pooled(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plain = curves("plain", middle=-900.0, tau=0.1, scale=1.0)._replace(source="plain")
    figures.plot([*grid(-200.0, "learns"), plain, *grid(-1200.0, "does not")], tmp_path / "figure.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    for name in ("tau", "scale"):
        lines = [line for line in panels[f"Sensitivity to {name}"].lines if line.get_linestyle() == "-"]
        assert [line.get_label() for line in lines] == ["learns: 12 seeds per value", "does not: 12 seeds per value"]
        np.testing.assert_allclose(np.array([line.get_ydata() for line in lines]).T, 2 * [[-200, -1200]], atol=1.5)
    for source, level in (("learns", -200), ("does not", -1200)):
        (image,) = panels[f"Final return, IQM ({source})"].images
        np.testing.assert_allclose(image.get_array(), np.full((2, 2), level), atol=1.5)


def test_a_sweep_of_which_a_part_has_not_ended_is_shown_at_its_common_length(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    runs = [curves("a", tau=0.1), curves("b", tau=0.2, epochs=2)]
    figures.plot(runs, tmp_path / "figure.png")
    _, sensitivity = drawn[0].axes
    assert sensitivity.get_ylabel() == "return at 50 env steps"
    (middle,) = [line for line in sensitivity.lines if line.get_linestyle() == "-"]
    np.testing.assert_allclose(middle.get_ydata(), [statistics.interquartile_mean(run.returns[1]) for run in runs])


def test_environments_have_panels_of_their_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    runs = [*grid(-200.0, "a"), curves("b", "Pendulum-v1 (m 3.0)", references={})]
    figures.plot(runs, tmp_path / "figure.png")
    titles = [title for axes in drawn[0].axes if (title := axes.get_title())]  # a color bar has none
    assert titles[0] == "Return in Pendulum-v1"
    assert titles[-2:] == ["Return in Pendulum-v1 (m 3.0)", "Predicted and actual return"]
    known = [line.get_label() for line in drawn[0].axes[0].lines if "known" in line.get_label()]
    assert known == ["best known, -200"]


def test_an_environment_is_its_name_and_its_parameters(tasks, tmp_path):
    with empty_figures():
        assert (
            call("report", *(tasks / name for name in ("light/run", "heavy/run", "sweep")), "--output", tmp_path)[0]
            == 0
        )
    text = (tmp_path / "report.md").read_text()
    common = "MountainCarContinuous-v0 (max_action 2.0, max_steps_in_episode 10, min_action -0.5"
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## Mountain")]
    assert headings == [f"{common}, power 0.001)", f"{common}, power 0.002)", f"{common}, power swept)"]
    for heading, methods in zip(
        headings, (["run"], ["run"], ["sweep: power 0.001", "sweep: power 0.002"]), strict=True
    ):
        own = text[text.index(f"## {heading}") :]
        end = own.find("\n## ")
        assert [row["method"] for row in table(own[:end], "median")] == methods
    assert text.count("| is above |") == 1


def test_directories_of_one_name_are_labelled_by_their_shortest_different_ends(tasks, tmp_path):
    shutil.copytree(tasks / "light", tasks / "other")
    with empty_figures():
        assert call("report", tasks / "light" / "run", tasks / "other" / "run", "--output", tmp_path)[0] == 0
    methods = [row["method"] for row in table((tmp_path / "report.md").read_text(), "median")]
    assert methods == ["light/run", "other/run"]
    result = call(
        "plot", tasks / "light" / "run", tasks / "heavy" / ".." / "light" / "run", "--output", tmp_path / "a.png"
    )
    assert refused(result, "is given twice; name each run once") == []


def test_ends_of_paths_are_the_shortest_that_differ():
    paths = ["/a/b/run", "/a/c/run", "/d/c/run", "/d/c/best", "/run"]
    assert [show_module._ending(path, paths) for path in paths] == ["b/run", "a/c/run", "d/c/run", "best", "/run"]


def test_one_directory_may_be_given_by_itself(tasks, tmp_path):
    jaxddpg.plot(str(tasks / "light" / "run"), tmp_path / "one.png")
    jaxddpg.plot([tasks / "light" / "run"], tmp_path / "list.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "list.png").read_bytes()
    jaxddpg.write_report(tasks / "light" / "run", tmp_path / "report")
    assert "| run | 2 |" in (tmp_path / "report" / "report.md").read_text()
