"""How diba and transformers find each other in one process, whichever is imported first.

A package beside ``diba``, with nothing but this, for torch calls :func:`register` whenever it is imported
(the entry point ``torch.backends``, which TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns off): it costs some
microseconds, imports nothing, and no failure of it reaches anybody.
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
"""``config.json`` of a compressed checkpoint has this key and value. transformers takes it for the name of
the file with the weights, and refuses it with a message that shows it; with diba it never comes to see it.
The guards of ``diba.hf.saving`` alone would be passed by with ``ignore_mismatched_sizes=True``."""


def register() -> None:
    """Let ``from_pretrained`` of transformers import ``diba.hf`` where it meets a checkpoint of diba.

    No failure of it reaches whoever imports torch.
    """
    with contextlib.suppress(Exception):
        after_import("transformers.quantizers.auto", _meet)


def expect_transformers() -> None:
    """Import ``diba.hf`` as soon as transformers has models: those that diba converts can then be saved.

    ``diba.torch`` calls it when it is imported.
    """
    after_import("transformers.modeling_utils", _bring_in)


def after_import(name: str, action: Callable[[], object]) -> None:
    """Call ``action()`` as soon as a module has been imported: now, or at the end of that import.

    What it raises is raised by that import. A second call for a module that is waited for does nothing.
    """
    waiting = _After(name, action)
    known = any(isinstance(finder, _After) and finder.name == name for finder in sys.meta_path)
    if not waiting.done() and not known:
        sys.meta_path.insert(0, waiting)


class _After:
    """Among the finders of modules until its own has been imported; it finds none by itself."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name, self._action, self._acted = name, action, False

    def done(self) -> bool:
        """Whether the module is there, whole; then the action has run."""
        module = sys.modules.get(self.name)
        if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
            return False
        self._act()
        return True

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None, but for the module that is waited for: what others find, with the action at its end."""
        if name != self.name:
            self.done()  # it may have been half imported when the waiting began
            return None
        others = [f for f in sys.meta_path if not isinstance(f, _After) and hasattr(f, "find_spec")]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        with contextlib.suppress(AttributeError):  # a strange loader: then the next import will tell
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
        # A new list: an import that is under way goes through the old one, and must not skip a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        if not self._acted:
            self._acted = True
            self._action()


def _bring_in() -> None:
    try:
        importlib.import_module("diba.hf")
    except Exception as error:  # transformers 4 first of all, and its import is not ours to end
        if not isinstance(error, ImportError):
            warnings.warn(f"diba.hf cannot be imported: {error!r}", stacklevel=2)
        hooks = importlib.import_module("diba.torch.conversion.convert").when_converted
        hooks.append(functools.partial(_warn, str(error)))


def _warn(reason: str, model: Any) -> None:
    """What a conversion calls where ``diba.hf`` is missing."""
    kind = sys.modules["transformers.modeling_utils"].PreTrainedModel
    if any(isinstance(module, kind) for module in model.modules()):
        text = f"save_pretrained of this model will not write what from_pretrained needs: {reason}"
        importlib.import_module("diba.torch.conversion.solving").warn_user(text)


def _meet() -> None:
    """Wrap what ``from_pretrained`` asks for the quantizer of a model."""
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
