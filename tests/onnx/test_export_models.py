"""Architectures of transformers, exported: other batches and lengths than the example's, against PyTorch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import diba.onnx
import diba.torch
import tiny_models
from diba import cli

if TYPE_CHECKING:
    from pathlib import Path


def compressed(name: str) -> tuple[Any, list[dict[str, Any]]]:
    """A model of one block, and the batches of all tests of it."""
    model, batches = tiny_models.build(name)
    blocks = model.encoder.layer if name == "bert" else model.model.layers
    del blocks[1:]
    model.config.num_hidden_layers = 1
    return diba.torch.convert(model, bits_per_weight=4, effort="fast", progress=False), batches


def dense(model: Any) -> Any:
    """The model with the dense layers that the factors stand for, in float64."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, diba.torch.FactoredLayer):
            model.set_submodule(name, layer.to_dense_module())
    return model.double()


def padded(batch: int, length: int, kept: int) -> dict[str, Any]:
    ids = torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[-1, kept:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def state(model: Any) -> dict[str, Any]:
    """What an export must leave as it was."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "config": model.config.to_dict() | {"attention": model.config._attn_implementation},
        "grad": [p.requires_grad for p in model.parameters()],
    }


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    tensors = all(torch.equal(a["tensors"][name], b["tensors"][name]) for name in a["tensors"])
    return tensors and all(a[key] == b[key] for key in a if key != "tensors")


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_model_computes_the_same_at_all_sizes(name: str, tmp_path: Path) -> None:
    model, (example, _) = compressed(name)
    example = {key: value[:1] for key, value in example.items()}  # one row, and yet any number of them
    model.train()
    before = state(model)
    done = diba.onnx.export(model, example, tmp_path / "model.onnx", progress=False)
    assert equal(before, state(model))
    assert len(done.checks) == 2 * (2 if name == "bert" else 1)
    session = diba.onnx.session(done.path)
    output = {"bert": "last_hidden_state", "llama": "logits"}[name]
    plain = dense(model.eval())
    for batch, length, kept in ((1, 1, 1), (3, 12, 5), (4, 31, 30)):
        given = padded(batch, length, kept)
        feed = {key: value.numpy() for key, value in given.items()}
        [y] = session.run([output], feed)
        with torch.no_grad():
            wanted = plain(**given)[output].numpy()
        # Some products in a row, each with noise of 0.56 % (45 dB) of its own; no output is far off.
        error = np.linalg.norm(y - wanted) / np.linalg.norm(wanted)
        assert error < 0.0056 * np.sqrt(len(done.layers)), (batch, length)
        alone = {key: value[:1] for key, value in feed.items()}
        np.testing.assert_allclose(session.run([output], alone)[0][0], y[0], atol=0.02 * np.abs(y).max())


def test_the_command_line_exports_a_folder(tmp_path: Path, capsys: Any) -> None:
    model, _ = compressed("bert")
    source, out = tmp_path / "model", tmp_path / "out"
    model.save_pretrained(source)
    capsys.readouterr()
    arguments = ["export", str(source), str(out), "--standard", "--embeddings", "none", "--json"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    facts = json.loads(capsys.readouterr().out)
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.onnx.data", "config.json"}
    assert facts["path"] == str(out / "model.onnx")
    assert facts["model_bytes"] == (out / "model.onnx").stat().st_size
    assert all(found["error"] <= found["allowed"] == 1e-3 for found in facts["checks"])
    given = padded(2, 6, 4)
    session = diba.onnx.session(out / "model.onnx")
    y = session.run(["last_hidden_state"], {key: value.numpy() for key, value in given.items()})[0]
    with torch.no_grad():
        wanted = dense(model)(**given).last_hidden_state.numpy()
    np.testing.assert_allclose(y, wanted, atol=1e-4)


def test_the_command_line_names_what_is_wrong(tmp_path: Path, capsys: Any) -> None:
    def refused(*arguments: str) -> str:
        assert cli.main(["export", *arguments]) == 2
        return str(capsys.readouterr().err)

    assert "must be a folder" in refused(str(tmp_path / "missing"), str(tmp_path / "out"))
    assert "is the model's folder" in refused(str(tmp_path), str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["NoSuchModel"]}')
    assert "names the class NoSuchModel" in refused(str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
