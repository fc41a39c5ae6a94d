"""method="admm" and "dbf": their steps against the formulas written densely in float64, their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba
from diba import _core
from diba.solvers.admm import Admm
from diba.solvers.schedule import NEVER, Deadline
from diba.solvers.sign_side import SignSide, may_round

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ALPHABETS = ("binary", "sign")
EPS = 2.0**-23  # float32


def gaussian(m: int, n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((m, n), dtype=np.float32)


def low_rank(m: int, n: int) -> NDArray[np.float32]:
    """Rank 8 and noise: closer to trained weights than noise alone."""
    return gaussian(m, 8, 1) @ gaussian(8, n, 2) + gaussian(m, n, 3)


def signs(words: NDArray[np.uint64], k: int) -> NDArray[np.float64]:
    return diba.BitMatrix(words, k, "sign").to_dense().astype(np.float64)


def unit(side: SignSide) -> NDArray[np.float64]:
    """X = diag(u) S, columns of length one."""
    return side.scale.astype(np.float64)[:, None] * signs(side.words, side.k)


def product(run: Admm) -> NDArray[np.float64]:
    """L R' of the present iterate, in the units of A."""
    rms = np.sqrt(run.energy / (run.left.rows * run.right.rows))
    L, R = (side.projection().astype(np.float64) / side.norms for side in (run.left, run.right))
    return rms * (L @ R.T)


# ---------------------------------------------------------------- the steps


@dataclass
class Step:
    """One call of the compiled step: whose side, what went in, and what came out."""

    side: SignSide
    shift: float
    balance: NDArray[np.float32] | None
    given: dict[str, Any]
    words: NDArray[np.uint64]
    outer: NDArray[np.float32]
    inner: NDArray[np.float32]
    state: NDArray[np.float32]


@pytest.fixture
def steps_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Admm], list[Step]]:
    """Every step that a run makes from now on, as a list that grows."""

    def record(run: Admm) -> list[Step]:
        steps: list[Step] = []
        inverses: dict[int, tuple[float, Any]] = {}  # by the object that holds the inverse
        invert, step = _core.invert_shifted, _core.step_sign_side

        def inverted(gram: Any, shift: float, w: Any, *more: Any) -> None:
            inverses[id(more[-2])] = shift, w
            invert(gram, shift, w, *more)

        names = ("words", "outer", "inner", "state", "correlations", "inverse", "ratio", "weights", "penalty")

        def stepped(*arguments: Any) -> float:
            given = dict(zip(names, arguments, strict=False))
            side = run.left if given["words"] is run.left.words else run.right
            shift, w = inverses[id(given["inverse"])]
            copies = {name: np.copy(value) for name, value in given.items() if name != "inverse"}
            value = step(*arguments)
            after = [given[name].copy() for name in ("words", "outer", "inner", "state")]
            steps.append(Step(side, shift, w, copies, *after))
            return value

        monkeypatch.setattr(_core, "invert_shifted", inverted)
        monkeypatch.setattr(_core, "step_sign_side", stepped)
        return steps

    return record


def check_step(step: Step, X: NDArray[np.float64], target: NDArray[np.float64], ratio: Any) -> None:
    """Y + U of one step, dense, against the other side X with columns of length one."""
    given, k = step.given, X.shape[1]
    rho = float(given["penalty"])
    assert step.shift == pytest.approx(0.03 + rho)
    assert np.allclose(given["ratio"], ratio, rtol=1e-5)
    ratio = given["ratio"].astype(np.float64)
    Z = given["outer"][:, None] * signs(given["words"], k) * (given["inner"] * ratio)
    U = given["state"] * ratio - Z
    system = X.T @ X + step.shift * np.eye(k)
    if step.balance is not None:
        system += np.outer(step.balance, step.balance).astype(np.float64)
    inverse = np.linalg.inv(system)
    wanted = target @ X + rho * (Z - U)
    others = np.abs(inverse - np.diag(inverse.diagonal()))
    # Off the diagonal both operands have eight bits: half of a 127th part of the largest, times the other.
    units = np.abs(wanted).max(axis=1)[:, None] * others.sum(axis=0)
    units += np.abs(wanted).sum(axis=1)[:, None] * others.max(axis=0)
    # And float32: sums of up to 30 terms, passed on by the condition of the system.
    size = (np.abs(wanted) @ np.abs(inverse)).max() + np.abs(U).max()
    bound = 1.01 / 254 * units + 30 * EPS * np.linalg.cond(system) * size
    assert (np.abs(step.state - (wanted @ inverse + U)) <= bound).all()


def check_projection(
    state: Any, words: Any, outer: Any, inner: Any, start: NDArray[np.float64], powers: int
) -> None:
    """Signs times u v', the rank-one fit of magnitudes by power iteration from ``start``."""
    magnitudes = np.abs(state.astype(np.float64))
    v = start
    for _ in range(powers):
        u = magnitudes @ v
        u /= np.linalg.norm(u)
        v = u @ magnitudes
    assert np.array_equal(signs(words, inner.size) > 0, state > 0)
    tolerance = powers * sum(state.shape) * EPS  # sums of positive terms
    assert np.allclose(outer, u, rtol=tolerance)
    assert np.allclose(inner, v, rtol=tolerance)


@pytest.mark.parametrize("kind", ["at once", "one after the other", "published"])
@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_steps_follow_the_formulas(kind: str, balance: float, steps_of: Callable[[Admm], list[Step]]) -> None:
    A, outer_steps = gaussian(30, 24), 8
    run = Admm(A, 9, seed=1, balance=balance, threads=1, published=kind == "published")
    run.sequential = kind != "at once"
    scaled = A.astype(np.float64) / np.sqrt(np.square(A, dtype=np.float64).mean())
    inner_steps, powers = (3, 5) if kind == "published" else (1, 1)
    recorded = steps_of(run)
    ramp = run.iterate(outer_steps, NEVER)
    for number in range(outer_steps):
        recorded.clear()
        left, right = unit(run.left), unit(run.right)
        norms = {side: side.column_norms() for side in (run.left, run.right)}
        units = {side: side.norms for side in (run.left, run.right)}
        assert next(ramp) == number
        assert [step.side for step in recorded] == [run.left] * inner_steps + [run.right] * inner_steps
        if run.sequential:
            left, norms[run.left] = unit(run.left), run.left.column_norms()
        part = min(1.0, number / (outer_steps - 3))
        first = part**3 if kind == "published" else 0.2 ** (1 - part)
        for side, X, target, other in (
            (run.left, right, scaled, run.right),
            (run.right, left, scaled.T, run.left),
        ):
            mine = [step for step in recorded if step.side is side]
            penalties = [float(step.given["penalty"]) for step in mine]
            assert penalties == pytest.approx([first, 1, 1][:inner_steps])
            ratios = [norms[other] / units[side], 1.0, 1.0]
            for step, ratio in zip(mine, ratios[:inner_steps], strict=True):
                check_step(step, X, target, ratio)
            ends = [(s.given["words"], s.given["outer"], s.given["inner"]) for s in mine[1:]]
            ends.append((side.words, side.scale, side.inner))
            for step, (words, u, v) in zip(mine, ends, strict=True):
                start = step.given["inner"].astype(np.float64) * step.given["ratio"]
                check_projection(step.state, words, u, v, start, powers)
            if balance:
                alternating = np.ones(9) if side is run.left else (-1.0) ** np.arange(9)
                assert np.allclose(mine[0].balance, np.sqrt(balance) * alternating)
    assert list(ramp) == [outer_steps]


def test_projection_is_signs_times_the_rank_one_fit_of_magnitudes() -> None:
    run = Admm(low_rank(40, 30), 12, seed=0, balance=0, threads=1)
    for _ in run.iterate(30, NEVER):
        pass
    side = run.left
    Z = side.projection()
    assert np.array_equal(Z > 0, side.state > 0)
    assert np.linalg.matrix_rank(np.abs(Z), tol=1e-4 * np.abs(Z).max()) == 1
    u, s, vt = np.linalg.svd(np.abs(side.state.astype(np.float64)))
    best = np.abs(side.state) - s[0] * np.outer(u[:, 0], vt[0])
    # power iteration carried from step to step: nearly the best rank-one fit
    assert np.linalg.norm(np.abs(side.state) - np.abs(Z)) <= 1.01 * np.linalg.norm(best)


@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_objective_is_that_of_the_projected_iterate(balance: float) -> None:
    A = low_rank(50, 33)
    run = Admm(A, 14, seed=3, balance=balance, threads=2)
    run.sequential = False
    iterate = product(run)
    for _ in run.iterate(12, NEVER):
        # three float32 sums of about the size of |A|^2 or of |L R'|^2 cancel
        size = run.energy + np.square(iterate).sum()
        assert run.objective == pytest.approx(np.square(A - iterate).sum(), abs=1e-5 * size)
        assert run.best.objective <= run.objective
        iterate = product(run)


@pytest.mark.parametrize("kind", ["at once", "one after the other", "published"])
def test_the_best_iterate_is_kept_with_its_objective(kind: str) -> None:
    A = low_rank(50, 33)
    run = Admm(A, 14, seed=3, balance=0, threads=1, published=kind == "published")
    run.sequential = kind != "at once"
    lowest = np.inf
    for _ in run.iterate(12, NEVER):
        lowest = min(lowest, run.objective)
        assert run.best.objective == lowest
        d1, b1, d2, b2, d3 = run.factors("sign")
        found = (d1[:, None].astype(np.float64) * b1.to_dense() * d2) @ (b2.to_dense() * d3)
        size = run.energy + np.square(found).sum()
        assert np.square(A - found).sum() == pytest.approx(lowest, abs=1e-5 * size)


def test_balance_makes_signs_convertible() -> None:
    """S1 D2 S2 = 4 B1 D2 B2 holds up to rank-one terms, which the penalty makes small."""
    A = low_rank(60, 48)
    errors = []
    for balance in (0.0, 0.1):
        run = Admm(A, 24, seed=0, balance=balance, threads=1)
        for _ in run.iterate(150, NEVER):
            pass
        dense = {}
        for alphabet in ALPHABETS:
            d1, b1, d2, b2, d3 = run.factors(alphabet)
            dense[alphabet] = (d1[:, None] * b1.to_dense() * d2) @ (b2.to_dense() * d3)
        errors.append(np.linalg.norm(dense["binary"] - dense["sign"]) / np.linalg.norm(dense["sign"]))
    assert errors[1] < 0.5 < errors[0]


def test_a_deadline_shortens_the_ramp() -> None:
    class Clock(Deadline):
        """Every question takes a tenth of the time."""

        asked = 0

        def part_used(self) -> float:
            self.asked += 1
            return self.asked / 10

        def over(self) -> bool:
            return self.asked >= 10

    run = Admm(low_rank(40, 30), 12, seed=0, balance=0, threads=1)
    done = list(run.iterate(10**6, Clock(1.0)))
    assert done == list(range(9))  # the start of the clock is asked for first
    assert run.best.objective < 0.5 * run.energy  # the penalty reached one
    run = Admm(low_rank(40, 30), 12, seed=0, balance=0, threads=1)
    assert list(run.iterate(10**6, Deadline(0.0))) == [0]


# ---------------------------------------------------------------- the results


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("make", [gaussian, low_rank])
def test_better_than_greedy(make: Callable[[int, int], NDArray[np.float32]], alphabet: str) -> None:
    A = make(96, 80)
    greedy = diba.solve(A, bits_per_weight=2.5, alphabet=alphabet, method="greedy").snr_db(A)
    admm = diba.solve(A, bits_per_weight=2.5, alphabet=alphabet, method="admm", max_iter=200).snr_db(A)
    assert admm > greedy + 0.5


@pytest.mark.parametrize("method", ["admm", "dbf"])
def test_a_longer_ramp_is_better(method: str) -> None:
    A = low_rank(96, 80)
    short, long = (
        diba.solve(A, k=40, alphabet="sign", method=method, max_iter=steps).snr_db(A) for steps in (10, 300)
    )
    assert long > short + 0.2


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_reports(alphabet: str) -> None:
    A = gaussian(40, 32)
    seen: list[diba.Progress] = []
    f = diba.solve(A, k=20, alphabet=alphabet, method="admm", max_iter=25, progress=seen.append)
    iterations = [report.done for report in seen]
    last = iterations[-1]
    assert iterations == [*range(last + 1), last]  # the ramp, greedy steps after it, then the result
    assert 25 < last <= seen[0].total
    assert {report.total for report in seen} == {seen[0].total}
    assert seen[-1].snr_db == pytest.approx(f.snr_db(A), abs=1e-4)
    assert f == diba.solve(A, k=20, alphabet=alphabet, method="admm", max_iter=25)
    assert f != diba.solve(A, k=20, alphabet=alphabet, method="admm", max_iter=25, seed=1)
    assert f.diagonal_bits == 16


def test_reports_of_the_published_recipe() -> None:
    seen: list[diba.Progress] = []
    A = gaussian(20, 16)
    f = diba.solve(A, k=6, alphabet="sign", method="dbf", progress=seen.append)
    assert [report.done for report in seen] == [*range(261), 260]
    assert {report.total for report in seen} == {260}
    assert seen[-1].snr_db == pytest.approx(f.snr_db(A), abs=1e-4)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize(
    "A",
    [
        np.zeros((5, 7)),
        np.ones((6, 4)),
        np.outer(np.arange(1.0, 10.0), [1.0, -2.0, 0.5]),
        np.pad(gaussian(5, 5), 3),
        1e-30 * gaussian(6, 6).astype(np.float64),
        1e30 * gaussian(6, 6).astype(np.float64),
        gaussian(1, 8),
        gaussian(8, 1),
        np.ones((1, 1)),
    ],
    ids=["zero", "constant", "rank one", "zero rows", "tiny", "huge", "1 x n", "n x 1", "1 x 1"],
)
def test_edges_give_finite_factors(A: NDArray[np.float64], alphabet: str) -> None:
    f = diba.solve(A, k=12, alphabet=alphabet, method="admm", max_iter=60)
    assert np.isfinite(f.to_dense()).all()
    assert f.snr_db(A) > 0  # better than nothing


def test_a_long_run_one_side_after_the_other_keeps_its_norms() -> None:
    """Only products of the norms of both sides count; of their ratio, each step makes a little more."""
    A = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    ramp = Admm(A / np.abs(A).max(), 6, 0, 0.0, 1)
    assert ramp.sequential
    steps = list(ramp.iterate(2000, NEVER))
    assert steps == list(range(2001))
    assert np.isfinite(ramp.objective)
    norms = np.concatenate([ramp.left.norms, ramp.right.norms])
    assert ((norms > 2.0**-20) & (norms < 2.0**20)).all()


# ---------------------------------------------------------------- rounding


def test_only_large_matrices_without_outliers_are_rounded() -> None:
    A = gaussian(300, 256)
    assert may_round(A, 256)
    assert not may_round(A, 255)
    assert not may_round(A[:, :255], 256)
    for row, col in ((3, slice(None)), (slice(None), 5)):
        outlying = A.copy()
        outlying[row, col] *= 30
        assert not may_round(outlying, 256)
    assert not Admm(A, 256, 0, 0.0, 1, published=True).left.rounded
    assert Admm(A, 256, 0, 0.0, 1).left.rounded


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_rounding_costs_no_snr(alphabet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of some seeds of either way differs by less than seeds do."""
    A = low_rank(352, 352)

    def found() -> NDArray[np.float64]:
        options: dict[str, Any] = {"alphabet": alphabet, "effort": "fast", "method": "admm"}
        return np.array([diba.solve(A, k=256, seed=seed, **options).snr_db(A) for seed in range(3)])

    rounded = found()
    monkeypatch.setattr("diba.solvers.sign_side._OUTLYING", 0.0)
    exact = found()
    assert (rounded != exact).all()
    assert abs(rounded.mean() - exact.mean()) <= 0.05
