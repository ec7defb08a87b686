"""OpenAI's conventions for what this dispatcher does: models, embeddings, files and batches.

A batch is durable jobs like any other: its lines become items, its output file their results.
Nothing here decides about cars.
"""

from edge_runtime.dispatcher.api.openai.batches import BatchDesk

__all__ = ["BatchDesk"]
