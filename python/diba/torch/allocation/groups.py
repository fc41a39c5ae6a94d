"""Layers that share one k, as a user names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..._internal.check import describe
from ...layers.config import PATTERN, check_rule, suggestion

if TYPE_CHECKING:
    from ..model.selection import Target

__all__ = ["joined"]


def joined(targets: Sequence[Target], groups: Any) -> list[list[Target]]:
    """Distribute layers over groups that share one k, and groups of a single layer.

    Args:
        targets: The layers.
        groups: An entry for each kind of group, see :func:`diba.torch.allocate`.

    Returns:
        The groups, in the order of their first layers.

    Raises:
        TypeError: ``groups`` or an entry is of the wrong kind.
        ValueError: An entry has a name or pattern of no layer or joins no two layers, a layer is in two
            groups, or the layers of a group read vectors of different lengths.
    """
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Iterable):
        raise TypeError(
            f"groups is {describe(groups)}; it must be a list, such as [['q_proj', 'k_proj', 'v_proj']]"
        )
    group_of: dict[str, tuple[int, Any]] = {}  # name of a layer -> number of the entry, which of its groups
    for number, entry in enumerate(groups):
        for name, key in _keys(targets, entry, number).items():
            if name in group_of:
                raise ValueError(
                    f"groups[{number}] has {name}, which groups[{group_of[name][0]}] has too; a layer can "
                    "share its k with one group only"
                )
            group_of[name] = number, key
    found: dict[Any, list[Target]] = {}
    for target in targets:
        found.setdefault(group_of.get(target.name, target.name), []).append(target)
    for key, members in found.items():
        _require_one_length(members, key)
    return list(found.values())


def _keys(targets: Sequence[Target], entry: Any, number: int) -> dict[str, Any]:
    """Name of each layer that an entry matches -> a key, equal for those that share a k."""
    what = f"groups[{number}]"
    if isinstance(entry, str):
        found = _of_pattern(targets, entry, what)
    elif isinstance(entry, Iterable) and not isinstance(entry, bytes):
        found = _of_names(targets, list(entry), what)
    else:
        raise TypeError(
            f"{what} is {describe(entry)}; it must be a pattern 're:...' or a list of names, such as "
            "['q_proj', 'k_proj', 'v_proj']"
        )
    if len(set(found.values())) == len(found):
        raise ValueError(
            f"{what} joins no two layers, only {', '.join(found)}; groups of a pattern are the layers for "
            "which its (...) match the same text, those of a list the layers whose names begin alike"
        )
    return found


def _of_pattern(targets: Sequence[Target], pattern: str, what: str) -> dict[str, Any]:
    check_rule(pattern, what)
    if not pattern.startswith(PATTERN):
        raise ValueError(f"{what} is {pattern!r}; it must be a pattern 're:...' or a list of names")
    hits = {target.name: re.fullmatch(pattern[len(PATTERN) :], target.name) for target in targets}
    found = {name: hit.groups() for name, hit in hits.items() if hit is not None}
    if not found:
        raise ValueError(f"{what} is {pattern!r}, which matches no layer that is factored")
    return found


def _of_names(targets: Sequence[Target], names: list[Any], what: str) -> dict[str, Any]:
    """Whole names have the key "", ends of names what stands before them."""
    found: dict[str, Any] = {}
    for name in names:
        check_rule(name, f"an entry of {what}")
        if name.startswith(PATTERN):
            raise ValueError(f"{what} has {name!r} in a list; a pattern must be an entry of groups itself")
        hits = [target.name for target in targets if f".{target.name}".endswith(f".{name}")]
        if not hits:
            known = sorted({target.name.rpartition(".")[2] for target in targets})
            raise ValueError(
                f"{what} has {name!r}, with which the name of no layer that is factored ends"
                f"{suggestion(name, known)}"
            )
        found |= {hit: hit.removesuffix(name) for hit in hits}
    return found


def _require_one_length(members: Sequence[Target], key: Any) -> None:
    lengths = {target.shape[1] for target in members}
    if len(lengths) > 1:
        shown = ", ".join(f"{target.name} ({target.shape[0]} x {target.shape[1]})" for target in members[:4])
        raise ValueError(
            f"groups[{key[0]}] joins {shown}; the layers of a group must have equally many columns, as those "
            "that read one input"
        )
