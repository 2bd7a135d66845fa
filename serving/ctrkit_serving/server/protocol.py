"""Requests and answers of the Open Inference Protocol v2 over HTTP, with the binary tensor extension.

Specifications: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`; Triton's
`extension_binary_data.md`. In JSON, null stands for a missing value of a raw feature: an extension of our own.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""By the protocol's name. BYTES are Python strings in an array of objects."""
MAX_TENSORS, MAX_RANK, MAX_TEXT = 4096, 8, 1000


class RequestError(Exception):
    """A request that is not served: HTTP status, reason as metrics name it, and what its sender is told."""

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason, retry_after


def bad(message: str) -> RequestError:
    """A request that its sender must change."""
    return RequestError(400, "bad_request", message)


@dataclass(frozen=True)
class Tensor:
    """An input: its values in an array of its shape. Null (missing) and strings make an array of objects."""

    datatype: str
    values: npt.NDArray[Any]


@dataclass
class InferRequest:
    """A request to score."""

    inputs: dict[str, Tensor]
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, bool] | None = None
    """Names asked for, and whether in binary; None for all."""
    binary_output: bool = False


def timeout_s(parameters: Mapping[str, Any]) -> float | None:
    """Seconds that its sender gives a request: the parameter `timeout`, in microseconds, as Triton has it."""
    return micros_s(parameters, "timeout")


def micros_s(parameters: Mapping[str, Any], name: str) -> float | None:
    """Seconds of a parameter in microseconds; None if it is not there."""
    micros = parameters.get(name)
    if micros is None:
        return None
    if isinstance(micros, bool) or not isinstance(micros, int) or not 0 < micros < 2**53:
        raise bad(f"parameter '{name}' is a whole number of microseconds above zero")
    return micros / 1e6


def load_json(text: bytes | memoryview) -> Any:
    """What `json.loads` gives, of strict JSON: no NaN, no infinity."""
    try:
        return json.loads(bytes(text).decode(), parse_constant=_no_constant, parse_float=_finite)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise bad(f"not JSON: {short(error)}") from error


def short(what: object) -> str:
    """As text, cut to what a message can hold."""
    text = str(what)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _no_constant(name: str) -> None:
    raise bad(f"{name} is not JSON; null stands for a missing value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise bad(f"the number {short(text)} is too large")
    return value


def decode_infer(body: bytes, header_length: bytes | None) -> InferRequest:
    """Read the body of an infer call.

    Args:
        body: JSON, then the binary tensors.
        header_length: value of Inference-Header-Content-Length, None without binary tensors.

    Raises:
        RequestError: with status 400, for anything that is not as the protocol has it.
    """
    end = len(body)
    if header_length is not None:
        if not header_length.isdigit() or len(header_length) > 12 or int(header_length) > len(body):
            raise bad(f"Inference-Header-Content-Length is a number of bytes up to the body's {len(body)}")
        end = int(header_length)
    view = memoryview(body)
    head = load_json(view[:end])
    _expect(isinstance(head, dict), "the request is an object with 'inputs'")
    parameters = head.get("parameters")
    parameters = {} if parameters is None else parameters
    _expect(isinstance(parameters, dict), "'parameters' is an object")
    identifier = head.get("id", "")
    _expect(isinstance(identifier, str) and len(identifier) <= MAX_TEXT, f"'id' is a string, {MAX_TEXT} at most")
    binary_output = parameters.get("binary_data_output", False)
    _expect(isinstance(binary_output, bool), "parameter 'binary_data_output' is true or false")
    return InferRequest(
        _inputs(head.get("inputs"), view[end:]), identifier, parameters, _outputs(head.get("outputs"), binary_output),
        binary_output,
    )  # fmt: skip


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise bad(message)


def _inputs(specs: Any, binary: memoryview) -> dict[str, Tensor]:
    _expect(isinstance(specs, list) and 0 < len(specs) <= MAX_TENSORS, "'inputs' is a list of tensors, at least one")
    inputs: dict[str, Tensor] = {}
    offset = 0
    for spec in specs:
        _expect(isinstance(spec, dict), "an input is an object with name, shape, datatype and data")
        name, datatype, shape = spec.get("name"), spec.get("datatype"), spec.get("shape")
        if not isinstance(name, str) or not name:
            raise bad("an input has no name")
        if name in inputs:
            raise bad(f"input '{short(name)}' is there twice")
        size = check_shape(name, datatype, shape)
        parameters = spec.get("parameters") or {}
        _expect(isinstance(parameters, dict), f"input '{short(name)}': 'parameters' is an object")
        num_bytes = parameters.get("binary_data_size")
        if num_bytes is None:
            _expect("data" in spec, f"input '{short(name)}' has neither 'data' nor the parameter 'binary_data_size'")
            inputs[name] = Tensor(datatype, from_list(name, datatype, shape, size, spec["data"]))
            continue
        _expect("data" not in spec, f"input '{short(name)}' has both 'data' and the parameter 'binary_data_size'")
        if isinstance(num_bytes, bool) or not isinstance(num_bytes, int) or not 0 <= num_bytes <= len(binary) - offset:
            raise bad(f"input '{short(name)}': binary_data_size {short(num_bytes)}, {len(binary) - offset} bytes left")
        raw = binary[offset : offset + num_bytes]
        offset += num_bytes
        inputs[name] = Tensor(datatype, from_bytes(name, datatype, shape, size, raw))
    if offset != len(binary):
        raise bad(f"{len(binary)} bytes of binary tensors, but the inputs take {offset}")
    return inputs


def check_shape(name: str, datatype: Any, shape: Any) -> int:
    """How many values a tensor of this shape has; raises unless type and shape are possible ones."""
    if not isinstance(datatype, str) or (datatype not in DTYPES and datatype != "BYTES"):
        raise bad(f"input '{short(name)}': datatype {short(datatype)}; known are {', '.join(DTYPES)}, BYTES")
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise bad(f"input '{short(name)}': shape is a list of up to {MAX_RANK} sizes")
    size = 1
    for length in shape:
        if type(length) is not int or not 0 <= length < 2**31:
            raise bad(f"input '{short(name)}': size {short(length)} in its shape; give a whole number from 0 on")
        size *= length
    if size >= 2**31:
        raise bad(f"input '{short(name)}': its shape has {size} values")
    return size


def from_bytes(name: str, datatype: str, shape: list[int], size: int, raw: memoryview | bytes) -> npt.NDArray[Any]:
    """An array over (not a copy of) the little-endian, row-major bytes of a tensor."""
    if datatype == "BYTES":
        return _strings(name, size, bytes(raw)).reshape(shape)
    dtype = DTYPES[datatype]
    if len(raw) != size * dtype.itemsize:
        raise bad(f"input '{short(name)}': {len(raw)} bytes, shape {shape} of {datatype} has {size * dtype.itemsize}")
    if datatype == "BOOL":
        flags = np.frombuffer(raw, np.uint8)
        _expect(bool((flags < 2).all()), f"input '{short(name)}': a BOOL is 0 or 1")
    values = np.frombuffer(raw, dtype).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(values).all():
        raise bad(f"input '{short(name)}': NaN or infinity; every number must be finite")
    return values if values.flags.aligned else values.copy()


def _strings(name: str, size: int, raw: bytes) -> npt.NDArray[Any]:
    """Strings as BYTES has them: four bytes of length, then so many of UTF-8."""
    _expect(size * 4 <= len(raw), f"input '{short(name)}': {len(raw)} bytes are too few for {size} strings")
    values = np.empty(size, object)
    offset = 0
    for i in range(size):
        length = int.from_bytes(raw[offset : offset + 4], "little")
        offset += 4 + length
        if offset > len(raw):
            raise bad(f"input '{short(name)}': string {i} ends beyond the tensor's {len(raw)} bytes")
        values[i] = text_of(name, raw[offset - length : offset])
    _expect(offset == len(raw), f"input '{short(name)}': {len(raw) - offset} bytes after the last string")
    return values


def text_of(name: str, raw: bytes) -> str:
    """UTF-8 bytes as a string."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise bad(f"input '{short(name)}': a string is not UTF-8") from error


_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}), "i": frozenset({int}), "u": frozenset({int}), "f": frozenset({int, float}),
}  # fmt: skip


def from_list(name: str, datatype: str, shape: list[int], size: int, data: Any) -> npt.NDArray[Any]:
    """An array of a tensor's values in JSON, nested or flat; with a null in it, an array of objects."""
    if not isinstance(data, list):
        raise bad(f"input '{short(name)}': 'data' is a list")
    flat = data
    for _ in range(len(shape) - 1):
        if not flat or not isinstance(flat[0], list):
            break
        if not all(type(part) is list for part in flat):
            raise bad(f"input '{short(name)}': 'data' mixes lists and values")
        flat = [value for part in flat for value in part]
    if len(flat) != size:
        raise bad(f"input '{short(name)}': {len(flat)} values, shape {shape} has {size}")
    dtype = DTYPES.get(datatype)
    found = set(map(type, flat))
    wrong = found - {type(None)} - (_JSON_TYPES[dtype.kind] if dtype is not None else {str})
    if wrong:
        raise bad(f"input '{short(name)}': {datatype} holds no {wrong.pop().__name__}")
    try:
        with np.errstate(over="ignore"):  # an infinity is refused below
            values = np.array([0 if v is None else v for v in flat] if type(None) in found else flat, dtype or object)
    except (OverflowError, ValueError) as error:
        raise bad(f"input '{short(name)}': {short(error)}") from error
    if dtype is not None and dtype.kind == "f" and not np.isfinite(values).all():
        raise bad(f"input '{short(name)}': a number is too large for {datatype}")
    if type(None) in found:
        values = values.astype(object)
        values[[v is None for v in flat]] = None
    return values.reshape(shape)


def _outputs(specs: Any, binary: bool) -> dict[str, bool] | None:
    if specs is None or specs == []:
        return None
    _expect(isinstance(specs, list) and len(specs) <= MAX_TENSORS, "'outputs' is a list")
    outputs = {}
    for spec in specs:
        _expect(isinstance(spec, dict) and isinstance(spec.get("name"), str), "an output asked for has no name")
        parameters = spec.get("parameters") or {}
        _expect(isinstance(parameters, dict), "'parameters' of an output is an object")
        for unsupported in ("classification", "shared_memory_region"):
            _expect(unsupported not in parameters, f"output parameter '{unsupported}' is not supported")
        wanted = parameters.get("binary_data", binary)
        _expect(isinstance(wanted, bool), "parameter 'binary_data' is true or false")
        outputs[spec["name"]] = wanted
    return outputs


def encode_infer(
    named: Mapping[str, Any], request: InferRequest, output: str, scores_N: npt.NDArray[np.float32]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if binary data follow it; `named` says who scored."""
    binary = request.binary_output if request.outputs is None else request.outputs[output]
    spec: dict[str, Any] = {"name": output, "datatype": "FP32", "shape": [len(scores_N)]}
    if binary:
        spec["parameters"] = {"binary_data_size": scores_N.nbytes}
    else:
        spec["data"] = scores_N.tolist()
    answer: dict[str, Any] = {**named, "outputs": [spec]}
    if request.id:
        answer["id"] = request.id
    head = json.dumps(answer).encode()
    return (head + scores_N.astype("<f4", copy=False).tobytes(), len(head)) if binary else (head, None)
