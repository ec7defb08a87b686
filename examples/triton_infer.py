"""Inference by Triton's own client, and nothing of this project.

    pip install "tritonclient[http]"
    python examples/triton_infer.py 127.0.0.1:8080 noop 1.5 2.5
    python examples/triton_infer.py 127.0.0.1:8080 minilm "Where is my car?"
    python examples/triton_infer.py 127.0.0.1:8080 centerface photo.jpg

A model of the task `tensor` takes numbers (`noop` of `make models` does); any other takes one item
at a time, which is a file, or else a text, and answers in JSON.
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton


def items_of(datatype: str, arguments: tuple[str, ...]) -> list[np.ndarray]:
    """What to ask for: all numbers at once, or one file or text after the other."""
    if datatype != "BYTES":
        return [np.array([float(number) for number in arguments], np.float32)]
    return [np.array([data_of(argument)], object) for argument in arguments]


def data_of(argument: str) -> bytes:
    """The bytes of a file, or of a text."""
    path = Path(argument)
    return path.read_bytes() if path.is_file() else argument.encode()


def main(address: str, model: str, *arguments: str) -> None:
    """Ask what the model is, then what it makes of these arguments."""
    with triton.InferenceServerClient(address) as client:
        (declared,) = client.get_model_metadata(model)["inputs"]
        for item in items_of(declared["datatype"], arguments):
            tensor = triton.InferInput(declared["name"], item.shape, declared["datatype"])
            tensor.set_data_from_numpy(item)
            result = client.infer(model, [tensor])
            for output in result.get_response()["outputs"]:
                values = result.as_numpy(output["name"]).tolist()
                is_text = output["datatype"] == "BYTES"
                print(output["name"], values[0].decode() if is_text else values)


if __name__ == "__main__":
    main(*sys.argv[1:])
