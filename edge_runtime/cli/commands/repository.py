"""`edge-runtime models`, the signed half: who may publish, and what cars may run."""

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.asking import print_json
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.options import AsJson, readable_file, readable_folder
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.repository import TOP_ROLES, require_publisher

if TYPE_CHECKING:
    from edge_runtime.registry.keys import KeyRing
    from edge_runtime.registry.repository import ModelRepository

_PASSPHRASE_VARIABLE: Final = "EDGE_RUNTIME_PASSPHRASE"  # noqa: S105 - the name, not the secret
_MIB: Final = 1 << 20
_DEFAULT_REPOSITORY: Final = Path("model-repository")
_DEFAULT_KEYS: Final = (Path("model-keys"),)

RepositoryFolder = Annotated[
    Path, Parameter(help="Folder of the signed repository, which is served.", name="--repository")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SigningOptions:
    """Where the repository lies, and the keys to sign with."""

    repository: RepositoryFolder = _DEFAULT_REPOSITORY
    keys: Annotated[
        tuple[Path, ...],
        Parameter(
            name="--keys",
            help="Folder of private keys, outside the repository; may be given several times, "
            "such as one memory stick for each root key. New keys go to the first.",
        ),
    ] = _DEFAULT_KEYS
    passphrase_file: Annotated[
        Path | None,
        Parameter(
            help="File with the passphrase of the offline keys on its first line; none: "
            f"${_PASSPHRASE_VARIABLE}, else it is asked for."
        ),
    ] = None

    def ring(self, *, is_new: bool = False) -> "KeyRing":
        """The keys; `is_new` asks a person twice. Raises `ConfigError`."""
        from edge_runtime.registry.keys import KeyRing

        served = self.repository.resolve()
        for folder in self.keys:
            if folder.resolve().is_relative_to(served):
                raise ConfigError(f"--keys {folder}: lies in the repository, which is served")
        return KeyRing(self.keys, lambda: self._passphrase(is_new=is_new))

    def open(self) -> "ModelRepository":
        """The repository, which must be there. Raises `ConfigError`."""
        from edge_runtime.registry.repository import ModelRepository

        return ModelRepository(readable_folder("--repository", self.repository))

    def _passphrase(self, *, is_new: bool) -> bytes:
        if self.passphrase_file is not None:
            path = readable_file("--passphrase-file", self.passphrase_file)
            with path.open("rb") as file:
                return file.readline(limits.KEY_FILE_MAX_BYTES).rstrip(b"\r\n")
        given = os.environ.get(_PASSPHRASE_VARIABLE)
        if given is not None:
            return given.encode()
        if not sys.stdin.isatty():
            raise ConfigError(
                f"no passphrase: give --passphrase-file or set {_PASSPHRASE_VARIABLE}"
            )
        typed = getpass.getpass("Passphrase of the offline keys: ")
        if is_new and getpass.getpass("Once more: ") != typed:
            raise ConfigError("the two passphrases differ")
        return typed.encode()


_HERE: Final = SigningOptions()


def init_repository(
    *,
    root_keys: Annotated[int, Parameter(help="How many root keys there are.")] = 1,
    root_threshold: Annotated[int, Parameter(help="How many of them must sign.")] = 1,
    targets_keys: Annotated[int, Parameter(help="How many targets keys there are.")] = 1,
    targets_threshold: Annotated[int, Parameter(help="How many of them must sign.")] = 1,
    signing: SigningOptions = _HERE,
) -> None:
    """Make a repository of signed packages, and its keys; see `cli.teaching`."""
    from edge_runtime.registry.repository import ModelRepository, Quorum

    quorums = {
        "root": Quorum(root_keys, root_threshold),
        "targets": Quorum(targets_keys, targets_threshold),
    }
    ring = signing.ring(is_new=True)
    signing.repository.mkdir(parents=True, exist_ok=True)
    first = ModelRepository(signing.repository).create(ring, quorums)
    print(first)


def add_publisher(
    name: Annotated[str, Parameter(help="The publisher: 1 to 32 of a-z, 0-9 and -.")],
    /,
    *,
    public_key: Annotated[
        Path | None,
        Parameter(help="The publisher's own public key, Ed25519 PEM; none: a key is made here."),
    ] = None,
    signing: SigningOptions = _HERE,
) -> None:
    """Let somebody publish; see `cli.teaching`."""
    from edge_runtime.registry.keys import read_public_key

    require_publisher("PUBLISHER", name)
    key = None if public_key is None else read_public_key(public_key)
    ring = signing.ring(is_new=key is None)
    is_live = signing.open().add_publisher(name, ring, key)
    _tell(f"publisher {name} added", is_live=is_live)


def publish(
    package: Annotated[Path, Parameter(help="Folder with model.toml, ONNX files and assets.")],
    /,
    *,
    publisher: Annotated[str, Parameter(help="In whose name.")],
    signing: SigningOptions = _HERE,
) -> int:
    """Sign a package for cars to trust; see `cli.teaching`."""
    from edge_runtime.contract.package import PackageRefused, read_package

    require_publisher("--publisher", publisher)
    readable_folder("PACKAGE", package)
    repository = signing.open()
    try:
        read = read_package(package)
    except PackageRefused as refused:
        print(f"refused  {package}: {refused}")
        return ExitCode.FAILED
    is_live = repository.publish(read, publisher, signing.ring())
    _tell(f"{read.digest} {read.spec.name} {read.spec.version} {publisher}", is_live=is_live)
    return ExitCode.DONE


def revoke(
    publisher: Annotated[str, Parameter(help="Whose packages.")],
    /,
    *,
    package: Annotated[
        str | None, Parameter(help="Only this digest; none: all, and the publisher may no more.")
    ] = None,
    signing: SigningOptions = _HERE,
) -> None:
    """Take packages or a publisher back; see `cli.teaching`."""
    repository, ring = signing.open(), signing.ring()
    if package is None:
        is_live = repository.revoke_publisher(publisher, ring)
        _tell(f"publisher {publisher} revoked", is_live=is_live)
    else:
        is_live = repository.revoke_package(publisher, package, ring)
        _tell(f"{package} revoked", is_live=is_live)


def rotate_key(
    role: Annotated[str, Parameter(help=f"{', '.join(TOP_ROLES)} or a publisher.")],
    /,
    *,
    replace: Annotated[
        str | None,
        Parameter(help="First digits of the id of the key that goes, where there are several."),
    ] = None,
    signing: SigningOptions = _HERE,
) -> None:
    """Give a role a new key; see `cli.teaching`."""
    is_live = signing.open().rotate_key(role, signing.ring(), replace)
    _tell(f"{role} has a new key", is_live=is_live)


def renew(
    role: Annotated[str, Parameter(help=f"{', '.join(TOP_ROLES)} or a publisher.")],
    /,
    *,
    signing: SigningOptions = _HERE,
) -> None:
    """Sign a role again before it expires; see `cli.teaching`."""
    _tell(f"{role} is signed again", is_live=signing.open().renew(role, signing.ring()))


def sign(*, signing: SigningOptions = _HERE) -> None:
    """Sign with the online keys what waits; see `cli.teaching`."""
    did = signing.open().refresh(signing.ring())
    print("signed" if did else "nothing to sign")


def published(
    *, repository: RepositoryFolder = _DEFAULT_REPOSITORY, as_json: AsJson = False
) -> None:
    """List the packages that cars find in a repository."""
    from edge_runtime.registry.repository import ModelRepository

    readable_folder("--repository", repository)
    for entry in ModelRepository(repository).published():
        if as_json:
            print_json(entry)
        else:
            size = entry.total_bytes / _MIB
            print(
                f"{entry.publisher:<14} {entry.name:<14} {entry.version:<8} {size:7.1f} MiB  "
                f"{entry.digest}"
            )


def _tell(what: str, *, is_live: bool) -> None:
    print(what)
    if not is_live:
        print(
            "Cars see it when snapshot and timestamp are signed: their keys are not in --keys. "
            "The dispatcher that has them does it, or `edge-runtime models sign` where they are.",
            file=sys.stderr,
        )
