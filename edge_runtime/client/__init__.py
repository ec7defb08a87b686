"""The Python SDK: `EdgeClient` over HTTP, `Subscription` over MQTT, what they give and raise."""

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
from edge_runtime.client.subscription import Subscription, SubscriptionRefused
from edge_runtime.client.subscription_state import JobLost, JobResult, TooManyJobs

__all__ = [
    "ContractBroken",
    "DispatcherRefused",
    "DispatcherUnreachable",
    "EdgeClient",
    "FeedResult",
    "ItemLike",
    "ItemResult",
    "JobHandle",
    "JobLost",
    "JobRefused",
    "JobResult",
    "ManyResult",
    "Subscription",
    "SubscriptionRefused",
    "TooManyJobs",
]
