"""A model that shares its weights with its teacher becomes what one with a copy of its own becomes."""

from __future__ import annotations

import copy

import torch

import diba.torch
from diba.torch.calibration.dense import separate, sharing
from tiny_models import build


def test_the_teacher_stays_as_it_is() -> None:
    dense, batches = build("llama")
    before = copy.deepcopy(dense.state_dict())
    results = []
    for make in (sharing, copy.deepcopy):
        model = make(dense)
        steps = {"steps": 4, "tune_steps": 4}
        diba.torch.convert(
            model, bits_per_weight=2, effort="fast", batches=batches * 2, reconstruct=steps, teacher=dense,
            progress=False,
        )  # fmt: skip
        separate(model, dense)
        diba.torch.retune(model, batches, teacher=dense, norms=True, max_steps=2, progress=False)
        results.append(model.state_dict())
        assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_weights_are_shared_until_they_are_separated() -> None:
    dense, _ = build("t5")
    model = sharing(dense)
    pairs = list(zip(dense.parameters(), model.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    separate(model.encoder, dense)
    inside = {id(p) for p in model.encoder.parameters()}
    assert all((a.data_ptr() != b.data_ptr()) == (id(b) in inside) for a, b in pairs)
