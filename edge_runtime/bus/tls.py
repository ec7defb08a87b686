"""TLS for both MQTT adapters: who the broker must be, and who we are.

Invariants
- The broker's certificate and its name are always verified; there is no way to turn that off.
- Files are read at every connect, so that a renewed certificate needs no restart.

Deliberately absent: TLS below 1.2, pre-shared keys, passphrases of client keys (nobody is there
to type one).
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

from edge_runtime.bus.port import BusUnavailable, TlsSettings


def tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """A client's context from the files as they are now. Raises BusUnavailable naming the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ca is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(settings.ca)
        except (OSError, ValueError) as error:
            raise _unusable("certificates of authorities", settings.ca, error) from error
    if settings.cert is not None:
        try:
            context.load_cert_chain(settings.cert, settings.key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            files = settings.cert if settings.key is None else f"{settings.cert}, {settings.key}"
            raise _unusable("certificate and key", files, error) from error
    return context


async def start_tls(connected: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Shake hands over a connected non-blocking socket. Raises OSError; owns the socket."""
    loop = asyncio.get_running_loop()
    try:
        wrapped = context.wrap_socket(
            connected, server_hostname=host, do_handshake_on_connect=False
        )
    except BaseException:
        connected.close()
        raise
    try:
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                await _until(loop.add_reader, loop.remove_reader, wrapped.fileno())
            except ssl.SSLWantWriteError:
                await _until(loop.add_writer, loop.remove_writer, wrapped.fileno())
            else:
                return wrapped
    except BaseException:
        wrapped.close()
        raise


def refusal_hint(settings: TlsSettings, error: Exception) -> str:
    """What to add to `error` where the broker may have hung up for our certificate.

    With TLS 1.3 it judges that after the handshake, and its word on it may be lost.
    """
    if isinstance(error, ssl.SSLError | ConnectionRefusedError | socket.gaierror):
        return ""
    if settings.cert is None:
        return "; does the broker want a certificate of ours?"
    return "; is our certificate expired, revoked or unknown to the broker?"


async def _until(add: Callable[..., None], remove: Callable[[int], bool], descriptor: int) -> None:
    ready = asyncio.Event()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)


def _no_passphrase() -> str:
    """Asked for an encrypted key: without this OpenSSL would ask the terminal."""
    raise ValueError("the key has a passphrase; a service cannot type one")


def _unusable(what: str, files: object, error: Exception) -> BusUnavailable:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return BusUnavailable(f"TLS: the {what} in {files}: {reason}")
