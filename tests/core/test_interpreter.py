"""What the interpreter does in the middle of a call: it ends, runs signal handlers and finalizers, forks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from run_python import python

FACTORS = """
import gc, itertools, os, signal, sys, threading, time, warnings
import numpy as np
import diba
from diba import _core

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # of Python 3.12
random = np.random.default_rng(0)

def factors(m, k, n):
    bits = [diba.BitMatrix.from_dense(random.integers(0, 2, shape), "binary") for shape in ((m, k), (k, n))]
    return diba.Factorization(np.ones(m), bits[0], np.ones(k), bits[1], np.ones(n))

def fresh(f):  # nothing is packed
    return diba.Factorization(f.d1, f.b1, f.d2, f.b2, f.d3)

small, large = factors(64, 32, 64), factors(500, 400, 300)
"""

# ---------------------------------------------------------------- the end of the process

# Ends while every one of `calls` is going on in a daemon thread of its own.
END = """
def go_on(call, begun):
    begun.set()
    while True:
        call()

for call in calls:
    call()
begun = [threading.Event() for _ in calls]
for call, event in zip(calls, begun):
    threading.Thread(target=go_on, args=(call, event), daemon=True).start()
assert all(event.wait(60) for event in begun)
time.sleep(float(sys.argv[1]))
"""

CORE = """
from kernel_calls import KERNELS, call, prepared_arguments
X, y = np.ones((300, 20), np.float32), np.ones(64, np.float32)
A = random.standard_normal((40, 30))
calls = [
    lambda: small @ y,
    lambda: y @ small,
    lambda: large.matmat(X, threads=2, precision="fast"),
    lambda: large.matmat(X, threads=2),
    lambda: fresh(large).prepare(),
    lambda: fresh(large).T.prepare(),
    lambda: diba.solve(A, 20, threads=2),
    lambda: diba.solve(A, 20, effort="fast", alphabet="sign"),
    lambda: diba.onebit(A),
    lambda: _core.Packed(**prepared_arguments()),
    lambda: _core.read_seconds(large.b1.words),
    *(call(name, 60).run for name in KERNELS),
]
"""

# Memory runs out inside the core: the packed copy takes 100 MB.
FAILING = """
import resource
with open("/proc/self/statm") as pages:
    used = int(pages.read().split()[0]) * resource.getpagesize()
huge = diba.BitMatrix(np.zeros((20000, 313), np.uint64), 20000, "sign")
failing = diba.Factorization(*2 * (np.ones(20000), huge), np.ones(20000))
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20),) * 2)

def fail():
    try:
        failing.prepare()
    except MemoryError:
        return
    raise AssertionError("there was memory")

calls = [fail]
"""

TORCH = """
import torch
import diba.torch
x = torch.ones(5, 300)
layer = diba.torch.DibaLinear.from_factorization(large).requires_grad_(False)
calls = [lambda: layer(x), lambda: layer(x)]
"""


@pytest.mark.parametrize("seconds", ["0.02", "0.05"])
@pytest.mark.parametrize("calls", [CORE, FAILING], ids=["core", "failing"])
def test_daemon_threads_do_not_change_the_exit_code(calls: str, seconds: str) -> None:
    if calls is FAILING and not Path("/proc/self/statm").exists():
        pytest.skip("no /proc/self/statm")
    done = python(FACTORS + calls + END, seconds, OPENBLAS_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_daemon_threads_in_layers_of_torch_do_not_change_the_exit_code() -> None:
    """Without gradients: with them torch's own C++ stands between, which may crash by itself."""
    done = python(FACTORS + TORCH + END, "0.05")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names a function of libstdc++")
def test_the_main_thread_is_never_held() -> None:
    code = """
terminate = ctypes.PyDLL("libstdc++.so.6")._ZSt9terminatev
class Last:
    def __del__(self, terminate=terminate, is_finalizing=sys.is_finalizing):
        if is_finalizing():
            terminate()
_core.hold_threads_at_exit(threading.main_thread().ident)
last = Last()
"""
    done = python(f"import ctypes\n{FACTORS}{code}", timeout=60)
    assert done.returncode == -signal.SIGABRT, done.stderr


# ---------------------------------------------------------------- in the middle of packing

# interrupted(work): as work(), but `interrupt` runs each time something is about to be packed or transposed.
INTERRUPTED = """
expected = (small @ np.ones(64)).tobytes(), (np.ones(64) @ small).tobytes()
ran = 0

def multiply_all():
    global ran
    ran += 1
    other = fresh(small)
    for f in (small, other, interrupted_one):
        assert ((f @ np.ones(64)).tobytes(), (np.ones(64) @ f).tobytes()) == expected
    assert other.T.T is other

def child_multiplies():
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a hang is a failure
        multiply_all()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

class Finalized:
    def __init__(self, action):
        self.action, self.me = action, self
    def __del__(self):
        self.action()

def by_signal(action):
    signal.signal(signal.SIGUSR1, lambda *_: action())
    signal.raise_signal(signal.SIGUSR1)

def by_finalizer(action):
    Finalized(action)
    gc.collect()

def by_thread(action):  # the thread that packs waits for it
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()

sys.unraisablehook = threading.excepthook = lambda problem: print(problem, file=sys.stderr)
pack, transpose = diba.Factorization._pack, _core.transpose
interrupt = None

def first_interrupted(function):
    def run(*arguments):
        global interrupt
        now, interrupt = interrupt, None  # what interrupts packs, too
        if now is not None:
            now()
        return function(*arguments)
    return run

diba.Factorization._pack = first_interrupted(pack)
_core.transpose = first_interrupted(transpose)
for by, action in itertools.product((by_signal, by_finalizer, by_thread), (multiply_all, child_multiplies)):
    for work in ("prepare", "T", "__rmatmul__"):
        interrupted_one = fresh(small)
        interrupt = lambda: by(action)
        before, kept = ran, getattr(interrupted_one, work)
        if work != "T":
            kept(*[np.ones(64)][:work == "__rmatmul__"])
        assert interrupt is None
        assert interrupted_one.T is interrupted_one.T and interrupted_one.T.T is interrupted_one
        assert ran == before + (action is multiply_all)
        multiply_all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_signal_handlers_finalizers_threads_and_children_multiply_while_something_is_packed() -> None:
    done = python(FACTORS + INTERRUPTED, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- children of a process that is busy

# `work()` in a thread, again and again, and in children that are made meanwhile.
CHILDREN = """
def go_on():
    while not stop.is_set():
        work()

stop, thread = threading.Event(), threading.Thread(target=go_on)
thread.start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a hang is a failure
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
"""

PACKING = """
x = np.ones(300)
expected = (large @ x).tobytes(), (np.ones(500) @ large).tobytes()

def work():
    f = fresh(large)
    assert ((f @ x).tobytes(), (np.ones(500) @ f).tobytes()) == expected
"""

# One layer whose diagonals differ from call to call, as in training.
TRAINING = """
def addresses(*arrays):
    return tuple(array.ctypes.data for array in arrays)

shapes = (500, 400), (400, 300)
b1, b2 = (random.integers(0, 256, (m, -(-n // 8)), dtype=np.uint8) for m, n in shapes)
b2[:, -1] &= 0x0F
layer = _core.PackedTensors(*addresses(b1, b2), 500, 400, 300, False)
diagonals = [[random.standard_normal(n, np.float32) for n in (500, 400, 300)] for _ in range(2)]
x, g = np.ones((1, 300), np.float32), np.ones((1, 500), np.float32)

def one(d1, d2, d3):
    out = [np.empty(n, np.float32) for n in (300, 500, 400, 300)]
    layer.gradients(addresses(d1, b1, d2, b2, d3), *addresses(x, g), 1, addresses(*out), 1)
    return b"".join(array.tobytes() for array in out)

expected = [one(*d) for d in diagonals]

def work():
    assert [one(*d) for d in diagonals] == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("work", [PACKING, TRAINING], ids=["packing", "training"])
def test_children_of_a_process_whose_other_thread_packs(work: str) -> None:
    done = python(FACTORS + work + CHILDREN, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
