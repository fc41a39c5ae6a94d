"""The operators in other runtimes: the oldest onnxruntime that is supported, and OpenVINO."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .environment import BUILD, PYTHON, ROOT, Failure, pip, run, wheel

# The oldest that has wheels for this Python; diba.onnx states the floor.
OLDEST = "onnxruntime==1.17.3" if sys.version_info < (3, 13) else "onnxruntime==1.20.0"
PLAIN = ("onnx", "pytest", "pytest-timeout", "safetensors")


def environment_of(name: str, *packages: str) -> Path:
    """An environment of its own, with the wheel of diba; returns its Python."""
    folder = BUILD / "runtimes" / name
    python = folder / "bin" / "python"
    if not python.exists():
        run(PYTHON, "-m", "venv", folder)
    pip("install", *PLAIN, *packages, python=python)
    pip("install", "--force-reinstall", "--no-deps", wheel(), python=python)
    return python


def test(python: Path, *files: str, **extra: str) -> None:
    with tempfile.TemporaryDirectory(prefix="diba-test-") as folder:
        run(
            *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"),
            *(ROOT / "tests" / "onnx" / file for file in files),
            cwd=Path(folder),
            DIBA_SOURCE_ROOT=str(ROOT),
            show=True,
            **extra,
        )


def test_oldest() -> None:
    test(environment_of("oldest", OLDEST, "numpy<2"), "test_operators.py")


def test_openvino() -> None:
    """Builds the extension with the SDK of OpenVINO's own wheel."""
    python = environment_of("openvino", "numpy", "openvino")
    where = "import openvino, pathlib; print(pathlib.Path(openvino.__file__).parent / 'cmake')"
    sdk, folder = run(python, "-c", where).strip(), BUILD / "openvino"
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, f"-DOpenVINO_DIR={sdk}", "-DDIBA_WERROR=ON")
    run("cmake", "--build", folder, "--target", "diba_openvino")
    library = folder / "libdiba_openvino.so"
    if not library.exists():
        raise Failure(f"{library} was not built")
    test(python, "test_openvino.py", DIBA_OPENVINO=str(library))
