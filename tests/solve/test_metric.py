"""ADMM on the error of outputs, and stages: against float64, and what they must keep to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba
from diba import _core
from diba._internal.snr import output_energy_and_error, snr_db
from diba.solvers import methods, stages
from diba.solvers import run as solver_run
from diba.solvers.admm import Admm
from diba.solvers.metric import Metric, MetricAdmm
from diba.solvers.schedule import NEVER, Deadline, Schedule
from diba.solvers.stages import part_sizes, ramps

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHABETS = ("binary", "sign")
RIDGE = 0.03


def gaussian(m: int, n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((m, n), dtype=np.float32)


def moments(n: int, seed: int = 1) -> NDArray[np.float64]:
    """With a few large eigenvalues, as inputs of layers have, and a diagonal of ones."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((3 * n, n)) @ (np.eye(n) + rng.standard_normal((n, n)) * rng.random(n)[:, None])
    S = X.T @ X
    scales = np.sqrt(S.diagonal())
    return S / np.outer(scales, scales)


def running(m: int, n: int, k: int, balance: float = 0.0, **given: Any) -> tuple[MetricAdmm, Any, Any]:
    A, C = gaussian(m, n), moments(n)
    return MetricAdmm(Metric(C), A, k, 3, balance, given.pop("threads", 1), **given), A.astype(np.float64), C


def iterate(run: MetricAdmm) -> NDArray[np.float64]:
    """L R' now, in the units of A, but for those of run._unit."""
    left, right = (side.projection().astype(np.float64) / side.norms for side in (run.left, run.right))
    return float(run._unit) * (left @ right.T)


def error(R: NDArray[np.float64], C: NDArray[np.float64]) -> float:
    return float(np.trace(R @ C @ R.T))


# ---------------------------------------------------------------- the steps


@pytest.mark.parametrize("balance", [0.0, 0.1])
@pytest.mark.parametrize("sequential", [False, True])
def test_objective_is_that_of_the_outputs(sequential: bool, balance: float) -> None:
    run, A, C = running(40, 50, 17, balance)
    run.sequential = sequential
    assert run.energy == pytest.approx(error(A, C), rel=1e-5)  # sums in float32
    lowest = np.inf
    for _ in run.iterate(12, NEVER):
        lowest = min(lowest, run.objective)
        assert run.best.objective == lowest
        d1, b1, d2, b2, d3 = run.factors("sign")
        F = (d1[:, None].astype(np.float64) * b1.to_dense() * d2) @ (b2.to_dense() * d3)
        size = run.energy + error(F, C)  # float32 sums of about this size cancel
        assert error(A - F, C) == pytest.approx(lowest, abs=1e-5 * size)
    assert lowest < 0.6 * run.energy


@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_partners_are_those_of_the_metric(balance: float) -> None:
    run, A, C = running(40, 50, 17, balance)
    for _ in run.iterate(3, NEVER):
        pass
    X = run.right.scale.astype(np.float64)[:, None] * run.right.dense()
    lengths = np.sqrt(np.einsum("ij,ij->j", X, C @ X))
    gram, correlations, norms = run.right.as_partner()
    size = np.abs(X).T @ np.abs(C) @ np.abs(X) / np.outer(lengths, lengths)
    rounding = 200 * 2.0**-23  # float32 sums of 50 terms, four of them one in the other
    assert (np.abs(gram - X.T @ C @ X / np.outer(lengths, lengths)) <= rounding * size).all()
    wanted = A @ C @ X / lengths / float(run._unit)
    size = np.abs(A) @ np.abs(C) @ np.abs(X) / lengths / float(run._unit)
    assert (np.abs(correlations - wanted) <= rounding * size).all()
    assert np.allclose(norms, run.right.column_norms() * lengths, rtol=rounding * 50)


@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_the_right_side_comes_nearer_to_the_solution(balance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every step: the functional of which the system is the gradient, in float64."""
    run, A, _ = running(48, 40, 20, balance)
    step, seen = _core.step_input_side, []
    values, Q = run._metric.values.astype(np.float64)[:, None], run._metric.vectors.astype(np.float64)

    def stepped(words: Any, outer: Any, inner: Any, state: Any, solution: Any, *more: Any) -> float:
        eigen_state, given = more[0], dict(zip(("corr", "image", "ratio"), more[4:7], strict=True))
        penalty = more[8]
        X = run.left.scale.astype(np.float64)[:, None] * run.left.dense()
        G = X.T @ X + RIDGE * np.eye(X.shape[1])
        if run.right.balance is not None:
            G += np.outer(run.right.balance, run.right.balance)
        ratio = given["ratio"].astype(np.float64)
        Z = given["image"] * (inner * ratio)
        U = eigen_state * ratio - Z
        b = values * (Q.T @ A.T @ X / float(run._unit)) + penalty * (Z - U)

        def functional(T: NDArray[np.float64]) -> float:
            return float(((values * (T @ G) + penalty * T) * T / 2 - b * T).sum())

        exact = np.stack(
            [
                np.linalg.solve(v * G + penalty * np.eye(len(G)), x)
                for v, x in zip(values[:, 0], b, strict=True)
            ]
        )
        before = functional(solution * ratio) - functional(exact)
        along = step(words, outer, inner, state, solution, *more)
        seen.append((functional(solution) - functional(exact)) / before)
        # What is projected: Y + U, rounded to 8 bits in both operands.
        wanted = solution + U
        units = np.sqrt(np.square(wanted).mean(axis=1, keepdims=True))
        Qu, shares = np.abs(Q) * units.T, np.abs(wanted) / units
        bound = Qu.max(axis=1)[:, None] * shares.sum(axis=0) + Qu.sum(axis=1)[:, None] * shares.max(axis=0)
        assert (np.abs(state - Q @ wanted) <= 0.51 / 127 * bound).all()
        assert np.array_equal(state > 0, run.right.dense_of(words) > 0)
        return along

    monkeypatch.setattr(_core, "step_input_side", stepped)
    monkeypatch.setattr(
        type(run.right),
        "dense_of",
        lambda self, words: diba.BitMatrix(words, self.k, "sign").to_dense(),
        raising=False,
    )
    for _ in run.iterate(12, NEVER):
        pass
    assert len(seen) == 12
    assert max(seen) < 1


def test_kept_outer_diagonals_are_kept() -> None:
    u, w = (x / np.linalg.norm(x) for x in (1 + gaussian(40, 1)[:, 0] ** 2, 1 + gaussian(50, 1)[:, 0] ** 2))
    run, A, C = running(40, 50, 17, outer=(u, w))
    for _ in run.iterate(40, NEVER):
        pass
    d1, b1, d2, b2, d3 = run.factors("sign")
    assert (d1 == u).all()
    assert (d3 == w).all()
    F = (d1[:, None] * b1.to_dense() * d2) @ (b2.to_dense() * d3)
    assert error(A - F, C) < 0.6 * error(A, C)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_every_thread_count_and_instruction_set_gives_the_same(alphabet: str) -> None:
    A, C, found = gaussian(70, 60), Metric(moments(60)), []
    before = _core.isa()
    try:
        for isa in _core.supported_isas():
            _core.select_isa(isa)
            for threads in (1, 3):
                run = MetricAdmm(C, A, 40, 0, 0.1 * (alphabet == "binary"), threads)
                for _ in run.iterate(10, NEVER):
                    pass
                found.append(
                    [
                        np.asarray(x.words if hasattr(x, "words") else x).tobytes()
                        for x in run.factors(alphabet)
                    ]
                )
    finally:
        _core.select_isa(before)
    assert all(other == found[0] for other in found)


# ---------------------------------------------------------------- stages


def test_part_sizes() -> None:
    for m, n, k in ((384, 384, 172), (384, 384, 360), (1536, 384, 921), (10, 10, 7), (384, 384, 2000)):
        sizes = part_sizes(m, n, k)
        assert sum(sizes) == k
        assert max(sizes) - min(sizes) <= 1
    assert len(part_sizes(384, 384, 172)) == 1
    assert len(part_sizes(384, 384, 360)) == 2
    assert len(part_sizes(384, 384, 2000)) == 3
    assert part_sizes(1, 1, 1) == [1]


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_parts_share_their_outer_diagonals_and_add_up(alphabet: str) -> None:
    A = gaussian(80, 70)
    seen: list[diba.Progress] = []
    stage = Schedule(seen.append).stage(NEVER, 0, 60)
    given: dict[str, Any] = {"steps": 30, "deadline": NEVER, "stage": stage}
    whole = ramps(A, [40, 39], alphabet, 0, 0.1 * (alphabet == "binary"), 1, **given).factors
    first = ramps(A, [40], alphabet, 0, 0.1 * (alphabet == "binary"), 1, **given).factors
    assert whole.k == 79
    assert (whole.d1 == first.d1).all()
    assert (whole.d3 == first.d3).all()
    assert (whole.b1.to_dense()[:, :40] == first.b1.to_dense()).all()
    assert (whole.b2.to_dense()[:40] == first.b2.to_dense()).all()
    assert (whole.d2[:40] == first.d2).all()
    assert whole.snr_db(A) > first.snr_db(A) + 2
    assert seen[60].snr_db > seen[30].snr_db + 2


def test_a_super_weight_spoils_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row and column have large scales in the first part; later ones are made without."""
    A = gaussian(96, 120)
    A[5, 7] = 160
    given: dict[str, Any] = {"bits_per_weight": 3, "alphabet": "sign", "effort": "fast"}
    bounded = diba.solve(A, **given).snr_db(A)
    monkeypatch.setattr(stages, "_LARGEST_SCALE", np.inf)
    assert bounded > diba.solve(A, **given).snr_db(A) + 0.5


def test_parts_with_bounded_scales_add_up_where_none_is_bounded() -> None:
    A = gaussian(80, 70)
    A[5, 7] = 160
    given: dict[str, Any] = {"steps": 30, "deadline": NEVER, "stage": Schedule(None).stage(NEVER, 0, 60)}
    whole = ramps(A, [40, 39], "sign", 0, 0.0, 1, **given).factors
    first = ramps(A, [40], "sign", 0, 0.0, 1, **given).factors
    outer = stages._bounded(first.d1)[0], stages._bounded(first.d3)[0]
    for bounded, scales, large in zip(outer, (first.d1, first.d3), (5, 7), strict=True):
        ratios = bounded / scales
        assert np.delete(ratios, large) == pytest.approx(ratios[0], rel=1e-5)
        assert bounded[large] == pytest.approx(4 * np.median(bounded), rel=1e-5)
        assert np.linalg.norm(bounded) == pytest.approx(1, rel=1e-6)
    alone = Admm(A - first.to_dense(), 39, 1, 0.0, 1, outer=outer)
    assert len(list(alone.iterate(30, NEVER))) == 31
    second = diba.Factorization(*alone.factors("sign")).to_dense()
    both = first.to_dense() + second
    rows, cols = np.delete(np.arange(80), 5), np.delete(np.arange(70), 7)
    assert whole.to_dense()[np.ix_(rows, cols)] == pytest.approx(both[np.ix_(rows, cols)], rel=1e-4, abs=1e-4)
    assert (whole.b1.to_dense()[:, 40:] == alone.factors("sign")[1].to_dense()).all()


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_stages_are_better_than_one_at_three_bits(alphabet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    A = gaussian(96, 96)
    given: dict[str, Any] = {"bits_per_weight": 3, "alphabet": alphabet, "max_iter": 100, "method": "admm"}
    staged = diba.solve(A, **given).snr_db(A)
    monkeypatch.setattr(methods, "part_sizes", lambda m, n, k: [k])
    assert staged > diba.solve(A, **given).snr_db(A) + 0.3


# ---------------------------------------------------------------- diba.solve


def output_db(A: NDArray[Any], f: diba.Factorization, S: NDArray[Any]) -> float:
    return snr_db(*output_energy_and_error(A, f, S))


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_better_than_a_start_for_the_diagonal(
    bits: float, alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, S = gaussian(96, 80), moments(80) * np.outer(*2 * [np.linspace(0.5, 3, 80)])
    given: dict[str, Any] = {"bits_per_weight": bits, "alphabet": alphabet, "effort": "fast"}
    given |= {"covariance": (S, 0), "max_iter": 100}
    found = output_db(A, diba.solve(A, **given), S)
    monkeypatch.setattr(solver_run, "_EIGEN_SHARE", np.inf)
    before = output_db(A, diba.solve(A, **given, time_limit=1e6), S)
    assert found > before + 0.3


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_units_change_nothing(scale: float) -> None:
    A, S = gaussian(40, 50).astype(np.float64), moments(50)
    given: dict[str, Any] = {"k": 60, "alphabet": "sign", "effort": "fast"}
    power = 2.0 ** np.round(np.log2(scale))
    f, g = diba.solve(A, **given, covariance=S), diba.solve(A * power, **given, covariance=S / power)
    assert f.b1 == g.b1
    assert f.b2 == g.b2


def test_reports_of_stages_in_the_metric() -> None:
    A, S = gaussian(60, 50), moments(50)
    seen: list[diba.Progress] = []
    f = diba.solve(
        A,
        bits_per_weight=3,
        covariance=(S, 0),
        alphabet="sign",
        method="admm",
        max_iter=20,
        progress=seen.append,
    )
    assert [report.done for report in seen[:42]] == [*range(21), *range(20, 41)]
    assert seen[-1].snr_db == pytest.approx(output_db(A, f, S), abs=1e-4)
    assert seen[40].snr_db == pytest.approx(seen[-1].snr_db, abs=3)


def test_a_deadline_ends_every_stage() -> None:
    A, S = gaussian(60, 50), moments(50)
    for limit in (0.0, 0.3):
        f = diba.solve(A, bits_per_weight=3, covariance=S, effort="best", time_limit=limit)
        assert np.isfinite(f.to_dense()).all()
        assert output_db(A, f, S) >= 0
    given: dict[str, Any] = {
        "steps": 10**6,
        "deadline": Deadline(0.4),
        "stage": Schedule(None).stage(NEVER, 0, 1),
    }
    f = ramps(A, [20, 20], "sign", 0, 0.0, 1, metric=Metric(S), **given).factors
    assert (f.d2[20:] != 0).any()  # the second part had its share of the time


def test_an_interrupt_in_a_later_stage_ends_the_call() -> None:
    def stop(progress: diba.Progress) -> None:
        if progress.done == 15:
            raise KeyboardInterrupt

    A = gaussian(60, 50)
    with pytest.raises(KeyboardInterrupt):
        diba.solve(A, bits_per_weight=3, covariance=moments(50), max_iter=10, progress=stop)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize(
    "S",
    [
        np.ones((40, 40)),
        np.diag([1.0, 0, 0, 2] * 10),
        np.eye(40),
        np.outer(*2 * [10.0 ** np.linspace(-8, 8, 40)]),
    ],
    ids=["rank one", "dead inputs", "identity", "scales apart"],
)
def test_edges(S: NDArray[Any], alphabet: str) -> None:
    A = gaussian(36, 40)
    for k in (33, 70):
        f = diba.solve(A, k, covariance=S, alphabet=alphabet, max_iter=30)
        assert np.isfinite(f.to_dense()).all()
        assert output_db(A, f, S) > 0
