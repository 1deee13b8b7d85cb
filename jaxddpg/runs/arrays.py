"""How Orbax writes NumPy arrays: in chunks, few at a time. By default it copies all arrays, and encodes each of
them whole, which takes three more times their memory."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

CHUNK = 2**25
"""bytes"""


class Chunked(ocp.type_handlers.NumpyHandler):
    """Writes arrays of any size with the memory of a few chunks. They must not change while they are written."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        # Small arrays are written together, since each commit adds files.
        ends = np.cumsum([value.nbytes for value in values]) // CHUNK
        for _, group in itertools.groupby(zip(ends, values, infos, args, strict=True), key=lambda each: each[0]):
            for writing in await super().serialize(*(list(column) for column in list(zip(*group, strict=True))[1:])):
                writing.result()
        return []

    async def _open_and_write(self, value: np.ndarray, tspec: dict[str, Any], ts_context: Any) -> None:
        tspec["metadata"]["chunks"] = shape = chunk_shape(value.shape, value.itemsize)
        store = await tensorstore.open(tensorstore.Spec(tspec), create=True, open=True, context=ts_context)
        for part in parts(value.shape, shape):
            await store[part].write(value[part])


def chunk_shape(shape: Sequence[int], itemsize: int) -> list[int]:
    """The shape of chunks of at most `CHUNK` bytes that lie contiguously in an array."""
    found: list[int] = []
    for size in reversed(shape):
        found.insert(0, max(1, min(size, CHUNK // itemsize // math.prod(found))))
    return found


def parts(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """The indices of the chunks of an array; the last ones along each axis may be smaller."""
    for corner in np.ndindex(*(-(-size // step) for size, step in zip(shape, chunk, strict=True))):
        yield tuple(
            slice(at * step, min(at * step + step, size)) for at, step, size in zip(corner, chunk, shape, strict=True)
        )


HANDLERS = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, Chunked()), (jax.Array, ocp.type_handlers.get_type_handler(jax.Array))
)
