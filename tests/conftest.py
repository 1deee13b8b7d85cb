"""Every test sees two CPU devices, whatever the machine has."""

import os

os.environ["JAX_NUM_CPU_DEVICES"] = "2"
