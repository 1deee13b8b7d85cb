"""Every test sees two CPU devices, whatever the machine has; what one compiles, its subprocesses need not."""

import os
import tempfile

os.environ["JAX_NUM_CPU_DEVICES"] = "2"
_CACHE = tempfile.TemporaryDirectory(prefix="jaxddpg-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
