"""Drawings of episodes: images that an environment renders itself, scenes of our own environments and of the pendulum,
and of all others the curves over time."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.quiver import Quiver

from jaxddpg.envs import goddard, silver2014

MAX_FRAMES = 150


class Rollout(NamedTuple):
    """One episode of T steps."""

    environment: str
    """Its name, which chooses the drawing."""
    observations: np.ndarray
    """[T + 1, O], from the first of the episode to where its last action led."""
    actions: np.ndarray
    """[T, A] in the environment's own units."""
    rewards: np.ndarray
    """[T]"""
    parameters: Mapping[str, Any] = MappingProxyType({})
    """Those of the environment that are not its defaults."""
    images: np.ndarray | None = None
    """[F, H, W, 3] uint8, which the environment rendered of the steps that are drawn; None: observations are drawn."""


Show = Callable[[int], None]
"""`show(step)` moves what moves to where it was after so many steps."""


Scene = Callable[[Figure, Rollout], Show]
"""Draws into a figure what does not move, and returns what moves the rest, whose artists are marked as animated."""


def curves(figure: Figure, rollout: Rollout) -> Show:
    """Observations, actions and rewards up to a step over time, whatever they mean.

    An action and its reward are at the step that they led to.
    """
    nothing_yet = np.full((1, rollout.actions.shape[1] + 1), np.nan)
    led_to = np.concatenate([nothing_yet, np.column_stack([rollout.actions, rollout.rewards])])
    panels = {"observation": rollout.observations, "action": led_to[:, :-1], "reward": led_to[:, -1:]}
    time = np.arange(len(rollout.observations))
    drawn = []
    for axes, (name, values) in zip(figure.subplots(3, 1, sharex=True), panels.items(), strict=True):
        axes.set(xlim=(-0.02 * time[-1], 1.02 * time[-1]), ylim=_range(values), ylabel=name)
        axes.grid(alpha=0.25)
        for number, column in enumerate(values.T):
            label = f"{name} {number}"
            (line,) = axes.plot([], [], ".-", markevery=[-1], linewidth=1, label=label, animated=True)
            drawn.append((line, column))
        if 1 < len(values.T) <= 8:
            _legend(axes, [str(number) for number in range(len(values.T))])
    axes.set_xlabel("step")

    def show(step: int) -> None:
        for line, column in drawn:
            line.set_data(time[: step + 1], column[: step + 1])

    return show


def frames(steps: int) -> list[int]:
    """The steps that are drawn of an episode: evenly spread, the first and the last among them."""
    return [round(step) for step in np.linspace(0, steps, min(steps + 1, MAX_FRAMES)).tolist()]


def rendered(figure: Figure, rollout: Rollout) -> Show:
    """Images that the environment rendered."""
    assert rollout.images is not None
    images = dict(zip(frames(len(rollout.rewards)), rollout.images, strict=True))
    axes = figure.subplots()
    axes.set_axis_off()
    drawn = axes.imshow(images[0], animated=True)
    return lambda step: drawn.set_data(images[step])


def _bandit(figure: Figure, rollout: Rollout) -> Show:
    """The action as bars, against the best one."""
    actions = _executed(rollout)
    axes = figure.subplots()
    axes.set(ylim=(-8.4, 8.4), xlabel="dimension", ylabel="action")
    axes.axhline(0.0, color="0.3", linewidth=0.8)
    bars = axes.bar(np.arange(actions.shape[1]), actions[0], color="C0", label="action", animated=True)
    axes.axhline(silver2014.BEST_ACTION, color="C2", linestyle="--", label="optimum", animated=True)
    _legend(axes)

    def show(step: int) -> None:
        for bar, height in zip(bars, actions[step], strict=True):
            bar.set_height(height)

    return show


def _mountain_car(figure: Figure, rollout: Rollout) -> Show:
    """The car on the hill sin(3 x), its force and the goal."""
    low, high, goal = -1.2, 0.6, silver2014.GOAL_POSITION
    x, force = rollout.observations[:, 0], _executed(rollout)[:, 0]
    y = np.sin(3 * x)
    ground = np.linspace(low, high, 200)
    axes = _plane(figure, (low, high), (-1.2, 1.4), equal=False)
    axes.fill_between(ground, -1.2, np.sin(3 * ground), color="0.85")
    axes.plot(ground, np.sin(3 * ground), color="0.3", linewidth=1)
    axes.plot([goal, goal], np.sin(3 * goal) + np.array([0.0, 0.3]), color="C2", linewidth=2, label="goal")
    (car,) = axes.plot([], [], "o", markersize=11, color="C0", label="car", animated=True)
    arrow = _arrow(axes)

    def show(step: int) -> None:
        car.set_data(x[[step]], y[[step]])
        arrow.set_offsets([x[step], y[step]])
        arrow.set_UVC(0.3 * force[step], 0.0)

    return show


def _pendulum_by_angle(figure: Figure, rollout: Rollout) -> Show:
    angle = rollout.observations[:, 0]
    return _pendulum(figure, np.cos(angle), np.sin(angle), _executed(rollout)[:, 0] / 2.0)


def _pendulum_by_cosine(figure: Figure, rollout: Rollout) -> Show:
    cosine, sine, _ = rollout.observations.T
    return _pendulum(figure, cosine, sine, _executed(rollout)[:, 0] / rollout.parameters.get("max_torque", 2.0))


def _pendulum(figure: Figure, cosine: np.ndarray, sine: np.ndarray, torque: np.ndarray) -> Show:
    """The rod and its bob, each [T + 1], upright at angle 0 and counting counter-clockwise; the torque as an arc."""
    axes = _plane(figure, (-1.25, 1.25), (-1.25, 1.25))
    (arc,) = axes.plot([], [], color="C3", linewidth=2, label="torque", animated=True)
    (rod,) = axes.plot([], [], color="0.3", linewidth=4, solid_capstyle="round", label="rod", animated=True)
    (bob,) = axes.plot([], [], "o", markersize=16, color="C0", label="bob", animated=True)
    axes.plot(0.0, 0.0, "o", markersize=5, color="0.3")
    turn = np.linspace(0.0, 0.75 * np.pi, 30)

    def show(step: int) -> None:
        x, y = -sine[step], cosine[step]
        rod.set_data([0.0, x], [0.0, y])
        bob.set_data([x], [y])
        arc.set_data(-0.35 * np.sin(turn * torque[step]), 0.35 * np.cos(turn * torque[step]))

    return show


def _puddle_world(figure: Figure, rollout: Rollout) -> Show:
    """The path of the point up to a step over the density of the puddles, and the goal in its corner."""
    width = np.array(silver2014.PUDDLE_WIDTHS)
    # The centers of 100 cells along each axis.
    cells = (np.arange(100) + 0.5) / 100
    offset = (np.stack(np.meshgrid(cells, cells), axis=-1)[..., None, :] - silver2014.PUDDLE_CENTERS) / width
    density = np.sum(np.prod(np.exp(-(offset**2) / 2) / (np.sqrt(2 * np.pi) * width), axis=-1), axis=-1)
    axes = _plane(figure, (-0.03, 1.03), (-0.03, 1.03))
    axes.imshow(density, cmap="Blues", vmax=1.5 * density.max(), extent=(0, 1, 0, 1), origin="lower")
    axes.add_patch(Polygon([(0.9, 1.0), (1.0, 1.0), (1.0, 0.9)], color="C2", label="goal"))
    (path,) = axes.plot([], [], color="0.3", linewidth=1, label="path", animated=True)
    (point,) = axes.plot([], [], "o", markersize=9, color="C0", label="point", animated=True)

    def show(step: int) -> None:
        path.set_data(*rollout.observations[: step + 1].T)
        point.set_data(*rollout.observations[[step]].T)

    return show


def _rocket(figure: Figure, rollout: Rollout) -> Show:
    """The rocket at its height above the ground, its flame, the fuel that is left, and the peak so far."""
    _, heights, fuel = rollout.observations.T
    thrust = _executed(rollout)[:, 0] * np.concatenate([[0.0], fuel[:-1] > 0.0])
    height = goddard.HEIGHT_UNIT * heights
    peak = np.maximum.accumulate(height)
    top = 1.1 * max(goddard.HEIGHT_UNIT, *peak[np.isfinite(peak)])
    axes = figure.subplots()
    axes.set(xlim=(0.0, 1.0), ylim=(-0.15 * top, top), xticks=[], ylabel="height, h - 1")
    axes.axhspan(-0.15 * top, 0.0, color="0.85")
    (peak_line,) = axes.plot([0.0, 0.8], [0.0, 0.0], "--", color="C2", label="peak so far", animated=True)
    flame = Polygon(np.zeros((3, 2)), color="C1", label="flame", animated=True)
    body = Polygon(np.zeros((5, 2)), color="C0", label="rocket", animated=True)
    axes.add_patch(flame)
    axes.add_patch(body)
    outline = np.array([(-0.04, 0.0), (0.04, 0.0), (0.04, 0.08), (0.0, 0.13), (-0.04, 0.08)]) * [1.0, top]
    plume = np.array([(-0.03, 0.0), (0.03, 0.0), (0.0, -0.12)]) * [1.0, top]
    axes.bar(0.9, top, 0.08, facecolor="none", edgecolor="0.3")
    (gauge,) = axes.bar(0.9, 0.0, 0.08, color="C3", label="fuel left", animated=True)
    _legend(axes)

    def show(step: int) -> None:
        base = np.array([0.4, height[step]])
        body.set_xy(base + outline)
        flame.set_xy(base + plume * [1.0, thrust[step]])
        gauge.set_height(fuel[step] * top)
        peak_line.set_ydata([peak[step], peak[step]])

    return show


def _plane(figure: Figure, x: tuple[float, float], y: tuple[float, float], equal: bool = True) -> Axes:
    """Axes without numbers."""
    axes = figure.subplots()
    axes.set(xlim=x, ylim=y, xticks=[], yticks=[], aspect="equal" if equal else "auto")
    return axes


def _arrow(axes: Axes) -> Quiver:
    """A red arrow in units of the axes, to be given an offset and its two components."""
    arrow = axes.quiver([0], [0], [0], [0], angles="xy", scale_units="xy", scale=1, color="C3", width=0.012)
    arrow.set(zorder=3, label="force", animated=True)
    return arrow


def _legend(axes: Axes, names: list[str] | None = None) -> None:
    """One line above the axes, where nothing moves."""
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        names or labels,
        ncols=8,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        borderaxespad=0.2,
        fontsize=7,
        handlelength=1.2,
        columnspacing=1.0,
        frameon=False,
    )


def _executed(rollout: Rollout) -> np.ndarray:
    """[T + 1, A]: the action that led to each observation; 0 for the first one, which none led to."""
    return np.concatenate([np.zeros_like(rollout.actions[:1]), rollout.actions])


def _range(values: np.ndarray) -> tuple[float, float]:
    """Limits that show all finite values with a margin around them."""
    finite = values[np.isfinite(values)].astype(float)
    if not finite.size:
        return -1.0, 1.0
    low, high = finite.min(), finite.max()
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


SCENES: dict[str, Scene] = {
    "Bandit-silver": _bandit,
    "MountainCar-silver": _mountain_car,
    "Pendulum-silver": _pendulum_by_angle,
    "Pendulum-v1": _pendulum_by_cosine,
    "PuddleWorld-silver": _puddle_world,
    "Rocket-goddard": _rocket,
}
"""The environments that have a drawing of their own; all others are drawn as `curves`."""
