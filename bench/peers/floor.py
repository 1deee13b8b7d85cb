"""The matrix products of an update alone in `bench/peers.py`: on one core where pinned, else on all at once."""

import serve  # noqa: I001, first, for it starts the clock

import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))


def main() -> None:
    import ceiling

    spec = json.loads(sys.argv[1])
    shape = {name: spec[name] for name in ("hidden", "batch_size", "precision")}
    if spec["pinned"]:
        ceiling.alone(0)
        ceiling.floor_seconds(**shape, repeats=1)
    serve.send({"ready": time.perf_counter() - serve.STARTED})
    for _ in sys.stdin:
        seconds = ceiling.floor_seconds(**shape, repeats=3) if spec["pinned"] else 1 / ceiling.all_cores(1.0, **shape)
        serve.send({"updates": 1, "wall": seconds, "cpu": seconds})


if __name__ == "__main__":
    main()
