"""MLServer's half of `peers`: a custom runtime that runs the no-op model, as its manual writes one.

Runs in the peers' own environment, where edge-runtime is not installed.
"""

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    """One ONNX model with the input `x`; `parameters.uri` of its settings is the file."""

    async def load(self) -> bool:
        """Open the session, with the options of a car's engine that matter to a tiny model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        assert self.settings.parameters is not None
        self._session = ort.InferenceSession(self.settings.parameters.uri, sess_options=options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run it on the request's one tensor."""
        values = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        (result,) = self._session.run(None, {"x": values})
        outputs = [NumpyCodec.encode_output("y", result)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
