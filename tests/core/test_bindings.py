"""The seam between Python and C++: refusals instead of crashes, threads, fork, the GIL."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import diba
from diba import _core
from kernel_calls import KERNELS, OPTIONAL, Call, call

if TYPE_CHECKING:
    from collections.abc import Iterator


def arrays(one: Call) -> list[tuple[str, np.ndarray]]:
    return [(name, value) for name, value in one.arguments.items() if isinstance(value, np.ndarray)]


@pytest.mark.parametrize("name", KERNELS)
def test_a_valid_call_is_accepted(name: str) -> None:
    call(name).run()


@pytest.mark.parametrize("name", KERNELS)
def test_other_dtypes_are_refused(name: str) -> None:
    one = call(name)
    for argument, value in arrays(one):
        for dtype in ("f8", "f4", ">f4", "i8", "u8", ">u8", "u1", "c8", "O"):
            if (name, argument, dtype) == ("add_sparse", "columns", "u1"):
                continue  # another width
            if np.dtype(dtype) != value.dtype:
                with pytest.raises(TypeError, match="incompatible function arguments"):
                    one.run(**{argument: value.astype(dtype)})


@pytest.mark.parametrize("name", KERNELS)
def test_other_kinds_are_refused(name: str) -> None:
    one = call(name)
    for argument, value in one.arguments.items():
        wrong: tuple[Any, ...] = ("1", object())
        if isinstance(value, np.ndarray):
            wrong += (None, 1, value.tolist(), memoryview(value))
        elif isinstance(value, _core.TiledMatrix):
            wrong += (None, 1, np.ones((70, 6), np.float32))
        elif isinstance(value, bool):
            wrong = ("1",)
        elif isinstance(value, int):
            wrong += (None, 1.0, -(2**70), 2**70)
        for other in wrong:
            if other is None and (name, argument) in OPTIONAL:
                continue
            with pytest.raises(TypeError, match="incompatible function arguments"):
                getattr(_core, name)(**(one.arguments | {argument: other}))


@pytest.mark.parametrize("name", KERNELS)
def test_wrong_shapes_are_refused(name: str) -> None:
    one = call(name, 70, 140, 6)
    step = (
        64 if name in ("pack", "transpose", "round_rows", "bit_linear") else 1
    )  # where the number of words decides
    for argument, value in arrays(one):
        steps = step * np.eye(value.ndim, dtype=int)
        shapes = {tuple(value.shape + sign * axis) for axis in steps for sign in (1, -1)}
        shapes |= {
            (*value.shape, 1),
            (1, *value.shape),
            value.shape[1:],
            (value.size, 1, 1),
            (0,) * value.ndim,
        }
        for shape in shapes:
            if name == "energy" or (name == "tails_are_zero" and shape[1:] == value.shape[1:]):
                continue  # any shape, any number of rows will do
            planes = {"bit_products": ("a", "b"), "bit_linear": ("weight",)}.get(name, ())
            if argument in planes and shape == (1, *value.shape[1:]):
                continue  # of one bit
            if min(shape, default=1) < 0:
                continue
            with pytest.raises(ValueError, match=r"must|wrong"):
                one.run(**{argument: np.zeros(shape, value.dtype)})


@pytest.mark.parametrize("name", KERNELS)
def test_wrong_sizes_are_refused(name: str) -> None:
    one = call(name)
    for cols in (0, 6, 64, 71, 129, 2**32, 2**63, 2**64 - 70, 2**64 - 1):
        if "cols" in one.arguments:
            if name in ("tails_are_zero", "bit_products") and 64 < cols <= 128:
                continue
            with pytest.raises((ValueError, TypeError)):
                one.run(cols=cols)


@pytest.mark.parametrize("name", KERNELS)
def test_arrays_that_are_not_contiguous_are_refused(name: str) -> None:
    one = call(name)
    for argument, value in arrays(one):
        views = [np.repeat(value, 2, axis=-1)[..., ::2], np.flip(value)]
        if value.ndim == 2:
            views += [np.asfortranarray(value), np.repeat(value, 2, axis=0)[::2]]
        for view in views:
            if not view.flags.c_contiguous:
                with pytest.raises(TypeError, match="incompatible function arguments"):
                    getattr(_core, name)(**(one.arguments | {argument: view}))


@pytest.mark.parametrize("name", KERNELS)
def test_read_only_arrays_are_inputs_only(name: str) -> None:
    one = call(name)
    for argument, value in arrays(one):
        frozen = value.copy()
        frozen.flags.writeable = False
        changed = {**one.arguments, argument: frozen}
        if argument in one.outputs:
            with pytest.raises(ValueError, match="not writeable"):
                getattr(_core, name)(**changed)
        else:
            getattr(_core, name)(**changed)
        assert np.array_equal(frozen, value)


@pytest.mark.parametrize("name", KERNELS)
def test_inputs_are_left_alone(name: str) -> None:
    one = call(name)
    arguments = {
        key: value.copy() if isinstance(value, np.ndarray) else value for key, value in one.arguments.items()
    }
    getattr(_core, name)(**arguments)
    for argument, value in arrays(one):
        if argument not in one.outputs:
            assert np.array_equal(arguments[argument], value), argument


@pytest.mark.parametrize("shape", [(1, 1), (70, 6), (3, 16), (5, 33), (33, 50), (64, 64)])
def test_a_tiled_matrix_can_be_of_the_transpose_and_divided(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    (rows, cols), unit = shape, np.float32(0.37)
    x = rng.standard_normal((cols, rows)).astype(np.float32)
    bits = diba.BitMatrix.from_dense(rng.integers(0, 2, (7, rows)), "binary")

    def correlations(tiled: _core.TiledMatrix) -> bytes:
        out = np.empty((cols, 7), np.float32)
        _core.correlate(bits.words, tiled, np.ones(rows, np.float32), False, out, 1)
        return out.tobytes()

    expected = correlations(_core.TiledMatrix(np.ascontiguousarray(x.T) / unit))
    assert correlations(_core.TiledMatrix(x, transposed=True, divisor=unit)) == expected
    assert correlations(_core.TiledMatrix(np.ascontiguousarray(x.T), divisor=unit)) == expected


def test_tiled_matrices_are_made_of_float32_matrices_only() -> None:
    x = np.ones((70, 6), np.float32)
    _core.TiledMatrix(x)
    for wrong in (x.astype(float), x[::2], np.asfortranarray(x), x.tolist(), None, x.astype(">f4")):
        with pytest.raises(TypeError, match="incompatible constructor arguments"):
            _core.TiledMatrix(wrong)
    for shape in ((420,), (70, 6, 1), ()):
        with pytest.raises(ValueError, match="two-dimensional"):
            _core.TiledMatrix(np.ones(shape, np.float32))
    for shape in ((71, 6), (6, 70), (70, 7)):
        with pytest.raises(ValueError, match="must have shape"):
            call("correlate").run(x=_core.TiledMatrix(np.ones(shape, np.float32)))


@pytest.mark.parametrize("name", KERNELS)
def test_empty_arrays_do_no_harm(isa: str, name: str) -> None:
    for sizes in ((0, 70, 6), (5, 70, 0), (5, 0, 6), (0, 0, 0)):
        call(name, *sizes).run()


# ---------------------------------------------------------------- threads of Python


def test_calls_from_several_python_threads(isa: str) -> None:
    calls = [call(name, 200, 300, 40, threads=2, seed=seed) for name in KERNELS for seed in range(3)]
    expected = [one.run() for one in calls]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(Call.run, calls * 4))
    for results, others in zip(found, expected * 4, strict=True):
        for result, other in zip(results, others, strict=True):
            assert np.array_equal(result, other)


def test_solves_from_several_python_threads() -> None:
    matrices = [np.random.default_rng(seed).standard_normal((60, 50)) for seed in range(4)]
    expected = [diba.solve(A, k=20, max_iter=5) for A in matrices]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda A: diba.solve(A, k=20, max_iter=5), matrices)) == expected


@pytest.fixture
def heartbeat() -> Iterator[list[int]]:
    """A count that another Python thread raises whenever it can have the GIL.

    Threads switch here only where one lets go of the GIL by itself, so during a call the count moves only
    if the call does; the beating thread lets go at every beat.
    """
    beats, stop = [0], threading.Event()

    def beat() -> None:
        while not stop.is_set():
            beats[0] += 1
            time.sleep(1e-5)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield beats
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"tails_are_zero"}))  # which ends in microseconds
def test_the_gil_is_released(name: str, heartbeat: list[int]) -> None:
    one = call(name, 1500, 1000, 64)
    function = getattr(_core, name)
    for _ in range(200):  # a busy machine may let a call pass without giving the other thread a processor
        arguments = {
            key: value.copy() if isinstance(value, np.ndarray) else value
            for key, value in one.arguments.items()
        }
        before = heartbeat[0]
        function(**arguments)
        if heartbeat[0] > before:
            return
    pytest.fail("no other Python thread ever ran during the call")


def test_fork_after_use() -> None:
    """A child of a process whose calls used threads computes the same, with threads of its own, and ends."""
    code = """
import os, signal, sys
import numpy as np
from kernel_calls import call
one = call("matmul", 700, 1000, 130, threads=4)
expected = one.run()[1]
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if np.array_equal(one.run()[1], expected) else 1)
pid, status = os.waitpid(child, 0)
assert np.array_equal(one.run()[1], expected)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    path = [str(folder) for folder in sys.path if folder]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path}\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
