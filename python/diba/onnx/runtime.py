"""Sessions of onnxruntime with diba's operators, and the options that suit them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._internal import check
from .library import library_path, share_packed_bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnxruntime

    from .._internal.disk import PathLike

__all__ = ["OLDEST", "SLOW", "session"]

OLDEST = (1, 17)
"""The oldest onnxruntime whose C interface has all that the library calls."""

SLOW = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Optimizations that are left out, because on CPUs their fused nodes run on one thread and without the
vectorised code of the parts: 2.4 ms for an addition and a normalisation of 1248 x 384 that take 0.34 ms as
two nodes."""


def session(
    path: PathLike,
    *,
    threads: int | None = 1,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    verify: bool = False,
    entries: dict[str, str] | None = None,
    **options: Any,
) -> onnxruntime.InferenceSession:
    """Open an exported model in onnxruntime, with diba's operators and the options that suit them.

    Bits are packed once in a process: a model that is also in memory as layers of ``diba.torch``, or open in
    another session, takes hardly more. Factored layers split their work over onnxruntime's own threads, so
    ``threads`` counts for all of the model. Fusions of an addition with a layer normalisation or a GELU are
    left out: they are slow on CPUs.

    Args:
        path: The ONNX file; its tensors are read from the file beside it.
        threads: Threads of the model; None: one for each physical core.
        providers: Execution providers, as onnxruntime takes them. Factored layers run on the CPU.
        verify: Whether to compare the whole file of tensors with the SHA-256 that the model states. Factors
            have checksums of their own, which are always checked; tables and dense weights have not.
        entries: Session configuration entries, such as ``{"session.intra_op.allow_spinning": "0"}``, which
            saves power between calls and costs some time at the start of each.
        **options: Attributes of ``onnxruntime.SessionOptions``, such as ``log_severity_level=3``.

    Raises:
        ImportError: onnxruntime is missing, or older than 1.17.
        OSError: There is no such file.
        TypeError: ``SessionOptions`` has no such attribute.
        RuntimeError: onnxruntime cannot load the model, for example because it is damaged, or because it
            needs diba's library and this installation has none; or the file of tensors is another one.
    """
    name = os.fsdecode(check.path(path))
    if threads is not None:
        threads = check.positive_int(threads, "threads")
    runtime = _onnxruntime()
    if not Path(name).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    made = runtime.SessionOptions()
    made.intra_op_num_threads = threads or 0
    for option, value in options.items():
        if not hasattr(made, option):
            raise TypeError(f"onnxruntime.SessionOptions has no {option}; see its documentation")
        setattr(made, option, value)
    for key, text in (entries or {}).items():
        made.add_session_config_entry(key, text)
    missing: FileNotFoundError | None = None
    try:
        made.register_custom_ops_library(str(library_path()))
        share_packed_bits()
    except FileNotFoundError as error:  # which a model of standard operators can do without
        missing = error
    try:
        opened: onnxruntime.InferenceSession = runtime.InferenceSession(
            name, made, providers=list(providers), disabled_optimizers=list(SLOW)
        )
    except Exception as error:  # onnxruntime's own types, without a common base
        raise RuntimeError(_reason(name, runtime.__version__, error, missing)) from error
    _check_data(Path(name), opened.get_modelmeta().custom_metadata_map, verify)
    return opened


def _check_data(path: Path, facts: dict[str, str], verify: bool) -> None:
    """Compare the file of tensors with what an exported model says of it."""
    if "diba.data" not in facts:
        return
    stated, data = json.loads(facts["diba.data"]), path.with_name(f"{path.name}.data")
    if not data.is_file():  # another tool has saved the model since, as one file
        return
    size = data.stat().st_size
    if size != stated["bytes"]:
        raise RuntimeError(
            f"{data} has {size} bytes; {path.name} needs one of {stated['bytes']}: copy both again"
        )
    if verify and size:
        with data.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != stated["sha256"]:
            raise RuntimeError(
                f"{data} is damaged: its SHA-256 is not the one in {path.name}; copy both again"
            )


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "diba.onnx.session needs onnxruntime; use python -m pip install 'diba[onnx]'"
        ) from error
    found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if found < OLDEST:
        least = ".".join(map(str, OLDEST))
        raise ImportError(
            f"onnxruntime is {onnxruntime.__version__}; diba.onnx.session needs {least} or newer: use "
            "python -m pip install --upgrade onnxruntime"
        )
    return onnxruntime


def _reason(name: str, version: str, error: Exception, missing: FileNotFoundError | None) -> str:
    told = f"{name}: onnxruntime {version} cannot load it: {' '.join(str(error).split())}"
    return told if missing is None or "diba" not in told else f"{told}; {missing}"
