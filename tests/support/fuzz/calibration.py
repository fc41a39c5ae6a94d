"""Calibration files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

import diba
from diba.torch import Calibration, Moments
from diba.torch.calibration import calibration as codec

from .engine import Driver
from .files import check_message, mended

if TYPE_CHECKING:
    from .mutations import Content


def example(seed: int, sizes: tuple[int, ...], gradients: bool, shared: bool, means: bool = False) -> bytes:
    """A calibration of random layers with so many inputs."""
    rng = np.random.default_rng(seed)
    layers: dict[str, Moments] = {}
    for i, n in enumerate(sizes):
        x = rng.standard_normal((5, n))
        gradient = np.abs(rng.standard_normal(n + 1)) if gradients else None
        mean = x.mean(0) if means else None
        layers[f"layers.{i}.é"] = Moments(x.T @ x / 5, 5, gradient, 7 * gradients, mean)
        if shared:
            layers[f"layers.{i}.twin"] = Moments(layers[f"layers.{i}.é"].second, 5, mean=mean)
    return b"".join(codec._encode(Calibration(layers)))


def fingerprint(calibration: Calibration) -> list[tuple[object, ...]]:
    """All that was read, to the last bit."""
    return [
        (name, m.second.tobytes(), m.second.shape, m.count, m.gradient_count)
        + (() if m.gradient_rms is None else (m.gradient_rms.tobytes(),))
        + (() if m.mean is None else (m.mean.tobytes(), "mean"))
        for name, m in calibration.items()
    ]


class CalibrationDriver(Driver):
    """Whatever is accepted decodes to the seed, and is what moments can be."""

    name = "calibration"

    def seeds(self) -> list[Content]:
        return [
            example(0, (1,), gradients=False, shared=False),
            example(1, (3, 2), gradients=True, shared=False),
            example(2, (4,), gradients=True, shared=True),
            example(3, (3, 1), gradients=True, shared=True, means=True),
        ]

    def mend(self, mutant: Content) -> Content | None:
        return mended(mutant)

    def check(self, mutant: Content, seed: Content | None) -> int | None:
        try:
            calibration = codec.decode(io.BytesIO(mutant), "the file")
        except diba.FormatError as error:
            check_message(error)
            return None
        for m in calibration.values():
            assert np.isfinite(m.second).all()
            assert np.array_equal(m.second, m.second.T)
            assert (m.second.diagonal() >= 0).all()
            assert m.count >= 1
            assert m.gradient_rms is None or (m.gradient_rms >= 0).all()
            assert m.mean is None or np.isfinite(m.mean).all()
        if seed is not None:
            original = codec.decode(io.BytesIO(seed), "the seed")
            assert fingerprint(calibration) == fingerprint(original), "it decodes to something else"
        arrays = {id(m.second): m.second.nbytes for m in calibration.values()}
        arrays |= {id(m.mean): m.mean.nbytes for m in calibration.values() if m.mean is not None}
        return sum(arrays.values()) + sum(
            m.gradient_rms.nbytes for m in calibration.values() if m.gradient_rms is not None
        )
