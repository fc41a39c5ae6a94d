"""Entries of factored layers and the checks of a checkpoint, on plain values."""

from __future__ import annotations

import copy
import json
import zlib

import numpy as np
import pytest

from diba import FormatError
from diba.checkpoints.entries import (
    Tensor,
    check_all,
    check_entries,
    check_headers,
    check_tensor,
    crc32_of_all,
    entry,
    factored_in,
    sealed,
)

M, N, K = 5, 11, 3


def arrays():
    rng = np.random.default_rng(0)
    packed = {own: rng.integers(0, 2, shape) for own, shape in (("b1", (M, K)), ("b2", (K, N)))}
    tensors = {own: np.packbits(bits, axis=1, bitorder="little") for own, bits in packed.items()}
    sizes = (("d1", M), ("d2", K), ("d3", N))
    return tensors | {own: rng.standard_normal(size).astype(np.float32) for own, size in sizes}


@pytest.fixture
def entries():
    """A linear layer with a bias and an embedding that shares its factors."""
    layer = entry("a.b", "DibaLinear", (M, N), K, "binary", True)
    shared = entry("e", "DibaEmbedding", (M, N), K, "binary", False, shared="a.b")
    return {"a.b": sealed("a.b", layer, arrays()), "e": shared}


@pytest.fixture
def headers():
    names = {"u1": "U8", "f4": "F32"}
    tensors = {f"a.b.{own}": Tensor(names[t.dtype.str[1:]], t.shape) for own, t in arrays().items()}
    guards = {"a.b.weight": Tensor("F32", (0,)), "e.weight": Tensor("F32", (0,))}
    return tensors | guards | {"a.b.bias": Tensor("BF16", (M,)), "norm.weight": Tensor("F32", (N,))}


def crc(name, layer):
    """Of an entry, by its definition."""
    rest = {key: value for key, value in layer.items() if key != "crc32_entry"}
    return f"{zlib.crc32(json.dumps([name, rest], sort_keys=True).encode()):08x}"


def closed(name, layer, **changed):
    """An entry with other values and the right CRC."""
    layer = {key: value for key, value in {**layer, **changed}.items() if value is not None}
    return {**layer, "crc32_entry": crc(name, layer)}


def test_what_is_written_is_accepted_and_is_plain(entries, headers):
    assert check_entries(json.loads(json.dumps(entries))) == entries
    assert check_headers(entries, headers, "folder") == set()
    assert entries["a.b"]["crc32_entry"] == crc("a.b", entries["a.b"])
    for own, values in arrays().items():
        assert entries["a.b"]["crc32"][own] == f"{zlib.crc32(values.tobytes()):08x}"
        check_tensor("a.b", entries["a.b"], own, values, "folder")
    assert factored_in(headers) == ["a.b"]
    copied = check_entries(entries)
    copied["a.b"]["shape"][0] = 1
    assert entries["a.b"]["shape"][0] == M


def test_every_change_of_an_entry_is_found(entries):
    others = [
        None, True, 0, -1, 1.5, "x", "sign", "DibaEmbedding", [], [M], [M, N, 1], [N, M], {}, 50_000_000,
        2**41, [True, N], "00000000", "e",
    ]  # fmt: skip
    for name, layer in entries.items():
        for key in (*layer, "more"):
            changes = [{k: v for k, v in layer.items() if k != key}] if key in layer else []
            changes += [{**layer, key: other} for other in others if other != layer.get(key)]
            for changed in changes:
                with pytest.raises(FormatError, match=rf"config\.json: factors\['{name}'\]"):
                    check_entries({**entries, name: changed})
    renamed = {"a.c" if name == "a.b" else name: layer for name, layer in entries.items()}
    with pytest.raises(FormatError, match=r"factors\['a.c'\] is damaged"):
        check_entries(renamed)


@pytest.mark.parametrize("value", [None, [1], "factors", 3, {"": {}}, {1: {}}, {"a": None}, {"a": []}])
def test_what_is_no_dict_of_entries(value):
    with pytest.raises(FormatError, match="factors"):
        check_entries(value)


def test_missing_and_renamed_entries_are_found(entries):
    crc32 = crc32_of_all(entries)
    assert check_all(dict(reversed(entries.items())), crc32) == entries
    kept = {"a.b": entries["a.b"]}
    for changed, value in ((kept, crc32), (entries, None), (entries, "00000000"), ({}, crc32), ({}, None)):
        with pytest.raises(FormatError, match="entries in factors are missing or renamed"):
            check_all(changed, value)


def test_shared_factors_must_be_there_and_alike(entries):
    shared = entries["e"]
    for changed in (
        {"shape": [M, N + 1]},
        {"k": K + 1},
        {"alphabet": "sign"},
        {"shared": "f"},
        {"shared": "e"},
    ):
        with pytest.raises(FormatError, match=r"factors\['e'\] shares"):
            check_entries({**entries, "e": closed("e", shared, **changed)})


@pytest.mark.parametrize("own", ["d1", "d2", "d3", "b1", "b2", "bias"])
def test_headers_that_do_not_fit_name_layer_and_tensor(entries, headers, own):
    key = f"a.b.{own}"
    changes = [None, Tensor(headers[key].dtype, (*headers[key].shape, 1)), Tensor(headers[key].dtype, (2,))]
    changes += [] if own == "bias" else [Tensor("I32", headers[key].shape)]
    for changed in changes:
        damaged = {name: tensor for name, tensor in headers.items() if name != key}
        damaged |= {} if changed is None else {key: changed}
        with pytest.raises(FormatError, match=rf"^folder: a\.b\.{own} "):
            check_headers(entries, damaged, "folder")


def test_layers_without_entries_and_entries_without_layers(entries, headers):
    with pytest.raises(FormatError, match=r"a\.b is factored in the files, and config\.json has no entry"):
        check_headers({}, headers, "folder")
    with pytest.raises(FormatError, match=r"e\.d1 is there, but config\.json says"):
        check_headers(entries, {**headers, "e.d1": headers["a.b.d1"]}, "folder")
    no_bias = {"a.b": closed("a.b", entries["a.b"], bias=False)}
    with pytest.raises(FormatError, match=r"a\.b\.bias has shape \(5,\), expected none"):
        check_headers(no_bias, headers, "folder")
    renamed = {name.replace("a.b", "x.b"): tensor for name, tensor in headers.items()}
    assert check_headers(entries, renamed, "folder") == {"a.b"}  # checked once loaded
    big = {"a.b": closed("a.b", entries["a.b"], k=50_000_000, crc32=None)}
    with pytest.raises(FormatError, match=r"a\.b is not in the files, which hold \d+ numbers"):
        check_headers(big, renamed, "folder")
    with pytest.raises(FormatError, match=r"a\.b\.d2 has shape \(3,\), expected \(50000000,\)"):
        check_headers(big, headers, "folder")


def test_values_that_are_damaged(entries):
    layer, plain = entries["a.b"], entry("a.b", "DibaLinear", (M, N), K, "binary", True)
    for own, values in arrays().items():
        for index in range(values.nbytes):
            damaged = values.copy()
            damaged.reshape(-1).view(np.uint8)[index] ^= 1 << index % 8
            with pytest.raises(FormatError, match=rf"^folder: a\.b\.{own} is missing or damaged: its CRC-32"):
                check_tensor("a.b", layer, own, damaged, "folder")
        with pytest.raises(FormatError, match=rf"a\.b\.{own} is .* expected"):
            check_tensor("a.b", layer, own, values[..., :-1], "folder")
        with pytest.raises(FormatError, match=rf"a\.b\.{own} is .* expected"):
            check_tensor("a.b", layer, own, values.astype(np.int64), "folder")
        if own in ("d1", "d2", "d3"):
            for bad in (np.nan, np.inf, -np.inf):
                damaged = values.copy()
                damaged[-1] = bad
                with pytest.raises(FormatError, match=rf"a\.b\.{own} has NaN or infinite entries"):
                    check_tensor("a.b", plain, own, damaged, "folder")
        else:
            damaged = values.copy()
            damaged[-1, -1] |= 0x80
            with pytest.raises(FormatError, match=rf"a\.b\.{own} has ones past its last column"):
                check_tensor("a.b", plain, own, damaged, "folder")


def test_what_could_not_be_loaded_is_not_sealed():
    plain = entry("a.b", "DibaLinear", (M, N), K, "binary", True)
    tensors = copy.deepcopy(arrays())
    tensors["d2"][0] = np.nan
    with pytest.raises(FormatError, match=r"the model: a\.b\.d2 has NaN"):
        sealed("a.b", plain, tensors)
