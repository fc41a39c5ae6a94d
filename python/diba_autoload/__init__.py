"""How diba and transformers find each other in one process, whichever is imported first.

A package beside ``diba``, with nothing but this, for torch calls :func:`register` whenever it is imported
(the entry point ``torch.backends``, which TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns off): it costs some
microseconds, imports nothing, and no failure of it reaches anybody.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["after_import", "register"]

METHOD = "diba"


def register() -> None:
    """Let ``from_pretrained`` of transformers import ``diba.hf`` where it meets a checkpoint of diba."""
    after_import("transformers.quantizers.auto", _offer)


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
        with contextlib.suppress(ValueError):  # it never had to wait
            sys.meta_path.remove(self)
        if not self._acted:
            self._acted = True
            self._action()


class _Config:
    """In transformers' mapping until ``diba.hf``, which puts its own class there, has been imported."""

    @staticmethod
    def from_dict(values: Any, **options: Any) -> Any:
        return importlib.import_module("diba.hf").DibaConfig.from_dict(values, **options)


def _offer() -> None:
    with contextlib.suppress(Exception):  # no business of who imports it
        auto = sys.modules["transformers.quantizers.auto"]
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, _Config)
