#!/usr/bin/env python3
"""What the benchmark of whole models needs: the form of a task, and the data of all tasks.

The data are Debian packages and a source distribution. They are looked for in one folder (DIBA_DATA, else a
folder in the user's cache), then where Debian installs them. ``models_data.py --fetch`` fills the folder.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from realdata import MissingWeightsError

__all__ = [
    "Batch",
    "Prompt",
    "Size",
    "Task",
    "austen",
    "data_folder",
    "fashion_mnist",
    "fetch",
    "prompts",
    "vader",
]

Size = Literal["full", "quick"]  # "quick" takes subsets: for trying the benchmark out, not for its table
Batch = dict[str, torch.Tensor]  # for model(**batch)
Loss = Literal["logits", "hidden"] | Callable[[torch.nn.Module, Batch], torch.Tensor]

SDIST = "vaderSentiment-3.3.2.tar.gz"  # the wheel lacks the ratings
FASHION, AUSTEN = "dataset-fashion-mnist", "r-cran-janeaustenr"
TRANSCRIPTS, RECORDINGS = "asterisk-core-sounds-en", "asterisk-core-sounds-en-wav"
VOICE = "usr/share/asterisk/sounds/en_US_f_Allison"


@dataclass(frozen=True, eq=False)
class Task:
    """A pretrained dense model, data to calibrate and retune it with, and what it is judged by.

    Attributes:
        name: Word for the command line.
        title: The model, for tables.
        load: Makes the dense model: float32, in evaluation mode, a new one each time.
        train: Makes the batches for calibration and retuning, in an order that may be cut short; they share
            nothing with what ``metrics`` sees.
        metrics: Every end metric of a model by its name, on held-out data.
        primary: The metric that decides.
        higher_is_better: Whether that of ``primary`` is.
        loss: What retuning lowers: the distance of the "logits" or the "hidden" states from the dense
            model's, or a function of (model, batch).
        config: Settings of ``diba.torch.Config``: which layers are replaced.
        norms: Whether normalisation is retuned too: where the replaced layers have no biases.
    """

    name: str
    title: str
    load: Callable[[], torch.nn.Module]
    train: Callable[[], list[Batch]]
    metrics: Callable[[torch.nn.Module], dict[str, float]]
    primary: str
    higher_is_better: bool
    loss: Loss
    config: dict[str, Any] = field(default_factory=dict)
    norms: bool = False


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
        MissingWeightsError: it is in neither place.
    """
    for root in (data_folder(), Path("/")):
        if (root / path).exists():
            return root / path
    raise MissingWeightsError(
        f"/{path} of the Debian package {package} is neither there nor in {data_folder()}; "
        f"run: python benchmarks/models_data.py --fetch, or: apt-get install {package}"
    )


def fetch(folder: Path) -> None:
    """Download and unpack everything into a folder; nothing is installed.

    Raises:
        MissingWeightsError: a download failed; the message holds the command and what it said.
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
        raise MissingWeightsError(
            f"{command[0]} is not on this system; run elsewhere: {' '.join(command)}"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise MissingWeightsError(f"{' '.join(command)} failed:\n{said}")


# ---- the data


def vader(kind: str) -> list[tuple[int, str, float]]:
    """(number of the review or article, a sentence of it, the mean of people's ratings from -4 to 4).

    Kinds are "movieReview", "amazonReview", "nytEditorial" and "tweets".
    """
    path = data_folder() / SDIST
    if not path.exists():
        raise MissingWeightsError(f"there is no {path}; run: python benchmarks/models_data.py --fetch")
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
        path: The recording, 8 kHz.
    """

    name: str
    text: str
    path: Path

    def sound(self) -> NDArray[np.float32]:
        """Samples from -1 to 1, 8,000 a second."""
        with wave.open(io.BytesIO(self.path.read_bytes())) as file:
            return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


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


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="models_data.py", description="Fetch the data of benchmarks/models.py."
    )
    parser.add_argument(
        "--fetch",
        type=Path,
        nargs="?",
        const=data_folder(),
        required=True,
        metavar="FOLDER",
        help=f"download into it ({data_folder()}, which DIBA_DATA changes)",
    )
    folder = parser.parse_args().fetch
    try:
        fetch(folder)
    except (MissingWeightsError, OSError) as error:
        print(f"models_data.py: error: {error}", file=sys.stderr)
        return 2
    print(
        f"fetched into {folder}" + ("" if folder == data_folder() else f"; set DIBA_DATA={folder.resolve()}")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
