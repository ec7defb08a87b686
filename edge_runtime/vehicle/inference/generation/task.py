"""A loaded text-generation model: what reads requests for it, and the batch that answers them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_runtime.vehicle.inference.generation.batch import GenerationBatch
from edge_runtime.vehicle.inference.generation.request import (
    Encoder,
    GenerationModel,
    GenerationRequest,
    read_request,
)


@dataclass(frozen=True, slots=True)
class Generation:
    """See the module. The batch is empty between two runs of the loop."""

    model: GenerationModel
    encoder: Encoder
    batch: GenerationBatch

    def read(
        self, data: bytes, media_type: str, parameters: Mapping[str, Any]
    ) -> GenerationRequest:
        """Return what an item asks for. Raises `ItemFailure` as `read_request`."""
        return read_request(
            data,
            media_type,
            parameters,
            model=self.model,
            encoder=self.encoder,
            vocabulary=len(self.batch.token_bytes),
        )
