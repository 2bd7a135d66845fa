"""The weights that several graphs of a bundle share, in one file that ONNX Runtime maps into memory."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

_ALIGNMENT = 4096
"""Of each array in the file: whole pages are mapped."""
_CHUNK = 1 << 24
_TINY = np.finfo(np.float32).tiny


class WeightFile:
    """Appends arrays to a file; a name is written once, however many graphs refer to it.

    Denormal floats are written as zeros: they cost a processor up to two hundred times the work (measured), and are
    below 1.2e-38.

    Args:
        path: of the file.
        inline: bytes below which an array stays within the graph.
    """

    def __init__(self, path: Path, *, inline: int = 1024) -> None:
        self.path, self._inline = path, inline
        self._file = path.open("wb")
        self._written: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def mark(self) -> tuple[int, frozenset[str]]:
        """Where the file ends now, for `rewind`."""
        return self._file.tell(), frozenset(self._written)

    def rewind(self, mark: tuple[int, frozenset[str]]) -> None:
        """Take back what was written since."""
        end, names = mark
        self._file.truncate(end)
        self._file.seek(end)
        self._written = {name: tensor for name, tensor in self._written.items() if name in names}

    def tensor(self, name: str, array: npt.NDArray[Any]) -> Any:
        """An initializer of that name and value."""
        if name not in self._written:
            self._written[name] = self._write(name, array)
        return self._written[name]

    def _write(self, name: str, array: npt.NDArray[Any]) -> Any:
        if array.nbytes < self._inline:
            return numpy_helper.from_array(without_denormals(array), name)
        start = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(start)
        rows = max(1, _CHUNK // max(1, array[:1].nbytes))
        for first in range(0, len(array), rows):  # a table may be larger than what is left of memory
            self._file.write(np.ascontiguousarray(without_denormals(array[first : first + rows])).tobytes())
        self._file.flush()
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.path.name), ("offset", start), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def without_denormals(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, its denormal float32 numbers replaced by zero; other types as they are."""
    if array.dtype != np.float32:
        return array
    return np.where(np.abs(array) < _TINY, np.float32(0), array) if array.size else array
