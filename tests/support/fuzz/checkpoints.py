"""Checkpoints of transformers models: ``config.json`` and a file of tensors, as far as factors go."""

from __future__ import annotations

import functools
import io
import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

import diba
from diba._internal.codes import Codes, quantize
from diba.checkpoints.description import Description, crc32_of_entries
from diba.checkpoints.integrity import Stored, check_stored
from diba.checkpoints.layers import LayerDescription, LayerRecipe

from .engine import Driver
from .files import check_message
from .mutations import split

if TYPE_CHECKING:
    from .mutations import Content

CONFIG, FILE = "config.json", "model.safetensors"
OWN = ("d1", "d2", "d3", "b1", "b2")


def example(
    sizes: dict[str, tuple[int, int, int, str]],
    shared: dict[str, str],
    coded: dict[str, tuple[int, int, int]] | None = None,
) -> dict[str, bytes]:
    """A checkpoint of random layers, name -> (m, k, n, alphabet), and of others that share their factors.

    ``coded``: name -> (m, n, bits) of layers with codes.
    """
    from safetensors.numpy import save

    rng = np.random.default_rng(len(sizes))
    tensors: dict[str, Any] = {"norm.weight": np.ones(3, np.float32)}
    layers = {}
    recipe = LayerRecipe(objective="plain", snr_db=float("inf"), seconds=0.5)
    for name, (m, k, n, alphabet) in sizes.items():
        own: dict[str, Any] = {
            d: rng.standard_normal(size).astype(np.float32) for d, size in zip(OWN, (m, k, n), strict=False)
        }
        for b, shape in (("b1", (m, k)), ("b2", (k, n))):
            own[b] = np.packbits(rng.integers(0, 2, shape), axis=1, bitorder="little")
        plain = LayerDescription(
            kind="Linear", shape=(m, n), k=k, alphabet=alphabet, bias=False, recipe=recipe
        )
        layers[name] = plain.sealed(name, own)
        tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    for name, (m, n, bits) in (coded or {}).items():
        made = quantize(rng.standard_normal((m, n)), bits)
        own = {"d1": made.d1, "codes": made.codes} | ({} if made.steps is None else {"steps": made.steps})
        table = LayerDescription(kind="Linear", shape=(m, n), codes=bits, bias=False, recipe=recipe)
        layers[name] = table.sealed(name, own)
        tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    for name, owner in shared.items():
        m, k, n, alphabet = sizes[owner]
        layers[name] = LayerDescription(
            kind="Embedding", shape=(m, n), k=k, alphabet=alphabet, bias=False, shared=owner
        )
    guards = {f"{name}.weight": np.empty(0, np.float32) for name in layers}
    quantization = Description(layers=layers).to_dict()
    config = {"hidden_size": 3, "quantization_config": {"quant_method": "diba", **quantization}}
    return {CONFIG: json.dumps(config).encode(), FILE: save({**tensors, **guards}, {"format": "pt"})}


def read(content: dict[str, bytes]) -> tuple[dict[str, LayerDescription], Stored] | None:
    """Layers and files that are whole; None where others refuse them, before or after."""
    try:
        quantization = json.loads(content[CONFIG])["quantization_config"]
        quantization["factors"], quantization.get("crc32_factors")
        data = content[FILE]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None  # transformers' business, or nothing that diba is asked to read
    layers = dict(Description.from_dict(quantization, "the file").layers)
    stored = Stored({"the file": functools.partial(io.BytesIO, data)}, "the file")
    elsewhere = check_stored(layers, stored)
    return None if elsewhere else (layers, stored)  # which transformers would not find


def fingerprint(layers: dict[str, LayerDescription], stored: Stored) -> dict[str, Any]:
    """All that was read of the layers, to the last bit."""
    found = {}
    for name, layer in layers.items():
        source = layer.shared or name
        facts = layer.kind, layer.shape, layer.k, layer.alphabet, layer.bias, layer.codes, layer.group
        found[name] = facts, source, [stored.array(f"{source}.{own}").tobytes() for own in layer.tensors]
    return found


class CheckpointsDriver(Driver):
    """Whatever is accepted decodes to the seed, and can be multiplied by."""

    name = "checkpoints"

    def seeds(self) -> list[Content]:
        return [
            example({"a": (1, 1, 1, "sign")}, {}),
            example(
                {"model.embed": (4, 9, 11, "binary"), "b.é": (3, 16, 8, "sign")}, {"head": "model.embed"}
            ),
            example({}, {}, {"eight": (3, 5, 8), "four": (2, 35, 4)}),
        ]

    def mend(self, mutant: Content) -> Content | None:
        assert isinstance(mutant, dict)
        try:
            config = json.loads(mutant[CONFIG])
            parts = split(mutant[FILE])
            header = {} if parts is None else json.loads(parts[0])
            for name, layer in config["quantization_config"]["factors"].items():
                for own in layer.get("crc32", ()):
                    begin, end = header[f"{name}.{own}"]["data_offsets"]
                    layer["crc32"][own] = f"{zlib.crc32(parts[1][begin:end]):08x}"
                rest = {key: value for key, value in layer.items() if key != "crc32_entry"}
                text = json.dumps([name, rest], sort_keys=True)
                layer["crc32_entry"] = f"{zlib.crc32(text.encode()):08x}"
            factors = config["quantization_config"]["factors"]
            config["quantization_config"]["crc32_factors"] = crc32_of_entries(factors)
            return {**mutant, CONFIG: json.dumps(config).encode()}
        except (TypeError, KeyError, ValueError, IndexError, AttributeError, RecursionError):
            return None

    def check(self, mutant: Content, seed: Content | None) -> int | None:
        assert isinstance(mutant, dict)
        try:
            found = read(mutant)
        except diba.FormatError as error:
            check_message(error)
            return None
        if found is None:
            return None
        layers, stored = found
        for name, layer in layers.items():
            if layer.shared is None:
                tensors = {own: stored.array(f"{name}.{own}") for own in layer.tensors}
                if layer.codes:
                    facts = layer.shape, layer.codes, layer.group, tensors["d1"], tensors["codes"]
                    assert np.isfinite(Codes(*facts, tensors.get("steps")).rows()).all()
                    continue
                assert all(np.isfinite(tensors[d]).all() for d in OWN[:3])
                b1 = diba.BitMatrix.from_packed_rows(tensors["b1"], layer.k, layer.alphabet)
                b2 = diba.BitMatrix.from_packed_rows(tensors["b2"], layer.shape[1], layer.alphabet)
                assert (b1.shape[0], b2.shape[1]) == layer.shape
        if seed is not None:
            assert isinstance(seed, dict)
            original = read(seed)
            assert original is not None
            assert fingerprint(layers, stored) == fingerprint(*original), "it decodes to something else"
        return sum(map(len, mutant.values()))
