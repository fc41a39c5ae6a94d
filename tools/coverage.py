"""What the tests reach: lines and branches of the package and of the core."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checks import build_core, pytest
from .environment import BUILD, PYTHON, ROOT, pip, run

CORE, EXTENSION, SITE = BUILD / "coverage", BUILD / "coverage-extension", BUILD / "coverage-site"
RESULTS, PAGES = BUILD / "coverage-results", BUILD / "coverage-pages"
PACKAGES = ("diba", "diba_autoload")
# GCC counts branches of its own, too, for exceptions and destructors: those of lines that decide nothing.
DECIDES = r"\b(if|for|while|switch|case)\b|\?|&&|\|\|"
GCOVR = (
    *("gcovr", "--merge-mode-functions=separate", "--merge-lines", "--exclude-throw-branches"),
    "--gcov-suspicious-hits-threshold=0",  # four thousand million times are possible in a kernel
    f"--exclude-branches-by-pattern=^(?!.*({DECIDES}))",
)


def forget(objects: Path) -> None:
    """Remove the counts of the last run, and the notes on sources that have gone since."""
    for file in [*objects.rglob("*.gcda"), *objects.rglob("*.gcno")]:
        source = ROOT / file.with_suffix("").as_posix().partition(".dir/")[2]
        if file.suffix == ".gcda" or not source.is_file():
            file.unlink()


def measure_core() -> None:
    """The C++ tests in a build that counts."""
    build_core("coverage")
    forget(CORE)
    run("ctest", "--preset", "coverage", show=True)


def measure_package(args: Sequence[str]) -> None:
    """The Python tests against the package in a build of its own whose extension counts, too."""
    shutil.rmtree(SITE, ignore_errors=True)
    pip(
        *("install", "--no-deps", "--no-build-isolation", "--target", SITE, ROOT),
        *(f"-Cbuild-dir={EXTENSION}", "-Ccmake.build-type=Debug", "-Ccmake.define.DIBA_COVERAGE=ON"),
        "-Ccmake.define.CMAKE_CXX_FLAGS_DEBUG=-O1",
    )
    forget(EXTENSION)
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    places = {"COVERAGE_FILE": str(RESULTS / "package"), "PYTHONPATH": str(SITE), "DIBA_BUILD_DIR": ""}
    measured = (*(f"--cov={name}" for name in PACKAGES), "--cov-branch", "--cov-report=")
    skipped = "not installation and not slow"  # tests of the wheel itself, and emulated processors
    with tempfile.TemporaryDirectory(prefix="diba-coverage-") as folder:
        pytest(
            Path(folder), "-m", skipped, *measured, f"--cov-config={ROOT / 'pyproject.toml'}", *args, **places
        )


# ---- the report


@dataclass
class Module:
    """What there is to reach in one file, and whether a test did."""

    name: str
    lines: dict[int, bool] = field(default_factory=dict)
    branches: dict[tuple[int, int], bool] = field(default_factory=dict)  # (line, which one of it)

    @property
    def missing(self) -> int:
        return sum(not reached for points in (self.lines, self.branches) for reached in points.values())

    @property
    def share(self) -> float:
        return 1 - self.missing / max(len(self.lines) + len(self.branches), 1)

    def not_reached(self) -> str:
        """The lines, and those lines of the others of which a branch is not taken."""
        lines = ranges(line for line, reached in self.lines.items() if not reached)
        taken_in_part = {line for (line, _), reached in self.branches.items() if not reached}
        branches = ranges(line for line in taken_in_part if self.lines.get(line, True))
        return "; ".join(
            f"{what} {where}" for what, where in (("lines", lines), ("branches", branches)) if where
        )


def ranges(numbers: Iterable[int]) -> str:
    """2, 3, 4, 7 as 2-4, 7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in found)


def modules_of_package(path: Path) -> list[Module]:
    """From the JSON of coverage.py."""
    modules = []
    for name, file in json.loads(path.read_text(encoding="utf-8"))["files"].items():
        lines = dict.fromkeys(file["executed_lines"], True) | dict.fromkeys(file["missing_lines"], False)
        branches = dict.fromkeys(map(tuple, file["executed_branches"]), True)
        branches |= dict.fromkeys(map(tuple, file["missing_branches"]), False)
        modules.append(Module(str(Path(name).relative_to(SITE.relative_to(ROOT))), lines, branches))
    return modules


def reported(entries: Iterable[Any]) -> Iterator[Any]:
    return (entry for entry in entries if not entry.get("gcovr/excluded"))


def modules_of_core(path: Path) -> list[Module]:
    """From the JSON of gcovr, which has each instance of a template: a line is reached if one of them is."""
    modules = []
    for file in json.loads(path.read_text(encoding="utf-8"))["files"]:
        module = Module(str(Path(file["file"]).relative_to("cpp")))
        for entry in reported(file["lines"]):
            line = entry["line_number"]
            module.lines[line] = module.lines.get(line, False) or entry["count"] > 0
            for branch in reported(entry["branches"]):
                key = line, branch["branchno"]
                module.branches[key] = module.branches.get(key, False) or branch["count"] > 0
        modules.append(module)
    return modules


def percent(points: Collection[bool]) -> str:
    return f"{100 * sum(points) / len(points):.1f} %" if points else "-"


def row(name: str, lines: Collection[bool], branches: Collection[bool], rest: str) -> None:
    print(f"   {name:<40} {percent(lines):>8} {percent(branches):>8}  {rest}", flush=True)


def table(title: str, modules: Sequence[Module]) -> None:
    """A line for each module that is not reached whole, the least reached first, and the totals."""
    print(f"   {title:<40} {'lines':>8} {'branches':>8}  not reached")
    for module in sorted(modules, key=lambda module: (module.share, module.name)):
        if module.missing:
            row(module.name, module.lines.values(), module.branches.values(), module.not_reached())
    whole = sum(not module.missing for module in modules)
    lines = [reached for module in modules for reached in module.lines.values()]
    branches = [reached for module in modules for reached in module.branches.values()]
    counted = f"of {len(lines)} lines, {len(branches)} branches; {whole} of {len(modules)} files whole"
    row(f"{title}, total", lines, branches, counted)


def report() -> None:
    """Both as tables; pages for a browser in build/coverage-pages."""
    (PAGES / "core").mkdir(parents=True, exist_ok=True)
    for form, where in (("html", ("-d", PAGES / "package")), ("json", ("-o", RESULTS / "package.json"))):
        run(PYTHON, "-m", "coverage", form, "-q", f"--data-file={RESULTS / 'package'}", *where)
    pages = ("--html-details", PAGES / "core" / "index.html", "--json", RESULTS / "core.json")
    run(*GCOVR, "--root", ROOT, "--filter", f"{ROOT}/cpp/", *pages, CORE, EXTENSION)
    table("package", modules_of_package(RESULTS / "package.json"))
    print()
    table("core", modules_of_core(RESULTS / "core.json"))
