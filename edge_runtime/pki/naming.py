"""Whose an identity is, without a parser of certificates: a car reads it at every start.

PEM allows text before its blocks (RFC 7468 §5.2); `identity.pem` begins with a line that says
the name. It is a convenience: what the broker believes is the certificate.
"""

from pathlib import Path
from typing import Final

from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.pki.files import PkiError, read_file

NAME_HEADING: Final = "# edge-runtime identity of "


def name_in(identity: Path) -> str:
    """The name in an `identity.pem`. Raises PkiError."""
    first, _, _ = read_file(identity).decode(errors="replace").partition("\n")
    name = first.removeprefix(NAME_HEADING)
    if name == first or not ID_PATTERN.fullmatch(name):
        raise PkiError(f"{identity}: does not begin with '{NAME_HEADING}NAME'")
    return name
