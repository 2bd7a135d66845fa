"""The plain way to serve an ONNX graph with MLServer, which `benchmarks.server` compares with."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):  # type: ignore[misc]
    """One session, one thread a call."""

    async def load(self) -> bool:
        """Open the graph at the model's uri."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        uri = self.settings.parameters.uri
        self._session = onnxruntime.InferenceSession(uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score the tensors as they come."""
        feeds = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        (scores,) = self._session.run(None, feeds)
        outputs = [NumpyCodec.encode_output("probability", scores)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)
