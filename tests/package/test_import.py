"""What imports what: the layers of the package and of the core, and what a use of diba leaves alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from run_python import python

if TYPE_CHECKING:
    from collections.abc import Iterator

# From the bottom up; a module imports only from rows above its own.
LAYERS = (
    (
        "_core",
        "_internal",
        "allocation",
        "allocation.response",
        "checkpoints",
        "checkpoints.html",
        "checkpoints.html.style",
        "checkpoints.html.svg",
        "_internal.disk",
        "_internal.bit_weights",
        "_internal.machine",
        "errors",
        "reference",
        "_internal.storage",
        "onnx.results",
        "onnx.graph",
        "onnx.inputs",
    ),
    (
        "checkpoints.folders",
        "_internal.check",
        "_internal.tensor_files",
        "onnx.files",
        "onnx.library",
        "onnx.genai_run",
    ),
    ("progress", "onnx.runtime", "_internal.codes", "checkpoints.facts"),
    ("runtime", "cli.inputs", "_internal.check_arrays", "_internal.rounding", "onnx.tables"),
    ("operator", "_internal.sparse_rows"),
    ("_internal.apb_bytes", "checkpoints.values"),
    ("checkpoints.layers",),
    ("bits", "_internal.tuning", "checkpoints.blocks"),
    ("checkpoints.description",),
    ("_internal.snr", "_internal.error_bound", "checkpoints.entries", "file_format"),
    ("_internal.factored", "checkpoints.contents", "checkpoints.html.groups"),
    ("_internal.binarized_file", "_internal.tabulated", "checkpoints.text", "checkpoints.html.tables"),
    ("checkpoints.html.figures",),
    ("checkpoints.html.page",),
    ("checkpoints.report",),
    ("factorization", "binarized", "levels", "svid", "solvers.second_moments", "checkpoints.integrity"),
    ("cli.output", "loading"),
    ("solvers.options", "solvers.size", "solvers.schedule", "solvers.objective"),
    ("solvers.side", "solvers.exceptions", "_internal.timing"),
    ("solvers.greedy", "solvers.sign_side"),
    ("solvers.admm",),
    ("solvers.metric", "solvers.covariance"),
    ("solvers.device",),
    ("solvers.stages",),
    ("solvers.methods",),
    ("solvers.run",),
    ("solvers.solver",),
    (
        "solvers",
        "allocation.curves",
        "layers",
        "layers.config",
        "layers.tensors",
        "cli.bench",
        "cli.inspect",
        "cli.doctor",
    ),
    ("layers.solved",),
    ("layers.stored",),
    ("cli.solve",),
    ("allocation.waterfill",),
    ("allocation.sizes",),
    ("allocation.matrices",),
    ("",),
    ("torch.ops", "torch.modules", "torch.model", "torch.retuning", "torch.reconstruction"),
    ("torch.calibration", "torch.conversion", "torch.allocation"),
    # diba.torch; torch is imported here, in diba.onnx, diba.executorch and diba.hf alone
    (
        "torch.binary",
        "torch.binary.forms",
        "torch.ops.packed",
        "torch.ops.reference",
    ),
    (
        "torch.modules.averaging",
        "torch.modules.weight",
        "torch.ops.operators",
    ),
    ("torch.modules.patches", "torch.modules.state", "torch.ops.codes", "torch.ops.apb", "torch.ops.bits"),
    (
        "torch.modules.apb",
        "torch.modules.bitwise",
        "torch.modules.layer",
        "torch.modules.coded",
        "torch.model.fused",
    ),
    ("torch.modules.dense",),
    (
        "torch.modules.linear",
        "torch.modules.embedding",
    ),
    (
        "torch.modules.conv",
        "torch.modules.coded_layers",
        "torch.modules.apb_layers",
        "torch.modules.bitwise_layers",
    ),
    ("torch.modules.kinds",),
    ("torch.binary.trained",),
    ("torch.binary.layer",),
    ("torch.binary.layers", "torch.binary.bitwise"),
    (
        "torch.modules.vectors",
        "torch.model.attention",
        "torch.model.layers",
    ),
    (
        "torch.model.sizes",
        "torch.model.experts",
    ),
    ("torch.model.swap", "torch.model.coding"),
    ("torch.model.selection",),
    (
        "torch.retuning.batches",
        "torch.retuning.outputs",
        "torch.retuning.logits",
        "torch.retuning.latents",
        "torch.retuning.kept",
    ),
    (
        "torch.calibration.dense",
        "torch.calibration.held",
        "torch.calibration.trace",
        "torch.retuning.losses",
    ),
    ("torch.calibration.blocks",),
    (
        "torch.retuning.flips",
        "torch.retuning.curvature",
        "torch.calibration.moments",
        "torch.calibration.sensitivity",
    ),
    (
        "torch.calibration.kept",
        "torch.calibration.stream",
        "torch.reconstruction.kept",
        "torch.reconstruction.loss",
        "torch.reconstruction.straight",
        "torch.reconstruction.settings",
    ),
    ("torch.calibration.calibration", "torch.calibration.inputs"),
    ("torch.retuning.settings", "torch.calibration.targets"),
    ("torch.conversion.biases",),
    ("torch.conversion.solving",),
    ("torch.conversion.kept",),
    ("torch.reconstruction.training",),
    ("torch.reconstruction.block",),
    ("torch.calibration.reconstruct",),
    ("torch.calibration.propagate",),
    ("torch.retuning.steps",),
    (
        "torch.allocation.groups",
        "torch.allocation.noise",
        "torch.allocation.scores",
        "torch.calibration.collect",
        "torch.retuning.retune",
    ),
    ("torch.allocation.loss", "torch.conversion.report"),
    ("torch.allocation.allocate",),
    ("torch.conversion.work",),
    ("torch.conversion.run",),
    ("torch.conversion.convert", "torch.conversion.loading"),
    ("torch.binary.training", "torch.binary.freezing"),
    ("torch",),
    # diba.onnx, whose session does without torch
    ("onnx.places",),
    ("onnx.operations",),
    (
        "onnx.plan",
        "onnx.nodes",
        "onnx.tracing",
        "onnx.checking",
        "onnx.genai_builder",
        "onnx.genai_source",
    ),
    ("onnx.folding", "onnx.standard", "onnx.genai_graph", "onnx.genai_check"),
    ("onnx.exporting",),
    ("onnx.genai",),
    ("onnx", "onnx.folder"),
    ("executorch.lowering",),
    ("executorch.exporting",),
    ("executorch", "executorch.folder"),
    # diba.hf
    ("hf.config", "hf.peft"),
    ("hf.saving", "hf.loading", "hf.compression"),
    ("hf.quantizer",),
    ("hf.model_methods",),
    ("hf",),
    # diba.compress, and what is above all
    ("compressing.judge", "compressing.outline", "compressing.reading", "compressing.recipe"),
    ("compressing.files", "compressing.models", "compressing.solving", "compressing.writing"),
    ("compressing.card", "compressing.source", "compressing.stages", "compressing.workplace"),
    ("compressing.plain", "compressing.forecast"),
    ("compressing.data", "compressing.data.batches", "compressing.data.wav"),
    (
        "compressing.data.texts",
        "compressing.data.images",
        "compressing.data.script",
        "compressing.data.answers",
    ),
    ("compressing.data.recordings",),
    ("compressing.data.kinds",),
    ("compressing.checking", "compressing.drawing", "compressing.fitted"),
    ("compressing.in_memory",),
    ("compressing.run",),
    ("compressing",),
    ("cli.compress", "cli.export", "cli.generate"),
    ("cli.chat", "cli.draw", "cli.merge", "cli.plan", "cli.verify"),
    ("cli",),
    ("__main__",),
)
PACKAGES = {
    "",
    "_internal",
    "allocation",
    "checkpoints",
    "checkpoints.html",
    "cli",
    "layers",
    "solvers",
    "torch",
    "torch.allocation",
    "torch.binary",
    "torch.ops",
    "torch.modules",
    "torch.model",
    "torch.reconstruction",
    "torch.retuning",
    "torch.calibration",
    "torch.conversion",
    "hf",
    "onnx",
    "executorch",
    "compressing",
    "compressing.data",
}
BINDINGS = {"bindings.hpp", "module.cpp"} | {
    f"bind_{folder}.cpp" for folder in ("file", "layout", "runtime", "product", "solve", "tensors")
}
AVX512 = {f"{name}.cpp" for name in ("avx512", "avx512_vnni", "avx512_vpopcntdq", "avx512_amx")}
AVX512 |= {"lookup_avx512.cpp", "lookup_avx512_vbmi.cpp"}
THIRD_PARTY = {
    "numpy": None,
    "safetensors": set(),
    "tqdm": {"progress"},
    "scipy": set(),
    "threadpoolctl": {"torch.conversion.run"},
    "matplotlib": {"allocation.curves"},
    "distributed": {"cli.compress"},
    "PIL": {"compressing.data.images"},
    "onnx": set(),  # read and written by onnx_ir, which torch's exporter brings
    "onnx_ir": {
        "onnx.graph",
        "onnx.files",
        "onnx.nodes",
        "onnx.folding",
        "onnx.standard",
        "onnx.tracing",
        "onnx.exporting",
        "onnx.genai_graph",
        "onnx.genai_builder",
    },
    "onnxruntime": {"onnx.runtime"},
    "executorch": {"executorch.exporting", "executorch.lowering"},
    "onnxruntime_genai": {"onnx.genai_builder", "onnx.genai_check", "onnx.genai_run"},
}


def modules(source_root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Names inside the package ("" is the package) and syntax trees."""
    package = source_root / "python" / "diba"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, tree: ast.Module, packages: set[str]) -> Iterator[tuple[str, bool]]:
    """(module, whether it is of this package) of every import statement, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            here = name.split(".") if name in packages else name.split(".")[:-1]
            base = [part for part in here[: len(here) + 1 - node.level] if part]
            base += node.module.split(".") if node.module else []
            if node.module:
                yield ".".join(base), True
            else:
                yield from ((".".join([*base, alias.name]), True) for alias in node.names)


def test_imports_go_one_way(source_root: Path) -> None:
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    trees = dict(modules(source_root))
    assert set(trees) | {"_core"} == set(rank), "give a new module its place in LAYERS"
    found = 0
    for name, tree in trees.items():
        for module, own in imports(name, tree, PACKAGES):
            if own:
                found += 1
                assert rank[module] < rank[name], f"{name or 'the package'} imports {module}"
    assert found > 30  # the test itself sees them


def test_no_name_of_a_package_hides_a_module_of_its(source_root: Path) -> None:
    """``diba.x`` is what ``import diba.x`` gives, whatever was imported before."""
    trees = dict(modules(source_root))
    for package in PACKAGES:
        inside = {
            name.rpartition(".")[2]
            for name in trees
            if name != package and name.rpartition(".")[0] == package
        }
        bound = {
            alias.asname or alias.name
            for node in ast.walk(trees[package])
            if isinstance(node, ast.ImportFrom) and not (node.level and node.module is None)
            for alias in node.names
        }
        bound |= {
            node.name for node in trees[package].body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert not inside & bound, f"names of diba.{package} and modules in it"
    assert {"solve", "onebit", "autotune"} <= {  # the test itself sees them
        alias.name for node in ast.walk(trees[""]) if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_other_packages_are_imported_where_they_belong(source_root: Path) -> None:
    known = set(THIRD_PARTY)
    for name, tree in modules(source_root):
        for module, own in imports(name, tree, PACKAGES):
            top = module.partition(".")[0]
            with_torch = name.split(".")[0] in ("torch", "hf", "onnx", "executorch", "compressing")
            with_torch |= name == "solvers.device"  # which is imported where a device is named
            assert with_torch or top not in ("torch", "transformers", "peft", "accelerate"), (
                f"{name} imports {top}"
            )
            with_hf = name.split(".")[0] in ("hf", "compressing")
            assert with_hf or not (own and top == "hf"), f"{name} imports diba.hf"
            assert top != "diba_autoload" or name in (
                "torch",
                "hf",
                "hf.model_methods",
                "compressing.files",
            )
            assert with_torch or not (own and top == "torch"), f"{name} imports diba.torch"
            if not own and top in known and THIRD_PARTY[top] is not None:
                assert name in THIRD_PARTY[top], f"{name} imports {top}"


def test_no_layer_imports_one_above_it_by_name(source_root: Path) -> None:
    """``import_module`` would pass the other tests by: the layer above registers with the one below."""
    for name, tree in modules(source_root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                found = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                above = [x for x in found if str(x).startswith("diba")]
                # A model knows nothing of diba: whoever hands it to diba.allocate need not import diba.torch.
                # diba.compress is there for those who import diba alone; torch is imported when it is used.
                allowed = {"allocation.matrices": ["diba.torch"], "": ["diba.compressing"]}
                assert not above or above == allowed.get(name), name


def test_the_core_keeps_each_thing_in_one_file(source_root: Path) -> None:
    only = {
        r"#include <pybind11/|#include <Python\.h>|PyObject": BINDINGS,
        r"#include <thread>|std::thread|pthread_|#pragma omp|<omp\.h>": {"parallel.cpp", "runtime.cpp"},
        r"getenv|__builtin_cpu|cpuid|xgetbv": {"dispatch.cpp"},
        r"immintrin\.h|_mm256_|_mm512_": {
            "avx2.cpp",
            "codes_256.hpp",
            "integer_256.hpp",
            "lookup_avx2.cpp",
            "sparse_256.hpp",
        }
        | AVX512,
        r"_mm512_|__m512|__mmask": AVX512,
        r"arm_neon\.h|\bv\w+q_[sufp]\d+\b|\b(u?int|float)\d+x\d+_t\b": {"lookup_neon.cpp", "neon.cpp"},
    }
    files = sorted((source_root / "cpp").rglob("*.[ch]pp"))
    for pattern, allowed in only.items():
        holders = {path.name for path in files if re.search(pattern, path.read_text(encoding="utf-8"))}
        assert holders <= allowed
        assert holders


# ---------------------------------------------------------------- in a fresh process

STATE = """
import os, random, signal, sys, warnings, locale
import numpy as np

def state():
    return {
        "environment": dict(os.environ),
        "warning filters": list(warnings.filters),
        "numpy's random state": np.random.get_state()[1].tobytes(),
        "random's state": random.getstate(),
        "numpy's error handling": np.geterr(),
        "numpy's printing": np.get_printoptions(),
        "threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None,
        "signal handlers": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "affinity": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "hooks": (sys.excepthook, sys.displayhook, sys.meta_path[:], sys.path[:], sys.getswitchinterval()),
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
    }

def changes(before):
    return [name for name, value in state().items() if value != before[name]]
"""


def test_import_changes_nothing() -> None:
    done = python(f"{STATE}\nbefore = state()\nimport diba\nprint(changes(before))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("threads", [1, 3])
def test_work_changes_nothing_and_imports_nothing_heavy(threads: int) -> None:
    """Except that the workers of the thread pool stay, asleep, if it was asked for any."""
    code = f"""{STATE}
import tempfile
np.linalg.solve(np.eye(2), np.eye(2))  # what NumPy itself loads on first use
before = state()
import diba
f = diba.solve(np.random.default_rng(0).standard_normal((200, 300)), bits_per_weight=1, max_iter=2)
with tempfile.TemporaryDirectory() as folder:
    f.save(folder + "/f.safetensors")
    assert diba.load(folder + "/f.safetensors") == f
f @ np.ones(300), f @ np.ones((300, 20)), f.snr_db(np.ones((200, 300))), diba.info()
print(changes(before), [name for name in ("torch", "scipy", "tqdm", "matplotlib") if name in sys.modules])
"""
    done = python(code, DIBA_NUM_THREADS=str(threads))
    kept = ["threads"] if threads > 1 and Path("/proc/self/task").is_dir() else []
    assert (done.stdout, done.stderr) == (f"{kept} []\n", "")


def test_a_missing_extension_is_named_with_the_way_to_build_it() -> None:
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "diba._core":
            raise ImportError("libstdc++.so.6: version `GLIBCXX_9' not found")
sys.meta_path.insert(0, Blocker())
import diba
"""
    done = python(code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: diba's compiled extension diba._core cannot be loaded")
    assert "GLIBCXX_9" in last  # the reason
    assert "pip install" in last  # the mend


@pytest.mark.parametrize("module", ["diba.reference", "diba.cli", "diba.solvers", "diba.file_format"])
def test_modules_can_be_imported_first(module: str) -> None:
    """No module works only because another was imported before it."""
    done = python(f"import {module}")
    assert (done.returncode, done.stderr) == (0, "")
