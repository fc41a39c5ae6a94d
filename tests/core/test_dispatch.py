"""Instruction sets: the choice, what each object file may hold, and processors older than this one."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import diba
from diba import _core
from run_python import python

KERNEL_FILES = {  # and the symbols that each leaves to the linker
    "scalar": "kScalar",
    "avx2": "kAvx2",
    "avx512": "kAvx512",
    "avx512_vnni": "code_sums_vnni integer_tile_vnni",
    "avx512_vpopcntdq": "common_counts_vpopcntdq",
    "avx512_amx": "integer_tile_amx",
    "neon": "kNeon",
    "lookup_scalar": "kLookupScalar",
    "lookup_avx2": "kLookupAvx2",
    "lookup_avx512": "kLookupAvx512 tabulate_avx512",
    "lookup_avx512_vbmi": "kLookupAvx512Vbmi",
    "lookup_neon": "kLookupNeon",
}
X86 = platform.machine() in ("x86_64", "AMD64")

# ---------------------------------------------------------------- the choice


def test_the_environment_chooses(isa: str) -> None:
    done = python("import diba; print(diba.isa())", DIBA_ISA=isa)
    assert (done.stdout, done.stderr) == (f"{isa}\n", "")


def test_without_the_environment_it_is_the_best() -> None:
    for value in ({}, {"DIBA_ISA": ""}):
        done = python("import diba; print(diba.isa())", **value)
        assert (done.stdout, done.stderr) == (f"{_core.supported_isas()[0]}\n", "")


@pytest.mark.parametrize("name", ["sse2", "AVX2", "avx512,avx2"])
def test_unknown_names_are_refused_with_the_valid_ones(name: str) -> None:
    done = python("import diba; diba.isa()", DIBA_ISA=name)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith(f"ValueError: DIBA_ISA is '{name}', must be one of: ")
    assert ", ".join(_core.supported_isas()) in last
    before = _core.isa()
    with pytest.raises(ValueError, match=r"must be one of: .*scalar"):
        _core.select_isa(name)
    assert _core.isa() == before


def test_every_kernel_refuses_an_unknown_name() -> None:
    """Not only the question which one runs: work must not start on another one either."""
    done = python("import numpy, diba; diba.solve(numpy.eye(3), k=2)", DIBA_ISA="sse2")
    assert done.returncode == 1
    assert "ValueError: DIBA_ISA is 'sse2'" in done.stderr


# ---------------------------------------------------------------- object files


def tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def objects(source_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The object files of the core in the release build, by the name of their source."""
    named = os.environ.get("DIBA_BUILD_DIR")
    archive = Path(named or source_root / "build" / "release", "libdiba_core.a")
    if not archive.is_file():
        if named:
            pytest.fail(f"DIBA_BUILD_DIR is {named}, but there is no {archive.name} in it")
        pytest.skip(f"no {archive}: cmake --preset release && cmake --build --preset release")
    folder = tmp_path_factory.mktemp("objects")
    tool("ar", "x", "--output", str(folder), str(archive))
    found = {path.name.removesuffix(".cpp.o"): path for path in folder.iterdir()}
    assert {
        "scalar",
        "lookup_scalar",
        "packed",
        "dispatch",
        "parallel",
        "greedy",
        "exact",
        "bit_matrix",
    } <= set(found)
    assert not X86 or {"avx2", "avx512", "lookup_avx2", "lookup_avx512"} <= set(found)
    return found


def test_kernel_objects_leave_nothing_weak_behind(objects: dict[str, Path]) -> None:
    """The linker keeps one copy of a weak function for everybody: it must never come from these files."""
    for name in KERNEL_FILES.keys() & objects.keys():
        symbols = [line[17:].split(maxsplit=1) for line in tool("nm", "-C", str(objects[name])).splitlines()]
        assert [symbol for kind, symbol in symbols if kind in "WwVvu"] == [], name
        defined = [symbol.partition("(")[0] for kind, symbol in symbols if kind.isupper() and kind != "U"]
        assert sorted(defined) == [f"diba::{symbol}" for symbol in KERNEL_FILES[name].split()]


def test_kernel_objects_run_nothing_while_loading(objects: dict[str, Path]) -> None:
    for name in KERNEL_FILES.keys() & objects.keys():
        sections = tool("objdump", "-h", str(objects[name]))
        assert ".text" in sections
        assert not re.search(r"\.init_array|\.ctors|\.preinit_array", sections), name


def instructions(path: Path) -> list[tuple[str, str, str]]:
    """(function, encoding, text) of every instruction.

    The encoding is "evex" (AVX-512), "vex" (AVX, AVX2) or "legacy".
    In 64-bit code the first byte after the prefixes tells: 62 and C4, C5 begin nothing else.
    """
    found, function = [], ""
    for line in tool("objdump", "-d", "--wide", str(path)).splitlines():
        if title := re.match(r"[0-9a-f]+ <(.+)>:", line):
            function = title[1]
        match = re.match(r"\s*[0-9a-f]+:\t([0-9a-f ]+)\t(.+)", line)
        if match:
            code = match[1].split()
            while code[0] in ("26", "2e", "36", "3e", "64", "65", "66", "67", "f0", "f2", "f3") and code[1:]:
                code = code[1:]
            kind = {"62": "evex", "c4": "vex", "c5": "vex"}.get(code[0], "legacy")
            found.append((function, kind, match[2]))
    return found


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
def test_objects_hold_the_instructions_of_their_own_set_only(objects: dict[str, Path]) -> None:
    wide = {"legacy", "vex", "evex"}
    allowed = {"avx2": {"legacy", "vex"}, "avx512": wide, "avx512_vnni": wide, "avx512_amx": wide}
    allowed["avx512_vpopcntdq"] = wide
    allowed |= {"lookup_avx2": {"legacy", "vex"}, "lookup_avx512": wide, "lookup_avx512_vbmi": wide}
    for name, path in objects.items():
        kinds = {}
        for _, kind, text in instructions(path):
            kinds.setdefault(kind, text)
        assert set(kinds) == allowed.get(name, {"legacy"}), (name, kinds)


@pytest.mark.skipif(not X86, reason="instruction sets of x86-64")
def test_multiplication_and_addition_are_fused_in_fused_tile_only(objects: dict[str, Path]) -> None:
    """A fused operation rounds once instead of twice: other bytes than the specification's elsewhere."""
    for name, path in objects.items():
        fused = {
            function for function, _, text in instructions(path) if re.match(r"vfn?m(add|sub)[1-3]", text)
        }
        assert all(re.search(r"\d+fused_(block|tile)", function) for function in fused), (name, fused)
        assert bool(fused) == (name in ("avx2", "avx512")), name


# ---------------------------------------------------------------- other processors

WORK = """
import hashlib, json
import numpy as np
import diba

def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()

random = np.random.default_rng(0)
A = random.standard_normal((70, 133)).astype(np.float32)
report = {"isa": diba.isa(), "supported": diba.supported_isas(), "refused": {}}
for alphabet in ("binary", "sign"):
    f = diba.solve(A, k=67, alphabet=alphabet, max_iter=3)
    report[alphabet] = digest(f.d1, f.b1.words, f.d2, f.b2.words, f.d3)
    report[alphabet + " snr"] = f.snr_db(A)
    g = diba.Factorization.from_factors(A[:, 0], f.b1.to_dense(), A[0, :67], f.b2.to_dense(), A[1], alphabet)
    x, X = A[2], A[:20].T
    report[alphabet + " products"] = digest(
        g @ x, g.T @ A[:, 1], g @ X, g.T @ A, g.linear(A, A[:70, 2]), g.to_dense(),
        g.matvec(x), g.rmatmat(A),
    )
for name in ("amx", "avx512vbmi", "avx512vnni", "avx512", "avx2", "scalar"):
    try:
        diba._core.select_isa(name)
    except ValueError as error:
        report["refused"][name] = str(error)
print(json.dumps(report))
"""


def report(**options: Any) -> dict[str, Any]:
    done = python(WORK, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def emulated() -> tuple[str, ...]:
    found = shutil.which("qemu-x86_64")
    if found is None or not X86:
        if os.environ.get("DIBA_REQUIRE_QEMU") == "1":
            pytest.fail("DIBA_REQUIRE_QEMU is 1, but there is no qemu-x86_64")
        pytest.skip("no qemu-x86_64 on this machine (apt-get install qemu-user)")
    return found, "-cpu"


@pytest.fixture(scope="module")
def native() -> dict[str, Any]:
    return report()


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "best"), [("Nehalem", "scalar"), ("Haswell", "avx2")])
def test_old_processors_give_the_same_bytes(
    emulated: tuple[str, ...], native: dict[str, Any], cpu: str, best: str
) -> None:
    """No instruction that they lack, from import to product; the results of this machine; honest refusals."""
    found = report(emulator=(*emulated, cpu))
    assert found["isa"] == found["supported"][0] == best
    valid = ", ".join(found["supported"])
    x86 = {"amx", "avx512vbmi", "avx512vnni", "avx512", "avx2", "scalar"}
    assert set(found["refused"]) == x86 - set(found["supported"])
    assert all(f"must be one of: {valid} (" in message for message in found["refused"].values())
    for alphabet in ("binary", "sign"):
        assert found[f"{alphabet} products"] == native[f"{alphabet} products"]
        assert found[alphabet] == native[alphabet]
        assert found[f"{alphabet} snr"] == pytest.approx(native[f"{alphabet} snr"], abs=1e-4)


def test_every_instruction_set_gives_the_same_factors(native: dict[str, Any]) -> None:
    for name in diba.supported_isas():
        found = report(DIBA_ISA=name)
        assert found.pop("isa") == name
        assert found == {key: value for key, value in native.items() if key != "isa"}
