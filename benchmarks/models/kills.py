#!/usr/bin/env python3
"""Kill ``diba compress`` at random moments, and compare what comes out with a run without a stop.

A whole run is timed first. Then runs are killed by SIGKILL, each at a random moment after it has begun to
work in its folder, so that all of them go through the whole course; the last one goes on to the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..common import BenchmarkError

__all__ = ["compare", "killed", "main"]

STARTED = 3.0  # seconds until a run that goes on has imported what it needs, about
LOADED = 2.0  # seconds until it has read the model, about
OTHER = {"diba-compress.json", "report.html"}  # they have times in them


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks kills", description="Options that are not known here go to 'diba compress'."
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a dense model")
    parser.add_argument("--data", metavar="DATA", help="see 'diba compress' (default: none)")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="(default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument("--work", metavar="FOLDER", help="where results are written (default: temporary)")
    options, rest = parser.parse_known_args(arguments)
    more = [*(["--data", options.data] if options.data else []), *rest]
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        clean, out = Path(folder, "clean"), Path(folder, "out")
        began = time.perf_counter()
        run(options.model, clean, more)
        seconds = time.perf_counter() - began
        moments = killed(options.model, out, more, options.kills, seconds, options.seed)
        run(options.model, out, more)
        differing = compare(clean, out)
    facts = {"seconds": round(seconds, 1), "kills": moments, "differing": differing}
    print(json.dumps({"model": options.model, "data": options.data, **facts}))
    return 1 if differing else 0


def command(model: str, out: Path, more: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "diba", "compress", model, "-o", str(out), "--quiet", *more]


def run(model: str, out: Path, more: Sequence[str]) -> None:
    if subprocess.run(command(model, out, more), check=False).returncode:
        raise BenchmarkError(f"diba compress failed with {' '.join(more) or 'no options'}")


def killed(
    model: str, out: Path, more: Sequence[str], kills: int, seconds: float, seed: int
) -> list[dict[str, object]]:
    """Kill a run so many times; says after how many seconds, and what was on the disk then.

    A run that is at its end before its time is begun anew, in an empty folder.
    """
    draw, found = random.Random(seed), list[dict[str, object]]()
    while len(found) < kills:
        wait = draw.uniform(0.0, 2 * max(seconds / kills, 1.0) + LOADED)
        with subprocess.Popen(command(model, out, more)) as process:
            while process.poll() is None and not (out / ".diba" / "run.json").exists():
                time.sleep(0.01)  # Python and torch are being read
            if found:
                time.sleep(STARTED)
            try:
                if process.wait(wait):
                    raise BenchmarkError("a run that was killed did not go on")
                shutil.rmtree(out)
                continue
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        found.append({"after": round(wait, 2), **state(out)})
    return found


def state(out: Path) -> dict[str, object]:
    asked = [sys.executable, "-m", "diba", "compress", "--status", str(out), "--json"]
    done = subprocess.run(asked, check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def compare(one: Path, other: Path) -> list[str]:
    """Names of files that are not the same in both folders."""
    sides = [
        {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file() and path.name not in OTHER
        }
        for folder in (one, other)
    ]
    return sorted(name for name in {**sides[0], **sides[1]} if sides[0].get(name) != sides[1].get(name))
