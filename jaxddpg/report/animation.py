"""Episodes as animations."""

from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jaxddpg.report.scenes import SCENES, Rollout, Show, curves, frames, rendered

COLORS = 128
FRAME_MILLISECONDS = 50
LAST_FRAME_MILLISECONDS = 1500


def draw(rollout: Rollout, path: Path) -> None:
    """Writes the episode as an animated GIF, thinned evenly to at most `scenes.MAX_FRAMES` frames. The last frame
    is shown for longer."""
    figure, show = scene(rollout)
    # What does not move is drawn once, since it is most of the work.
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)
    moving = sorted(figure.findobj(Artist.get_animated), key=Artist.get_zorder)
    drawn = []
    for step in frames(len(rollout.rewards)):
        show(step)
        canvas.restore_region(still)
        for artist in moving:
            artist.draw(canvas.get_renderer())
        drawn.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    if rollout.images is not None:
        drawn = _with_one_palette(drawn)
    durations = [FRAME_MILLISECONDS] * (len(drawn) - 1) + [LAST_FRAME_MILLISECONDS]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=durations, loop=0)


def _with_one_palette(pictures: list[Image.Image]) -> list[Image.Image]:
    """With one palette, consecutive frames differ only where something moves, so the file is much smaller."""
    sample = np.concatenate([np.asarray(image) for image in pictures[:: max(1, len(pictures) // 8)]])
    palette = Image.fromarray(sample).quantize(COLORS, dither=Image.Dither.NONE)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in pictures]


def scene(rollout: Rollout) -> tuple[Figure, Show]:
    """The drawing of an episode: a figure, whose artists that move are marked as animated, and what moves them through
    the steps 0 to T."""
    figure = Figure(figsize=(4, 4), dpi=80, layout="constrained")
    returns = np.concatenate([[0.0], np.cumsum(rollout.rewards, dtype=float)])
    title = figure.suptitle(" ", fontsize=10, animated=True)
    draw_scene = SCENES.get(rollout.environment, curves) if rollout.images is None else rendered
    move = draw_scene(figure, rollout)

    def show(step: int) -> None:
        title.set_text(f"step {step}, return {returns[step]:.5g}")
        move(step)

    return figure, show
