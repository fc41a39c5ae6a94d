"""The one progress contract: what callables get, and what is shown on terminals, in logs and notebooks."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import pytest

import diba
from diba import progress
from diba.progress import Progress, Steps, check_progress, reporting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def interrupted(states: list[Progress]) -> None:
    """Reports these under ``progress=True``, then a Ctrl-C."""
    with reporting(True) as report:
        assert report is not None
        for state in states:
            report(state)
        raise KeyboardInterrupt


@pytest.mark.parametrize("wrong", [None, 3, "yes", 1.0])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^progress is .*; it must be True, False, or a callable"):
        check_progress(wrong)
    with pytest.raises(TypeError, match=r"^progress is "), reporting(wrong):
        pass


def test_a_callable_is_called_as_it_is_and_false_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Progress] = []
    with reporting(seen.append) as report:
        assert report is not None
        report(Progress("solve", 0, 3, 0.0))
    with reporting(False) as report:
        assert report is None
    assert seen == [Progress("solve", 0, 3, 0.0)]
    assert capsys.readouterr() == ("", "")


def test_a_state_reads_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(progress.time, "time", lambda: 12 * 3600.0)
    try:
        assert [
            str(state)
            for state in (
                Progress("solve", 0, 800, 0.0),
                Progress("solve", 3, 800, 4.0, 42.4, snr_db=5.25),
                Progress("curve", 1.49, 5, 9.0, 150.0, "1 bits", 6.0),
                Progress("convert", 2, 9, 13.0, 7322.0, "model.0", 6.0, detail="more"),
                Progress("calibrate", 7, None, 61.4),
                Progress("retune", 800, 800, 99.6, 0.0, loss=1.23456),
            )
        ] == [
            "solve 0/800, 0 s",
            "solve 3/800, SNR 5.25 dB, 4 s, 42 s left, done by 12:00:42",
            "curve 1.5/5, 1 bits, SNR 6.00 dB, 9 s, 2 min 30 s left, done by 12:02:30",
            "convert 2/9, model.0, SNR 6.00 dB, 13 s, 2 h 02 min left, done by 14:02:02",
            "calibrate 7, 1 min 01 s",
            "retune 800/800, loss 1.235, 1 min 40 s",
        ]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_lines_come_every_few_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where stderr is no terminal, with or without tqdm."""
    clock = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    with reporting(True) as report:
        assert report is not None
        for step in range(40):
            clock = step / 4
            report(Progress("solve", step, 39, clock))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"diba: solve {step}/39" for step in (12, 24, 36, 39)
    ]
    with reporting(True):
        pass
    with pytest.raises(KeyboardInterrupt):
        interrupted([Progress("solve", 1, 39, 0.0)])
    assert capsys.readouterr().err == ""  # nothing was reported; after an exception, no last line


def test_a_terminal_without_tqdm_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with reporting(True) as report:
        assert report is not None
        report(Progress("solve", 2, 2, 0.0))
    assert terminal.getvalue() == "diba: solve 2/2, 0 s\n"


def test_a_terminal_gets_one_bar_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = pytest.importorskip("tqdm.auto")

    class Prompt(auto.tqdm):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given, mininterval=0)

    monkeypatch.setattr(auto, "tqdm", Prompt)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    counts = (0, None), (1, 4), (3, 4), (4, 4), (5, 10), (0, 6)  # a total may grow, and a task begin again
    with pytest.raises(KeyboardInterrupt):
        interrupted([Progress("solve", done, total, 1.0, snr_db=5.0) for done, total in counts])
    shown = [line.split("|")[0].strip() for line in terminal.getvalue().split("\r")]
    for expected in (
        "diba solve 0:   0%",
        "diba solve 1/4:  25%",
        "diba solve 3/4:  75%",
        "diba solve 4/4:  75%",
        "diba solve 5/10:  75%",
        "diba solve 0/6:   0%",
    ):
        assert expected in shown
    assert "SNR 5.00 dB" in terminal.getvalue()
    assert "\n" not in terminal.getvalue()
    assert shown[-1] == ""  # wiped


def test_a_notebook_gets_its_own_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm.auto is the class of the notebook there, though stderr is no terminal."""
    auto = pytest.importorskip("tqdm.auto")

    class Notebook(auto.tqdm):  # type: ignore[misc]
        pass

    Notebook.__module__ = "tqdm.notebook"
    monkeypatch.setattr(auto, "tqdm", Notebook)
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with reporting(True) as report:
        assert report is not None
        report(Progress("solve", 1, 2, 0.0))
    assert "diba" in written.getvalue()
    assert "\r" in written.getvalue()


def test_steps_of_several_solves() -> None:
    seen: list[Progress] = []
    steps = Steps("curve", 2, seen.append)
    within = steps.within(0, 1)
    assert callable(within)
    for done in range(5):
        within(Progress("solve", done, 4, 0.0, snr_db=1.0))
    steps.done(1, "a", 6.0)
    within = steps.within(1, 2)
    assert callable(within)
    within(Progress("solve", 1, 2, 0.0))
    steps.done(2, "b", 7.0)
    assert [(state.done, state.item, state.snr_db) for state in seen] == [
        *((part / 4, None, None) for part in (0, 1, 2, 3, 3)),
        (1, "a", 6.0),
        (1.5, "a", 6.0),
        (2, "b", 7.0),
    ]
    assert seen[0].remaining is None
    assert seen[-1].remaining == 0
    assert all((state.task, state.total) == ("curve", 2) for state in seen)
    assert Steps("curve", 2, None).within(0, 1) is False


def test_true_shows_a_solve(capsys: pytest.CaptureFixture[str]) -> None:
    diba.solve([[1.0, 2.0], [3.0, 4.0]], k=1, method="greedy", progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("diba: solve ")
