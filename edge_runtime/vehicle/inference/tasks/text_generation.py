"""`text-generation`: a prompt in, its continuation out, token by token (SmolLM2 and its like).

Unlike other tasks its items are computed together, whatever run they came with; this module only
loads what `generation` computes with. A finished item is
`{"text", "ids", "finish", "usage": {"prompt_tokens", "completion_tokens"}, "margin"}`; `margin`
is the least by which a token was chosen, None where none was.
"""

from pathlib import Path

import msgspec

from edge_runtime.contract.package import ModelSpec, PackageFault, PackageRefused
from edge_runtime.vehicle.inference.generation.batch import GenerationBatch
from edge_runtime.vehicle.inference.generation.decoder import CachedDecoder
from edge_runtime.vehicle.inference.generation.detokenizer import read_token_bytes
from edge_runtime.vehicle.inference.generation.prompts import PromptEncoder
from edge_runtime.vehicle.inference.generation.request import GenerationModel
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.inference.tasks.base import Runtime
from edge_runtime.vehicle.inference.tokenizing.tokenizer import Tokenizer


def load_text_generation(folder: Path, spec: ModelSpec, runtime: Runtime) -> Generation:
    """Load the package. Raises as `tasks.registry.load_task`."""
    model = msgspec.convert(spec.parameters, GenerationModel)
    path = spec.path_of("tokenizer", folder)
    encoder = PromptEncoder(Tokenizer.read(path))
    try:
        token_bytes = read_token_bytes(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackageRefused(PackageFault.BAD_SPEC, f"files.tokenizer: {error}") from error
    session = runtime.load(spec.path_of("model", folder))
    decoder = CachedDecoder(runtime, session, spec, model.rows, model.context_tokens)
    if len(token_bytes) > decoder.vocabulary:
        raise PackageRefused(
            PackageFault.BAD_SPEC,
            f"files.tokenizer: has {len(token_bytes)} tokens, the model {decoder.vocabulary}",
        )
    # Tokens that the model has and the tokenizer has not mean nothing.
    token_bytes += [b""] * (decoder.vocabulary - len(token_bytes))
    return Generation(model, encoder, GenerationBatch(decoder, token_bytes))
