"""Inference by Triton's own client, and nothing of this project.

    pip install "tritonclient[http]"
    python examples/triton_infer.py 127.0.0.1:8080 noop 1.5 2.5

The model is one of the task `tensor` with one input of floats; `noop` of `make models` is.
"""

import sys

import numpy as np
import tritonclient.http as triton


def main(address: str, model: str, *numbers: str) -> None:
    """Ask what the model is, then what it makes of these numbers."""
    with triton.InferenceServerClient(address) as client:
        (declared,) = client.get_model_metadata(model)["inputs"]
        values = np.array([float(number) for number in numbers], np.float32)
        tensor = triton.InferInput(declared["name"], values.shape, declared["datatype"])
        tensor.set_data_from_numpy(values)
        result = client.infer(model, [tensor])
        for output in result.get_response()["outputs"]:
            print(output["name"], result.as_numpy(output["name"]).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
