"""Files of sound: PCM in WAV to float, and to another rate."""

from __future__ import annotations

import math
import wave
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

__all__ = ["length_of", "read", "resampled"]

_CROSSINGS = 24  # zero crossings of the filter on each side
_BETA = 9.0  # of its Kaiser window: 90 dB
_PASSED = 0.94  # of the band; the rest is where the filter falls off


def length_of(path: Path) -> float:
    """Seconds of a file.

    Raises:
        ValueError: It is no WAV file of PCM samples.
    """
    with _opened(path) as file:
        return float(file.getnframes() / file.getframerate())


def read(path: Path, rate: int, start: float = 0.0, seconds: float = math.inf) -> Samples:
    """A stretch of a file, its channels averaged, from -1 to 1, float32.

    Args:
        path: PCM of 8, 16, 24 or 32 bits.
        rate: Samples a second wanted.
        start: First second.
        seconds: Most seconds.

    Raises:
        ValueError: It is no such file.
    """
    with _opened(path) as file:
        own, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
        first = min(round(start * own), file.getnframes())
        file.setpos(first)
        count = file.getnframes() - first if math.isinf(seconds) else round(seconds * own)
        content = file.readframes(count)
    values = _floats(content, width)
    values = values[: len(values) // channels * channels].reshape(-1, channels).mean(1)
    return resampled(values, own, rate).astype(np.float32)


def resampled(samples: NDArray[Any], own: int, wanted: int) -> NDArray[np.float64]:
    """Samples at another rate, interpolated by a windowed sinc that cuts off at the lower of both rates.

    Args:
        samples: Shape (count,).
        own: Their rate.
        wanted: The new rate.

    Returns:
        Shape (ceil(count * wanted / own),), float64; the first sample is at the same time.

    Source:
        Smith, "Digital audio resampling".
    """
    if own == wanted:
        return np.asarray(samples, np.float64)
    up, down = wanted // math.gcd(own, wanted), own // math.gcd(own, wanted)
    cutoff = min(1.0, up / down) * _PASSED
    half = math.ceil(_CROSSINGS / cutoff)
    count = -(-len(samples) * up // down)
    padded = np.pad(np.asarray(samples, np.float64), (half, half + down))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    result = np.empty(count)
    for phase in range(min(up, count)):  # outputs that lie alike between two samples
        whole, part = divmod(phase * down, up)
        places = np.arange(-half, half + 1) - part / up
        window = np.i0(_BETA * np.sqrt(np.maximum(0, 1 - (places / (half + 1)) ** 2))) / np.i0(_BETA)
        taps = cutoff * np.sinc(cutoff * places) * window
        own_outputs = result[phase::up]
        own_outputs[:] = windows[whole::down][: len(own_outputs)] @ taps
    return result


def _opened(path: Path) -> wave.Wave_read:
    try:
        file: wave.Wave_read = wave.open(str(path))  # noqa: SIM115  # the caller closes it
    except (wave.Error, EOFError) as error:
        problem = str(error) or "it ends too soon"
    else:
        if file.getnframes() and file.getsampwidth() in (1, 2, 3, 4):
            return file
        problem = f"{file.getnframes()} samples of {file.getsampwidth()} bytes"
        file.close()
    raise ValueError(f"{path} is no WAV file of PCM samples of 8, 16, 24 or 32 bits ({problem})")


def _floats(content: bytes, width: int) -> NDArray[np.float64]:
    """Little-endian samples from -1 to 1; those of 8 bits have no sign."""
    if width == 1:
        return (np.frombuffer(content, np.uint8).astype(np.float64) - 128) / 128
    content = content[: len(content) // width * width]
    if width == 3:
        wide = np.zeros((len(content) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(content, f"<i{width}") / 2.0 ** (8 * width - 1)
