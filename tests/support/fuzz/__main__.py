"""Fuzz for a while: ``python -m fuzz [--seconds N] [driver ...]``."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from .drivers import DRIVERS
from .engine import keep, kept, run


def main() -> int:
    """Run the drivers, one after another; 1 if any found a fault."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument(
        "drivers", nargs="*", metavar="driver", help=f"of {', '.join(DRIVERS)} (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for each driver (default: 60)")
    parser.add_argument("--mutants", type=int, help="for each driver, however long it takes")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants (default: 0)")
    parser.add_argument("--faults", type=Path, default=Path("faults"), help="folder for mutants that failed")
    parser.add_argument("--replay", type=Path, help="check one such mutant again, with one driver")
    parser.add_argument("--json", type=Path, help="write the counts")
    options = parser.parse_args()
    warnings.simplefilter("error")  # none must come of a file
    unknown = [name for name in options.drivers if name not in DRIVERS]
    if unknown:
        parser.error(f"there is no driver {unknown[0]!r}; use {', '.join(DRIVERS)}")
    names = options.drivers or list(DRIVERS)
    if options.replay:
        held = DRIVERS[names[0]]().check(kept(options.replay), None)
        print("refused" if held is None else f"accepted, {held} bytes")
        return 0
    results = []
    for name in names:
        limits = {"mutants": options.mutants} if options.mutants else {"seconds": options.seconds}
        driver = DRIVERS[name]()
        result = run(driver, seed=options.seed, **limits)
        driver.close()
        results.append(result)
        speed = 1e6 * result.seconds / max(1, result.mutants)
        print(
            f"{name}: {result.mutants:,} mutants in {result.seconds:.0f} s ({speed:.0f} us each), "
            f"{result.accepted:,} accepted, {result.mended_accepted:,} of them among {result.mended:,} "
            f"with mended checksums, memory of {result.measured:,} measured, {len(result.faults)} faults",
            flush=True,
        )
        for problem, mutant in result.faults:
            print(f"  {problem}\n    {keep(mutant, options.faults / name)}", flush=True)
    if options.json:
        text = json.dumps([result.summary() for result in results], indent=1) + "\n"
        options.json.write_text(text, encoding="utf-8")
    return int(any(result.faults for result in results))


if __name__ == "__main__":
    sys.exit(main())
