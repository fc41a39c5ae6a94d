"""Everything at once, for some seconds: threads, signal handlers, finalizers and children that multiply.

``DIBA_STRESS_SECONDS=600`` makes it longer, ``DIBA_STRESS_SEED`` repeats the choices of another run.
"""

from __future__ import annotations

import json
import os

import pytest

from run_python import python

CODE = """
import faulthandler, gc, json, os, random, signal, sys, threading, time, warnings
from collections import Counter
import numpy as np
import diba
from diba import _core

seconds, seed = float(sys.argv[1]), int(sys.argv[2])
faulthandler.dump_traceback_later(seconds + 90, exit=True)  # a hang is a failure
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # of Python 3.12
numbers = np.random.default_rng(seed)
sys.setswitchinterval(1e-3)

# ---- what is computed, and what it must be: by the scalar kernels on one thread

def matrix(m, k, n, alphabet):
    low = 0 if alphabet == "binary" else -1
    bits = [np.where(numbers.random(shape) < 0.5, low, 1) for shape in ((m, k), (k, n))]
    d = [numbers.standard_normal(size) for size in (m, k, n)]
    return diba.Factorization.from_factors(d[0], bits[0], d[1], bits[1], d[2], alphabet)

def fresh(f):  # nothing is packed
    return diba.Factorization(f.d1, f.b1, f.d2, f.b2, f.d3)

matrices = [matrix(*s) for s in ((9, 5, 7, "sign"), (64, 32, 64, "binary"), (700, 600, 500, "sign"))]
inputs = [[numbers.standard_normal((3, n)).astype(np.float32) for n in f.shape] for f in matrices]
PRODUCTS = {
    "matvec": lambda f, y, x, threads: f.matvec(x[0], threads=threads, precision="fast"),
    "rmatvec": lambda f, y, x, threads: f.rmatvec(y[0], threads=threads, precision="fast"),
    "linear": lambda f, y, x, threads: f.linear(x, threads=threads),
    "exact": lambda f, y, x, threads: f.matvec(x[0], threads=threads),
    "at": lambda f, y, x, threads: f @ x[0],
    "transposed": lambda f, y, x, threads: f.T @ y[0],
}
A = numbers.standard_normal((30, 20))

def addresses(*arrays):
    return tuple(array.ctypes.data for array in arrays)

b1, b2 = (numbers.integers(0, 256, shape, dtype=np.uint8) for shape in ((48, 4), (32, 5)))
layer = _core.PackedTensors(*addresses(b1, b2), 48, 32, 40, False)
diagonals = [[numbers.standard_normal(n, np.float32) for n in (48, 32, 40)] for _ in range(3)]
rows, grads = (numbers.standard_normal((40, n), np.float32) for n in (40, 48))

def gradients(which, threads):
    d1, d2, d3 = diagonals[which]
    out = [np.empty(size, np.float32) for size in (40 * 40, 48, 32, 40)]
    layer.gradients(addresses(d1, b1, d2, b2, d3), *addresses(rows, grads), 40, addresses(*out), threads)
    return b"".join(array.tobytes() for array in out)

supported = _core.supported_isas()
_core.select_isa("scalar")
expected = [
    {name: product(f, *operands, 1).tobytes() for name, product in PRODUCTS.items()}
    for f, operands in zip(matrices, inputs)
]
expected_gradients = [gradients(which, 1) for which in range(len(diagonals))]
expected_factors = diba.solve(A, 12, effort="fast", threads=1)
_core.select_isa(supported[0])

# ---- what happens; each looks at its own results

done = Counter()  # by name; a count may be lost between threads, not all of them

def multiply(choose, new=False):
    which, threads = choose.randrange(len(matrices)), choose.randint(1, 4)
    f = fresh(matrices[which]) if new else matrices[which]
    for name in choose.sample(sorted(PRODUCTS), 2):
        found = PRODUCTS[name](f, *inputs[which], threads).tobytes()
        assert found == expected[which][name], (which, name, threads, new)

def pack(choose):
    multiply(choose, new=True)

def solve(choose):
    assert diba.solve(A, 12, effort="fast", threads=choose.randint(1, 3)) == expected_factors

def train(choose):
    which = choose.randrange(len(diagonals))
    assert gradients(which, choose.randint(1, 3)) == expected_gradients[which], which

def change_settings(choose):
    diba.set_num_threads(choose.randint(1, 4))
    _core.select_isa(choose.choice(supported))

def fork(choose):
    child_seed = choose.random()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # a hang is a failure
            own = random.Random(child_seed)
            for action in (multiply, pack, train):
                action(own)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status == 0, ("child", status)

class Finalized:  # one whose end comes with the next collection, wherever that happens
    def __init__(self, choose):
        self.choose, self.me = choose, self
    def __del__(self):
        multiply(self.choose)
        pack(self.choose)
        done["finalizer"] += 1

def leave_garbage(choose):
    Finalized(choose)
    if choose.random() < 0.2:
        gc.collect()

def handle(*_):
    try:
        choose.choice((multiply, pack, train, fork))(choose)
        done["signal"] += 1
    finally:
        if time.monotonic() < end:
            signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-4, 2e-2))

ACTIONS, WEIGHTS = (multiply, pack, solve, train, change_settings, fork, leave_garbage), (8, 8, 1, 4, 2, 1, 2)

def go_on(choose, until):
    while time.monotonic() < until:
        action = choose.choices(ACTIONS, WEIGHTS)[0]
        action(choose)
        done[action.__name__] += 1

def daemon(choose):  # until the process ends
    while True:
        choose.choice((multiply, pack, train, solve))(choose)
        done["daemon"] += 1

# ---- until the time is over

failures = []
def failed(what):
    failures.append(what)
    print(what.exc_type, what.exc_value, file=sys.stderr)
threading.excepthook = sys.unraisablehook = failed

end = time.monotonic() + seconds
choose = random.Random(seed)
threads = [threading.Thread(target=go_on, args=(random.Random(seed + i), end)) for i in (1, 2)]
for thread in threads:
    thread.start()
for i in (3, 4):
    threading.Thread(target=daemon, args=(random.Random(seed + i),), daemon=True).start()
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.01)
go_on(choose, end)
signal.setitimer(signal.ITIMER_REAL, 0)
for thread in threads:
    thread.join()
print(json.dumps(done))
if failures:
    sys.exit(1)
"""


SECONDS, SEED = os.environ.get("DIBA_STRESS_SECONDS", "8"), os.environ.get("DIBA_STRESS_SEED", "0")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.timeout(float(SECONDS) + 180)
def test_everything_at_once() -> None:
    done = python(CODE, SECONDS, SEED, timeout=float(SECONDS) + 120, OPENBLAS_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    counts = json.loads(done.stdout)
    wanted = {"multiply", "pack", "solve", "train", "change_settings", "fork", "leave_garbage"}
    wanted |= {"finalizer", "signal", "daemon"}
    assert set(counts) == wanted  # each did happen
