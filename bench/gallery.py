"""Figures of docs/gallery.md: the learning curves of each shipped config and one episode of what it learned.

    python bench/gallery.py                                     # all configs: hours on two cores
    python bench/gallery.py pendulum goddard                    # some
    python bench/gallery.py playground/cartpole_swingup --run runs/my_run  # of a run that is there already

Trains three seeds of each. Playground and Brax need their extras.
"""

import argparse
import tempfile
from pathlib import Path

from common import ROOT, jaxddpg

OUTPUT = ROOT / "docs" / "gallery"
CONFIGS = {
    path.relative_to(ROOT / "configs").with_suffix("").as_posix(): path
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if path.stem not in ("fasttd3", "pendulum_pbt", "pendulum_sweep")  # for an accelerator; of populations
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CONFIGS)}; none: all")
    parser.add_argument("--run", type=Path, help="a directory with a run of the only config that is named")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CONFIGS):
        parser.error(f"there is no config {', '.join(unknown)}")
    if options.run and len(options.names) != 1:
        parser.error("--run is of one config; name it")
    OUTPUT.mkdir(exist_ok=True)
    for name in options.names or CONFIGS:
        with tempfile.TemporaryDirectory() as directory:
            run = options.run.absolute() if options.run else Path(directory) / "run"
            if not options.run:
                jaxddpg("train", CONFIGS[name], "--num-seeds", "3", "--run-dir", run)
            path = OUTPUT / name.replace("/", "_")
            jaxddpg("plot", run, "--output", path.with_suffix(".png"))
            jaxddpg("render", run, "--epoch", "best", "--output", path.with_suffix(".gif"))


if __name__ == "__main__":
    main()
