"""Products of numbers of one and two bits, beside float32 in torch and the most ones a core can count.

    python benchmarks bitgemm --json benchmarks/results/bitgemm.json

The bound is measured: words from a first-level cache, each counted by the instruction for it, of 64 bits or,
where AVX-512 has one, of 512, in a program that the C compiler of the machine makes. A product of 2 x 2 bits
is four of 1 x 1.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import diba

from ..common import BenchmarkError, results
from ..common.command import arguments_of, finish, needs, parser
from ..common.tables import markdown, measured

SIZES = (1024, 4096)
TURNS = 5
COUNTING = """
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#ifdef __AVX512VPOPCNTDQ__
#include <immintrin.h>
#endif

static uint64_t words[64] __attribute__((aligned(64)));

static void count(void) {
#ifdef __AVX512VPOPCNTDQ__
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (int k = 0; k < 64; k += 32) {
    a = _mm512_add_epi64(a, _mm512_popcnt_epi64(_mm512_load_si512(words + k)));
    b = _mm512_add_epi64(b, _mm512_popcnt_epi64(_mm512_load_si512(words + k + 8)));
    c = _mm512_add_epi64(c, _mm512_popcnt_epi64(_mm512_load_si512(words + k + 16)));
    d = _mm512_add_epi64(d, _mm512_popcnt_epi64(_mm512_load_si512(words + k + 24)));
  }
  __asm__ volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d) : : "memory");
#else
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (int k = 0; k < 64; k += 4) {
    a += __builtin_popcountll(words[k]), b += __builtin_popcountll(words[k + 1]);
    c += __builtin_popcountll(words[k + 2]), d += __builtin_popcountll(words[k + 3]);
  }
  __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d) : : "memory");
#endif
}

int main(void) {
  double best = 1e9;
  for (int turn = 0; turn < 9; ++turn) {
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int r = 0; r < 200000; ++r) count();
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
    if (seconds < best) best = seconds;
  }
  printf("%.6e\\n", 200000.0 * 64 * 64 / best);
}
"""


def counted_bits() -> float:
    """Bits a second that one core counts, at most."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchmarkError("there is no C compiler, which the bound is measured with")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "count.c")
        source.write_text(COUNTING, encoding="utf-8")
        program = str(Path(folder, "count"))
        subprocess.run([compiler, "-O3", "-march=native", str(source), "-o", program], check=True)
        return float(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def row(size: int, threads: int, turns: int) -> dict[str, Any]:
    """Medians of seconds in turns."""
    import torch

    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    numbers = {
        bits: [diba.Levels.rounded(random.standard_normal((size, size)), bits)[0] for _ in range(2)]
        for bits in (1, 2)
    }
    x, y = torch.randn(size, size), torch.randn(size, size)
    contestants: dict[str, Callable[[], Any]] = {
        "1x1": lambda: diba.bitgemm(*numbers[1], threads=threads),
        "1x2": lambda: diba.bitgemm(numbers[1][0], numbers[2][0], threads=threads),
        "2x2": lambda: diba.bitgemm(*numbers[2], threads=threads),
        "torch": lambda: x @ y.T,
    }
    for run in contestants.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {"size": size, "seconds": {name: statistics.median(each) for name, each in taken.items()}}


def table(report: dict[str, Any]) -> str:
    """Each size and kind of product."""
    bound, rows = report["counted_bits"], []
    for each in report["rows"]:
        size, seconds = each["size"], each["seconds"]
        for name, planes in (("1x1", 1), ("1x2", 2), ("2x2", 4)):
            share = planes * size**3 / seconds[name] / bound
            faster = seconds["torch"] / seconds[name]
            shown = [f"{size}^3", name, f"{1e3 * seconds[name]:.2f}", f"{faster:.1f}", f"{share:.2f}"]
            rows.append(shown)
    head = ["Product", "Bits", "ms", "torch float32 / diba", "share of the counting bound"]
    return f"{markdown(head, rows, left=2)}\n\nThe core counts {bound / 1e9:.0f} Gbit/s. {measured(report)}."


def main(arguments: Sequence[str]) -> None:
    options = parser("bitgemm", __doc__, threads=1)
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    chosen = options.parse_args(arguments)
    needs("torch")
    report = {
        "machine": results.machine(),
        "arguments": arguments_of(chosen),
        "counted_bits": counted_bits(),
        "rows": [row(size, chosen.threads, TURNS) for size in chosen.sizes],
    }
    results.write(chosen.json, report)
    finish(table(report), report, chosen)
