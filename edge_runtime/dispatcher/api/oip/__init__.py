"""The Open Inference Protocol, version 2, with Triton's extensions: `/v2`.

What existing clients send and expect, to the letter; one refusal is one `{"error": "<text>"}`.
"""

from edge_runtime.dispatcher.api.oip.app import OpenInference

__all__ = ["OpenInference"]
