"""A small dense model, its factored copy, data and a loss: what the tests of retuning train."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba
from diba.torch import DibaLinear

SIZES = (36, 40, 28, 5)


def dense_model(norm: bool = False) -> nn.Sequential:
    """Weights of quickly falling spectrum, as trained ones have."""
    rng = np.random.default_rng(0)
    modules: list[nn.Module] = []
    for n, m in pairwise(SIZES):
        layer = nn.Linear(n, m)
        with torch.no_grad():
            low = rng.standard_normal((m, 3)) @ rng.standard_normal((3, n))
            full = low + 0.3 * rng.standard_normal((m, n))
            layer.weight.copy_(torch.from_numpy(full / np.sqrt(3 * n)))
            layer.bias.copy_(torch.from_numpy(0.1 * rng.standard_normal(m)))
        modules += [layer, nn.Tanh()] if not norm else [layer, nn.LayerNorm(m), nn.Tanh()]
    modules = modules[: -2 if norm else -1]
    return nn.Sequential(*modules)


def factored(dense: nn.Sequential, alphabet: Any = "binary") -> nn.Sequential:
    """The model with all layers but the last factored."""
    model = copy.deepcopy(dense)
    linear = [i for i, module in enumerate(model) if isinstance(module, nn.Linear)]
    for i in linear[:-1]:
        w = dense[i].weight.detach().numpy()  # type: ignore[union-attr, operator]
        f = diba.solve(w, k=24, alphabet=alphabet, effort="fast", threads=1)
        model[i] = DibaLinear.from_factorization(f, bias=dense[i].bias)  # type: ignore[arg-type]
    return model


def inputs(count: int, seed: int = 1) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal((64, SIZES[0])).astype(np.float32)) for _ in range(count)]


def regression(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """The names of tensors that differ."""
    return {name for name in a if not torch.equal(a[name], b[name])}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
