"""A databroker for the tests: `kuksa.val.v2` as the KUKSA databroker answers it, in a process.

`databroker.py PORT` (0: any) prints its port, then obeys JSON lines on stdin: `{"set": PATH,
"as": KIND, "to": VALUE}` writes a value (`as` null: not available), `{"forget": PATH}` removes a
path from the tree. A databroker process cannot be had from any package registry that the tests may
use (it is a Rust program, shipped as a container); this one is written after its sources at 0.6:

- a subscription begins with all its values in one message, and every write is one more, changed or
  not, as for every sensor without an `x-kuksa-changetype`;
- an unknown path is NOT_FOUND, an empty subscription or a buffer over 1,000 INVALID_ARGUMENT;
- with `--token`, a request without it is UNAUTHENTICATED;
- with `--tls`, a connection without it is no connection;
- `--stubborn-unit PATH=UNIT` has a path in another unit.

It is grpcio: of another make than the grpclib of the car.
"""

import argparse
import contextlib
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from edge_runtime.vehicle.sensors import kuksa_messages as messages
from edge_runtime.vehicle.sensors.vss import PARKED_BY, UNITS

EXTRA_PATHS = (*PARKED_BY.values(), "Vehicle.Powertrain.TractionBattery.Charging.Timer.Mode")
BUFFER_MAX = 1_000


class Tree:
    """Paths, their units and their newest datapoints; tells subscribers every write."""

    def __init__(self, units: dict[str, str]) -> None:
        self.units = units
        self.datapoints = {path: messages.Datapoint() for path in units}
        self.lock = threading.Lock()
        self.subscribers: list[tuple[frozenset[str], queue.Queue[Any]]] = []

    def write(self, path: str, kind: str | None, value: Any) -> None:
        now_ns = time.time_ns()
        stamp = {"seconds": now_ns // 10**9, "nanos": now_ns % 10**9}
        datapoint = messages.Datapoint(timestamp=stamp)
        if kind is not None:
            setattr(datapoint.value, kind, value)
        with self.lock:
            self.datapoints[path] = datapoint
            for paths, waiting in self.subscribers:
                if path in paths:
                    if waiting.full():
                        with contextlib.suppress(queue.Empty):
                            waiting.get_nowait()
                    waiting.put_nowait({path: datapoint})

    def forget(self, path: str) -> None:
        with self.lock:
            del self.units[path]
            del self.datapoints[path]


def answer(entries: dict[str, Any]) -> Any:
    response = messages.SubscribeResponse()
    for path, datapoint in entries.items():
        response.entries.add(key=path, value=datapoint)
    return response


class Service(grpc.GenericRpcHandler):
    """The methods that a subscriber uses."""

    def __init__(self, tree: Tree, token: str | None) -> None:
        self.tree = tree
        self.token = token

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        match details.method.removeprefix("/kuksa.val.v2.VAL/"):
            case "ListMetadata":
                make, call, request = (
                    grpc.unary_unary_rpc_method_handler,
                    self.metadata,
                    "ListMetadataRequest",
                )
            case "GetValues":
                make, call, request = (
                    grpc.unary_unary_rpc_method_handler,
                    self.values,
                    "GetValuesRequest",
                )
            case "Subscribe":
                make, call, request = (
                    grpc.unary_stream_rpc_method_handler,
                    self.subscribe,
                    "SubscribeRequest",
                )
            case _:
                return None
        return make(
            call,
            request_deserializer=getattr(messages, request).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _check(self, context: grpc.ServicerContext, paths: list[str]) -> None:
        given = dict(context.invocation_metadata()).get("authorization")
        if self.token is not None and given != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated")
        with self.tree.lock:
            unknown = [path for path in paths if path not in self.tree.units]
        if unknown:
            context.abort(grpc.StatusCode.NOT_FOUND, "Path not found")

    def metadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check(context, [request.root])
        response = messages.ListMetadataResponse()
        response.metadata.add(path=request.root, id=1, unit=self.tree.units[request.root])
        return response

    def values(self, request: Any, context: grpc.ServicerContext) -> Any:
        paths = [one.path for one in request.signal_ids]
        self._check(context, paths)
        with self.tree.lock:
            return messages.GetValuesResponse(
                data_points=[self.tree.datapoints[path] for path in paths]
            )

    def subscribe(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        paths = list(request.signal_paths)
        if not paths or request.buffer_size > BUFFER_MAX:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "buffer_size or paths")
        self._check(context, paths)
        waiting: queue.Queue[Any] = queue.Queue(max(1, request.buffer_size))
        subscriber = (frozenset(paths), waiting)
        with self.tree.lock:
            waiting.put_nowait({path: self.tree.datapoints[path] for path in paths})
            self.tree.subscribers.append(subscriber)
        context.add_callback(lambda: waiting.put(None))
        try:
            while (entries := waiting.get()) is not None:
                yield answer(entries)
        finally:
            with self.tree.lock:
                self.tree.subscribers.remove(subscriber)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--token")
    parser.add_argument("--tls", nargs=2, metavar=("KEY", "CERTIFICATE"))
    parser.add_argument("--stubborn-unit", action="append", default=[])
    options = parser.parse_args()
    units = dict.fromkeys(EXTRA_PATHS, "") | {
        path: unit for path, unit in UNITS.items() if ".Private." not in path
    }
    units |= dict(pair.split("=") for pair in options.stubborn_unit)
    tree = Tree(units)
    # A port that was just another databroker's, killed with its connections open, is free.
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Service(tree, options.token),))
    place = f"127.0.0.1:{options.port}"
    if options.tls:
        pair = tuple(Path(file).read_bytes() for file in options.tls)
        port = server.add_secure_port(place, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(place)
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        if "forget" in order:
            tree.forget(order["forget"])
        else:
            for _ in range(order.get("times", 1)):
                tree.write(order["set"], order["as"], order["to"])
    server.stop(0).wait()


if __name__ == "__main__":
    main()
