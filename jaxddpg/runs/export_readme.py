"""The README of an exported policy."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxddpg.runs.load import Policies
from jaxddpg.settings import ActorCritic

TITLE = "# A policy for "


class Exported(NamedTuple):
    """What is exported."""

    policies: Policies
    """of the exported members"""
    is_stacked: bool
    """whether there is one function of all M members"""
    observation_size: int
    low: np.ndarray
    """[m, A] lower bounds of the actions of each exported member"""
    high: np.ndarray
    """[m, A] upper bounds"""

    @property
    def leading(self) -> tuple[int, ...]:
        """The axes of observations and actions before that of the batch."""
        return (len(self.low),) if self.is_stacked else ()


def text(directory: Path, exported: Exported) -> str:
    """The README of policies of the run in `directory`."""
    policies = exported.policies
    section = policies.plan.members[0].settings
    name, leading = section.environment.name, "".join(f"{size}, " for size in exported.leading)
    swept = policies.plan.members[0].swept
    fixed = {
        parameter: value
        for parameter, value in section.environment.parameters.items()
        if f"environment.parameters.{parameter}" not in swept
    }
    parameters = f" with the parameters {json.dumps(fixed)}" if fixed else ""
    members = [
        identity | {"epoch": epoch, "diverged": "yes" if diverged else "no"}
        for identity, epoch, diverged in zip(policies.identities, policies.epochs, policies.diverged, strict=True)
    ]
    observations = exported.observation_size
    zeros = f"np.zeros(({leading}1, {observations}), np.float32)"
    return f"""{TITLE}{name}

Trained by {section.agent.algorithm} on {name}{parameters}, in `{directory}`:

{_table([*members[0]], [[*row.values()] for row in members])}
It maps observations, float32 [{leading}batch, {observations}] as the environment returns them (not normalized), to
actions, float32 [{leading}batch, {exported.low.shape[1]}] in the units of the environment:

{_bounds(exported)}
A single observation is a batch of one, `observation[None]`. The programs below run in the directory of this file.

{_formats(zeros, exported)}"""


def _formats(zeros: str, exported: Exported) -> str:
    """How each format is loaded; `zeros` is an expression for observations."""
    content = f"""## In JAX

`policy.stablehlo` requires jax and flatbuffers and runs on CPU, CUDA, ROCm and TPU. It was exported by JAX
{jax.__version__}; JAX guarantees that releases up to six months newer can load it. By default a TPU multiplies matrices
in bfloat16, and some GPUs in TF32.

```python
from pathlib import Path

import jax
import numpy as np

policy = jax.export.deserialize(bytearray(Path("policy.stablehlo").read_bytes()))
actions = jax.jit(policy.call)({zeros})
```
"""
    agent = exported.policies.plan.members[0].settings.agent
    if not isinstance(agent, ActorCritic):  # which has no other formats
        return content
    rounding = "rounding" if agent.precision == "float32" else f"the rounding of {agent.precision} in hidden layers"
    return f"""{content}
## In NumPy

`numpy_policy.py` computes the same, up to {rounding}, from the arrays in `policy.npz`.

```python
import numpy as np
from numpy_policy import load

act = load("policy.npz")
actions = act({zeros})
```

## In ONNX Runtime

`policy.onnx` computes the same, up to {rounding}, in any runtime that supports opset 18. Its input must be float32.

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("policy.onnx")
(actions,) = session.run(None, {{"observation": {zeros}}})
```
"""


def _bounds(exported: Exported) -> str:
    """The table of the bounds of actions, with those of each member where they differ."""
    ends = np.stack([exported.low, exported.high], axis=-1)
    if np.all(ends == ends[0]):
        return _table(["action", "low", "high"], [[action, *pair] for action, pair in enumerate(ends[0])])
    rows = [
        [identity["member"], action, *pair]
        for identity, own in zip(exported.policies.identities, ends, strict=True)
        for action, pair in enumerate(own)
    ]
    return _table(["member", "action", "low", "high"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The lines of a Markdown table."""
    cells = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in cells)
