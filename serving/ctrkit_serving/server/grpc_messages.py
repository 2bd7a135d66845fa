"""Messages of `inference.GRPCInferenceService`, the Open Inference Protocol v2 over gRPC.

They are built from the table below when this module is loaded: field numbers and types are the protocol's
(kserve/open-inference-protocol, `open_inference_grpc.proto`; Triton's repository extension), there is no generated
code, and they live in a pool of their own, so that a client's generated messages of the same names do not clash.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL, "int32": _FIELD.TYPE_INT32, "int64": _FIELD.TYPE_INT64, "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64, "float": _FIELD.TYPE_FLOAT, "double": _FIELD.TYPE_DOUBLE,
    "string": _FIELD.TYPE_STRING, "bytes": _FIELD.TYPE_BYTES,
}  # fmt: skip
_PARAMETERS = "map InferParameter parameters"
_TENSOR = ("1 string name", "2 string datatype", "3 *int64 shape")
_MESSAGES: dict[str, tuple[str, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ("1 bool live",),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ("1 bool ready",),
    "ModelReadyRequest": ("1 string name", "2 string version"),
    "ModelReadyResponse": ("1 bool ready",),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ("1 string name", "2 string version", "3 *string extensions"),
    "ModelMetadataRequest": ("1 string name", "2 string version"),
    "ModelMetadataResponse": (
        "1 string name", "2 *string versions", "3 string platform",
        "4 *ModelMetadataResponse.TensorMetadata inputs", "5 *ModelMetadataResponse.TensorMetadata outputs",
    ),
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferParameter": (
        "1 |bool bool_param", "2 |int64 int64_param", "3 |string string_param", "4 |double double_param",
        "5 |uint64 uint64_param",
    ),
    "InferTensorContents": (
        "1 *bool bool_contents", "2 *int32 int_contents", "3 *int64 int64_contents", "4 *uint32 uint_contents",
        "5 *uint64 uint64_contents", "6 *float fp32_contents", "7 *double fp64_contents", "8 *bytes bytes_contents",
    ),
    "ModelInferRequest": (
        "1 string model_name", "2 string model_version", "3 string id", f"4 {_PARAMETERS}",
        "5 *ModelInferRequest.InferInputTensor inputs", "6 *ModelInferRequest.InferRequestedOutputTensor outputs",
        "7 *bytes raw_input_contents",
    ),
    "ModelInferRequest.InferInputTensor": (*_TENSOR, f"4 {_PARAMETERS}", "5 InferTensorContents contents"),
    "ModelInferRequest.InferRequestedOutputTensor": ("1 string name", f"2 {_PARAMETERS}"),
    "ModelInferResponse": (
        "1 string model_name", "2 string model_version", "3 string id", f"4 {_PARAMETERS}",
        "5 *ModelInferResponse.InferOutputTensor outputs", "6 *bytes raw_output_contents",
    ),
    "ModelInferResponse.InferOutputTensor": (*_TENSOR, f"4 {_PARAMETERS}", "5 InferTensorContents contents"),
    "ModelRepositoryParameter": ("1 |bool bool_param", "2 |int64 int64_param", "3 |string string_param"),
    "RepositoryIndexRequest": ("1 string repository_name", "2 bool ready"),
    "RepositoryIndexResponse": ("1 *RepositoryIndexResponse.ModelIndex models",),
    "RepositoryIndexResponse.ModelIndex": ("1 string name", "2 string version", "3 string state", "4 string reason"),
    "RepositoryModelLoadRequest": (
        "1 string repository_name", "2 string model_name", "3 map ModelRepositoryParameter parameters",
    ),
    "RepositoryModelLoadResponse": (),
    "RepositoryModelUnloadRequest": (
        "1 string repository_name", "2 string model_name", "3 map ModelRepositoryParameter parameters",
    ),
    "RepositoryModelUnloadResponse": (),
}  # fmt: skip
"""Fields of each message: number, type ("*" repeated, "|" of the oneof `parameter_choice`, "map T" from strings), name.
A dot stands for nesting."""


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="ctrkit_inference.proto", package="inference", syntax="proto3")
    found: dict[str, Any] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        message = found[name] = (found[outer].nested_type if outer else file.message_type).add(name=inner)
        for field in fields:
            _add_field(message, name, field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{n}")) for n in _MESSAGES}


def _add_field(message: Any, owner: str, text: str) -> None:
    number, *kind, name = text.split()
    field = message.field.add(name=name, number=int(number), label=_FIELD.LABEL_OPTIONAL)
    if kind[0] == "map":
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
        entry.field.add(
            name="value", number=2, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_MESSAGE,
            type_name=f".inference.{kind[1]}",
        )  # fmt: skip
        field.label, field.type = _FIELD.LABEL_REPEATED, _FIELD.TYPE_MESSAGE
        field.type_name = f".inference.{owner}.{entry.name}"
        return
    of = kind[0]
    if of.startswith("*"):
        field.label = _FIELD.LABEL_REPEATED
    elif of.startswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    of = of.lstrip("*|")
    if of in _SCALARS:
        field.type = _SCALARS[of]
    else:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".inference.{of}"


MESSAGES = _build()
"""Message classes by name."""
