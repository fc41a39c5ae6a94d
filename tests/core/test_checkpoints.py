"""The description of a compressed model and the checks of a checkpoint, without torch."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import zlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from diba import FormatError
from diba.checkpoints.description import (
    Description,
    Recipe,
    crc32_of_entries,
    crc32_of_names,
)
from diba.checkpoints.entries import layer_reports
from diba.checkpoints.integrity import Tensor, check_headers, factored_in, inspect
from diba.checkpoints.layers import LayerDescription, LayerRecipe

M, N, K = 5, 11, 3


def arrays():
    rng = np.random.default_rng(0)
    packed = {own: rng.integers(0, 2, shape) for own, shape in (("b1", (M, K)), ("b2", (K, N)))}
    tensors = {own: np.packbits(bits, axis=1, bitorder="little") for own, bits in packed.items()}
    sizes = (("d1", M), ("d2", K), ("d3", N))
    return tensors | {own: rng.standard_normal(size).astype(np.float32) for own, size in sizes}


RECIPE = LayerRecipe(objective="plain", snr_db=7.25, output_snr_db=math.inf, seconds=0.5)
PLAIN = LayerDescription(kind="Linear", shape=(M, N), k=K, alphabet="binary", bias=True, recipe=RECIPE)
SHARED = LayerDescription(kind="Embedding", shape=(M, N), k=K, alphabet="binary", bias=False, shared="a.b")


@pytest.fixture
def layers():
    """A linear layer with a bias and an embedding that shares its factors."""
    return {"a.b": PLAIN.sealed("a.b", arrays()), "e": SHARED}


@pytest.fixture
def entries(layers):
    """The same as JSON has it."""
    return Description(layers=layers).to_dict()["factors"]


def check_entries(entries):
    return dict(Description.from_dict({"factors": entries}, whole=False).layers)


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


def test_what_is_written_is_accepted_and_is_plain(layers, entries, headers):
    assert check_entries(json.loads(json.dumps(entries, allow_nan=False))) == layers
    assert check_headers(layers, headers, "folder") == set()
    assert entries["a.b"]["crc32_entry"] == crc("a.b", entries["a.b"])
    for own, values in arrays().items():
        assert entries["a.b"]["crc32"][own] == f"{zlib.crc32(values.tobytes()):08x}"
        layers["a.b"].check_tensor("a.b", own, values, "folder")
    assert factored_in(headers) == ["a.b"]


def test_a_description_survives_json_and_knows_its_sizes(layers):
    recipe = Recipe(settings={"k": 3}, left_dense={"head": "left out by 'head'"}, seconds=1.5)
    description = Description(layers=layers, recipe=recipe, crc32_names="01234567")
    values = {"quant_method": "diba", "format_version": 1, **description.to_dict()}
    assert Description.from_dict(json.loads(json.dumps(values, allow_nan=False))) == description
    assert Description.from_dict(Description().to_dict()) == Description()
    [report] = layer_reports(description)
    assert (report.name, report.tied, report.snr_db, report.output_snr_db) == ("a.b", ("e",), 7.25, math.inf)
    tensors = arrays()
    assert report.dense_bytes == 4 * M * N
    assert report.memory_bytes == sum(t.nbytes for t in tensors.values())
    assert report.file_bytes == report.memory_bytes - 2 * (M + K + N)
    assert layers["a.b"].diagonal_bits == 32
    rounded = {
        **tensors,
        **{own: tensors[own].astype(np.float16).astype(np.float32) for own in ("d1", "d2", "d3")},
    }
    assert PLAIN.sealed("a.b", rounded).diagonal_bits == 16


def test_every_change_of_an_entry_is_found(entries):
    others = [
        None, True, 0, -1, 1.5, "x", "sign", "Conv2d", [], [M], [M, N, 1], [N, M], {}, 50_000_000,
        2**41, [True, N], "00000000", "e", {"snr_db": "nan"}, {"seconds": 10**400}, {"objective": "x"},
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
    crc32 = crc32_of_entries(entries)
    turned = {"factors": dict(reversed(entries.items())), "crc32_factors": crc32}
    assert Description.from_dict(turned).layers == check_entries(entries)
    kept = {"a.b": entries["a.b"]}
    for changed, value in ((kept, crc32), (entries, None), (entries, "00000000"), ({}, crc32), ({}, None)):
        with pytest.raises(FormatError, match="entries in factors are missing or renamed"):
            Description.from_dict({"factors": changed, "crc32_factors": value})


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
def test_headers_that_do_not_fit_name_layer_and_tensor(layers, headers, own):
    key = f"a.b.{own}"
    changes = [None, Tensor(headers[key].dtype, (*headers[key].shape, 1)), Tensor(headers[key].dtype, (2,))]
    changes += [] if own == "bias" else [Tensor("I32", headers[key].shape)]
    for changed in changes:
        damaged = {name: tensor for name, tensor in headers.items() if name != key}
        damaged |= {} if changed is None else {key: changed}
        with pytest.raises(FormatError, match=rf"^folder: a\.b\.{own} "):
            check_headers(layers, damaged, "folder")


def test_layers_without_entries_and_entries_without_layers(layers, headers):
    with pytest.raises(FormatError, match=r"a\.b is factored in the files, and config\.json has no entry"):
        check_headers({}, headers, "folder")
    with pytest.raises(FormatError, match=r"e\.d1 is there, but config\.json says"):
        check_headers(layers, {**headers, "e.d1": headers["a.b.d1"]}, "folder")
    no_bias = {"a.b": dataclasses.replace(layers["a.b"], bias=False)}
    with pytest.raises(FormatError, match=r"a\.b\.bias has shape \(5,\), expected none"):
        check_headers(no_bias, headers, "folder")
    renamed = {name.replace("a.b", "x.b"): tensor for name, tensor in headers.items()}
    assert check_headers(layers, renamed, "folder") == {"a.b"}  # checked once loaded
    big = {"a.b": dataclasses.replace(layers["a.b"], k=50_000_000, crc32=None)}
    with pytest.raises(FormatError, match=r"a\.b is not in the files, which hold \d+ numbers"):
        check_headers(big, renamed, "folder")
    with pytest.raises(FormatError, match=r"a\.b\.d2 has shape \(3,\), expected \(50000000,\)"):
        check_headers(big, headers, "folder")


def test_values_that_are_damaged(layers):
    layer = layers["a.b"]
    for own, values in arrays().items():
        for index in range(values.nbytes):
            damaged = values.copy()
            damaged.reshape(-1).view(np.uint8)[index] ^= 1 << index % 8
            with pytest.raises(FormatError, match=rf"^folder: a\.b\.{own} is missing or damaged: its CRC-32"):
                layer.check_tensor("a.b", own, damaged, "folder")
        with pytest.raises(FormatError, match=rf"a\.b\.{own} is .* expected"):
            layer.check_tensor("a.b", own, values[..., :-1], "folder")
        with pytest.raises(FormatError, match=rf"a\.b\.{own} is .* expected"):
            layer.check_tensor("a.b", own, values.astype(np.int64), "folder")
        if own in ("d1", "d2", "d3"):
            for bad in (np.nan, np.inf, -np.inf):
                damaged = values.copy()
                damaged[-1] = bad
                with pytest.raises(FormatError, match=rf"a\.b\.{own} has NaN or infinite entries"):
                    PLAIN.check_tensor("a.b", own, damaged, "folder")
        else:
            damaged = values.copy()
            damaged[-1, -1] |= 0x80
            with pytest.raises(FormatError, match=rf"a\.b\.{own} has ones past its last column"):
                PLAIN.check_tensor("a.b", own, damaged, "folder")


def test_what_could_not_be_loaded_is_not_sealed():
    tensors = copy.deepcopy(arrays())
    tensors["d2"][0] = np.nan
    with pytest.raises(FormatError, match=r"the model: a\.b\.d2 has NaN"):
        PLAIN.sealed("a.b", tensors)


@pytest.mark.parametrize(
    ("key", "values"), [("left_dense", [[1], {"a": 1}, "x"]), ("seconds", ["x", [], 10**400, math.nan])]
)
def test_damage_beside_the_layers(key, values):
    for value in values:
        with pytest.raises(FormatError, match=f"{key} is "):
            Description.from_dict({key: value})


# ---------------------------------------------------------------- a whole folder


@pytest.fixture
def folder(layers, tmp_path):
    """A checkpoint with these layers, a dense one and a norm."""
    tensors = {f"a.b.{own}": values for own, values in arrays().items()}
    tensors |= {f"{name}.weight": np.empty(0, np.float32) for name in layers}
    tensors |= {"a.b.bias": np.ones(M, np.float32), "norm.weight": np.ones(N, np.float32)}
    tensors |= {"head.weight": np.ones((2, N), np.float16)}
    recipe = Recipe(settings={"k": 3}, left_dense={"head": "left out by 'head'"}, seconds=1.5)
    description = Description(layers=layers, recipe=recipe, crc32_names=crc32_of_names(tensors))
    config = {"quantization_config": {"quant_method": "diba", "format_version": 1, **description.to_dict()}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_inspect_reports_without_torch(folder):
    report = inspect(folder)
    assert [(x.name, x.tied, x.snr_db) for x in report.layers] == [("a.b", ("e",), 7.25)]
    [left] = report.skipped
    assert (left.name, left.reason, left.weights, left.bytes) == ("head", "left out by 'head'", 2 * N, 4 * N)
    assert report.parameters_before == M * N + M + N + 2 * N
    assert report.parameters_after == (M + K + N) + M + N + 2 * N
    assert report.bytes_before == 4 * (M * N + M + N) + 4 * N
    assert report.bytes_after == report.layers[0].memory_bytes + 4 * (M + N) + 4 * N
    assert (report.seconds, report.settings) == (1.5, {"k": 3})
    assert "1 layer compressed: " in str(report)


def test_inspect_of_dense_shards(folder):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    names = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
    for name, file in names.items():
        save_file({name: np.ones((3, 2), np.float32)}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert [(x.name, x.reason) for x in inspect(folder).skipped] == [("a", "dense"), ("b", "dense")]
    for damaged in ({}, {"weight_map": ["one.safetensors"]}, {"weight_map": {"a.weight": 1}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(damaged))
        with pytest.raises(FormatError, match=r"index\.json: weight_map is missing or damaged"):
            inspect(folder)


def test_inspect_refuses_damage(folder):
    good = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(good[:-1])
    with pytest.raises(FormatError, match="cut short"):
        inspect(folder)
    (folder / "model.safetensors").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    (folder / "config.json").write_text("[1]")
    with pytest.raises(FormatError, match=r"config\.json: is a list"):
        inspect(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"config\.json: is no JSON"):
        inspect(folder)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        inspect(folder)
