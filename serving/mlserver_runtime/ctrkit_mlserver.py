"""A bundle as a model of MLServer: raw features or encoded ids, over its REST and gRPC.

In MLServer's environment: `pip install '.[serve]'` of the clone, this file on PYTHONPATH, and a `model-settings.json`
as the one beside it, whose `uri` is the bundle. MLServer has neither binary tensors over REST, nor checks of new
versions, nor a bounded queue: see `ctrkit serve` for those.
"""

import asyncio
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput

from ctrkit.errors import UserError
from ctrkit_serving.server.model import Model
from ctrkit_serving.server.protocol import RequestError, Tensor
from ctrkit_serving.server.settings import Settings


class CtrkitModel(MLModel):
    """One scorer; a call has one thread."""

    async def load(self) -> bool:
        """Verify the bundle and warm it."""
        parameters = self.settings.parameters
        version = int(parameters.version or 1)
        self._model = Model.load(Path(parameters.uri), self.name, version, Settings(Path()))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score one user and N ads."""
        inputs = {tensor.name: _tensor(tensor) for tensor in payload.inputs}
        try:
            scores_N = await asyncio.get_running_loop().run_in_executor(None, self._model.score, inputs, {})
        except (UserError, RequestError) as error:
            raise InferenceError(str(error)) from error
        output = NumpyCodec.encode_output(self._model.output, scores_N)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])


def _tensor(tensor: RequestInput) -> Tensor:
    if tensor.datatype == "BYTES":
        values = np.array(StringCodec.decode_input(tensor), object).reshape(tensor.shape)
    else:
        values = NumpyCodec.decode_input(tensor)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InferenceError(f"input '{tensor.name}': NaN or infinity; every number must be finite")
    return Tensor(tensor.datatype, values)
