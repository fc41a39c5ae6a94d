"""What every kernel computes, on every instruction set: against NumPy in float64, float32 and integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diba import _core, reference
from kernel_calls import KERNELS, Inverse, call, packed, random_bits, words_for

EPS = 2.0**-23  # float32
LENGTHS = range(1, 131)  # every tail of a word and of a vector, with none, one and two full words before it
PRODUCTS = ("matvec", "matvec_t", "matmul", "matmul_t", "correlate", "gram")


# ---------------------------------------------------------------- layout


def test_pack_is_packbits(isa: str) -> None:
    rng = np.random.default_rng(1)
    for cols in LENGTHS:
        dense = rng.standard_normal((3, cols), dtype=np.float32)
        dense[rng.random(dense.shape) < 0.2] = 0.0  # zero is not positive
        out = np.full((3, words_for(cols)), 2**64 - 1, np.uint64)
        _core.pack(dense, out, 1)
        assert np.array_equal(out, packed(dense > 0))
        assert _core.tails_are_zero(out, cols)


def test_pack_of_special_values(isa: str) -> None:
    tiny = np.float32(1e-45)  # the smallest subnormal is positive, too
    dense = np.array([[tiny, -tiny, 0.0, -0.0, np.inf, -np.inf, np.nan, 3e38]], np.float32)
    out = np.zeros((1, 1), np.uint64)
    _core.pack(dense, out, 1)
    assert out[0, 0] == 0b10010001


def test_unpack_is_unpackbits(isa: str) -> None:
    rng = np.random.default_rng(2)
    for cols in LENGTHS:
        bits = random_bits(rng, 3, cols)
        out = np.full((3, cols), np.nan, np.float32)
        _core.unpack(packed(bits), cols, -0.5, 3.0, out, 1)
        assert np.array_equal(out, np.where(bits, np.float32(3.0), np.float32(-0.5)))


def test_transpose(isa: str) -> None:
    rng = np.random.default_rng(3)
    for length in LENGTHS:
        for rows, cols in ((length, 67), (67, length)):
            bits = random_bits(rng, rows, cols)
            out = np.full((cols, words_for(rows)), 2**64 - 1, np.uint64)
            _core.transpose(packed(bits), cols, out)
            assert np.array_equal(out, packed(bits.T))


def test_tails_are_zero() -> None:
    for cols in LENGTHS:
        words = packed(np.ones((2, cols), np.uint8))
        assert _core.tails_are_zero(words, cols)
        for bit in range(cols % 64, 64) if cols % 64 else ():
            spoilt = words.copy()
            spoilt[1, -1] |= np.uint64(1 << bit)
            assert not _core.tails_are_zero(spoilt, cols)


def test_golden_bytes(isa: str) -> None:
    """The layout, written out: any change here breaks every file ever saved."""
    i, j = np.indices((3, 70))
    dense = np.where((7 * i + 3 * j) % 5 == 0, 1.0, -1.0).astype(np.float32)
    out = np.zeros((3, 2), np.uint64)
    _core.pack(dense, out, 1)
    assert out.astype("<u8").tobytes().hex() == (
        "218410420821841002000000000000004208218410420821040000000000000084104208218410420800000000000000"
    )


# ---------------------------------------------------------------- products


def exact(name: str, bits: np.ndarray, signs: bool, x: Any = None, weights: Any = None) -> np.ndarray:
    """The product in float64, or in integers."""
    kind = (weights if x is None else x).dtype.kind
    B = bits.astype(np.int64 if kind == "i" else np.float64)
    if signs:
        B = 2 * B - 1
    if weights is not None:
        weights = weights.astype(B.dtype)
    if name == "gram":
        return (B * weights) @ B.T
    if name == "correlate":
        return (x.astype(B.dtype).T * weights) @ B.T
    return (B.T if name.endswith("_t") else B) @ x.astype(B.dtype)


def product(name: str, bits: np.ndarray, signs: bool, **operands: np.ndarray) -> np.ndarray:
    zeros = {key: np.zeros_like(value) for key, value in operands.items()}
    out = np.full(exact(name, bits, signs, **zeros).shape, np.nan, np.float32)
    floats = {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in operands.items()}
    arguments = {
        "words": packed(bits),
        "cols": bits.shape[1],
        "signs": signs,
        "out": out,
        "threads": 1,
    } | floats
    if name == "correlate":
        del arguments["cols"]
        arguments["x"] = _core.TiledMatrix(arguments["x"])
    getattr(_core, name)(**arguments)
    return out


def operands(name: str, length: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Bits, and x or weights, of a product whose sums have `length` terms; the other sizes vary."""
    rng = np.random.default_rng([seed, length])
    other, p = 1 + length % 5 * 17, 1 + length % 37
    bits = random_bits(rng, length, other) if name.endswith("_t") else random_bits(rng, other, length)
    shapes = {"x": (length,) if "vec" in name else (length, p), "weights": (length,)}
    if name == "gram":
        del shapes["x"]
    elif name != "correlate":
        del shapes["weights"]
    return bits, {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_within_the_rounding_bound(isa: str, name: str, signs: bool) -> None:
    """|y - exact| <= n eps sum |x|, (n + 2) for signs (exact.hpp); n + 1 where x is weighted first."""
    for length in LENGTHS:
        bits, given = operands(name, length, seed=4)
        size = exact(
            name,
            np.ones_like(bits),
            False,
            **{key: np.abs(value).astype(float) for key, value in given.items()},
        )
        bound = (length + 2 * signs + (name == "correlate")) * EPS * size
        error = np.abs(product(name, bits, signs, **given) - exact(name, bits, signs, **given))
        assert (error <= bound).all()


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_whole_numbers_are_exact(isa: str, name: str, signs: bool) -> None:
    for length in (*LENGTHS, 1000):
        bits, given = operands(name, length, seed=5)
        whole = {key: np.rint(10 * value).astype(np.int64) for key, value in given.items()}  # sums below 2^24
        assert np.array_equal(product(name, bits, signs, **whole), exact(name, bits, signs, **whole))


def test_infinite_entries_reach_only_the_sums_that_hold_them(isa: str) -> None:
    bits = np.zeros((3, 70), np.uint8)
    bits[0, 66] = bits[1, 65] = 1
    x = np.zeros(70, np.float32)
    x[66], x[65] = np.inf, 2
    assert product("matvec", bits, False, x=x).tolist() == [np.inf, 2, 0]
    assert product("matmul", bits, False, x=x[:, None])[:, 0].tolist() == [np.inf, 2, 0]


# ---------------------------------------------------------------- the order of the sums
#
# kernels.hpp fixes it for all instruction sets. NumPy adds float32 arrays elementwise, so these few lines
# state the same order, and the bytes must be equal.


def in_lanes(bits: np.ndarray, x: np.ndarray) -> np.ndarray:
    """row_sums: 64 lanes of columns, then halves onto halves."""
    rows, cols = bits.shape
    terms = np.zeros((rows, words_for(cols), 64), np.float32)
    terms.reshape(rows, -1)[:, :cols] = np.where(bits, x, np.float32(0))
    lanes = np.zeros((rows, 64), np.float32)
    for word in range(terms.shape[1]):
        lanes += terms[:, word]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def in_order(bits: np.ndarray, x: np.ndarray) -> np.ndarray:
    """column_sums: row after row."""
    sums = np.zeros(bits.shape[1], np.float32)
    for row, value in zip(bits, x, strict=True):
        sums += np.where(row, value, np.float32(0))
    return sums


def in_groups(bits: np.ndarray, X: np.ndarray) -> np.ndarray:
    """row_sums_tile: fours left to right, the 8 of half a word by neighbours, then the half words."""
    (rows, cols), p = bits.shape, X.shape[1]
    terms = np.zeros((rows, -(-cols // 32), 8, 4, p), np.float32)
    terms.reshape(rows, -1, p)[:, :cols] = np.where(bits[:, :, None], X, np.float32(0))
    groups = ((terms[:, :, :, 0] + terms[:, :, :, 1]) + terms[:, :, :, 2]) + terms[:, :, :, 3]
    while groups.shape[2] > 1:
        groups = groups[:, :, ::2] + groups[:, :, 1::2]
    sums = np.zeros((rows, p), np.float32)
    for half in range(groups.shape[1]):
        sums += groups[:, half, 0]
    return sums


def in_four_lanes(X: np.ndarray) -> np.ndarray:
    """The column totals that turn sums over bits into sums over signs."""
    lanes = np.zeros((4, X.shape[1]), np.float32)
    for j, row in enumerate(X):
        lanes[j % 4] += row
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])


def specified(name: str, bits: np.ndarray, signs: bool, x: Any = None, weights: Any = None) -> np.ndarray:
    if name == "matmul_t":
        return specified("matmul", bits.T, signs, x)
    if name == "correlate":
        return specified("matmul", bits, signs, x * weights[:, None]).T
    if name == "gram":  # the upper triangle and its mirror image
        entries = np.where(bits, weights, -weights if signs else np.float32(0)).T
        upper = np.triu(specified("matmul", bits, signs, entries))
        return upper + np.triu(upper, 1).T
    order = {"matvec": in_lanes, "matvec_t": in_order, "matmul": in_groups}[name]
    if not signs:
        return order(bits, x)
    total = in_four_lanes(x) if x.ndim == 2 else in_lanes(np.ones((1, x.size), np.uint8), x)
    return np.float32(2) * order(bits, x) - total


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_sums_run_in_the_stated_order(isa: str, name: str, signs: bool) -> None:
    for length in (*range(1, 131, 3), 700):
        bits, given = operands(name, length, seed=7)
        found = product(name, bits, signs, **given)
        assert found.tobytes() == specified(name, bits, signs, **given).tobytes()


# ---------------------------------------------------------------- diagonals


def test_energy(isa: str) -> None:
    """In float64, in eight lanes, then halves onto halves."""
    rng = np.random.default_rng(8)
    for count in (*range(40), 1001):
        x = rng.standard_normal((count, 1), dtype=np.float32)
        lanes = np.zeros(8)
        for e, value in enumerate(x[:, 0].astype(np.float64)):
            lanes[e % 8] += value * value
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        assert _core.energy(x) == lanes[0]


def fit_inner(A: np.ndarray, L: np.ndarray, R: np.ndarray, d2: np.ndarray) -> tuple[float, np.ndarray]:
    """diba._core.fit_inner for L of entries -1/+1 (or 0/1) times a scale, and R (k, n)."""
    signs, scale = bool((L < 0).any()), np.abs(L).max(axis=1)
    found = d2.astype(np.float32)
    gram_left, gram_right, correlations, floats = (
        part.astype(np.float32) for part in (L.T @ L, R @ R.T, A @ R.T, scale)
    )
    energy = float(np.square(A).sum())
    value = _core.fit_inner(
        gram_left, gram_right, correlations, packed(L > 0), signs, floats, energy, found, 1
    )
    return value, found.astype(np.float64)


@pytest.mark.parametrize("case", ["independent", "repeated components", "unused components", "k above m n"])
@pytest.mark.parametrize("step", [1, 2], ids=["binary", "sign"])
def test_inner_scale_is_the_least_squares_solution(isa: str, step: int, case: str) -> None:
    """Whole numbers make the normal equations exact, so only the ridge and the rounding of d2 are left.

    The ridged solution minimises f(d) + r |d|^2: its f exceeds the least by at most r |d*|^2. Rounding d2 to
    float32 moves each term d_j M_jl d_l by a share of eps, and the float64 solve is far more exact.
    """
    for k in (1, 3, 8, 13, 40):
        m, n = (3, 2) if case == "k above m n" else (30, 25)
        A, R, _, B = row_problem(k, step, whole=True, rows=m, p=n)
        if case == "repeated components" and k > 2:
            B[:, 2], R[2] = B[:, 0], R[0]
        if case == "unused components":
            R[::3] = 0
        found, d2 = fit_inner(A, B, R, np.zeros(k))
        best = reference.best_inner_scale(A, B, R)
        M = (B.T @ B) * (R @ R.T)
        least = float(np.square(A - (B * best) @ R).sum())
        ridge = 1e-7 * np.trace(M) / k * (best @ best)
        rounding = EPS * float(np.square(A).sum() + np.abs(d2) @ np.abs(M) @ np.abs(d2))
        assert least - rounding <= found <= least + ridge + rounding
        assert abs(np.square(A - (B * d2) @ R).sum() - found) <= rounding
        assert np.isfinite(d2).all()
        again, same = fit_inner(A, B, R, d2)
        assert again <= found + rounding
        assert np.square(A - (B * same) @ R).sum() <= np.square(A - (B * d2) @ R).sum() + rounding


def residual_correlations(
    X: np.ndarray, inner: np.ndarray, T: np.ndarray, bits: np.ndarray, signs: bool, d: np.ndarray, fit: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """The scales, the correlations and the decrease, for C = diag(inner) X."""
    C = inner[:, None] * X
    scale, out = d.astype(np.float32), np.full(T.shape, np.nan, np.float32)
    H, T, inner = (value.astype(np.float32) for value in (C @ C.T, T, inner))
    arguments = {"gram": H, "correlations": T, "inner": inner, "words": packed(bits), "signs": signs}
    decrease = _core.residual_correlations(**arguments, fit=fit, scale=scale, out=out, threads=1)
    return scale, out, decrease


@pytest.mark.parametrize("step", [1, 2], ids=["binary", "sign"])
def test_residual_correlations_of_whole_numbers(isa: str, step: int) -> None:
    for k in (*range(1, 35), 63, 64, 65, 129):
        A, X, d, B = row_problem(k, step, whole=True, rows=70)
        inner = np.resize([1.0, -2.0, 0.0, 1.0], k)
        C = inner[:, None] * X
        P, bits, signs = B @ C, B > 0, step == 2
        scale, found, decrease = residual_correlations(X, inner, A @ X.T, bits, signs, d, fit=False)
        assert np.array_equal(scale, d)
        assert np.array_equal(found, (A - d[:, None] * P) @ C.T)
        assert decrease == 0
        scale, _, decrease = residual_correlations(X, inner, A @ X.T, bits, signs, d, fit=True)
        best = reference.best_row_scale(A, B, C)
        assert np.array_equal(scale, best.astype(np.float32))  # whole numbers but for one division
        before, after = (np.square(A - e[:, None] * P).sum() for e in (d, scale.astype(np.float64)))
        # (d - s)^2 |p|^2 for a scale s that is rounded by up to eps |best|
        rounding = 2 * EPS * float((np.square(P).sum(axis=1) * np.abs(best - d) * np.abs(best)).sum())
        assert decrease == pytest.approx(before - after, abs=rounding + 1e-12 * before)


@pytest.mark.parametrize("signs", [False, True])
def test_residual_correlations_run_in_the_stated_order(isa: str, signs: bool) -> None:
    for k in (1, 31, 32, 33, 64, 100, 129):
        A, X, old, B = row_problem(k, 1 + signs, whole=False, rows=70)
        inner = np.random.default_rng(k).standard_normal(k).astype(np.float32)
        C, old = inner[:, None] * X, old.astype(np.float32)
        bits, H, T = B > 0, (C @ C.T).astype(np.float32), (A @ X.T).astype(np.float32)
        G, curvatures = T * inner, specified("matmul", bits, signs, H)
        along, squared = (
            np.array(
                [specified("matvec", bit[None], signs, row)[0] for bit, row in zip(bits, rows, strict=True)]
            )
            for rows in (G, curvatures)
        )
        d = np.divide(along, squared, out=np.zeros_like(along), where=squared > 0)
        scale, found, decrease = residual_correlations(X, inner, T, bits, signs, old, fit=True)
        assert scale.tobytes() == d.tobytes()
        assert found.tobytes() == (G - d[:, None] * curvatures).tobytes()
        moved = d.astype(np.float64) - old
        assert decrease == np.cumsum(moved * moved * squared.astype(np.float64))[-1]  # row after row
        kept = residual_correlations(X, inner, T, bits, signs, d, fit=False)
        assert kept[1].tobytes() == found.tobytes()


# ---------------------------------------------------------------- the hot loop


def greedy_rows(H: np.ndarray, G: np.ndarray, d: np.ndarray, B: np.ndarray, step: int) -> tuple:
    """The same signature around diba._core.greedy_rows."""
    words, G = packed(B > 0), G.astype(np.float32)
    flips, decrease = _core.greedy_rows(
        H.astype(np.float32), G, d.astype(np.float32), words, step == 2, 1, False
    )
    assert _core.tails_are_zero(words, len(H))
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=len(H)).astype(np.float64)
    return step * bits - (step - 1), G.astype(np.float64), flips, decrease


def row_problem(k: int, step: int, whole: bool, rows: int = 6, p: int = 12) -> tuple:
    """A, C, d, B in float64; `whole` makes numbers so small that float32 arithmetic on them is exact."""
    rng = np.random.default_rng([k, step])
    C = np.rint(2 * rng.standard_normal((k, p))) if whole else rng.standard_normal((k, p))
    d = rng.choice([-2.0, -1.0, 1.0, 2.0], rows) if whole else rng.standard_normal(rows)
    B = step * random_bits(rng, rows, k).astype(np.float64) - (step - 1)
    A = 3 * np.sqrt(k) * rng.standard_normal((rows, p))
    return np.rint(A) if whole else A, C, d, B


@pytest.mark.parametrize("step", [1, 2], ids=["binary", "sign"])
def test_flips_of_whole_numbers_are_those_of_the_reference(isa: str, step: int) -> None:
    """Exact arithmetic on both sides: bits, correlations, counts and decreases are equal, ties included."""
    for k in (*range(1, 35), 63, 64, 65, 96, 127, 128, 129):
        A, C, d, B = row_problem(k, step, whole=True)
        H, G = C @ C.T, (A - d[:, None] * (B @ C)) @ C.T
        expected, found = reference.best_flips(H, G, d, B, step), greedy_rows(H, G, d, B, step)
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])
        assert found[2:] == expected[2:]
        assert np.array_equal(found[1], (A - d[:, None] * (found[0] @ C)) @ C.T)


@pytest.mark.parametrize("step", [1, 2], ids=["binary", "sign"])
def test_flips_end_one_bit_optimal(isa: str, step: int) -> None:
    """With rounding: no flip is left that helps by more than the threshold and the rounding of its gain.

    A gain is a sum of 2 + flips float32 terms of at most `size` each, rounded a few times: it is off by less
    than (flips + 8) eps (flips + 2) size. The decrease is a sum of such gains.
    """
    for k in (1, 5, 20, 70, 130):
        A, C, d, B = row_problem(k, step, whole=False)
        H, G = C @ C.T, (A - d[:, None] * (B @ C)) @ C.T
        found, correlations, flips, decrease = greedy_rows(H, G, d, B, step)
        assert flips > 0
        residual = A - d[:, None] * (found @ C)
        s = np.where(found > 0, -step, step) * d[:, None]
        gains = 2 * s * (residual @ C.T) - s**2 * H.diagonal()
        size = np.abs(2 * s * G).max() + 2 * (s**2).max() * np.abs(H).max()
        rounding = (flips + 8) * EPS * (flips + 2) * size
        assert gains.max() <= reference.FLIP_THRESHOLD * (s**2).max() * H.diagonal().max() + rounding
        before = np.square(A - d[:, None] * (B @ C)).sum()
        assert abs(before - np.square(residual).sum() - decrease) <= flips * rounding
        assert np.allclose(2 * s * correlations, 2 * s * (residual @ C.T), rtol=0, atol=rounding)


@pytest.mark.parametrize("step", [1, 2], ids=["binary", "sign"])
def test_flips_are_globally_optimal_where_components_do_not_interact(isa: str, step: int) -> None:
    """With orthogonal rows of C every bit decides alone, so the descent must find the minimum of 2^k."""
    k = 5
    A, _, d, B = row_problem(k, step, whole=False, p=k)
    C = np.diag([1.0, 0.5, 2.0, 3.0, 0.25])
    found = greedy_rows(C @ C.T, (A - d[:, None] * (B @ C)) @ C.T, d, B, step)[0]
    entries = step * (np.arange(2**k)[:, None] >> np.arange(k) & 1) - (step - 1)
    errors = np.square(A[:, None] - d[:, None, None] * (entries @ C)).sum(axis=2)
    assert np.array_equal(found, entries[errors.argmin(axis=1)])


def test_rows_without_scale_or_curvature_stay_as_they_are(isa: str) -> None:
    A, C, d, B = row_problem(40, 1, whole=False)
    G = ((A - d[:, None] * (B @ C)) @ C.T).astype(np.float32).astype(np.float64)
    for H, scale in ((C @ C.T, 0 * d), (0 * (C @ C.T), 0 * d)):
        found, correlations, flips, decrease = greedy_rows(H, G, scale, B, 1)
        assert np.array_equal(found, B)
        assert np.array_equal(correlations, G)
        assert (flips, decrease) == (0, 0.0)


# ---------------------------------------------------------------- one numeric contract


def in_bytes(results: tuple) -> list[object]:
    return [value.tobytes() if isinstance(value, (np.ndarray, Inverse)) else value for value in results]


SEVEN_THREADS = {  # sizes with enough work for seven threads: parallel.cpp wants 2^20 operations for each
    "matvec": (5000, 6001),
    "matvec_t": (5000, 6001),
    "matmul": (613, 1001, 200),
    "matmul_t": (1001, 613, 200),
    "correlate": (300, 1001, 400),
    "gram": (450, 1301),
    "correlate_signs": (300, 1001, 400),
    "gram_signs": (450, 1301),
    "fit_inner": (501, 330),
    "greedy_rows": (5001, 130),
    "invert_shifted": (1, 300, 4),  # C++ tests know threads: enough work takes the scalar code half a minute
    "step_sign_side": (1201, 320),
    "residual_correlations": (5001, 160),
}


@pytest.mark.parametrize("name", KERNELS)
def test_same_bytes_on_every_instruction_set_and_for_any_threads(name: str) -> None:
    before = _core.isa()
    one = call(name, *SEVEN_THREADS.get(name, (2501, 3001)))
    alphabets = [{"signs": False}, {"signs": True}] if "signs" in one.arguments else [{}]
    expected: dict[bool, list[object]] = {}
    try:
        for number, isa in enumerate(_core.supported_isas()):
            _core.select_isa(isa)
            for threads in ((1, 2, 7) if number == 0 else (7,)) if "threads" in one.arguments else (None,):
                for alphabet in alphabets:
                    found = in_bytes(one.run(**alphabet, **({} if threads is None else {"threads": threads})))
                    assert found == expected.setdefault(alphabet.get("signs", False), found), (isa, threads)
    finally:
        _core.select_isa(before)


@pytest.mark.parametrize("name", KERNELS)
def test_any_alignment_and_nothing_beyond_the_end(isa: str, name: str) -> None:
    """Arrays that start one element off a vector's boundary, between guards that must survive."""
    for rows, cols, p in ((5, 70, 6), (3, 129, 17), (66, 31, 1)):
        one = call(name, rows, cols, p)
        expected = in_bytes(one.run())
        blocks, arguments = [], dict(one.arguments)
        for key, value in one.arguments.items():
            if isinstance(value, np.ndarray):
                block = np.full(value.size + 67, 77, value.dtype)
                arguments[key] = block[33 : 33 + value.size].reshape(value.shape)
                arguments[key][...] = value
                blocks.append((block, value.size))
        result = getattr(_core, name)(**arguments)
        assert in_bytes((result, *(arguments[key] for key in one.outputs))) == expected
        assert all((block[:33] == 77).all() and (block[33 + size :] == 77).all() for block, size in blocks)
