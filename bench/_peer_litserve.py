"""LitServe's half of `peers`: an API that runs the no-op model, as its README writes one.

Runs in the peers' own environment, where edge-runtime is not installed.
"""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime as ort


class OnnxRuntime(litserve.LitAPI):
    """One ONNX model with the input `x`: `{"x": [1.0]}` in, `{"y": [1.0]}` out."""

    def setup(self, device: str) -> None:
        """Open the session in the worker, with the options of a car's engine that matter here."""
        assert device == "cpu"
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(sys.argv[1], sess_options=options)

    def decode_request(self, request: dict[str, Any], **_: Any) -> np.ndarray:
        """The tensor of a request."""
        return np.asarray(request["x"], np.float32)

    def predict(self, x: np.ndarray, **_: Any) -> np.ndarray:
        """Run the model."""
        (result,) = self._session.run(None, {"x": x})
        return result

    def encode_response(self, output: np.ndarray, **_: Any) -> dict[str, Any]:
        """The answer's JSON."""
        return {"y": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(OnnxRuntime(), accelerator="cpu")
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
