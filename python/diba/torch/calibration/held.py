"""Tensors that are held from one pass over the batches to the next: in memory, or in a temporary file.

What is held for long among the large tensors of a pass that come and go would cut the heap into pieces too
small for them: the process would grow with every batch, by many times of what is held. So it lies in pages of
its own, which go back to the system when it is freed.
"""

from __future__ import annotations

import errno
import mmap
import tempfile
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._internal.machine import available_memory
from ..modules.vectors import mark, marked
from ..retuning.batches import digest

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Held", "Memory", "apart"]

_ALIGNMENT = 64  # bytes: what torch's own tensors have
_BLOCK = 4096  # bytes: places in the file begin at multiples of it
_MOST_MAPPINGS = 2**13  # of memory at once: systems allow some 65,000 in a process
_USUAL = (
    2**28
)  # bytes in memory, if there is room for a file: the system keeps what it can of it, and gives way
_SHARE = 0.5  # of the memory that is available, else
_PROBE = 64  # entries by which it is seen whether all may fit 16 bits


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the CPU, together in pages of their own."""
    places, size = [], 0
    for tensor in tensors:
        places.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    pages = _pages(size)
    copies = [
        pages[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for place, tensor in zip(places, tensors, strict=True)
    ]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor)
    return copies


def _pages(size: int) -> Tensor:
    """Zeros, uint8, that are not a part of the heap."""
    if not size:
        return torch.zeros(0, dtype=torch.uint8)
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)


class Held:
    """One tensor that is held, made by :meth:`Memory.hold`; it is let go with the last reference."""

    def __init__(self, memory: Memory, tensor: Tensor) -> None:
        self._device, self._dtype, self._mark = tensor.device, tensor.dtype, marked(tensor)
        tensor = _compact(tensor.detach())
        self._shape, self._stored = tensor.shape, tensor.dtype
        self._place, self._values = memory.put(tensor)
        self._memory = memory
        weakref.finalize(self, memory.free, self._place, tensor.nbytes).atexit = False

    def get(self) -> Tensor:
        """The same values, on the same device; they must not be changed."""
        values = self._values
        if values is None:
            assert self._place is not None, "it is in memory or in the file"
            values = self._memory.read(self._place, self._shape, self._stored)
        values = values.to(self._device, self._dtype)
        return values if self._mark is None else mark(values, *self._mark)


class Memory:
    """Holds tensors in memory up to a limit, and what is more in a temporary file; a context manager.

    The file has no name: nothing stays of it when the context or the process ends, however that happens. It
    lies in the folder for temporary files, which the environment variable ``TMPDIR`` names.

    Args:
        limit: Bytes in memory; None: 256 MiB, or half of what is available now where the file has no room.
    """

    def __init__(self, limit: int | None = None) -> None:
        most = limit
        if most is None:
            available = available_memory()
            most = 2**62 if available is None else int(_SHARE * available)
        self._most, self._limit = most, min(most, _USUAL) if limit is None else most
        self._mappings, self.used = 0, 0
        self._file: Any = None
        self._end, self._free = 0, dict[int, list[int]]()
        self._shared: weakref.WeakValueDictionary[bytes, Held] = weakref.WeakValueDictionary()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def file_bytes(self) -> int:
        """Bytes of the temporary file."""
        return self._end

    def hold(self, tensor: Tensor, *, shared: bool = False) -> Held:
        """Hold a copy of a tensor.

        Args:
            tensor: Its device and its mark (``vectors.mark``) are remembered.
            shared: Equal tensors are held once.

        Raises:
            OSError: There is no room for the file, or no folder for it; what is held already stays.
        """
        if not shared:
            return Held(self, tensor)
        key = digest(tensor) + str(tensor.device).encode()
        held = self._shared.get(key)
        if held is None:
            self._shared[key] = held = Held(self, tensor)
        return held

    # ------------------------------------------------------------ for Held

    def put(self, tensor: Tensor) -> tuple[int | None, Tensor | None]:
        """Store a tensor: (its place in the file, None), or (None, a copy in memory)."""
        if self.used + tensor.nbytes > self._limit:
            try:
                return self._write(tensor), None
            except OSError:
                if self.used + tensor.nbytes > self._most:
                    raise
                self._limit = self._most
        self.used += tensor.nbytes
        self._mappings += 1
        return None, apart([tensor])[0] if self._mappings <= _MOST_MAPPINGS else tensor.to("cpu", copy=True)

    def free(self, place: int | None, nbytes: int) -> None:
        """Let go what was stored."""
        if place is None:
            self.used -= nbytes
            self._mappings -= 1
        else:
            self._free.setdefault(_rounded(nbytes), []).append(place)

    def read(self, place: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The tensor at a place in the file."""
        assert self._file is not None, "it is open while the context lasts"
        values = torch.empty(tuple(shape), dtype=dtype)
        rest = _bytes(values)
        self._file.seek(place)
        while rest:
            count = self._file.readinto(rest)
            if not count:
                raise OSError(errno.EIO, f"the temporary file in {tempfile.gettempdir()} has lost its end")
            rest = rest[count:]
        return values

    def _write(self, tensor: Tensor) -> int:
        size = _rounded(tensor.nbytes)
        free = self._free.get(size)
        place = free.pop() if free else self._end
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="diba-", buffering=0)  # noqa: SIM115
            self._file.seek(place)
            rest = _bytes(tensor.cpu().contiguous())
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if place != self._end:
                self.free(place, tensor.nbytes)
            raise OSError(error.errno, f"{error.strerror}: {self._need(tensor)}") from error
        self._end = max(self._end, place + size)
        return place

    def _need(self, tensor: Tensor) -> str:
        whole = (self._end + tensor.nbytes) / 1e9
        return (
            f"activations of all batches take {whole:.3g} GB more than their {self._most / 1e9:.3g} GB of "
            f"memory, and a temporary file in {tempfile.gettempdir()} cannot take them; let TMPDIR name a "
            "folder with more room, allow more memory (Reconstruction.memory), or give fewer batches"
        )


def _compact(tensor: Tensor) -> Tensor:
    """The tensor in bfloat16 if that holds every entry exactly: what models in bfloat16 give."""
    if tensor.dtype != torch.float32 or not _fits(tensor.flatten()[:_PROBE]) or not _fits(tensor):
        return tensor
    return tensor.bfloat16()


def _fits(tensor: Tensor) -> bool:
    return torch.equal(tensor.bfloat16().float(), tensor)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _BLOCK) * _BLOCK


def _bytes(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor on the CPU."""
    values: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(values)
