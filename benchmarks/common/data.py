"""Data for whole models: texts, images, recordings, ratings.

They are Debian packages and a source distribution, looked for in one folder (DIBA_DATA, else a folder in the
user's cache), then where Debian installs them. ``python benchmarks fetch`` fills the folder. A corpus of news
is read from an installed distribution.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import wave
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import BenchmarkError
from .weights import data_file

__all__ = [
    "GENSIM",
    "RECORDED",
    "Prompt",
    "austen",
    "data_folder",
    "fashion_mnist",
    "news",
    "prompts",
    "run",
    "vader",
    "wav",
]

GENSIM = ("gensim", "4.4.0")
SDIST = "vaderSentiment-3.3.2.tar.gz"  # the wheel lacks the ratings
FASHION, AUSTEN = "dataset-fashion-mnist", "r-cran-janeaustenr"
TRANSCRIPTS, RECORDINGS = "asterisk-core-sounds-en", "asterisk-core-sounds-en-wav"
VOICE = "usr/share/asterisk/sounds/en_US_f_Allison"
RECORDED = 8_000  # samples a second


# ---- where the data are


def data_folder() -> Path:
    """The folder for fetched data and converted models: DIBA_DATA, else in the user's cache."""
    named = os.environ.get("DIBA_DATA")
    return (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "diba-benchmarks"
    )


def debian_file(package: str, path: str) -> Path:
    """A file of an unpacked or installed Debian package; ``path`` from the root.

    Raises:
        BenchmarkError: it is in neither place.
    """
    for root in (data_folder(), Path("/")):
        if (root / path).exists():
            return root / path
    raise BenchmarkError(
        f"/{path} of the Debian package {package} is neither there nor in {data_folder()}; "
        f"run: python benchmarks fetch, or: apt-get install {package}"
    )


def fetch(folder: Path) -> None:
    """Download and unpack everything into a folder; nothing is installed.

    Raises:
        BenchmarkError: a download failed; the message holds the command and what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as downloads:
        run("apt-get", "download", FASHION, AUSTEN, TRANSCRIPTS, RECORDINGS, folder=downloads)
        for package in sorted(Path(downloads).glob("*.deb")):
            run("dpkg", "-x", str(package), str(folder.resolve()), folder=downloads)
    if not (folder / SDIST).exists():
        requirement = SDIST.removesuffix(".tar.gz").replace("-", "==")
        options = ("--quiet", "--no-deps", "--no-binary", ":all:", "--dest", ".")
        run(sys.executable, "-m", "pip", "download", *options, requirement, folder=folder)


def run(*command: str, folder: str | Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchmarkError(
            f"{command[0]} is not on this system; run elsewhere: {' '.join(command)}"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise BenchmarkError(f"{' '.join(command)} failed:\n{said}")


# ---- the data


def news(name: str) -> list[str]:
    """Texts of one of gensim's Lee corpora, ``"lee_background"`` (300) or ``"lee"`` (50): one a line."""
    path = data_file(*GENSIM, f"test/test_data/{name}.cor")
    return [line for line in path.read_text(encoding="latin-1").splitlines() if line.strip()]


def vader(kind: str) -> list[tuple[int, str, float]]:
    """(number of the review or article, a sentence of it, the mean of people's ratings from -4 to 4).

    Kinds are "movieReview", "amazonReview", "nytEditorial" and "tweets".
    """
    path = data_folder() / SDIST
    if not path.exists():
        raise BenchmarkError(f"there is no {path}; run: python benchmarks fetch")
    name = kind if kind == "tweets" else f"{kind}Snippets"
    with tarfile.open(path) as outer:
        resources = f"{SDIST.removesuffix('.tar.gz')}/additional_resources/hutto_ICWSM_2014.tar.gz"
        with tarfile.open(fileobj=outer.extractfile(resources)) as inner:
            lines = inner.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read().decode().splitlines()
    rows = (line.split("\t") for line in lines)
    return [(int(place.split("_")[0]), text, float(rating)) for place, rating, text in rows]


def austen() -> dict[str, str]:
    """Jane Austen's six novels by their titles in capitals: paragraphs, an empty line after each."""
    path = debian_file(AUSTEN, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    novels = (list(lines) for lines in map(r_strings, r_records(path.read_bytes())))
    return {lines[0].upper(): paragraphs(lines) for lines in novels}


def r_records(data: bytes) -> Iterator[bytes]:
    """The records of R's lazy-load file: size (4 bytes), then what zlib made of it."""
    at = 0
    while at < len(data):
        inflate = zlib.decompressobj()
        yield inflate.decompress(data[at + 4 :])
        at = len(data) - len(inflate.unused_data)


def r_strings(record: bytes) -> Iterator[str]:
    """The strings of a serialized character vector: type (16), length, then flags, length, bytes of each."""
    at = record.index(b"\0\0\0\x10") + 4
    (count,) = struct.unpack_from(">i", record, at)
    at += 4
    for _ in range(count):
        _, length = struct.unpack_from(">ii", record, at)  # -1: missing
        at += 8 + max(length, 0)
        yield record[at - max(length, 0) : at].decode()


def paragraphs(lines: list[str]) -> str:
    """Lines cut at some width, joined up to the next empty line."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    return "\n\n".join(" ".join(block.split()) for block in blocks if block.strip())


def fashion_mnist(part: Literal["train", "t10k"]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(images of shape (count, 28, 28), labels 0 to 9): 60,000 for training, 10,000 to test."""
    arrays = []
    for kind, start in (("images-idx3", 16), ("labels-idx1", 8)):
        path = debian_file(FASHION, f"usr/share/datasets/fashion-mnist/{part}-{kind}-ubyte.gz")
        arrays.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=start))
    return arrays[0].reshape(-1, 28, 28), arrays[1]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A sentence that a telephone system says.

    Attributes:
        name: Name of the recording.
        text: What is said.
        path: The recording.
    """

    name: str
    text: str
    path: Path

    def sound(self) -> NDArray[np.float32]:
        """Samples from -1 to 1, ``RECORDED`` a second."""
        return wav(self.path)[0]


def wav(path: Path) -> tuple[NDArray[np.float32], int]:
    """(samples from -1 to 1, how many a second) of one channel in 16 bits."""
    with wave.open(io.BytesIO(path.read_bytes())) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        return samples, file.getframerate()


def prompts() -> list[Prompt]:
    """The prompts of four words and more, by name; none with digits, keys, noises or an address in it."""
    transcripts = debian_file(TRANSCRIPTS, f"usr/share/doc/{TRANSCRIPTS}/core-sounds-en.txt.gz")
    voice = debian_file(RECORDINGS, VOICE)
    found = []
    for line in gzip.decompress(transcripts.read_bytes()).decode("latin-1").splitlines():
        name, separator, text = line.partition(": ")
        path = voice / f"{name}.wav"
        if (
            separator
            and not re.search(r"[\d\[\]()<>*#]|www", text)
            and len(text.split()) >= 4
            and path.is_file()
        ):
            found.append(Prompt(name, text.strip(), path))
    return sorted(found, key=lambda prompt: prompt.name)


def main(arguments: Sequence[str]) -> None:
    options = argparse.ArgumentParser(
        prog="benchmarks fetch", description="Download the data of whole models."
    )
    options.add_argument(
        "folder", type=Path, nargs="?", default=data_folder(),
        help=f"where to ({data_folder()}, which DIBA_DATA changes)",
    )  # fmt: skip
    folder = options.parse_args(arguments).folder
    fetch(folder)
    print(
        f"fetched into {folder}" + ("" if folder == data_folder() else f"; set DIBA_DATA={folder.resolve()}")
    )
