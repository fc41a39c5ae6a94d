"""Layers that are kept in a folder: what is taken from there, and what is not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diba
import diba.torch
from diba.torch.conversion.kept import kept_in, kept_layers

SETTINGS: dict[str, Any] = {
    "bits_per_weight": 2,
    "effort": "fast",
    "layers": {"2": {"codes": 4}},
    "embeddings": 8,
    "progress": False,
}


def model() -> nn.Sequential:
    """An embedding, two layers with biases, one of which gets codes of 4 bits, and one without."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(20, 32), nn.Linear(32, 40), nn.Linear(40, 48), nn.Linear(48, 32, bias=False)
    )


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 20, (8,), generator=generator) for _ in range(40)]


def convert(
    folder: Path | None, batches: list[torch.Tensor] | None, **changes: Any
) -> tuple[nn.Sequential, int]:
    """The converted model, and how many of its layers were found."""
    settings = {**SETTINGS, **changes, **({} if batches is None else {"batches": batches})}
    if folder is None:
        return diba.torch.convert(model(), **settings), 0
    with kept_in(folder) as layers:
        return diba.torch.convert(model(), **settings), layers.found


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("batches", [None, data()], ids=["plain", "calibrated"])
def test_what_was_kept_is_what_was_solved(batches: Any, tmp_path: Path) -> None:
    expected, _ = convert(None, batches)
    for found in (0, 4):
        made, count = convert(tmp_path / "kept", batches)
        assert count == found
        assert same(made, expected)
    reports = [diba.torch.report(each) for each in (made, expected)]
    for one, other in zip(reports[0].layers, reports[1].layers, strict=True):
        assert (one.snr_db, one.output_snr_db, one.bias_corrected) == (
            other.snr_db, other.output_snr_db, other.bias_corrected,
        )  # fmt: skip


def test_other_tasks_are_solved_again(tmp_path: Path) -> None:
    """Other settings of one layer, other data, and another matrix, which also change what comes after."""
    batches = data()
    convert(tmp_path, batches)
    assert convert(tmp_path, batches, seed=7)[1] < 4
    assert convert(tmp_path, batches)[1] < 4  # the files of seed 7 took the place of the others
    assert convert(tmp_path, batches)[1] == 4
    assert convert(tmp_path, batches[1:])[1] == 1  # of the embedding alone, whose inputs do not count
    convert(tmp_path, batches)
    changed = model()
    with torch.no_grad():
        changed[1].weight[0, 0] += 1
    expected = diba.torch.convert(copy.deepcopy(changed), batches=batches, **SETTINGS)
    with kept_in(tmp_path) as layers:
        made = diba.torch.convert(changed, batches=batches, **SETTINGS)
    assert layers.found == 1
    assert same(made, expected)


def test_damaged_files_are_written_anew(tmp_path: Path) -> None:
    expected, _ = convert(tmp_path, None)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        content = path.read_bytes()
        path.write_bytes((content[:50], b"", content[:-1], content[:-9] + b"x" + content[-8:])[number % 4])
    assert convert(tmp_path, None)[1] == 0
    made, count = convert(tmp_path, None)
    assert count == 4
    assert same(made, expected)


def test_nothing_is_kept_outside_of_the_context(tmp_path: Path) -> None:
    with kept_in(tmp_path):
        pass
    assert kept_layers.get() is None
    convert(None, None)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError), kept_in(tmp_path / "file" / "kept"):
        pass
    with kept_in(tmp_path / "kept"):
        (tmp_path / "kept").rmdir()
        with pytest.raises(FileNotFoundError) as failed:
            diba.torch.convert(model(), **SETTINGS)
    assert "goes on" in failed.value.__notes__[0]
