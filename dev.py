#!/usr/bin/env python3
"""Set everything up and run one of the project's jobs: python3 dev.py COMMAND [args].

  test      every check of the project; --fast: no sanitizers, Arm, slow tests; the rest goes to pytest
  core      the core in four builds, each tested; or those that are named: core release asan
  lint      formatting, lint and types only
  docs      build the documentation site into build/site; docs --serve shows it while it is written
  coverage  lines and branches that the tests reach, in the package and in the core; options go to pytest
  wheels    manylinux wheels for x86-64 and 64-bit Arm and the sdist, checked, into dist/
  fuzz      mutants of all files for the readers, minutes each: fuzz [--seconds N] [--json FILE] [driver ...]
  clean     remove the virtual environment, the builds and all caches

Benchmarks, with the options of their scripts:
  demo      factor all dense matrices of a small language model
  bench     time the solver against PyTorch
  matvec    time products against NumPy, PyTorch, onnxruntime and OpenVINO
  quality   solvers and baselines on every dense matrix of three models; hours
  models    whole models before and after, beside controls; hours
  speed     whole models' speed against torch

Needs Python 3.11 or newer and a C++ compiler; everything else goes into .venv at the versions of
third_party/constraints.txt. Only what changed since the last run is installed or built again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial

from tools import checks, coverage, documentation, runtimes, wheels
from tools.environment import (
    BUILD,
    CACHES,
    MODELS,
    PYTHON,
    ROOT,
    VENV,
    Failure,
    Missing,
    Skipped,
    beside,
    check_machine,
    ensure_environment,
    ensure_project,
    environment,
    run,
    timed,
)

Steps = dict[str, Callable[[], object]]


def command_test(args: list[str]) -> None:
    timed("environment for builds", partial(ensure_environment, "build"))
    if "--fast" in args:
        chosen = ["-m", "not slow", *(arg for arg in args if arg != "--fast")]
        all_of(test_steps(chosen, slow=False))
        return
    # Most steps leave a processor idle now and then, so three builds of the core are made beside them.
    with beside("core", "asan", "tsan", "aarch64") as others:
        all_of(test_steps(args, slow=True) | {"core, beside": others})


def test_steps(args: list[str], slow: bool) -> Steps:
    """The steps of a test in their order; options go to pytest."""
    timed("environment", partial(ensure_environment, "lint", "test", "docs", models=MODELS["test"]))
    steps: Steps = {
        "lint": checks.lint,
        "core, release": partial(checks.test_core, "release"),
        "wheel": ensure_project,
    }
    if slow:
        steps["wheel alone"] = checks.test_wheel_alone
        steps["oldest onnxruntime"] = runtimes.test_oldest
        steps["OpenVINO"] = runtimes.test_openvino
        steps["ExecuTorch"] = runtimes.test_executorch
    steps["documentation"] = documentation.build
    steps["pytest"] = partial(checks.test_python, args)
    return steps


def command_core(args: list[str]) -> None:
    known: Steps = {preset: partial(checks.test_core, preset) for preset in ("release", "asan", "tsan")}
    known["aarch64"] = checks.test_arm
    unknown = [name for name in args if name not in known]
    if unknown:
        raise Missing(f"there is no build {unknown[0]}; there are {', '.join(known)}")
    timed("environment", partial(ensure_environment, "build"))
    all_of({f"core, {name}": known[name] for name in args or known})


def all_of(steps: Steps) -> None:
    """Run all steps, also after one that failed, and sum up."""
    summary = []
    for title, action in steps.items():
        try:
            summary.append(f"   passed  {title:<14} {timed(title, action):6.1f} s")
        except Failure as failure:
            summary.append(f"   FAILED  {title:<14} {failure}")
        except Skipped as reason:
            summary.append(f"   skipped {title:<14} {reason}")
    print("== summary", *summary, sep="\n", flush=True)
    if any(line.startswith("   FAILED") for line in summary):
        raise Failure("not every step passed")


def command_coverage(args: list[str]) -> None:
    timed("environment", partial(ensure_environment, "build", "test", "coverage", models=MODELS["test"]))
    timed("core", coverage.measure_core)
    try:
        timed("pytest", partial(coverage.measure_package, args))
    finally:  # what was reached is worth knowing even if a test failed
        timed("report", coverage.report)


def command_docs(args: list[str]) -> None:
    timed("environment", partial(ensure_environment, "docs"))
    if "--serve" in args:
        documentation.serve()
    timed("site", documentation.build)


def command_wheels(args: list[str]) -> None:
    timed("environment", partial(ensure_environment, "build", "wheels"))
    timed("wheels", partial(wheels.build, args))


def command_lint(args: list[str]) -> None:
    timed("environment", partial(ensure_environment, "lint"))
    timed("lint", checks.lint)


def command_fuzz(args: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="dev.py fuzz")
    parser.add_argument("--seconds", type=float, default=120.0, help="for libFuzzer, and for each driver")
    options, rest = parser.parse_known_args(args)
    timed("environment", partial(ensure_environment, "build", "test"))
    timed("diba", ensure_project)
    timed("core, release", partial(checks.build_core, "release"))
    try:
        timed("libFuzzer", partial(checks.libfuzzer, options.seconds))
    except Skipped as reason:
        print(f"   skipped: {reason}", flush=True)
    seconds, faults = f"--seconds={options.seconds}", f"--faults={BUILD / 'fuzz' / 'faults'}"
    places = {"PYTHONPATH": str(ROOT / "tests" / "support"), "DIBA_BUILD_DIR": str(BUILD / "release")}
    fuzz = (PYTHON, "-m", "fuzz", seconds, faults, *rest)
    timed("drivers", lambda: run(*fuzz, show=True, cwd=ROOT, **places))


def command_benchmark(name: str, group: str, models: str, args: list[str]) -> None:
    """One of those that ``python benchmarks`` lists."""
    timed("environment", partial(ensure_environment, "build", group, models=MODELS[models]))
    timed("diba", ensure_project)
    # In place of this process: Ctrl-C and the exit code are the benchmark's own.
    os.execve(PYTHON, [PYTHON, str(ROOT / "benchmarks"), name, *args], environment())


def command_clean(args: list[str]) -> None:
    folders = [VENV, BUILD, *(ROOT / name for name in CACHES)]
    for top in ("benchmarks", "python", "tests"):
        folders += (ROOT / top).rglob("__pycache__")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": partial(command_benchmark, "minilm", "demo", "demo"),
    "test": command_test,
    "core": command_core,
    "lint": command_lint,
    "docs": command_docs,
    "coverage": command_coverage,
    "wheels": command_wheels,
    "fuzz": command_fuzz,
    "bench": partial(command_benchmark, "solve", "bench", "bench"),
    "matvec": partial(command_benchmark, "matvec", "matvec", "matvec"),
    "models": partial(command_benchmark, "models", "models", "models"),
    "quality": partial(command_benchmark, "quality", "bench", "quality"),
    "speed": partial(command_benchmark, "speed", "models", "models"),
    "clean": command_clean,
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(__doc__, end="")
        return 0 if "--help" in argv else 2
    try:
        if argv[0] != "clean":
            check_machine(compiler=argv[0] not in ("lint", "docs"))
        COMMANDS[argv[0]](argv[1:])
    except (Missing, Failure) as problem:
        print(f"dev.py: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, Missing) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
