"""Bytes on a socket, as no client library would send them."""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import msgspec

ANSWER_S = 20.0


@dataclass
class Said:
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Wire:
    """`async with Wire(port) as wire`: one connection; closed, not aborted, at the end."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host, self._port = host, port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()

    async def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode("latin-1") if isinstance(data, str) else data)
        await self.writer.drain()

    async def answer(self, *, has_body: bool = True) -> Said:
        """The next answer; its body by its length, in chunks, or (HEAD, 204, 1xx) none."""
        async with asyncio.timeout(ANSWER_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            headers = {}
            for line in lines:
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            status = int(first.split()[1])
            if not has_body:
                body = b""
            elif headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(await self.reader.readline(), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readline()
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return Said(status, headers, body)

    async def end(self) -> bytes:
        """What comes until the other side closes or resets."""
        data = b""
        async with asyncio.timeout(ANSWER_S):
            try:
                while piece := await self.reader.read(65_536):
                    data += piece
            except ConnectionResetError:
                pass
        return data


async def ask(port: int, data: bytes | str) -> Said:
    """One answer to these bytes on a connection of their own."""
    async with Wire(port) as wire:
        await wire.send(data)
        return await wire.answer()


def head(method: str, path: str, *headers: str) -> str:
    """A request's head with `Host`; headers as whole lines."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join(lines) + "\r\n\r\n"
