"""Durable state of the dispatcher: the `Store` port and its SQLite form."""

from edge_runtime.dispatcher.storage.port import (
    Recovered,
    Store,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
)
from edge_runtime.dispatcher.storage.sqlite import SqliteStore

__all__ = [
    "Recovered",
    "SqliteStore",
    "Store",
    "StoreBusy",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
]
