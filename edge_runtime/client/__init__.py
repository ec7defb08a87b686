"""The requester's Python SDK: `EdgeClient`, its handles, results and exceptions."""

from edge_runtime.client.client import EdgeClient
from edge_runtime.client.errors import (
    ContractBroken,
    DispatcherRefused,
    DispatcherUnreachable,
    JobRefused,
)
from edge_runtime.client.handle import JobHandle
from edge_runtime.client.items import ItemLike
from edge_runtime.client.many import ManyResult
from edge_runtime.client.results import FeedResult, ItemResult

__all__ = [
    "ContractBroken",
    "DispatcherRefused",
    "DispatcherUnreachable",
    "EdgeClient",
    "FeedResult",
    "ItemLike",
    "ItemResult",
    "JobHandle",
    "JobRefused",
    "ManyResult",
]
