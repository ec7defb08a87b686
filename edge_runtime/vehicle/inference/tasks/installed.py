"""Which tasks this installation can do: some need an extra that a plain car has not.

Importing this loads nothing heavy; whether a library is there is asked of the import system.
"""

import importlib.util
from typing import Final, NamedTuple

from edge_runtime.contract.package import KNOWN_TASKS


class _Need(NamedTuple):
    module: str
    extra: str


_NEEDS: Final = {"image-to-text": _Need("cv2", "ocr")}


def installed_tasks() -> tuple[str, ...]:
    """The names of the tasks that can be done here, sorted."""
    return tuple(sorted(task for task in KNOWN_TASKS if why_not_installed(task) is None))


def why_not_installed(task: str) -> str | None:
    """What a task lacks here and how to get it, in words; None where it lacks nothing."""
    need = _NEEDS.get(task)
    if need is None or importlib.util.find_spec(need.module) is not None:
        return None
    return (
        f"{task} needs the extra `{need.extra}`, which is not installed here: "
        f"pip install 'edge-runtime[vehicle,{need.extra}]'"
    )
