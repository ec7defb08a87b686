"""Durable state of the dispatcher: the `Store` port and its SQLite form."""

from edge_runtime.dispatcher.storage.port import (
    KnownKey,
    Recovered,
    Store,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
)
from edge_runtime.dispatcher.storage.sqlite import SqliteStore

__all__ = [
    "KnownKey",
    "Recovered",
    "SqliteStore",
    "Store",
    "StoreBusy",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
]
