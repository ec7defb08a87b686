"""Durable state of the dispatcher: the `Store` port and its SQLite form."""

from edge_runtime.dispatcher.storage.port import (
    KnownKey,
    OpenWork,
    Record,
    RecordStore,
    Recovered,
    Store,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreFull,
    Whose,
    WorkTotal,
)
from edge_runtime.dispatcher.storage.sqlite import SqliteStore

__all__ = [
    "KnownKey",
    "OpenWork",
    "Record",
    "RecordStore",
    "Recovered",
    "SqliteStore",
    "Store",
    "StoreBusy",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "Whose",
    "WorkTotal",
]
