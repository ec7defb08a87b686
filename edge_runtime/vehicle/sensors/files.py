"""Small files of the kernel, read so that nothing in them can break the reader.

Invariants
- What is not there, cannot be read, or is no number is None; never zero, never an exception.
- A read is bounded by what the caller allows and never waits.
"""

from pathlib import Path

from edge_runtime.contract import limits


def text_of(path: Path, most_bytes: int = limits.SENSOR_LINE_MAX_BYTES) -> str | None:
    """A small file's text, None where there is none or the driver will not say."""
    text = b""
    try:
        with path.open("rb", buffering=0) as file:
            # The kernel gives a table in pieces of a page.
            while len(text) < most_bytes and (piece := file.read(most_bytes - len(text))):
                text += piece
    except (OSError, ValueError):
        return None
    return text.decode(errors="replace").strip()


def number_of(path: Path) -> float | None:
    """The number that a file is, None where it is none; NaN and infinity are what they are."""
    text = text_of(path)
    # Python reads more than the kernel writes: underscores, digits of every script.
    if not text or "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def entries_of(folder: Path, pattern: str = "*") -> list[Path]:
    """What is in a folder, sorted; nothing where it is not there, or goes while it is read."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.match(pattern))
    except OSError:
        return []
