"""Several stages as one piece of work: shares, times left, and what runs that go on know of earlier ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diba.compressing import stages as module
from diba.compressing.recipe import CompressSettings
from diba.compressing.stages import Stages, fitted_seconds
from diba.progress import Progress, Steps, hears_details
from diba.torch.conversion import work as work_module
from diba.torch.conversion.work import Work


class Clock:
    """A clock that only stands still or is put forward."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for used in (module, work_module):
        monkeypatch.setattr(used, "time", found)
    monkeypatch.setattr("diba.progress.time", found)
    return found


def stage(stages: Stages, name: str, clock: Clock, seconds: float, steps: int = 10, first: int = 0) -> None:
    """Work through a stage whose first steps an earlier run has done."""
    with stages.stage(name) as heard:
        assert callable(heard)
        steps_done = Steps(name, steps, heard)
        for step in range(first + 1, steps + 1):
            clock.now += seconds / steps
            steps_done.begin(first)
            steps_done.done(step)


def test_the_pace_of_one_stage_tells_the_time_of_the_others(clock: Clock) -> None:
    seen: list[Progress] = []
    stages = Stages(seen.append, {"load": 1.0, "fit": 30.0, "write": 2.0})
    stage(stages, "load", clock, 2.0)
    assert seen[0].remaining == 33
    assert seen[-1].remaining == pytest.approx(64)  # the machine is half as fast as was estimated
    stage(stages, "fit", clock, 120.0)
    halfway = next(state for state in seen if state.task == "fit" and state.done == 5)
    assert halfway.remaining == pytest.approx(60 + 2 * 122 / 31)
    assert halfway.fraction == pytest.approx(62 / (122 + 2 * 122 / 31))
    with stages.stage("write", "files"):
        assert (seen[-1].task, seen[-1].item) == ("write", "files")
        clock.now += 1
    stages.end()
    assert (seen[-1].fraction, seen[-1].remaining) == (1.0, 0.0)
    assert seen[-1].elapsed == pytest.approx(123)
    shares = [state.fraction or 0.0 for state in seen]
    assert shares == sorted(shares)


def test_a_run_that_goes_on_starts_where_it_was(clock: Clock) -> None:
    seen: list[Progress] = []
    stages = Stages(seen.append, {"load": 1.0, "fit": 30.0, "tune": 10.0})
    stage(stages, "load", clock, 1.0)
    with stages.stage("fit", rest=True) as heard:
        assert callable(heard)
        clock.now += 45
        heard(Progress("fit", 5, 10, 45.0, 45.0, fraction=0.5))
        kept = json.loads(json.dumps(stages.kept()))
    before = seen[-1].fraction
    assert before == pytest.approx(46 / (91 + 10 * 91 / 31))
    clock.now = 0.0
    again = Stages(seen.append)
    again.expect(**kept)
    with again.stage("load"):
        assert seen[-1].fraction == pytest.approx(before)
    with again.stage("fit", rest=True) as heard:
        assert callable(heard)
        heard(Progress("fit", 0, 5, 0.0, None, fraction=0.0))
        clock.now += 9
        heard(Progress("fit", 1, 5, 9.0, 36.0, fraction=0.2))
        assert seen[-1].remaining == pytest.approx(36 + 10 * 90 / 31)  # loading took no time
    stage(again, "tune", clock, 20.0, steps=10, first=6)
    seventh = next(state for state in seen if state.task == "tune" and state.done == 7)
    assert seventh.remaining == pytest.approx(6)  # 3 steps of 2 s, though 6 took no time
    again.end()
    assert seen[-1].fraction == 1


def test_nobody_needs_to_listen() -> None:
    stages = Stages(None, {"a": 1.0, "b": 0.0})
    with stages.stage("a") as heard:
        assert heard is False
    with stages.stage("b"):
        items = stages.counted("b", [1, 2, 3], 2)
        assert (list(items), items[1], len(items)) == ([1, 2, 3], 2, 3)
    stages.end()
    seen: list[Progress] = []
    stages = Stages(seen.append, {"a": 1.0})
    with stages.stage("a") as heard:
        assert hears_details(heard)
        assert not hears_details(seen.append)
        assert not hears_details(True)
        list(stages.counted("a", [1, 2, 3], 2))
    assert [state.done for state in seen] == [0, 1, 2, 3]
    assert seen[-1].fraction == pytest.approx(0.5)


def test_estimates_grow_with_the_work() -> None:
    facts: dict[str, Any] = {
        "parameters": 10**7,
        "tokens": 500.0,
        "width": 384,
        "batches": (64, 4),
        "size": 10**8,
    }
    plain, more = CompressSettings(), CompressSettings(reconstruct=512, retune=960, allocate=False)
    one, other = (fitted_seconds(**facts, settings=x) for x in (plain, more))
    stages = ["load", "convert", "retune", "measure", "write"]
    assert (list(one), list(other)) == (["load", "allocate", *stages[1:]], stages)
    assert other["retune"] == pytest.approx(10 * one["retune"])
    assert other["convert"] > one["convert"]
    assert all(x > 0 for x in one.values())


# ---------------------------------------------------------------- within a conversion


def test_the_work_of_a_conversion_has_parts_with_paces_of_their_own(clock: Clock) -> None:
    work = Work({"a": 100.0, "b": 300.0})
    work.plan({"gradients": 4, "dense": 8, "statistics": 8, "steps": 40, "inputs": 0}, blocks=2)
    shares = [work.outlook()[0]]

    def spend(seconds: float, kind: str, count: int) -> None:
        for _ in range(count):
            clock.now += seconds
            work.did(kind)
            shares.append(work.outlook()[0])

    spend(6.0, "gradients", 4)
    share, left = work.outlook()
    assert left == pytest.approx(8 * 1 + 8 * 0.7 + 40 * 3, abs=1e-3)  # a pass through a block takes 1 s
    assert share == pytest.approx(24 / (24 + left))
    spend(2.0, "dense", 4)
    spend(1.0, "statistics", 4)
    clock.now += 50
    work.solving("a", 1.0)
    spend(0.5, "steps", 20)
    assert work.outlook()[1] == pytest.approx(4 * 2 + 4 * 1 + 20 * 0.5 + 150)
    work.spared("steps", 20)  # the other block is not trained
    work.found("b")
    clock.now += 999  # of an earlier run
    work.found("b")
    spend(2.0, "dense", 4)
    spend(1.0, "statistics", 4)
    share, left = work.outlook()
    assert (share, left) == (1.0, 0.0)
    assert shares == sorted(shares)
