"""Settings of who we are to the broker, shared by every command that speaks MQTT."""

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import structlog
from cyclopts import Parameter

from edge_runtime.bus.port import TlsSettings
from edge_runtime.cli.options import readable_file, readable_folder
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.topics import require_id
from edge_runtime.pki.files import PUBLIC_MODE, PkiError, read_file, write_file

if TYPE_CHECKING:
    from edge_runtime.pki.signing import MessageSigner
    from edge_runtime.vehicle.identity import Identity

_ID_FILE: Final = "vehicle-id"
_ID_BYTES: Final = 8
_log = structlog.get_logger(__name__)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """Certificates for `mqtts://`."""

    identity: Annotated[
        Path | None, Parameter(help="Folder made by `edge-runtime pki`: certificates for mqtts://.")
    ] = None
    tls_ca: Annotated[
        Path | None,
        Parameter(help="Authorities of the broker's certificate, PEM; none: the system's."),
    ] = None
    tls_cert: Annotated[Path | None, Parameter(help="Our certificate with its chain, PEM.")] = None
    tls_key: Annotated[
        Path | None, Parameter(help="Its private key, PEM; none: in the same file.")
    ] = None

    def settings(self, broker: str) -> TlsSettings:
        """What the bus needs. Raises `ConfigError` for files that cannot be read or do not fit."""
        ca, cert = self.tls_ca, self.tls_cert
        if self.identity is not None:
            readable_folder("--identity", self.identity)
            ca = ca or self.identity / "ca.pem"
            cert = cert or self.identity / "identity.pem"
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigError("--tls-key needs --tls-cert")
        for option, path in (
            ("--tls-ca", ca),
            ("--tls-cert", cert),
            ("--tls-key", self.tls_key),
        ):
            if path is not None:
                readable_file(option, path)
        if (ca or cert) and urlsplit(broker).scheme != "mqtts":
            raise ConfigError(f"certificates need --broker mqtts://host:port, not {broker!r}")
        return TlsSettings(ca, cert, self.tls_key)

    def signer(self, signing_key: Path | None) -> "MessageSigner | None":
        """The key that signs: as told, or that of the identity where it has one."""
        if signing_key is None and self.identity is not None:
            own = self.identity / "signing.key"
            signing_key = own if own.exists() else None
        if signing_key is None:
            return None
        from edge_runtime.pki.signing import MessageSigner

        return MessageSigner.load(signing_key)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CarIdentityOptions(TlsOptions):
    """Who a car is, whose orders it obeys, and how its certificate is renewed."""

    trusted_keys: Annotated[
        Path | None,
        Parameter(
            help="Public keys of the dispatcher, PEM file or folder; none: those of --identity. "
            "With any, messages that they did not sign are dropped."
        ),
    ] = None
    renew_authority: Annotated[
        Path | None,
        Parameter(help="Renew --identity by the `pki init` folder on this machine."),
    ] = None
    renew_hook: Annotated[
        str | None,
        Parameter(help="Command that renews --identity: see `pki renew --help`, --hook."),
    ] = None

    def name(self, told: str, state_dir: Path) -> str:
        """The vehicle's id: as told, as the identity says, or as drawn. Raises `ConfigError`."""
        if told:
            return told
        if self.identity is None:
            return _drawn_id(state_dir / _ID_FILE)
        from edge_runtime.pki.naming import name_in

        readable_file("--identity", self.identity / "identity.pem")
        return name_in(self.identity / "identity.pem")

    def draw_name(self, told: str, state_dir: Path) -> None:
        """Have an id for a car of which nobody said one: random, kept with its state.

        Raises `ConfigError` where it cannot be kept.
        """
        path = state_dir / _ID_FILE
        if told or self.identity is not None or os.path.lexists(path):
            return
        drawn = f"car-{secrets.token_hex(_ID_BYTES)}"
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            write_file(path, f"{drawn}\n".encode(), mode=PUBLIC_MODE)
        except OSError as error:
            raise ConfigError(f"--state-dir {state_dir}: {error.strerror}") from None
        _log.info("vehicle_id_drawn", vehicle=drawn, kept_in=str(path))

    def compose(self, tls: TlsSettings) -> "Identity":
        """What the agent needs. Raises `ConfigError`, or `PkiError` for keys of no use."""
        from edge_runtime.vehicle.identity import NOBODY, Identity

        trusted = self.trusted_keys
        if trusted is None and self.identity is not None:
            own = self.identity / "trusted-keys"
            trusted = own if own.is_dir() else None
        renew = self._renewal()
        files = [path for path in (tls.ca, tls.cert, tls.key) if path is not None]
        if trusted is None and not files:
            NOBODY.say()
            return NOBODY
        trust = None
        if trusted is not None:
            from edge_runtime.pki.signing import TrustedKeys

            trust = TrustedKeys(trusted)
        identity = Identity(trust=trust, trust_path=trusted, certificates=files, renew=renew)
        identity.say()
        return identity

    def _renewal(self) -> list[str] | None:
        """The command line that renews, in a process of its own."""
        if self.renew_authority is None and self.renew_hook is None:
            return None
        if self.identity is None:
            raise ConfigError("--renew-authority and --renew-hook need --identity")
        if self.renew_authority is not None and self.renew_hook is not None:
            raise ConfigError("--renew-authority or --renew-hook, not both")
        command = [sys.executable, "-m", "edge_runtime", "pki", "renew", str(self.identity)]
        if self.renew_authority is not None:
            how = ["--authority", str(readable_folder("--renew-authority", self.renew_authority))]
        else:
            how = ["--hook", self.renew_hook or ""]
        return [*command, "--if-due", *how]


def _drawn_id(path: Path) -> str:
    """The id in a file that `draw_name` wrote. Raises `ConfigError`."""
    if not os.path.lexists(path):
        raise ConfigError("say who this car is: --id, or --identity")
    try:
        return require_id(str(path), read_file(path).decode("ascii", "replace").strip())
    except PkiError as error:
        raise ConfigError(str(error)) from None
