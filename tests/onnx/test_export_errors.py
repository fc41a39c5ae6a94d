"""Exports that are refused leave the model and the folder as they were; sessions name what is wrong."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diba.onnx
from arrays import random_factors
from diba.onnx import ExportError, library
from diba.torch import DibaLinear
from exported import store_wrong_matrices
from run_python import python

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(3, 37, generator=torch.Generator().manual_seed(0))


def layer() -> DibaLinear:
    return DibaLinear.from_factorization(random_factors(21, 13, 37, "sign").diba, bias=torch.ones(21))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    diba.onnx.export(nn.Sequential(layer()), X, path, check=False, progress=False)
    return path


def test_a_wrong_export_is_noticed_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_wrong_matrices(monkeypatch)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older model")
    with pytest.raises(ExportError, match=r"computes something else: output 'output' is .* % from exact"):
        diba.onnx.export(layer(), X, path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"an older model"
    assert diba.onnx.export(layer(), X, path, tolerance=10.0, progress=False).checks[0].error > 0.1


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = layer()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(x.sum()) > 0 else x


def test_a_model_that_cannot_be_traced_is_left_alone(tmp_path: Path) -> None:
    model = Branch().train()
    with pytest.raises(ExportError, match=r"cannot trace Branch: .*dynamic_shapes"):
        diba.onnx.export(model, X, tmp_path / "model.onnx", progress=False)
    assert model.training
    assert "forward" not in vars(model.layer)
    assert not list(tmp_path.iterdir())


def test_what_onnxruntime_lacks_is_named_with_the_mend(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer().bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y + y

    with pytest.raises(ExportError, match=r"cannot load .* torch\.bfloat16, .* use model\.float\(\)"):
        diba.onnx.export(Sum(), X.bfloat16(), tmp_path / "m.onnx", progress=False)
    assert not list(tmp_path.iterdir())


def test_arguments_are_checked_before_the_work(tmp_path: Path) -> None:
    def refused(kind: Any, match: str, example: Any = X, path: Any = None, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            diba.onnx.export(layer(), example, path or tmp_path / "m.onnx", progress=False, **options)

    refused(ValueError, "embeddings is 3; it must be 16, 8, 4 or None", embeddings=3)
    refused(ValueError, "head is True", head=True)
    refused(ValueError, "precision", precision="half")
    refused(ValueError, "opset is 17", opset=17)
    refused(FileNotFoundError, "the folder does not exist", path=tmp_path / "no" / "m.onnx")
    refused(IsADirectoryError, "directory", path=tmp_path)
    refused(TypeError, "example holds no tensors", example={"x": None})
    refused(ValueError, "example has 2 arguments; the model takes 1", example=(X, X))
    refused(ValueError, "dynamic_shapes names 'y'", dynamic_shapes={"y": {0: "batch"}})
    assert not list(tmp_path.iterdir())


def test_fixed_sizes_own_names_and_names_of_inputs(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": self.layer(x)}

    done = diba.onnx.export(Named(), (X,), tmp_path / "a.onnx", dynamic=False, progress=False)
    session = diba.onnx.session(done.path)
    assert [(v.name, v.shape) for v in session.get_inputs()] == [("x", [3, 37])]
    assert [v.name for v in session.get_outputs()] == ["x_output"]
    options: dict[str, Any] = {
        "input_names": ["a"],
        "output_names": ["b"],
        "dynamic_shapes": {"x": {0: "rows"}},
    }
    steps: list[str | None] = []
    done = diba.onnx.export(
        Named(), {"x": X}, tmp_path / "b.onnx", **options, progress=lambda state: steps.append(state.item)
    )
    session = diba.onnx.session(done.path, threads=None, log_severity_level=3)
    assert [(v.name, v.shape) for v in session.get_inputs()] == [("a", ["rows", 37])]
    assert [v.name for v in session.get_outputs()] == ["b"]
    assert steps == [None, "plan", "trace", "pack", "write", "check"]
    assert "1 factored layers" in str(done)


def test_damage_is_named(exported: Path) -> None:
    data = exported.read_bytes()
    at = data.index(b"crc32_b1")  # in the factors, which are small enough to lie in the graph
    exported.write_bytes(data[: at + 12] + b"\0" + data[at + 13 :])
    with pytest.raises(RuntimeError, match=r"cannot load it: .*'0'"):
        diba.onnx.session(exported, log_severity_level=4)
    exported.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="cannot load it"):
        diba.onnx.session(exported, log_severity_level=4)


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(DibaLinear(300, 200, 100), nn.Linear(200, 70))
    done = diba.onnx.export(model, torch.randn(2, 300), tmp_path / "m.onnx", check=False, progress=False)
    whole = done.data.read_bytes()
    diba.onnx.session(done.path, verify=True)

    def refused(data: bytes, match: str) -> None:
        done.data.write_bytes(data)
        with pytest.raises(RuntimeError, match=match):
            diba.onnx.session(done.path, verify=True, log_severity_level=4)

    at = whole.index(b"crc32_b1") + 600  # among the bits of the factors
    refused(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], "cannot load it: .*'0'")
    weight = model[1].weight.detach().numpy()
    at = max(whole.find(w.tobytes()) for w in (weight, weight.T.copy()))
    refused(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], "is damaged: its SHA-256")
    refused(whole + b"x", rf"has {len(whole) + 1} bytes; m.onnx needs one of {len(whole)}")
    refused(whole[:-5000], "cannot load it")
    done.data.unlink()
    with pytest.raises(RuntimeError, match="cannot load it"):
        diba.onnx.session(done.path, log_severity_level=4)


def test_sessions_say_what_is_missing(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    with pytest.raises(FileNotFoundError):
        diba.onnx.session(exported.with_name("missing.onnx"))
    with pytest.raises(TypeError, match="SessionOptions has no speed"):
        diba.onnx.session(exported, speed=3)
    with pytest.raises(ValueError, match="threads is 0"):
        diba.onnx.session(exported, threads=0)
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "1.16.3")
        with pytest.raises(ImportError, match=r"onnxruntime is 1\.16\.3; .* needs 1\.17 or newer"):
            diba.onnx.session(exported)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ImportError, match=r"diba\[onnx\]"):
            diba.onnx.session(exported)
    monkeypatch.setattr(library, "__file__", str(exported.parent / "onnx" / "library.py"))
    with pytest.raises(RuntimeError, match=r"cannot load it: .*has no operators for onnxruntime"):
        diba.onnx.session(exported, log_severity_level=4)
    with pytest.raises(FileNotFoundError):
        diba.onnx.export(layer(), X, exported, progress=False)


def test_standard_operators_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "__file__", str(tmp_path / "onnx" / "library.py"))
    done = diba.onnx.export(layer(), X, tmp_path / "m.onnx", standard=True, progress=False)
    quiet = {"session.intra_op.allow_spinning": "0"}
    [y] = diba.onnx.session(done.path, entries=quiet).run(None, {"x": X.numpy()})
    assert y.shape == (3, 21)
    assert np.isfinite(y).all()


def test_a_session_imports_no_torch() -> None:
    code = "import sys, diba.onnx\nprint([x for x in ('torch', 'onnx', 'onnxruntime') if x in sys.modules])"
    done = python(code)
    assert (done.stdout, done.stderr) == ("[]\n", "")
