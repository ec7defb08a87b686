"""Where the parts of a signed model repository lie, for those who write it and those who read it.

A repository is a plain folder with two folders in it, which any HTTP server can serve and which a
dispatcher serves under the same paths:

- `v1/metadata/`: the metadata of The Update Framework (TUF 1.0), consistent snapshots:
  `N.root.json`, `N.targets.json`, `N.PUBLISHER.json`, `N.snapshot.json` and `timestamp.json`;
- `v1/models/DIGEST/manifest` and `v1/models/DIGEST/files/PATH`: the packages.

Invariants
- The roles are TUF's four and one delegated role for each publisher, who may sign the targets
  `PUBLISHER/DIGEST` only. The target is the package's manifest: its length is signed, its SHA-256
  is the digest, and it binds every file of the package by length and SHA-256.

Deliberately absent: anything that signs (`edge_runtime.registry`) or verifies
(`edge_runtime.vehicle.models.trust`); the library, which an idle car does not load.
"""

import re
from typing import Final

from edge_runtime.contract.errors import ConfigError

METADATA_PATH: Final = "v1/metadata"
MODELS_PATH: Final = "v1/models"
TOP_ROLES: Final = ("root", "targets", "snapshot", "timestamp")

_PUBLISHER: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_METADATA_NAME: Final = re.compile(r"(?:\d{1,9}\.[a-z0-9][a-z0-9-]{0,31}|timestamp)\.json")


def require_publisher(option: str, name: str) -> str:
    """`name` where a publisher may have it; `ConfigError` otherwise."""
    if _PUBLISHER.fullmatch(name) is None or name in TOP_ROLES:
        raise ConfigError(
            f"{option} must be 1 to 32 of a-z, 0-9 and -, and none of {', '.join(TOP_ROLES)}, "
            f"not {name[:64]!r}"
        )
    return name


def target_path(publisher: str, digest: str) -> str:
    """The name under which a publisher signs a package."""
    return f"{publisher}/{digest}"


def is_metadata_name(name: str) -> bool:
    """Whether a file of the metadata folder may have this name."""
    return _METADATA_NAME.fullmatch(name) is not None
