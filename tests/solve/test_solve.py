"""The solver: against its NumPy twin, against enumeration, and what it promises of objective and progress."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diba
from diba import reference
from diba._internal.storage import bits_per_weight
from diba.solvers import METHODS
from diba.solvers.greedy import Greedy
from diba.solvers.size import inner_dimension

if TYPE_CHECKING:
    from collections.abc import Iterator

ALPHABETS = ("binary", "sign")
COMBINATIONS = [(m, a) for m in METHODS for a in ALPHABETS if (m, a) != ("dbf", "binary")]
EPS = 2.0**-23  # float32
DB = 1e-4  # reported SNRs are right to this
RELATIVE = DB * math.log(10) / 10  # and so are objectives


# ---------------------------------------------------------------- helpers


def gaussian(m: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, n)).astype(np.float32)


def weights(m: int, n: int, seed: int = 0) -> np.ndarray:
    """Like weights of a network: a decaying spectrum, heavy tails, rows and columns of different size."""
    rng = np.random.default_rng(seed)
    rank = min(m, n)
    low = rng.standard_normal((m, rank)) / np.arange(1, rank + 1) @ rng.standard_normal((rank, n))
    rows, columns = np.exp(0.5 * rng.standard_normal(m)), np.exp(0.5 * rng.standard_normal(n))
    return (rows[:, None] * (low + 0.3 * rng.laplace(size=(m, n))) * columns).astype(np.float32)


def start(m: int, n: int, k: int, alphabet: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """B1 and B2 at random, with a bit in every row and column so that the first diagonals are unique."""
    rng = np.random.default_rng([seed, m, n, k])
    bits = [rng.integers(0, 2, shape) for shape in ((m, k), (k, n))]
    for b in bits:
        i = np.arange(max(b.shape))
        b[i % b.shape[0], i % b.shape[1]] = 1
    return tuple(b if alphabet == "binary" else 2 * b - 1 for b in bits)


def greedy(A: np.ndarray, k: int, alphabet: str, seed: int = 0, **more: Any) -> Greedy:
    """A run on A scaled as diba.solve does it, by a power of two to entries up to 1."""
    A = np.ldexp(A, -math.frexp(float(np.abs(A).max()))[1])
    b1, b2 = (diba.BitMatrix.from_dense(b, alphabet) for b in start(*A.shape, k, alphabet, seed))
    run = Greedy(A, b1, b2, threads=1, **more)
    run.A = A.astype(np.float64)
    return run


def factors(run: Greedy | diba.Factorization) -> reference.Factors:
    """d1, B1, d2, B2, d3 in float64."""
    if isinstance(run, Greedy):
        b1, b2 = run.bits()
        parts = (run.left.scale, b1.to_dense(), run.d2, b2.to_dense(), run.right.scale)
    else:
        parts = (run.d1, run.b1.to_dense(), run.d2, run.b2.to_dense(), run.d3)
    return tuple(part.astype(np.float64) for part in parts)


def true_objective(run: Greedy) -> float:
    return reference.objective(run.A, factors(run))


def db(energy: float, objective: float) -> float:
    return 10 * math.log10(energy / objective)


# ---------------------------------------------------------------- the NumPy twin


@pytest.mark.parametrize("iterations", [1, 3, 30])
@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("seed", range(12))
def test_same_start_same_flips_as_the_reference(seed: int, alphabet: str, iterations: int) -> None:
    """Bit for bit, over whole runs: float32 here, float64 there.

    A tie within rounding could part the two for good; no seed here has one.
    """
    rng = np.random.default_rng(seed)
    m, n = rng.integers(6, 30, 2)
    k = int(rng.integers(2, 1 + min(m, n) // 2))
    run = greedy(weights(m, n, seed) if seed % 2 else gaussian(m, n, seed), k, alphabet, seed)
    twin = reference.greedy(run.A, *start(m, n, k, alphabet, seed), iterations, 1e-4)
    for _ in run.iterate(iterations, 1e-4):
        pass
    found = factors(run)
    assert np.array_equal(found[1], twin[1])
    assert np.array_equal(found[3], twin[3])
    expected = db(run.energy, reference.objective(run.A, twin))
    assert db(run.energy, reference.objective(run.A, found)) == pytest.approx(expected, abs=DB)
    assert db(run.energy, run.objective) == pytest.approx(expected, abs=DB)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_reference_finds_exact_factors(alphabet: str) -> None:
    """The twin itself: from the true bits it has the true matrix after one round of diagonals."""
    B1, B2 = start(12, 10, 3, alphabet)
    d1, d2, d3 = (np.linspace(1, 2, size) for size in (12, 3, 10))
    A = reference.reconstruct(d1, B1, d2, B2, d3)
    found = reference.greedy(A, B1, B2, 200, 0.0)
    assert np.array_equal(found[1], B1)
    assert reference.objective(A, found) < 1e-6 * (A * A).sum()
    assert reference.objective(A, (d1, B1, d2, B2, d3)) == 0


# ---------------------------------------------------------------- the objective

MATRICES = {
    "gaussian": gaussian(40, 30),
    "wide": gaussian(9, 70, 1),
    "weights": weights(60, 50),
    "one sign": np.abs(weights(30, 45, 1)),
    "zero rows and columns": gaussian(30, 30, 2) * (np.arange(30) % 3 > 0) * (np.arange(30) % 4 > 0)[:, None],
}


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("name", MATRICES)
def test_no_step_raises_the_objective(name: str, alphabet: str) -> None:
    """After every single step, computed in float64; after an iteration it is the one reported."""
    run = greedy(MATRICES[name], 12, alphabet)
    before = db(run.energy, true_objective(run))
    first = before
    for _ in range(8):
        for step in run.steps():
            step()
            after = db(run.energy, true_objective(run))
            assert after >= before - DB, step.__name__
            before = after
        assert db(run.energy, run.objective) == pytest.approx(after, abs=DB)
    assert before > first + 1


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_steps_may_come_in_any_order(alphabet: str) -> None:
    """Every three steps from the start, where each has much to do; flips lower it by as much as they say."""
    names = [step.__name__ for step in greedy(MATRICES["wide"], 12, alphabet).steps()]
    for three in itertools.product(names, repeat=3):
        run = greedy(MATRICES["wide"], 12, alphabet)
        before = true_objective(run)
        for name in three:
            said = run.objective
            getattr(run, name)()
            after = true_objective(run)
            assert db(run.energy, after) >= db(run.energy, before) - DB, three
            if name.startswith("flip"):
                assert said - run.objective == pytest.approx(before - after, abs=RELATIVE * run.energy), three
            before = after


@pytest.mark.parametrize(("method", "alphabet"), COMBINATIONS)
def test_reported_snr_is_that_of_the_factors(method: str, alphabet: str) -> None:
    for A in (gaussian(90, 70), weights(70, 90)):
        reports: list[diba.Progress] = []
        given = {"method": method, "alphabet": alphabet, "effort": "fast", "progress": reports.append}
        f = diba.solve(A, bits_per_weight=2.5, **given)
        wide = A.astype(np.float64)
        objective = reference.objective(wide, factors(f))
        snr = db(np.vdot(wide, wide), objective)
        assert reports[-1].snr_db == pytest.approx(snr, abs=DB)
        assert reports[-1].objective == pytest.approx(objective, rel=RELATIVE)
        assert f.snr_db(A) == pytest.approx(snr, abs=DB)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_more_bits_are_clearly_better(alphabet: str) -> None:
    A = weights(96, 80)
    snr = [diba.solve(A, k=k, alphabet=alphabet, max_iter=15).snr_db(A) for k in (4, 16, 64, 256)]
    assert all(later > earlier + 1 for earlier, later in itertools.pairwise(snr))


# ---------------------------------------------------------------- tiny cases, by enumeration


def tiny_runs(alphabet: str) -> Iterator[tuple[Greedy, int]]:
    """Runs on tiny matrices that stopped because no bit flips any more, and their k."""
    for m, n, k, seed in itertools.product((1, 2, 3), (2, 3, 4), (1, 2, 3), range(3)):
        run = greedy(gaussian(m, n, seed), k, alphabet, seed)
        for _ in run.iterate(500, 0.0):
            if run.flips == 0:
                break
        assert run.flips == 0
        yield run, k


def flipped(B: np.ndarray, alphabet: str) -> Iterator[np.ndarray]:
    """All matrices one bit away."""
    for index in np.ndindex(B.shape):
        other = B.copy()
        other[index] = (1 if alphabet == "binary" else 0) - other[index]
        yield other


def tolerance(run: Greedy, relative: float) -> float:
    """How far a computed objective may be off, if every term of it is off by this share."""
    d1, B1, d2, B2, d3 = (np.abs(part) for part in factors(run))
    ones = reference.reconstruct(d1, np.ones_like(B1), d2, np.ones_like(B2), d3)
    return relative * float(np.square(np.abs(run.A) + 2 * ones).sum())


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_no_single_flip_improves_the_result(alphabet: str) -> None:
    """One-bit optimal, up to the threshold of flips and the rounding of sums of m + n + k float32 terms."""
    for run, k in tiny_runs(alphabet):
        d1, B1, d2, B2, d3 = factors(run)
        best = true_objective(run) - tolerance(run, reference.FLIP_THRESHOLD + (sum(run.A.shape) + k) * EPS)
        assert all(reference.objective(run.A, (d1, B, d2, B2, d3)) >= best for B in flipped(B1, alphabet))
        assert all(reference.objective(run.A, (d1, B1, d2, B, d3)) >= best for B in flipped(B2, alphabet))


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_result_is_never_better_than_the_best(alphabet: str) -> None:
    """Not better than any pair of bit matrices with its diagonals, nor than the best matrix of rank k."""
    entries = (0.0, 1.0) if alphabet == "binary" else (-1.0, 1.0)
    for run, k in tiny_runs(alphabet):
        (m, n), found = run.A.shape, run.objective
        tail = np.linalg.svd(run.A, compute_uv=False)[k:]
        slack = tolerance(run, (m + n + k) * EPS)
        assert found >= np.square(tail).sum() - slack
        if (m + n) * k > 10:
            continue
        d1, _, d2, _, d3 = factors(run)
        every = np.array(list(itertools.product(entries, repeat=(m + n) * k)))
        B1, B2 = every[:, : m * k].reshape(-1, m, k), every[:, m * k :].reshape(-1, k, n)
        objectives = np.square(run.A - (d1[:, None] * B1 * d2) @ (B2 * d3)).sum(axis=(1, 2))
        assert found >= objectives.min() - slack
        assert np.abs(objectives - found).min() <= slack


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_one_component_reaches_the_best_diagonals_of_its_bits(alphabet: str) -> None:
    """For k = 1 these are the leading singular vectors of the block that the bits select, or of all of A."""
    for seed in range(6):
        run = greedy(weights(6, 5, seed), 1, alphabet, seed)
        for _ in run.iterate(2000, 0.0):
            pass
        _, B1, _, B2, _ = factors(run)
        block = run.A[B1[:, 0] != 0][:, B2[0] != 0]
        best = run.energy - np.linalg.svd(block, compute_uv=False)[0] ** 2
        assert db(run.energy, true_objective(run)) == pytest.approx(db(run.energy, best), abs=DB)


# ---------------------------------------------------------------- budgets


@settings(deadline=None, max_examples=200)
@given(m=st.integers(1, 3000), n=st.integers(1, 3000), bits=st.floats(1e-3, 64))
def test_budget_is_the_largest_k_that_fits(m: int, n: int, bits: float) -> None:
    smallest = bits_per_weight(m, n, 1, 16)
    if smallest > bits:
        with pytest.raises(ValueError, match=r"bits_per_weight is .* too small .* use bits_per_weight="):
            inner_dimension(m, n, "bits_per_weight", bits)
        return
    k = inner_dimension(m, n, "bits_per_weight", bits)
    assert bits_per_weight(m, n, k, 16) <= bits < bits_per_weight(m, n, k + 1, 16)
    assert inner_dimension(m, n, "storage_ratio", bits / 32) == k


@settings(deadline=None, max_examples=200)
@given(m=st.integers(1, 5000), n=st.integers(1, 5000), k=st.integers(1, 20000))
def test_budget_at_the_boundary(m: int, n: int, k: int) -> None:
    """The exact size of k gives k; the next smaller number gives k - 1."""
    exact = (k * (m + n) + 16 * (m + k + n)) / (m * n)
    assert bits_per_weight(m, n, k, 16) == exact
    assert inner_dimension(m, n, "bits_per_weight", exact) == k
    below = math.nextafter(exact, 0)
    if k > 1:
        assert inner_dimension(m, n, "bits_per_weight", below) == k - 1
    else:
        with pytest.raises(ValueError, match="too small"):
            inner_dimension(m, n, "bits_per_weight", below)


def test_budgets_through_solve() -> None:
    A = gaussian(64, 48)
    f = diba.solve(A, bits_per_weight=2, max_iter=2)
    assert f.bits_per_weight <= 2 < bits_per_weight(64, 48, f.k + 1, 16)
    assert diba.solve(A, storage_ratio=2 / 32, max_iter=2) == f == diba.solve(A, f.k, max_iter=2)
    with pytest.raises(ValueError, match="too small") as refusal:
        diba.solve(A, bits_per_weight=0.1)
    suggested = float(str(refusal.value).rsplit("=", 1)[1].split()[0])
    assert diba.solve(A, bits_per_weight=suggested, max_iter=1).k == 1


# ---------------------------------------------------------------- seeds, threads, scale


def test_seeds() -> None:
    A = gaussian(50, 40)
    one, again, other = (diba.solve(A, k=16, seed=seed, max_iter=6) for seed in (5, 5, 6))
    assert one == again
    assert one.b1 != other.b1
    assert one.b2 != other.b2


def test_threads_do_not_change_the_result() -> None:
    A = gaussian(700, 500)
    results = [diba.solve(A, k=150, max_iter=2, threads=threads) for threads in (1, 2, 5)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("power", [-90, -7, 1, 30, 90])
def test_powers_of_two_go_through_exactly(power: int, alphabet: str) -> None:
    A = weights(40, 30)
    f, g = (diba.solve(X, k=12, alphabet=alphabet, max_iter=8) for X in (A, np.ldexp(A, power)))
    assert f.b1 == g.b1
    assert f.b2 == g.b2
    assert np.array_equal(np.ldexp(f.to_dense(), power), g.to_dense())


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_diagonals_are_of_16_bits(alphabet: str) -> None:
    f = diba.solve(weights(40, 30), k=12, alphabet=alphabet, max_iter=8)
    assert f.diagonal_bits == 16
    for d in (f.d1, f.d2, f.d3):
        h = np.ldexp(d.astype(np.float64), -math.frexp(float(np.abs(d).max()))[1])
        assert np.array_equal(h.astype(np.float16), h)


# ---------------------------------------------------------------- inputs

WHOLE = np.random.default_rng(3).integers(0, 9, (20, 14))
SPACED = np.zeros((40, 28))
SPACED[::2, ::2] = WHOLE
FROZEN = WHOLE.astype(np.float32)
FROZEN.flags.writeable = False
INPUTS: dict[str, Any] = {
    **{dtype: WHOLE.astype(dtype) for dtype in ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", ">f4")},
    "Fortran order": np.asfortranarray(WHOLE, dtype=np.float32),
    "strided": SPACED[::2, ::2],
    "reversed": np.ascontiguousarray(WHOLE[::-1, ::-1]).astype(np.float64)[::-1, ::-1],
    "read-only": FROZEN,
    "lists": WHOLE.tolist(),
}


@pytest.mark.parametrize("name", INPUTS)
def test_the_same_numbers_give_the_same_factors(name: str) -> None:
    A = INPUTS[name]
    before = np.array(A)
    f = diba.solve(A, k=6, max_iter=5)
    assert f == diba.solve(WHOLE.astype(np.float64), k=6, max_iter=5)
    assert np.array_equal(before, A)


def test_booleans() -> None:
    A = WHOLE > 4
    assert diba.solve(A, k=6, max_iter=5) == diba.solve(A.astype(np.float32), k=6, max_iter=5)


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    expected = diba.solve(WHOLE, k=6, max_iter=5)
    A = torch.tensor(WHOLE)
    for tensor in (A, A.float(), A.double(), A.half(), A.bfloat16(), A.t().contiguous().t()):
        before = tensor.clone()
        assert diba.solve(tensor, k=6, max_iter=5) == expected
        assert torch.equal(tensor, before)
    parameter = torch.nn.Parameter(A.float())
    assert diba.solve(parameter, k=6, max_iter=5) == expected
    assert parameter.requires_grad


# ---------------------------------------------------------------- edge cases

EDGES: dict[str, tuple[np.ndarray, int, float]] = {  # matrix, k, SNR (dB) that is at least reached
    "zero": (np.zeros((5, 4)), 3, math.inf),
    "zero, 1 x 1": (np.zeros((1, 1)), 1, math.inf),
    "one row that is not zero": (np.outer(np.arange(9) == 4, np.arange(1.0, 8.0)), 8, 10),
    "one column that is not zero": (np.outer(np.arange(1.0, 8.0), np.arange(9) == 4), 8, 10),
    "one entry that is not zero": (np.eye(1, 30).reshape(5, 6), 8, 20),
    "constant": (np.full((12, 10), -3.5), 8, 10),
    "rank one": (np.outer(np.linspace(-1, 2, 12), np.linspace(1, -3, 10)), 8, 5),
    "identity": (np.eye(8), 16, 3),
    "1e-30": (1e-30 * gaussian(20, 15), 10, 3),
    "1e30": (1e30 * gaussian(20, 15), 10, 3),
    "1e-30 to 1e30": (np.diag(np.logspace(-30, 30, 7)) + 1e-30, 6, 3),
    "1e38": (np.full((4, 5), 1e38), 6, 3),
    "subnormal": (np.full((4, 5), 1e-44, np.float32), 6, -math.inf),
    "1 x n": (gaussian(1, 30), 10, 1),
    "n x 1": (gaussian(30, 1), 10, 1),
    "1 x 1": (np.array([[-2.5]]), 1, -1),
    "k above m and n": (gaussian(5, 7), 60, 10),
}


@pytest.mark.parametrize(("method", "alphabet"), COMBINATIONS)
@pytest.mark.parametrize("name", EDGES)
def test_edge_cases_give_finite_factors_without_warnings(name: str, alphabet: str, method: str) -> None:
    A, k, snr = EDGES[name]
    reports: list[diba.Progress] = []
    f = diba.solve(A, k=k, method=method, alphabet=alphabet, max_iter=60, progress=reports.append)
    assert f.shape == A.shape
    assert f.k == k
    for d in (f.d1, f.d2, f.d3):
        assert np.isfinite(d).all()
    assert np.isfinite(f.to_dense()).all()
    assert f.snr_db(A) >= snr
    assert f.diagonal_bits == 16
    assert all(math.isfinite(report.objective) and not math.isnan(report.snr_db) for report in reports)
    assert not f.to_dense()[~A.any(axis=1)].any()
    assert not f.to_dense()[:, ~A.any(axis=0)].any()


# ---------------------------------------------------------------- options


def test_solve_takes_the_fields_of_solve_options_with_their_defaults() -> None:
    keywords = inspect.signature(diba.solve).parameters
    fields = dataclasses.fields(diba.SolveOptions)
    assert [name for name in keywords if name in {field.name for field in fields}] == [f.name for f in fields]
    for field in fields:
        assert keywords[field.name].default == field.default
        assert keywords[field.name].annotation == field.type
        assert keywords[field.name].kind == inspect.Parameter.KEYWORD_ONLY
        assert field.metadata["help"]


def test_options_are_checked_and_plain() -> None:
    options = diba.SolveOptions(seed=np.int32(3), tol=np.float32(0.5), time_limit=2, threads=np.uint8(1))
    assert [type(value) for value in dataclasses.asdict(options).values()] == [
        *(str, str, str, int, type(None), float, float, int, type(None))
    ]
    for wrong, error in (
        ({"method": "magic"}, ValueError),
        ({"alphabet": 3}, TypeError),
        ({"effort": "some"}, ValueError),
        ({"seed": -1}, ValueError),
        ({"max_iter": 1.5}, TypeError),
        ({"tol": math.nan}, ValueError),
        ({"time_limit": -1}, ValueError),
        ({"threads": 0}, ValueError),
    ):
        name, value = next(iter(wrong.items()))
        with pytest.raises(error, match=f"^{name} is .*{value}.*must be"):
            diba.SolveOptions(**wrong)
    with pytest.raises(ValueError, match=r"alphabet is 'binary'.*'sign' for method='dbf'"):
        diba.SolveOptions(method="dbf")


# ---------------------------------------------------------------- progress


def test_progress_protocol() -> None:
    A = gaussian(60, 50)
    reports: list[diba.Progress] = []
    f = diba.solve(A, k=20, method="greedy", max_iter=7, tol=0, progress=reports.append)
    assert [report.done for report in reports] == [*range(8), 7]  # the last one is of the result
    assert {report.total for report in reports} == {7}
    assert all(later.objective <= earlier.objective for earlier, later in itertools.pairwise(reports[:-1]))
    assert all(later.elapsed >= earlier.elapsed for earlier, later in itertools.pairwise(reports))
    assert reports[0].elapsed >= 0
    assert reports[0].flips == 0 < reports[1].flips
    energy = float(np.vdot(A, A.astype(np.float64)))
    for report in reports:
        assert report.snr_db == pytest.approx(db(energy, report.objective), abs=1e-9)
    assert reports[0].remaining is None
    assert all(report.remaining > 0 for report in reports[1:-2])
    assert reports[-1].remaining == 0
    assert f == diba.solve(A, k=20, method="greedy", max_iter=7, tol=0)


def test_iterations_end_where_asked() -> None:
    A = gaussian(60, 50)
    for max_iter in (0, 1, 4):
        reports: list[diba.Progress] = []
        diba.solve(A, k=20, method="greedy", max_iter=max_iter, tol=0, progress=reports.append)
        assert reports[-1].done == max_iter
    reports = []
    diba.solve(A, k=20, method="greedy", max_iter=10**6, tol=0.01, progress=reports.append)
    gains = [1 - later.objective / earlier.objective for earlier, later in itertools.pairwise(reports[:-1])]
    assert gains[-1] <= 0.01 < min(gains[:-1])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, SystemExit])
@pytest.mark.parametrize("at", [0, 2])
def test_what_a_callback_raises_comes_through(error: type[BaseException], at: int) -> None:
    A = gaussian(60, 50)
    before = A.copy()

    def callback(report: diba.Progress) -> None:
        if report.done == at:
            raise error("from the callback")

    expected = diba.solve(A, k=20, max_iter=4)
    with pytest.raises(error, match="from the callback"):
        diba.solve(A, k=20, max_iter=4, progress=callback)
    assert np.array_equal(A, before)
    assert diba.solve(A, k=20, max_iter=4) == expected
