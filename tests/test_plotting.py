import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from helpers import CURVES

from jaxddpg.report import figures, rows
from jaxddpg.report.curves import Curves, Lineage, by_epoch, of_common_length

SLOW = pytest.mark.slow


def line(epoch, member, **changes):
    row = {"epoch": epoch, "member": member, "seed": member + 7, "env_steps": 100 * epoch + 8, "updates": epoch}
    return json.dumps(row | {name: 10.0 * epoch + member for name in CURVES} | changes)


def written(tmp_path, lines):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(text + "\n" for text in lines))
    return path


def read(path):
    return by_epoch(rows.read_rows(path))


def curves(label="a", epochs=3, members=4, references=None, seed=0):
    rng = np.random.default_rng(seed)
    metrics = {name: rng.normal(size=(epochs, members)) for name in CURVES}
    return Curves(label, np.arange(epochs) * 50, metrics, references or {})


def test_metrics_are_read_by_epoch_and_member(tmp_path):
    path = written(tmp_path, [line(epoch, member) for epoch in range(3) for member in range(2)])
    env_steps, metrics = read(path)
    np.testing.assert_array_equal(env_steps, [8, 108, 208])
    np.testing.assert_array_equal(metrics["eval/return_mean"], [[0, 1], [10, 11], [20, 21]])


def test_only_metrics_are_metrics(tmp_path):
    _, metrics = read(written(tmp_path, [line(0, 0)]))
    assert set(metrics) == set(CURVES)


def test_null_is_read_as_not_a_number(tmp_path):
    lines = [line(0, 0), line(0, 1, **{"eval/return_mean": None})]
    _, metrics = read(written(tmp_path, lines))
    np.testing.assert_array_equal(metrics["eval/return_mean"], [[0, np.nan]])


def test_a_metric_that_began_later_is_not_a_number_before(tmp_path):
    lines = [line(0, 0), line(1, 0, **{"train/critic_loss": 0.5})]
    _, metrics = read(written(tmp_path, lines))
    np.testing.assert_array_equal(metrics["train/critic_loss"], [[np.nan], [0.5]])


def test_an_unfinished_epoch_is_left_out(tmp_path):
    lines = [line(epoch, member) for epoch in range(3) for member in range(3)][:-1]
    env_steps, metrics = read(written(tmp_path, lines))
    np.testing.assert_array_equal(env_steps, [8, 108])
    assert metrics["eval/return_mean"].shape == (2, 3)


def test_a_half_written_line_is_left_out(tmp_path):
    """A run may be killed at any moment."""
    path = written(tmp_path, [line(epoch, member) for epoch in range(2) for member in range(2)])
    path.write_text(path.read_text()[:-20])
    env_steps, _ = read(path)
    np.testing.assert_array_equal(env_steps, [8])


def test_a_file_without_an_epoch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no complete epoch yet"):
        read(written(tmp_path, []))


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([curves()], marks=SLOW),
        [curves(references={"random": -1213.0, "best known": -138.1})],
        [curves(members=1)],
        [curves(epochs=1)],
        [curves("a"), curves("b", epochs=5, members=1, seed=1)],
    ],
    ids=["one run", "with references", "one member", "one epoch", "two runs"],
)
def test_a_figure_is_written(runs, tmp_path):
    figures.plot(runs, tmp_path / "figure.png")
    image = matplotlib.image.imread(tmp_path / "figure.png")
    assert image[..., :3].std() > 0.01


@pytest.mark.parametrize("members", [1, 2, pytest.param(8, marks=SLOW)])
def test_diverged_members_can_be_drawn(members, tmp_path):
    run = curves(members=members)
    for values in run.metrics.values():
        values[1:, 0] = np.nan
    figures.plot([run], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_members_show_in_the_figure(tmp_path):
    figures.plot([curves(seed=0)], tmp_path / "a.png")
    figures.plot([curves(seed=1)], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_drawing_leaves_the_users_backend_alone(tmp_path):
    """A notebook that draws a run or an episode keeps its own figures and backend."""
    script = (
        "import sys; import matplotlib; matplotlib.use('svg'); import jaxddpg; jaxddpg.plot, jaxddpg.render\n"
        "print('jaxddpg.report.animation' in sys.modules, 'matplotlib.pyplot' in sys.modules, matplotlib.get_backend())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "svg"]


@pytest.mark.parametrize(
    ("lineage", "words"),
    [
        (None, "bands: 95% bootstrap interval"),
        (Lineage(np.zeros((3, 4)), {"agent.tau": np.ones((3, 4))}), "IQM of the active ones"),
    ],
    ids=["seeds", "selected"],
)
def test_a_caption_says_what_lines_and_bands_are(lineage, words, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    figures.plot([curves()._replace(lineage=lineage)], tmp_path / "figure.png")
    assert words in drawn[0].get_supxlabel()
    assert ("bands" in drawn[0].get_supxlabel()) == (lineage is None)


def test_legends_are_beside_the_curves(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    runs = [curves("a", seed=1), curves("b", seed=2)]
    figures.plot(runs, tmp_path / "figure.png")
    figures.plot_profiles({run.label: [run.returns[-1]] for run in runs}, "final return", tmp_path / "profile.png")
    for figure in drawn:
        figure.draw_without_rendering()
        for axes in figure.axes:
            assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_a_cross_marks_where_a_member_diverged(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    run = curves(members=3)
    for values in run.metrics.values():
        values[2:, 1] = np.nan
    figures.plot([run], tmp_path / "figure.png")
    (cross,) = [line for line in drawn[0].axes[0].lines if line.get_marker() == "x"]
    assert cross.get_label() == "1 diverged"
    assert cross.get_xydata().tolist() == [[run.env_steps[1], run.metrics["eval/return_mean"][1, 1]]]


def test_a_plus_marks_where_a_member_that_did_not_diverge_was_last_measured(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    run = curves(members=3)
    run = run._replace(unmeasured=np.isnan(run.returns) | np.array([False, True, False]))
    for values in run.metrics.values():
        values[2:, 1] = np.nan
    figures.plot([run], tmp_path / "figure.png")
    (mark,) = [line for line in drawn[0].axes[0].lines if line.get_marker() in "x+"]
    assert (mark.get_marker(), mark.get_label()) == ("+", "1 not finite")


def test_a_run_that_is_cut_has_the_evaluations_of_that_time():
    """It was not measured where it is cut, and is again at its end."""
    whole = curves(epochs=4, members=2)
    whole.returns[1, 0] = np.nan
    whole = whole._replace(unmeasured=np.isnan(whole.returns))
    cut, _ = of_common_length([whole, whole._replace(env_steps=whole.env_steps[:2])])
    assert [mask.tolist() for mask in cut.lost.values()] == [[False, False], [True, False]]
    assert not any(mask.any() for mask in whole.lost.values())
