"""``diba bench``: times of products on this machine, compared with dense products of NumPy and torch.

Factors are random bits: the time of a product does not depend on its values. The measurement runs in a new
process, because the threads of NumPy's BLAS can only be set before it is loaded.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import operator
import os
import re
import statistics
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check
from .._internal.snr import energy_and_error, snr_db
from .._internal.timing import (
    activations,
    autotune,
    blas_threads,
    exact_product,
    fastest,
    interleaved,
    random_factorization,
    read_bandwidth,
)
from ..runtime import info, resolve_threads, set_num_threads
from ..solvers.size import inner_dimension

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from ..factorization import Factorization

    Call = Callable[[], Any]
    Product = Callable[[NDArray[np.float32]], Any]

__all__ = ["add_command", "measure", "table"]

FAST, EXACT, NUMPY, TORCH = "diba, fast", "diba, exact", "NumPy float32", "torch float32"
SNR_ROWS = 4  # vectors per SNR measurement
REST = 0.05  # seconds between samples: idle threads of BLAS and OpenMP spin for up to 30 ms

# ---------------------------------------------------------------- one measurement


def measure(m: int, n: int, bits: float, batch: int, threads: int, seconds: float = 0.4) -> dict[str, Any]:
    """Time products of ``batch`` vectors with an m x n matrix: diba, NumPy, and torch if it is installed.

    Sets the threads of diba and torch; those of NumPy's BLAS must be set before it is loaded, see
    :func:`blas_threads`.

    Args:
        m: Rows.
        n: Columns.
        bits: Bits per weight of the factors.
        batch: Number of vectors.
        threads: Number of threads.
        seconds: Seconds to time each product.

    Returns:
        The object that ``diba bench --json`` prints: shape, machine, and in ``results`` a row for each
        product.
    """
    set_num_threads(threads)
    f = random_factorization(m, n, bits)
    W = np.random.default_rng(1).standard_normal((m, n), dtype=np.float32)
    calls, products = _contestants(f, W, batch, threads)
    samples = interleaved(calls, 7, seconds, REST if threads > 1 else 0.0)
    sizes = {name: -(-f.k * (m + n) // 8) if name in (FAST, EXACT) else 4 * m * n for name in calls}
    speeds = {size: read_bandwidth(size, threads) for size in set(sizes.values())}
    times = {name: statistics.median(taken) for name, taken in samples.items()}
    best = min(times.keys() - {FAST, EXACT}, key=times.__getitem__)
    rows = [
        {
            "name": name,
            "us": 1e6 * times[name],
            "weight_bytes": sizes[name],
            "gb_per_s": sizes[name] / times[name] / 1e9,
            "read_gb_per_s": speeds[sizes[name]] / 1e9,
            "read_share": sizes[name] / times[name] / speeds[sizes[name]],
            **_accuracy(f if name in (FAST, EXACT) else W, products[name]),
        }
        for name in calls
    ]
    facts = info()
    return {
        "shape": [m, n],
        "k": f.k,
        "bits_per_weight": f.bits_per_weight,
        "batch": batch,
        "threads": threads,
        **{key: facts[key] for key in ("diba", "isa", "cpu", "numpy", "torch")},
        "results": rows,
        "fastest_dense": best,
        "speedup": times[best] / times[FAST],
    }


def _contestants(
    f: Factorization, W: NDArray[np.float32], batch: int, threads: int
) -> tuple[dict[str, Call], dict[str, Product]]:
    """Dicts of names to the calls that are timed, and to the same products for any X (count, n)."""
    X = activations(batch, W.shape[1])
    x = X[0] if batch == 1 else X
    products: dict[str, Product] = {
        FAST: partial(f.linear, precision="fast", threads=threads),
        EXACT: partial(f.linear, precision="exact", threads=threads),
    }
    calls: dict[str, Call] = {name: partial(product, x) for name, product in products.items()}
    if batch == 1:
        calls[FAST] = fastest(calls[FAST], partial(operator.matmul, f.prepare(), x))
    products[NUMPY] = lambda X: X @ W.T
    calls[NUMPY] = fastest(lambda: x @ W.T, lambda: W @ x.T)
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return calls, products
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    linear, dense = torch.nn.functional.linear, torch.from_numpy(W)
    products[TORCH] = lambda X: linear(torch.from_numpy(X), dense).numpy()
    calls[TORCH] = partial(linear, torch.from_numpy(x), dense)
    return calls, products


def _accuracy(weights: Factorization | NDArray[np.float32], product: Product) -> dict[str, float | None]:
    """SNRs of a product against float64 with the same weights; None for an exact product."""
    found = {}
    for name, heavy in (("snr_db", False), ("snr_heavy_db", True)):
        X = activations(SNR_ROWS, weights.shape[1], heavy)
        if isinstance(weights, np.ndarray):
            exact: NDArray[np.float64] = X.astype(np.float64) @ weights.T
        else:
            exact = exact_product(weights, X)
        snr = snr_db(*energy_and_error(exact, product(X)))
        found[name] = snr if math.isfinite(snr) else None
    return found


# ---------------------------------------------------------------- the command


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "bench",
        help="time products and dense products",
        description="Time products with random factors on this machine, and dense float32 products.",
    )
    parser.add_argument(
        "--shape", type=_shape, default=(4096, 4096), metavar="MxN", help="default: 4096x4096"
    )
    parser.add_argument("--bits", type=float, default=1.0, metavar="B", help="bits per weight (default: 1)")
    parser.add_argument("--batch", type=int, default=1, metavar="P", help="vectors per product (default: 1)")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of each product (default: all processors of the process)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--autotune",
        nargs="?",
        const="",
        metavar="FILE",
        help="measure the settings of the fast products instead; write them to FILE for DIBA_TUNING",
    )
    parser.set_defaults(run=_run)


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape; it must be like 4096x1024")
    return int(found[1]), int(found[2])


def _autotune(path: str, threads: int | None, as_json: bool) -> None:
    found = autotune(threads=threads)
    if path:
        found.save(path)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(f"table_bytes      {found.table_bytes:>12,}   tables of vectors that are multiplied together")
    print(f"bits_per_thread  {found.bits_per_thread:>12,}   bits for which one more thread is used")
    print(f"fetch_bytes      {found.fetch_bytes:>12,}   memory that is fetched ahead, for one vector")
    if path:
        print(f"to use them: DIBA_TUNING={path}")


def _run(options: argparse.Namespace) -> None:
    if options.autotune is not None:
        return _autotune(options.autotune, options.threads, options.json)
    m, n = options.shape
    bits = check.number(options.bits, "--bits", minimum=0, exclusive=True)
    batch = check.positive_int(options.batch, "--batch")
    threads = resolve_threads(options.threads)
    k = inner_dimension(m, n, "bits_per_weight", bits)
    needed = 20 * m * n + k * (m + n) // 2 + 8 * max(batch, SNR_ROWS) * (m + n + k)
    check.fits_in_memory(
        needed, f"a dense {m} x {n} matrix to compare with", "use a smaller --shape or --batch"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, *map(str, (m, n, bits, batch, threads))],
        env=os.environ | blas_threads(threads),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise ValueError(f"the measurement failed: {reason}")
    print(done.stdout.strip() if options.json else table(json.loads(done.stdout)))
    return None


def table(report: Mapping[str, Any]) -> str:
    """The report of :func:`measure` as a text table."""
    m, n = report["shape"]
    threads, batch, times = report["threads"], report["batch"], report["speedup"]
    head = (
        f"{m} x {n} at {report['bits_per_weight']:.3g} bits per weight, k = {report['k']}, batch {batch}, "
        f"{threads} thread{'s' if threads > 1 else ''}, {report['isa']}, {report['cpu']}"
    )
    lines = [head, f"{'':<14}{'us':>10}{'GB/s':>9}{'of read speed':>15}{'SNR, dB':>9}{'heavy tails':>13}"]
    for row in report["results"]:
        snr, heavy = (
            "exact" if row[key] is None else f"{row[key]:.1f}" for key in ("snr_db", "snr_heavy_db")
        )
        lines.append(
            f"{row['name']:<14}{row['us']:>10.4g}{row['gb_per_s']:>9.3g}{row['read_share']:>14.0%} "
            f"{snr:>9}{heavy:>13}"
        )
    lines += [
        "GB/s: weights over time; read speed: as many bytes, read repeatedly; SNR: against float64.",
        f"diba is {times:.3g} times as fast as {report['fastest_dense']}."
        if times >= 1
        else f"Dense is faster here: {report['fastest_dense']} takes {times:.0%} of diba's time.",
    ]
    return "\n".join(lines)


def _main(arguments: Sequence[str]) -> None:
    """Measure in this process and print JSON; an error is one line on stderr."""
    m, n, bits, batch, threads = arguments
    try:
        report = measure(int(m), int(n), float(bits), int(batch), int(threads))
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        sys.exit(" ".join(f"{kind}{error}".split()))
    print(json.dumps(report, allow_nan=False))


if __name__ == "__main__":
    _main(sys.argv[1:])
