"""The committed corpus, and some thousand mutants by every driver; ``dev.py fuzz`` goes on for minutes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from fuzz.drivers import DRIVERS
from fuzz.engine import Driver, keep, kept, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fuzz.mutations import Content

# Driver -> folder of tests/corpus, mutants.
RUNS = {
    "binarized": ("binarized", 3000),
    "files": ("files", 3000),
    "readers": ("files", 3000),
    "calibration": ("calibration", 3000),
    "checkpoints": ("checkpoints", 3000),
}


@pytest.fixture(params=RUNS)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    made = DRIVERS[request.param]()
    yield made
    made.close()


def test_every_file_of_the_corpus_is_read_or_refused_as_it_must_be(driver: Driver, source_root: Path) -> None:
    folder = source_root / "tests" / "corpus" / RUNS[driver.name][0]
    for verdict in ("good", "bad"):
        paths = sorted((folder / verdict).iterdir())
        assert paths
        for path in paths:
            read = driver.check(kept(path), None) is not None
            assert read == (verdict == "good"), path


def test_mutants_are_refused_or_read_as_what_they_were(driver: Driver) -> None:
    result = run(driver, mutants=RUNS[driver.name][1])
    assert result.faults == []
    assert result.mutants == RUNS[driver.name][1]
    assert result.accepted > result.mended_accepted > 0  # of either kind, else this meant little
    assert result.measured > 0


class Trusting(Driver):
    """A reader that believes what it is told, and allocates what it reads ten times over."""

    name = "trusting"

    def seeds(self) -> list[Content]:
        return [b'{"size": 40}' + bytes(30_000)]

    def check(self, mutant: Content, seed: Content | None) -> int | None:
        assert isinstance(mutant, bytes)
        if mutant[:1] != b"{":
            raise RecursionError("deep")
        assert seed is None or mutant[:12] == seed[:12], "it decodes to something else"
        copies = [bytes(mutant) + b"\0" for _ in range(10)]
        return len(copies) * 0


def test_the_engine_itself_finds_faults(tmp_path: Path) -> None:
    """Other exceptions, other content, more memory than twice the content."""
    result = run(Trusting(), mutants=300, most_faults=10**6)
    problems = {problem.split(":")[0] for problem, _ in result.faults}
    assert problems == {"RecursionError", "AssertionError"}
    assert any("bytes allocated for" in problem for problem, _ in result.faults)
    assert any("something else" in problem for problem, _ in result.faults)
    again = run(Trusting(), mutants=300, most_faults=10**6)
    assert again.faults == result.faults  # the n-th mutant is the same in every run
    mutant = result.faults[0][1]
    assert kept(keep(mutant, tmp_path)) == mutant
    folder: Content = {"config.json": b"{}", "model.safetensors": b"\0"}
    assert kept(keep(folder, tmp_path)) == folder
    shutil.rmtree(tmp_path)
