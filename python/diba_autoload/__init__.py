"""Import ``diba.hf`` when transformers needs it, whichever of the two packages is imported first.

torch calls :func:`register` whenever it is imported, through the entry point ``torch.backends``, which
TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns off. So this is a separate package that imports nothing else of diba,
takes some microseconds, and raises no exceptions.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["LOCK", "LOCKED", "after_import", "expect_transformers", "register"]

METHOD = "diba"
LOCK = "transformers_weights"
LOCKED = "this model is compressed by diba; python -m pip install 'diba[hf]', then import diba.hf"
"""Key and value in the ``config.json`` of a compressed checkpoint. Without diba, transformers takes the value
for the name of the file with the weights, and refuses it with a message that shows it; diba removes the key
before. The guards of ``diba.hf.saving`` alone would be ignored with ``ignore_mismatched_sizes=True``."""


def register() -> None:
    """Let ``from_pretrained`` of transformers import ``diba.hf`` when it reads a checkpoint of diba.

    It raises no exceptions, which would reach the code that imports torch.
    """
    with contextlib.suppress(Exception):
        after_import("transformers.quantizers.auto", _meet)


def expect_transformers() -> None:
    """Import ``diba.hf`` as soon as transformers is imported, so that converted models can be saved.

    ``diba.torch`` calls this function when it is imported.
    """
    after_import("transformers.modeling_utils", _bring_in)


def after_import(name: str, action: Callable[[], object]) -> None:
    """Call ``action()`` when a module is imported: now if it is imported already, else after its import.

    The import of the module raises the exceptions of the action. A second call for a module that is not yet
    imported does nothing.
    """
    waiting = _After(name, action)
    known = any(isinstance(finder, _After) and finder.name == name for finder in sys.meta_path)
    if not waiting.done() and not known:
        sys.meta_path.insert(0, waiting)


class _After:
    """An entry of ``sys.meta_path`` that runs an action after the import of a module; it finds no modules."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name, self._action, self._acted = name, action, False

    def done(self) -> bool:
        """Whether the module is completely imported; if so, the action runs, once."""
        module = sys.modules.get(self.name)
        if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
            return False
        self._act()
        return True

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that other finders give for the module, with the action after its import; else None."""
        if name != self.name:
            self.done()  # the module may have been partly imported when this finder was added
            return None
        others = [f for f in sys.meta_path if not isinstance(f, _After) and hasattr(f, "find_spec")]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        with contextlib.suppress(AttributeError):  # an unusual loader: then the next import runs the action
            self._follow(spec)
        return spec

    def _follow(self, spec: Any) -> None:
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del spec.loader.exec_module  # the class's own again
            execute(module)
            self._act()

        spec.loader.exec_module = exec_module

    def _act(self) -> None:
        # Make a new list, because a running import iterates over the old one and must not skip a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        if not self._acted:
            self._acted = True
            self._action()


def _bring_in() -> None:
    try:
        importlib.import_module("diba.hf")
    except Exception as error:  # such as with transformers 4, whose import must not fail because of diba
        if not isinstance(error, ImportError):
            warnings.warn(f"diba.hf cannot be imported: {error!r}", stacklevel=2)
        hooks = importlib.import_module("diba.torch.conversion.convert").when_converted
        hooks.append(functools.partial(_warn, str(error)))


def _warn(reason: str, model: Any) -> None:
    """Called after a conversion if ``diba.hf`` could not be imported."""
    kind = sys.modules["transformers.modeling_utils"].PreTrainedModel
    if any(isinstance(module, kind) for module in model.modules()):
        text = f"save_pretrained of this model will not write what from_pretrained needs: {reason}"
        importlib.import_module("diba.torch.conversion.solving").warn_user(text)


def _meet() -> None:
    """Wrap the function by which ``from_pretrained`` gets the quantizer of a model."""
    auto, modeling = (
        sys.modules.get(f"transformers.{name}") for name in ("quantizers.auto", "modeling_utils")
    )
    original: Any = getattr(auto, "get_hf_quantizer", None)
    if original is None or hasattr(original, "_meets_diba"):
        return

    @functools.wraps(original)
    def get_hf_quantizer(config: Any, *args: Any, **kwargs: Any) -> Any:
        settings = getattr(config, "quantization_config", None)
        if isinstance(settings, dict) and settings.get("quant_method") == METHOD:
            importlib.import_module("diba.hf")
            if getattr(config, LOCK, None) == LOCKED:
                delattr(config, LOCK)
        return original(config, *args, **kwargs)

    get_hf_quantizer._meets_diba = True  # type: ignore[attr-defined]
    for module in (auto, modeling):
        if getattr(module, "get_hf_quantizer", None) is original:
            module.get_hf_quantizer = get_hf_quantizer  # type: ignore[union-attr]
