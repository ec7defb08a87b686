"""`voice-activity-detection`: a WAV in, the stretches with speech out (Silero).

The model hears 32 ms at a time together with the end of what came before, and carries a state,
so one recording is one sequence.
"""

import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.package import ModelSpec
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.tasks.base import (
    Array,
    ItemFailure,
    Runtime,
    parse_parameters,
)

_FRAME: Final = {8_000: 256, 16_000: 512}
_CONTEXT: Final = {8_000: 32, 16_000: 64}
_RATE_MIN_HZ: Final = 1_000
_STATE_SHAPE: Final = (2, 1, 128)
_HYSTERESIS: Final = 0.15
_GAP_MIN_S: Final = 0.1
"""Shorter silences do not end a stretch of speech."""
_SPEECH_MIN_S: Final = 0.25
_FILTER_CROSSINGS: Final = 16
"""Zero crossings of the low-pass filter on each side; more is sharper and slower."""

_Threshold = Annotated[float, Meta(gt=_HYSTERESIS, lt=1)]


class _ModelParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold: _Threshold


class _Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold: _Threshold | None = None
    """Probability from which a frame is speech; the model's own when not given."""


class SpeechTask:
    """Finds where somebody speaks."""

    def __init__(self, folder: Path, spec: ModelSpec, runtime: Runtime) -> None:
        self._runtime = runtime
        self._model = msgspec.convert(spec.parameters, _ModelParameters)
        self._session = runtime.load(spec.path_of("model", folder))
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, data: bytes, media_type: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return `{"duration_s", "speech_ratio", "segments": [{"start_s", "end_s"}]}`.

        Takes PCM WAV, any number of channels, any rate. See `Task.run`.
        """
        del media_type  # the bytes themselves say what they are
        wanted = parse_parameters(parameters, _Parameters)
        samples, rate_hz = decode_wav(data)
        duration_s = samples.size / rate_hz
        if rate_hz not in _FRAME:
            samples, rate_hz = resampled(samples, rate_hz, 16_000), 16_000
        chances = self._chances(samples, rate_hz)
        frame_s = _FRAME[rate_hz] / rate_hz
        threshold = wanted.threshold or self._model.threshold
        segments = [
            (start * frame_s, min(end * frame_s, duration_s))
            for start, end in _stretches(chances, threshold, frame_s)
        ]
        speech_s = sum(end - start for start, end in segments)
        return {
            "duration_s": round(duration_s, 3),
            "speech_ratio": round(speech_s / duration_s, 4) if duration_s else 0.0,
            "segments": [
                {"start_s": round(start, 3), "end_s": round(end, 3)} for start, end in segments
            ],
        }

    def _chances(self, samples: Array, rate_hz: int) -> list[float]:
        """Return the probability of speech in each frame of 32 ms."""
        frame, context = _FRAME[rate_hz], _CONTEXT[rate_hz]
        count = -(-samples.size // frame)
        padded = np.zeros(context + count * frame, np.float32)
        padded[context : context + samples.size] = samples
        state = np.zeros(_STATE_SHAPE, np.float32)
        rate = np.array(rate_hz, np.int64)
        chances: list[float] = []
        for index in range(count):
            heard = padded[None, index * frame : index * frame + context + frame]
            chance, state = self._runtime.run(
                self._session, self._outputs, {"input": heard, "state": state, "sr": rate}
            )
            chances.append(float(chance[0, 0]))
        return chances


def decode_wav(data: bytes) -> tuple[Array, int]:
    """Return float32 samples in [-1, 1], channels averaged, and the rate in Hz.

    Raises `ItemFailure`: undecodable_input, input_too_large.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate_hz, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            frames = file.getnframes()
            _check_wav(rate_hz, frames)
            raw = file.readframes(frames)
    except (wave.Error, EOFError, RuntimeError) as error:
        # A chunk that reaches past the end of the file is a plain RuntimeError of `wave`.
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, f"not a whole PCM WAV: {error}") from error
    whole = len(raw) - len(raw) % (channels * width)
    samples = _as_float(raw[:whole], width)
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate_hz


def _check_wav(rate_hz: int, frames: int) -> None:
    if not _RATE_MIN_HZ <= rate_hz <= limits.AUDIO_MAX_HZ:
        raise ItemFailure(
            ItemError.UNDECODABLE_INPUT,
            f"the WAV has {rate_hz} samples a second; the limits are {_RATE_MIN_HZ} and "
            f"{limits.AUDIO_MAX_HZ}",
        )
    if frames > limits.AUDIO_MAX_S * rate_hz:
        raise ItemFailure(
            ItemError.INPUT_TOO_LARGE,
            f"the WAV lasts {frames // rate_hz} s; the limit is {limits.AUDIO_MAX_S} s",
        )


def _as_float(raw: bytes, width: int) -> Array:
    match width:
        case 1:
            return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / np.float32(128)
        case 2:
            return np.frombuffer(raw, "<i2").astype(np.float32) / np.float32(1 << 15)
        case 3:
            # Three bytes become the upper three of four, so that the sign stays where it is.
            wide = np.zeros((len(raw) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
            return wide.view("<i4").ravel().astype(np.float32) / np.float32(1 << 31)
        case 4:
            return np.frombuffer(raw, "<i4").astype(np.float32) / np.float32(1 << 31)
        case _:
            raise ItemFailure(
                ItemError.UNDECODABLE_INPUT, f"the WAV has {width} bytes a sample; 1 to 4 are read"
            )


def resampled(samples: Array, from_hz: int, to_hz: int) -> Array:
    """Return the samples at another rate: low-pass below both half rates, then interpolate."""
    if to_hz < from_hz:
        ratio = to_hz / from_hz
        reach = int(_FILTER_CROSSINGS / ratio)
        offsets = np.arange(-reach, reach + 1)
        kernel = np.sinc(offsets * ratio) * np.hanning(offsets.size) * ratio
        samples = np.convolve(samples, kernel.astype(np.float32), mode="same")[: samples.size]
    count = int(samples.size * to_hz / from_hz)
    positions = np.arange(count) * (from_hz / to_hz)
    return np.asarray(np.interp(positions, np.arange(samples.size), samples), np.float32)


def _stretches(chances: list[float], threshold: float, frame_s: float) -> list[tuple[int, int]]:
    """Return [start, end) frames of speech, short gaps closed and short stretches left out."""
    found: list[tuple[int, int]] = []
    is_speech = False
    for index, chance in enumerate(chances):
        was_speech = is_speech
        is_speech = chance >= threshold - (_HYSTERESIS if was_speech else 0)
        if not is_speech:
            continue
        if was_speech or (found and (index - found[-1][1]) * frame_s < _GAP_MIN_S):
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return [(start, end) for start, end in found if (end - start) * frame_s >= _SPEECH_MIN_S]
