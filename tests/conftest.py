"""Every test sees two CPU devices, whatever the machine has; compiled programs are kept between runs of the suite."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Most of the time of a test is that of compiling, which takes a third of it so; the numbers are the same to rounding.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
if version("jax").startswith("0.10."):  # later releases do not know it, and end the process
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

# Children inherit that it is ignored, as under nohup; tests send it to them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# JAX makes many small objects, and each collection looks at all that earlier tests have left.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def blank_figures():
    """Runs leave an empty figure: to draw it takes most of the time of a small one. `helpers.figures` has it drawn."""
    from jaxddpg.runs import show

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "draw_curves", lambda directory: (directory / "learning_curve.png").touch())
        yield


@pytest.fixture(scope="session")
def several(tmp_path_factory):
    """A sweep that needs two programs, interrupted in the first and resumed."""
    from helpers import SCALES, after, call, swept

    from jaxddpg import config
    from jaxddpg.runs.start import sweep

    directory = tmp_path_factory.mktemp("several") / "sweep"
    (directory.parent / "sweep.yaml").write_text(
        config.dump(swept({"noise.scale": SCALES, "agent.batch_size": [4, 8]}, checkpoint={"interval_seconds": 0}))
    )
    sweep(config.read(directory.parent / "sweep.yaml").experiment, directory, should_stop=after(2))
    assert [path.name for path in directory.iterdir() if path.is_dir()] == ["0_agent.batch_size=4"]
    return directory, call("resume", directory)
