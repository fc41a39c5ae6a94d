"""Batches that are made when they are read, so that they take no memory between two reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from ..source import Source

__all__ = ["Batch", "Made", "picked", "read_processor"]

Batch = dict[str, Any]
"""Names of arguments of a model's ``forward`` -> tensors, and plain values."""

T = TypeVar("T")


class Made(Sequence[Batch]):
    """A sequence of batches, each made of an item, equal whenever it is read.

    Args:
        items: What they are made of.
        make: Makes a batch of an item.
    """

    def __init__(self, items: Iterable[T], make: Callable[[T], Batch]) -> None:
        self._items, self._make = list(items), make

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, place: int) -> Batch: ...

    @overload
    def __getitem__(self, place: slice) -> Made: ...

    def __getitem__(self, place: int | slice) -> Batch | Made:
        if isinstance(place, slice):
            return Made(self._items[place], self._make)
        return self._make(self._items[place])


def read_processor(load: Callable[[Any], Any], source: Source, data: str, what: str) -> Any:
    """What makes inputs of a model of data, from its folder.

    Args:
        load: ``from_pretrained`` of its class.
        source: The model.
        data: What the data are, in the message.
        what: What the processor is called.

    Raises:
        ValueError: It is not there, or cannot be read.
    """
    try:
        return load(source.folder)
    except Exception as error:
        raise ValueError(
            f"data has {data}, and {source.folder} has no {what} ({error}); save it there, "
            "preprocessor_config.json"
        ) from error


def picked(batches: Sequence[Batch], numbers: Iterable[int]) -> Made:
    """Those batches, in that order."""
    return Made(numbers, batches.__getitem__)
