"""A trained network as the bytes of a file, and back: what is tested was rebuilt from them.

Files are safetensors. A layer of few bits is its packed codes and its scales; everything else (biases,
normalisation with its statistics, what stays dense) is there in 16 bits, or in 32 for the network in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import nn
from torch.nn.utils import parametrize

import diba
import diba.torch
from diba._internal.apb_bytes import decoded_exceptions

from .quantizers import quantizer_of, values

__all__ = ["rebuilt", "stored"]

Tensors = dict[str, NDArray[Any]]


def stored(model: nn.Module, narrow: bool = True) -> bytes:
    """The file of a network.

    Args:
        model: Trained.
        narrow: Whether floats are stored in 16 bits.
    """
    tensors: Tensors = {}
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, layer in model.named_modules():
        own = tensors_of(layer)
        if own:
            tensors |= {f"{name}.{part}": array for part, array in own.items()}
            bias = state.get(f"{name}.bias")
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state |= {} if bias is None else {f"{name}.bias": bias}
    kind = np.float16 if narrow else np.float32
    for name, tensor in state.items():
        if tensor.is_floating_point():  # all but the counts of batches
            tensors[name] = tensor.numpy().astype(kind)
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()})


def tensors_of(layer: nn.Module) -> Tensors:
    """What a layer of few bits stores beside its bias; nothing for others."""
    if isinstance(layer, diba.torch.FactoredLayer):
        parts = {name: half(getattr(layer, name)) for name in ("d1", "d2", "d3")}
        letter = "s" if layer.sign else "b"
        return parts | {f"{letter}1": layer.b1.numpy(), f"{letter}2": layer.b2.numpy()}
    if isinstance(layer, diba.torch.DibaAPBLayer):
        return {"alpha": half(layer.alpha)} | {name: getattr(layer, name).numpy() for name in layer.bit_names}
    if parametrize.is_parametrized(layer, "weight"):
        quantizer = quantizer_of(layer)
        with torch.no_grad():
            codes = quantizer.codes(layer.parametrizations.weight.original).numpy()
        return {"codes": planes(codes, quantizer.bits), "scale": half(quantizer.scale)}
    return {}


def half(scale: torch.Tensor) -> NDArray[np.float16]:
    return scale.detach().numpy().astype(np.float16).reshape(-1)


def planes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """(bits, weights / 8): the lowest bits of all codes, then the next ones."""
    flat = codes.reshape(-1)
    return np.stack([np.packbits(flat >> bit & 1, bitorder="little") for bit in range(bits)])


def codes_of(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, :count]
    return (bits << np.arange(len(bits), dtype=np.uint8)[:, None]).sum(0).astype(np.uint8)


# ---- back


def rebuilt(file: bytes, network: nn.Module) -> nn.Module:
    """The network of a file, with dense weights.

    Args:
        file: From :func:`stored`.
        network: The dense network, with weights of any values, which are replaced.
    """
    parts: dict[str, Tensors] = {}
    for name, array in load(file).items():
        layer, _, part = name.rpartition(".")
        parts.setdefault(layer, {})[part] = array
    state = {}
    for name, own in parts.items():
        shape = network.get_submodule(name).weight.shape
        if "weight" not in own:
            own["weight"] = matrix(own, shape[0], shape[1:].numel()).reshape(shape)
        for part in ("weight", "bias", "running_mean", "running_var"):
            if part in own:
                state[f"{name}.{part}"] = torch.from_numpy(own[part].astype(np.float32))
    counts = {name: tensor for name, tensor in network.state_dict().items() if name.endswith("tracked")}
    network.load_state_dict(state | counts)
    return network.eval()


def matrix(own: Tensors, m: int, n: int) -> NDArray[np.float32]:
    """The weight of a layer by what it stores."""
    if "codes" in own:
        codes = torch.from_numpy(codes_of(own["codes"], m * n))
        scale = torch.from_numpy(own["scale"].astype(np.float32))
        return values(codes, len(own["codes"]), scale).numpy()
    if "signs" in own:
        signs = diba.BitMatrix.from_packed_rows(own["signs"], n, "sign")
        return diba.APB(own["alpha"].astype(np.float32), signs, *decoded_exceptions(own)).to_dense()
    d1, d2, d3 = (own[part].astype(np.float32) for part in ("d1", "d2", "d3"))
    letter, alphabet = ("s", "sign") if "s1" in own else ("b", "binary")
    first, second = (
        diba.BitMatrix.from_packed_rows(own[f"{letter}{part}"], columns, alphabet)
        for part, columns in ((1, len(d2)), (2, n))
    )
    return diba.Factorization(d1, first, d2, second, d3).to_dense()
