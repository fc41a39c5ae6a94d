"""benchmarks/common and the pages: files of results, the command line, docs that say what was measured."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    Benchmark = Callable[[str], ModuleType]


def test_the_pages_say_what_was_measured(benchmark: Benchmark) -> None:
    pages = benchmark("pages")
    found = {path.name: old == new for path, old, new in pages.pages()}
    assert {"models.md", "products.md", "quality.md", "solver.md"} <= found.keys()
    assert all(found.values()), "run: python benchmarks pages"


def test_every_table_is_on_a_page_and_every_figure_drawn(benchmark: Benchmark) -> None:
    pages = benchmark("pages")
    text = "".join(old for _, old, _ in pages.pages())
    for name in (*pages.TABLES, "methods"):
        assert f"<!-- begin {name} -->" in text
    for name in pages.FIGURES:
        assert f"]({name}.svg)" in text
        assert (pages.PAGES / f"{name}.svg").is_file()


def test_a_table_needs_a_known_name_and_an_end(benchmark: Benchmark) -> None:
    pages, error = benchmark("pages"), benchmark("common").BenchmarkError
    with pytest.raises(error, match="no table is named nothing"):
        pages.filled("<!-- begin nothing -->\n<!-- end nothing -->")
    with pytest.raises(error, match="large must begin and end once"):
        pages.filled("<!-- begin large -->\n")


def test_headline_has_at_most_nine_rows(benchmark: Benchmark) -> None:
    head, rows = benchmark("headline").headline(benchmark("common.results").load)
    assert 1 <= len(rows) <= 9
    assert {len(row) for row in rows} == {len(head)}


def test_results_are_written_whole_a_row_a_line(benchmark: Benchmark, tmp_path: Path) -> None:
    results, path = benchmark("common.results"), tmp_path / "folder" / "r.json"
    report = {
        "machine": {"cpu": "a"},
        "rows": [{"x": 1}, {"x": [2, 3]}],
        "cells": {"a": {"y": "±"}},
        "none": [],
    }
    results.write(path, report)
    assert results.read(path) == report | {"commit": results.commit()}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert '  {"x": [2, 3]}' in lines
    assert '  "a": {"y": "±"}' in lines
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(path, report | {"rows": [{"x": float("nan")}]})
    assert results.read(path)["rows"] == report["rows"]
    assert [each.name for each in path.parent.iterdir()] == ["r.json"]


def test_results_measured_otherwise_are_not_gone_on_with(benchmark: Benchmark, tmp_path: Path) -> None:
    results, error = benchmark("common.results"), benchmark("common").BenchmarkError
    path, fresh = tmp_path / "r.json", {"machine": {"cpu": "a", "isas": ["x"]}, "threads": 1, "rows": []}
    assert results.go_on(path, fresh) is fresh
    kept = fresh | {"rows": [{"x": 1}]}
    results.write(path, kept)
    assert results.go_on(path, fresh, ("machine", "threads"))["rows"] == kept["rows"]
    for change, what in (
        ({"machine": {"cpu": "b", "isas": ["x"]}}, "cpu was a, is b"),
        ({"machine": {"cpu": "a"}}, r"isas was \['x'\], is None"),
        ({"threads": 2}, "threads was 1, is 2"),
    ):
        with pytest.raises(error, match=rf"r.json was measured otherwise \({what}"):
            results.go_on(path, fresh | change, ("machine", "threads"))
    path.write_text("[]")
    with pytest.raises(error, match="holds no results"):
        results.go_on(path, fresh)


def test_columns_are_aligned(benchmark: Benchmark) -> None:
    tables = benchmark("common.tables")
    assert tables.aligned(["", "us"], [["diba", "8"], ["x", "1,000"]]) == (
        "         us\ndiba      8\nx     1,000"
    )
    assert tables.markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| :--- | ---: |\n| x | 1 |"


def run(source_root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(source_root / "benchmarks"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_line_from_another_folder(source_root: Path, tmp_path: Path) -> None:
    listed = run(source_root, tmp_path, "--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "matvec" in listed.stdout
    shown = run(source_root, tmp_path, "show", "solve")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("| matrix |")
    refused = run(source_root, tmp_path, "show", "solve", "--plot", "x.svg")
    assert refused.returncode == 2
    assert "solve has no figure" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_every_benchmark_is_listed_and_has_options(
    benchmark: Benchmark, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = benchmark("__main__")
    listed = "\n" + textwrap.indent(textwrap.dedent(entry.__doc__.partition("\n\n")[2]), "  ")
    for name, place in entry.PLACES.items():
        assert f"\n  {name} " in listed
        with pytest.raises(SystemExit) as stop:
            getattr(benchmark(place), "show" if name == "show" else "main")(["--help"])
        assert stop.value.code == 0
        assert f"benchmarks {name}" in capsys.readouterr().out


def test_a_worker_gives_back_what_its_work_returns(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    process = benchmark("common.process")
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "task = json.loads(sys.argv[3])\n"
        "if 'fail' in task: sys.exit('no more memory')\n"
        "open(sys.argv[4], 'w').write(json.dumps([task['x'], os.environ['Y']]))\n"
    )
    monkeypatch.setattr(process, "BENCHMARKS", script)
    assert process.in_process("name", {"x": 1}, {"Y": "2"}) == [1, "2"]
    with pytest.raises(benchmark("common").BenchmarkError, match="no more memory"):
        process.in_process("name", {"fail": True}, {})
