"""Sentences that a speech synthesizer reads out: more words for a speech model than the recordings have.

The program is flite, of Debian's package of that name (Black and Lenzo, "Flite: a small fast run-time
synthesis engine", SSW4 2001).
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ..common import BenchmarkError
from ..common.data import RECORDED, news, run, vader, wav

__all__ = ["Spoken", "spoken"]

PROGRAM = "flite"
VOICES = ("awb", "kal16", "rms", "slt")
LOUDNESS = 0.1  # root of the mean square, that of the recordings
LENGTHS = range(3, 25)  # words


@dataclass(frozen=True, eq=False)
class Spoken:
    """A sentence and the voice that reads it.

    Attributes:
        text: What is said.
        voice: One of ``VOICES``.
    """

    text: str
    voice: str

    def sound(self) -> NDArray[np.float32]:
        """Samples, ``RECORDED`` a second, as loud as the recordings.

        Raises:
            BenchmarkError: there is no synthesizer, or it failed.
        """
        if shutil.which(PROGRAM) is None:
            raise BenchmarkError(
                f"speech is made by {PROGRAM}, which is not here; run: apt-get install {PROGRAM}"
            )
        with tempfile.TemporaryDirectory() as folder:
            run(PROGRAM, "-voice", self.voice, "-t", self.text, "-o", "said.wav", folder=folder)
            samples, rate = wav(Path(folder, "said.wav"))
        heard = resample_poly(samples, RECORDED, rate).astype(np.float32)
        return heard * np.float32(LOUDNESS / max(1e-6, float(np.sqrt(np.mean(heard**2)))))


def spoken(seed: int = 0) -> list[Spoken]:
    """Sentences of editorials and news, in random order, each in a voice drawn at random."""
    texts = [text for _, text, _ in vader("nytEditorial")]
    texts += [sentence for text in news("lee_background") for sentence in text.split(". ")]
    rng = random.Random(seed)
    short = sorted({text.strip(" .") for text in texts if len(text.split()) in LENGTHS})
    return [Spoken(text, rng.choice(VOICES)) for text in rng.sample(short, len(short))]
