"""The thread pool as Python sees it: children made by fork, several Python threads, idle processes."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from run_python import python

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrays import Factors

THREADS = (1, 2, 3, 7)

# Products large enough for threads, in a process of their own.
PRODUCTS = """
import os, signal, sys, time, warnings
import numpy as np
import diba

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # of Python 3.12
rng = np.random.default_rng(0)
signs = [np.where(rng.random(shape) < 0.5, 1, -1) for shape in ((1500, 1100), (1100, 1300))]
d1, d2, d3 = (rng.standard_normal(size).astype(np.float32) for size in (1500, 1100, 1300))
diba.set_num_threads(1)  # so that no worker is there before the first product
f = diba.Factorization.from_factors(d1, signs[0], d2, signs[1], d3, "sign")
x = rng.standard_normal((1300, 20)).astype(np.float32)
diba.set_num_threads(3)

def products():
    return (f @ x[:, 0]).tobytes() + (f @ x).tobytes() + (d1 @ f).tobytes()

def threads_of_process():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_children_made_by_fork_compute_the_same() -> None:
    code = f"""{PRODUCTS}
expected = products()
child = os.fork()
if child == 0:
    signal.alarm(30)  # a hang is a failure
    grandchild = os.fork()  # by a process that has not used its pool
    same = products() == expected
    if grandchild == 0:
        os._exit(0 if same else 1)
    status = os.waitpid(grandchild, 0)[1]
    os._exit(0 if same and status == 0 else 1)
status = os.waitpid(child, 0)[1]
assert products() == expected
sys.exit(0 if status == 0 else 1)
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork is a safe context on Linux only")
def test_multiprocessing_by_fork_computes_the_same() -> None:
    code = f"""{PRODUCTS}
import multiprocessing
expected = products()
with multiprocessing.get_context("fork").Pool(2) as pool:
    waiting = [pool.apply_async(products) for _ in range(6)]
    assert all(one.get(timeout=60) == expected for one in waiting)
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_while_another_thread_computes() -> None:
    code = f"""{PRODUCTS}
import threading
expected = products()
stop = threading.Event()

def go_on():
    while not stop.is_set():
        products()

thread = threading.Thread(target=go_on)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if products() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_python_threads_at_once_give_the_same_bytes(make_factors: Callable[..., Factors]) -> None:
    rng = np.random.default_rng(1)
    f = make_factors(900, 700, 800, "sign").diba
    inputs = [rng.standard_normal((800, 5)).astype(np.float32) for _ in range(8)]

    def products(job: tuple[int, int]) -> bytes:
        which, threads = job
        return b"".join(
            product(x, precision=precision, threads=threads).tobytes()
            for product, x in ((f.matvec, inputs[which][:, 0]), (f.matmat, inputs[which]))
            for precision in ("fast", "exact")
        )

    jobs = [(which, threads) for threads in THREADS for which in range(len(inputs))]
    expected = {which: products((which, 1)) for which in range(len(inputs))}
    assert [products(job) for job in jobs] == [expected[which] for which, _ in jobs]  # one after the other
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(products, jobs * 5))
    assert found == [expected[which] for which, _ in jobs * 5]


def test_an_idle_pool_uses_no_processor_time() -> None:
    """Idle workers sleep: half a second in which nobody calls costs the process nearly nothing.

    A thread that spins costs the whole half second if it has a processor to itself, and a fifth of it beside
    four other programs; a pool that sleeps costs the spin after its last call, 30 microseconds for each
    thread. Other programs cannot make this fail: their time is not charged to this process.
    """
    code = f"""{PRODUCTS}
before = threads_of_process()
products()
started = threads_of_process()
began = time.process_time()
time.sleep(0.5)
print(before, started, time.process_time() - began)
"""
    done = python(code, OPENBLAS_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    before, started, used = done.stdout.split()
    assert float(used) < 0.1
    if before != "None":
        assert int(started) == int(before) + 2  # there was a pool to sleep


def test_workers_are_as_many_as_asked_for_and_stay() -> None:
    code = f"""{PRODUCTS}
counts = [threads_of_process()]
for threads in (1, 2, 2, 4, 1, 3):
    f.matmat(x, threads=threads, precision='exact')
    counts.append(threads_of_process())
print(*counts)
"""
    done = python(code, OPENBLAS_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    if "None" in done.stdout:
        pytest.skip("no /proc/self/task")
    first, *others = map(int, done.stdout.split())
    assert [count - first for count in others] == [0, 1, 1, 3, 3, 3]
