"""Changes of contents: blind ones of bytes, and ones that know JSON and the safetensors container."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

Content = bytes | dict[str, bytes]

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 16, 255, 2**16, 2**31, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64, 2**70)
VALUES: tuple[Any, ...] = (
    *NUMBERS, -1, -4, -(2**63), 0.0, -0.0, 1.0, 4.0, 1e300, float("nan"), float("inf"), True, False, None,
    "", "0", "1", "-1", "9", "00", "4.0", " 4", "1e400", "NaN", "x" * 300, "é𝄞", "\0", "\ud800", "U8", "I8",
    "F16", "F32", "F64", "BF16", "binary", "sign", "diba", [], {}, [4], [4, 2], [[]], {"a": {}},
)  # fmt: skip
SNIPPETS = (
    b"-0", b"1e0", b"1.0", b"01", b"NaN", b"-Infinity", b"\\ud800", b"\\u0041", b"\\u00e9", b"\\q", b"\\u12",
    b"\xef\xbb\xbf", b"\0", b"\x1f", b"\x7f", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xc3\xa9", b'"', b"'",
    b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\x0b", b"\xc2\xa0", b"//", b"null", b'"a":1,',
    b'"more":[],', b'"__metadata__":{},', b"18446744073709551616", b"[" * 3000, b'{"":' * 3000, b"9" * 5000,
)  # fmt: skip


def mutate(content: Content, rng: random.Random, others: list[Content]) -> Content:
    """A content with one to three changes; ``others`` are what it may be spliced with."""
    if isinstance(content, dict):
        name = rng.choice(sorted(content))
        if rng.random() < 0.02:
            return {key: part for key, part in content.items() if key != name}
        parts = [part for other in others if isinstance(other, dict) for part in other.values()]
        return {**content, name: _mutate_bytes(content[name], rng, parts)}
    return _mutate_bytes(content, rng, [other for other in others if isinstance(other, bytes)])


def _mutate_bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_WAYS)(data, rng, others)
    return data


# ---------------------------------------------------------------- bytes


def _flip(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(changed), rng.choice((1, 1, 2, 8)))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    kinds = (
        rng.randbytes(rng.randint(1, 4)),
        rng.choice(NUMBERS).to_bytes(9, "little")[: rng.choice((1, 2, 4, 8))],
        bytes(rng.randint(1, 16)),
        b"\xff" * rng.randint(1, 8),
    )
    new, at = rng.choice(kinds), rng.randint(0, len(data))
    return data[:at] + new + data[at + len(new) :]


def _truncate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return data[: rng.randint(0, len(data))]


def _append(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return data + rng.choice((b"\0", b" ", rng.randbytes(8), data[: rng.randint(0, len(data))]))


def _cut(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.choice((1, 2, 8, 64)) :]


def _insert(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(SNIPPETS) + data[at:]


def _repeat(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    begin = rng.randint(0, len(data))
    end, at = begin + rng.choice((1, 4, 8, 50)), rng.randint(0, len(data))
    return data[:at] + data[begin:end] + data[at:]


def _splice(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    spliced = data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]
    return data if spliced == other else spliced  # another seed, whole, is no mutant of this one


# ---------------------------------------------------------------- JSON, and JSON before tensors


def split(data: bytes) -> tuple[bytes, bytes] | None:
    """Header and tensor bytes of a safetensors file; None if it is none."""
    length = int.from_bytes(data[:8], "little")
    if len(data) > 8 and data[8:9] == b"{" and length <= len(data) - 8:
        return data[8 : 8 + length], data[8 + length :]
    return None


def join(header: bytes, tensors: bytes) -> bytes:
    """The safetensors file of both."""
    return len(header).to_bytes(8, "little") + header + tensors


def _of_header(way: Callable[[bytes, random.Random], bytes]) -> Callable[..., bytes]:
    """The change of a header, or of a whole file that is JSON."""

    def change(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
        parts = split(data)
        if parts is not None:
            return join(way(parts[0], rng), parts[1])
        return way(data, rng) if data[:1] in b"{[" else _flip(data, rng, others)

    return change


def _edit_text(text: bytes, rng: random.Random) -> bytes:
    """At a place where tokens meet: something that is no longer JSON, or JSON of another meaning."""
    places = [i for i, c in enumerate(text) if c in b'{}[],:"']
    at = rng.choice(places) + rng.randint(0, 1) if places else 0
    skipped = rng.choice((0, 0, 0, 1, 2))
    return text[:at] + rng.choice(SNIPPETS) + text[at + skipped :]


def _edit_json(text: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _edit_text(text, rng)
    nodes = _nodes(value)
    if nodes:
        _edit_node(rng.choice(nodes), rng, nodes)
    separators = rng.choice(((",", ":"), (", ", ": "), (" ,\t", "\r\n:")))
    made = json.dumps(value, ensure_ascii=rng.random() < 0.5, separators=separators)
    return made.encode("utf-8", "surrogatepass") + b" " * rng.choice((0, 0, 0, 1, 7))


def _nodes(value: Any) -> list[Any]:
    """All objects and arrays within that are not empty."""
    found, waiting = [], [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (dict, list)) and node:
            found.append(node)
            waiting += node.values() if isinstance(node, dict) else node
    return found


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))  # later changes must not reach the constant


def _edit_node(node: Any, rng: random.Random, nodes: list[Any]) -> None:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    key, other = rng.choice(keys), rng.choice(keys)
    way = rng.randrange(7)
    if way == 0:
        node[key] = _value(rng)
    elif way == 1:
        del node[key]
    elif way == 2:
        node[key], node[other] = node[other], node[key]
    elif way == 3 and isinstance(node, dict):
        node[rng.choice(("more", "", "d4", "é", key + "x", "__metadata__"))] = node.pop(key)
    elif way == 4 and isinstance(node, dict):
        items = list(node.items())
        rng.shuffle(items)
        node.clear()
        node.update(items)
    elif way == 5 and isinstance(node[key], str):
        node[key] = _edit_word(node[key], rng)
    elif isinstance(node[key], (int, float)):
        node[key] += rng.choice((-8, -1, 1, 8, 1 << 32))
    elif isinstance(node, dict):
        node[f"{key}."] = rng.choice((_value(rng), node[other]))
    else:
        node.append(rng.choice((_value(rng), node[other])))


def _edit_word(word: str, rng: random.Random) -> str:
    at = rng.randint(0, len(word))
    return rng.choice(
        (word[:at], word + "0", word[:at] + rng.choice("09a-.{") + word[at + 1 :], word.upper())
    )


def _edit_tensors(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    parts = split(data)
    way = rng.choice((_flip, _overwrite))
    return join(parts[0], way(parts[1], rng, others)) if parts and parts[1] else way(data, rng, others)


_WAYS: tuple[Callable[[bytes, random.Random, list[bytes]], bytes], ...] = (
    _flip, _overwrite, _truncate, _append, _cut, _insert, _repeat, _splice, _edit_tensors, _edit_tensors,
    _of_header(_edit_text), _of_header(_edit_text), _of_header(_edit_json), _of_header(_edit_json),
    _of_header(_edit_json),
)  # fmt: skip
