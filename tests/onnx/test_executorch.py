"""Programs of ExecuTorch against dense products in float64. dev.py builds the library for this alone."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

LIBRARY = os.environ.get("DIBA_EXECUTORCH", "")
if not LIBRARY:
    pytest.skip("DIBA_EXECUTORCH names no libdiba_executorch.so", allow_module_level=True)

import torch  # noqa: E402
from torch import nn  # noqa: E402

with warnings.catch_warnings():  # that say what will be gone from Python
    warnings.simplefilter("ignore")
    from executorch.runtime import Runtime

import diba.executorch  # noqa: E402
import diba.torch  # noqa: E402
import tiny_models  # noqa: E402
from arrays import random_factors  # noqa: E402
from diba.cli import main  # noqa: E402
from diba.onnx import ExportError  # noqa: E402
from diba.onnx.operations import matrix_bytes  # noqa: E402
from diba.torch import DibaAPBLinear, DibaBitLinear, DibaLinear  # noqa: E402
from exported import (  # noqa: E402
    CONVOLUTIONS,
    Everything,
    as_rows,
    expected,
    inputs,
    store_wrong_matrices,
)
from tiny_language import language_model  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(2, 37, generator=torch.Generator().manual_seed(0))


def export(model: nn.Module, example: Any, path: Path, **settings: Any) -> Any:
    return diba.executorch.export(model, example, path, **{"library": LIBRARY, "progress": False, **settings})


def run(path: Path, *given: torch.Tensor) -> list[torch.Tensor]:
    return list(Runtime.get().load_program(path).load_method("forward").execute(list(given)))


def layer(alphabet: str = "sign", **settings: Any) -> DibaLinear:
    f = random_factors(21, 13, 37, alphabet).diba
    return DibaLinear.from_factorization(f, bias=torch.ones(21), **settings)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: Any) -> tuple[Everything, Path]:
    model, path = Everything().eval(), tmp_path_factory.mktemp("executorch") / "model.pte"
    done = export(model, inputs(2, 4), path, largest={"batch": 6, "length": 12})
    assert set(done.layers) == {"binary", "signs", "rows", "tied", *CONVOLUTIONS}
    return model, path


@pytest.mark.parametrize(("batch", "length"), [(2, 4), (1, 1), (6, 12)])
def test_every_layer_is_within_its_bound(everything: Any, batch: int, length: int) -> None:
    model, path = everything
    given = inputs(batch, length, seed=batch)
    names = list(model(**given))
    for name, y in zip(names, run(path, *given.values()), strict=True):
        wanted, allowed = expected(model, name, given, quantized=True)
        assert np.all(np.abs(as_rows(name, y.numpy()) - wanted) <= allowed), name


def test_bits_are_stored_once(tmp_path: Path) -> None:
    wide = random_factors(512, 512, 512, "sign").diba
    module = DibaLinear.from_factorization(wide)
    twins = nn.Sequential(module, module, DibaLinear.from_factorization(wide))
    done = export(twins, torch.randn(1, 512), tmp_path / "model.pte")
    assert len(done.layers) == 2
    bits = 2 * 512 * 512 // 8
    assert bits < done.model_bytes < 1.2 * bits


def test_products_are_those_of_the_core(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    module = layer()
    export(module, X, path, largest={"batch": 50})
    x = torch.randn(49, 37)
    assert torch.equal(run(path, x)[0], module(x))
    export(module, X, path, precision="exact")
    exact = module.factorization().to_dense().astype(np.float64) @ X.numpy().T.astype(np.float64)
    assert np.allclose(run(path, X)[0].numpy() - 1, exact.T, rtol=1e-4, atol=1e-4)


def test_layers_of_few_bits_and_of_exceptions(tmp_path: Path) -> None:
    torch.manual_seed(3)
    signs = DibaAPBLinear.from_dense(nn.Linear(64, 32), exceptions=0.05, scales="rows")
    model = nn.Sequential(signs, DibaBitLinear(32, 48, activation_bits=2, weight_bits=1, bias=True))
    x, path = torch.randn(5, 64), tmp_path / "model.pte"
    export(model, x, path, largest={"batch": 9})
    assert torch.equal(run(path, x)[0], model(x))


def test_tables_of_a_language_model_are_codes(tmp_path: Path) -> None:
    example, path = {"input_ids": torch.arange(6)[None]}, tmp_path / "model.pte"
    done = export(language_model(), example, path, largest={"length": 9}, embeddings=4)
    assert done.tables == {"model.embed_tokens": 4, "lm_head": 8}
    assert [x.inputs for x in done.checks] == ["input_ids (1, 6)", "input_ids (1, 4)"]


class Hidden(nn.Module):
    """A model of sentences, as far as its outputs go."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(300, 64)
        self.layer = DibaLinear.from_factorization(random_factors(48, 40, 64, "sign").diba)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        kinds = 1 if token_type_ids is None else 1 + token_type_ids[..., None]
        return self.layer(self.rows(input_ids) * kinds) * attention_mask[..., None]


@pytest.mark.parametrize("kinds", [False, True])
def test_a_program_runs_without_python(tmp_path: Path, kinds: bool) -> None:
    ids = torch.tensor([[101, 7, 299, 102]])
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    example |= {"token_type_ids": torch.ones_like(ids)} if kinds else {}
    path, model = tmp_path / "model.pte", Hidden().eval()
    export(model, example, path, largest={"length": 16}, embeddings=None)
    program = [os.environ["DIBA_EMBED_EXECUTORCH"], path, *map(str, ids[0, :3].tolist())]
    told = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()
    wanted = nn.functional.normalize(model(ids[:, :3], torch.ones(1, 3)).mean(1)).detach()[0]
    assert np.allclose(np.array(told, np.float64), wanted.numpy(), atol=1e-5)


def test_the_command_line(tmp_path: Path, capsys: Any) -> None:
    model = diba.torch.convert(tiny_models.build("bert")[0], bits_per_weight=2, progress=False)
    model.save_pretrained(tmp_path / "model")
    paths = [str(tmp_path / name) for name in ("model", "out")]
    assert main(["export", *paths, "--executorch", "--library", LIBRARY, "--length", "16", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["path"], facts["data"]) == (str(tmp_path / "out" / "model.pte"), None)
    assert {check["inputs"] for check in facts["checks"]} == {
        f"input_ids (1, {length}), attention_mask (1, {length})" for length in (12, 8)
    }
    ids = torch.arange(16)[None] % 50
    hidden = run(tmp_path / "out" / "model.pte", ids, torch.ones_like(ids))[0]
    wanted = model(ids, torch.ones_like(ids)).last_hidden_state.detach()
    most = max(check["allowed"] for check in facts["checks"])  # of each from exact products
    assert float((hidden - wanted).norm() / wanted.norm()) < 2 * most


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"largest": {"width": 3}}, "largest names 'width'; the example has batch"),
        ({"largest": {"batch": 1}}, r"largest\['batch'\] is 1; the example has 2"),
        ({"embeddings": 16}, "embeddings is 16; it must be 8, 4 or None"),
        ({"precision": "low"}, "precision is 'low'"),
    ],
)
def test_wrong_arguments_say_what_to_do(tmp_path: Path, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(layer(), X, tmp_path / "model.pte", **settings)
    with pytest.raises(ValueError, match=r"it must end in \.pte"):
        export(layer(), X, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_wrong_program_is_noticed_and_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    store_wrong_matrices(monkeypatch)
    with pytest.raises(ExportError, match="computes something else"):
        export(layer(), X, tmp_path / "model.pte")
    assert not list(tmp_path.iterdir())


def test_damage_is_refused_when_the_program_is_loaded(tmp_path: Path, capfd: Any) -> None:
    path, module = tmp_path / "model.pte", layer()
    export(nn.Sequential(module), X, path)
    stored, factors = path.read_bytes(), matrix_bytes(module.factorization()).tobytes()
    of_factors, of_types = stored.index(factors) + len(factors) - 9, stored.index(b"uint8")
    for place, what in ((of_factors, "factors"), (of_types, "type")):
        damaged = bytearray(stored)
        damaged[place] ^= 4
        path.write_bytes(bytes(damaged))
        with pytest.raises(RuntimeError, match="load method"):
            run(path, X)
        said = capfd.readouterr().err
        assert "diba::Linear '0'" in said
        assert what in said
    path.write_bytes(stored)
    with pytest.raises(RuntimeError):
        run(path, X[:, :-1])
