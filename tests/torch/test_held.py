"""Tensors held between passes: the same values again, from memory and from the file; room is used again."""

from __future__ import annotations

import gc
import io
import tempfile
from pathlib import Path

import pytest
import torch

from diba.torch.calibration import held
from diba.torch.calibration.held import Memory, apart
from diba.torch.modules.vectors import mark, marked

TENSORS = {
    "vectors": torch.randn(7, 5),
    "number": torch.tensor(3.5),
    "nothing": torch.zeros(0, 4),
    "float64": torch.randn(3, 2, 4).double(),
    "bfloat16": torch.randn(6, 3).bfloat16(),
    "bfloat16 in float32": torch.randn(40, 30).bfloat16().float(),
    "nearly": torch.cat([torch.randn(200).bfloat16().float(), torch.tensor([1 + 2**-20])]),
    "mask": torch.rand(4, 9) < 0.5,
    "ids": torch.randint(0, 2**40, (3, 3)),
    "strides": torch.randn(6, 8).T[::2],
    "not finite": torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0]),
}


@pytest.mark.parametrize("limit", [0, 2**30])
def test_values_are_the_same_again(limit: int) -> None:
    with Memory(limit) as memory:
        held = {name: memory.hold(tensor) for name, tensor in TENSORS.items()}
        for _ in range(2):
            for name, tensor in TENSORS.items():
                found = held[name].get()
                assert found.dtype == tensor.dtype, name
                torch.testing.assert_close(found, tensor, rtol=0, atol=0, equal_nan=True)
        assert (memory.file_bytes > 0) == (limit == 0)
        assert (memory.used > 0) == (limit > 0)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_marks_stay(limit: int) -> None:
    with Memory(limit) as memory:
        rows = torch.tensor([3, 1])
        found = marked(memory.hold(mark(torch.randn(2, 4), rows, 5)).get())
        assert found is not None
        assert found[0].tolist() == [3, 1]
        assert found[1] == 5


def test_what_bfloat16_holds_exactly_takes_half() -> None:
    with Memory(2**20) as memory:
        exact, other = memory.hold(torch.ones(100)), memory.hold(torch.full((100,), 1 / 3))
        assert memory.used == 200 + 400
        del exact
        assert memory.used == 400
        del other
        assert memory.used == 0


def test_the_limit_is_kept_and_room_is_used_again() -> None:
    with Memory(2 * 4000) as memory:
        held = [memory.hold(torch.randn(1000)) for _ in range(6)]
        assert memory.used == 2 * 4000
        assert memory.file_bytes == 4 * 4096
        for number in [*range(6)] * 3:
            held[number] = memory.hold(torch.full((1000,), number / 3))
            gc.collect()
        assert memory.used <= 2 * 4000
        assert memory.file_bytes <= 5 * 4096  # the new one is held before the old one goes
        for number, found in enumerate(held):
            assert torch.equal(found.get(), torch.full((1000,), number / 3))


def test_equal_tensors_are_held_once() -> None:
    with Memory(2**20) as memory:
        first = memory.hold(torch.arange(10), shared=True)
        assert memory.hold(torch.arange(10), shared=True) is first
        assert memory.hold(torch.arange(10).int(), shared=True) is not first
        assert memory.hold(torch.arange(10)) is not first


def test_tensors_apart_lie_together() -> None:
    tensors = [torch.randn(5), torch.zeros(0), torch.randn(2, 3).double(), torch.tensor(2)]
    copies = apart(tensors)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(copies, tensors, strict=True))
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    assert all(copy.data_ptr() % 64 == 0 for copy in copies)
    assert apart([]) == []


def test_a_full_disk_and_a_missing_folder_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with Memory(100) as memory:
        kept = memory.hold(torch.ones(20))
        with pytest.raises(FileNotFoundError, match=r"missing cannot take them; let TMPDIR name"):
            memory.hold(torch.randn(50))
        assert torch.equal(kept.get(), torch.ones(20))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "r+"))
    with Memory(0) as memory, pytest.raises(OSError, match=r"No space left on device: .*take \S+ GB more"):
        memory.hold(torch.randn(50))


def test_without_a_limit_memory_is_taken_only_where_the_file_has_no_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(held, "_USUAL", 100)
    monkeypatch.setattr(held, "available_memory", lambda: 2000)
    tensors = [torch.randn(50) for _ in range(4)]
    with Memory() as memory:
        kept = [memory.hold(tensor) for tensor in tensors]
        assert (memory.used, memory.file_bytes > 0) == (0, True)
        assert all(torch.equal(one.get(), tensor) for one, tensor in zip(kept, tensors, strict=True))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with Memory() as memory:
        kept = [memory.hold(tensor) for tensor in tensors]
        assert memory.used == 800  # bytes, of at most 1000
        assert all(torch.equal(one.get(), tensor) for one, tensor in zip(kept, tensors, strict=True))
        with pytest.raises(FileNotFoundError, match=r"take 2.04e-07 GB more than their 1e-06 GB of memory"):
            memory.hold(torch.randn(51))
