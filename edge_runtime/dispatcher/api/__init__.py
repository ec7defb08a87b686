"""The dispatcher's HTTP front door: `build_app` over a `Front`, `serve` it on a socket."""

from edge_runtime.dispatcher.api.app import Api, build_app
from edge_runtime.dispatcher.api.door import Door, open_door
from edge_runtime.dispatcher.api.openai import BatchDesk
from edge_runtime.dispatcher.api.server import DEFAULT_HOST, DEFAULT_PORT, HttpServer, serve

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "Api",
    "BatchDesk",
    "Door",
    "HttpServer",
    "build_app",
    "open_door",
    "serve",
]
