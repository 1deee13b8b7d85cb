"""Actor networks as ONNX models."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
"""The ONNX operator set, released in December 2022."""
IR_VERSION = 8
"""The version of the file format in the same release."""


class _Graph:
    """A graph under construction. Values are referred to by name; arrays become initializers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def apply(self, operator: str, *inputs: str | Any, **attributes: Any) -> str:
        """Adds an operator and returns the name of its output."""
        names = [value if isinstance(value, str) else self._initializer(value) for value in inputs]
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def _initializer(self, value: Any) -> str:
        array, name = np.asarray(value), f"initializer_{len(self.initializers)}"
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.initializers.append(numpy_helper.from_array(array, name))
        return name


def serialize(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The policy that `numpy_policy` computes from the same arrays, as an ONNX model.

    Its input `observation` is float32 [batch, O], its output `action` [batch, A]; for the arrays of M members
    [M, batch, O] and [M, batch, A].
    """
    graph = _Graph()
    apply = graph.apply
    depth = sum(name.startswith("Dense_") for name in arrays) // 2 - 1  # of the last layer

    def dense(x: str, index: int) -> str:
        kernel = arrays[f"Dense_{index}/kernel"]
        if arrays["bfloat16"] and 0 < index < depth:
            x = apply("Cast", apply("Cast", x, to=TensorProto.BFLOAT16), to=TensorProto.FLOAT)
            kernel = kernel.astype(jnp.bfloat16).astype(np.float32)
        return apply("Add", apply("MatMul", x, kernel), arrays[f"Dense_{index}/bias"])

    def normalize(x: str, kind: str, index: int) -> str:
        """Layer or batch normalization, if the network has it here."""
        name = f"{kind}_{index}"
        if f"{name}/scale" not in arrays:
            return x
        if kind == "LayerNorm":  # LayerNormalization does not support a scale for each member
            x = apply("Sub", x, apply("ReduceMean", x, np.array([-1]), keepdims=1))
            variance = apply("ReduceMean", apply("Mul", x, x), np.array([-1]), keepdims=1)
            x = apply("Div", x, apply("Sqrt", apply("Add", variance, 1e-6)))
        else:
            x = apply("Sub", x, arrays[f"{name}/mean"])
            x = apply("Div", x, np.sqrt(arrays[f"{name}/var"] + np.float32(1e-5)))
        return apply("Add", apply("Mul", x, arrays[f"{name}/scale"]), arrays[f"{name}/bias"])

    def plain(x: str) -> str:
        x = normalize(x, "BatchNorm", 0)
        for index in range(depth):
            x = normalize(normalize(dense(x, index), "LayerNorm", index), "BatchNorm", index + 1)
            x = apply("Relu", x)
        return dense(x, depth)

    def residual(x: str) -> str:
        x, blocks = dense(x, 0), depth // 2
        for block in range(blocks):
            hidden = apply("Relu", dense(normalize(x, "LayerNorm", block), 2 * block + 1))
            x = apply("Add", x, dense(hidden, 2 * block + 2))
        return dense(normalize(x, "LayerNorm", blocks), depth)

    x = "observation"
    if "observation_origin" in arrays:
        # Two subtractions: the sum of origin and mean would be rounded.
        x = apply("Sub", apply("Sub", x, arrays["observation_origin"]), arrays["observation_mean"])
        x = apply("Div", x, arrays["observation_deviation"])
        x = apply("Clip", x, -arrays["observation_bound"], arrays["observation_bound"])
    action = apply("Tanh", residual(x) if arrays["residual"] else plain(x))
    low, high = arrays["action_low"], arrays["action_high"]
    lower = apply("Mul", apply("Div", apply("Sub", 1.0, action), 2.0), low)
    upper = apply("Mul", apply("Div", apply("Add", 1.0, action), 2.0), high)
    action = apply("Min", apply("Max", apply("Add", lower, upper), low), high)
    graph.nodes.append(helper.make_node("Identity", [action], ["action"]))

    *members, observation_size, _ = arrays["Dense_0/kernel"].shape
    *_, action_size = arrays[f"Dense_{depth}/kernel"].shape

    def value(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [*members, "batch", size])

    whole = helper.make_graph(
        graph.nodes,
        "policy",
        [value("observation", observation_size)],
        [value("action", action_size)],
        graph.initializers,
    )
    versions = {"opset_imports": [helper.make_opsetid("", OPSET)], "ir_version": IR_VERSION}
    model = helper.make_model(whole, producer_name="jaxddpg", **versions)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
