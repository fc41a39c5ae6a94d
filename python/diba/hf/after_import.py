"""Do something once another package has been imported, without importing it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["after_import"]


def after_import(package: str, action: Callable[[], object]) -> None:
    """Call ``action`` when ``package`` is there: now, or at the end of its import.

    What ``action`` raises is raised by that import. A second call for the same package does nothing but the
    first half.
    """
    if package in sys.modules:
        action()
    if not any(isinstance(finder, _Finder) and finder.package == package for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(package, action))


class _Finder:
    """Finds one package as the other finders do, and adds the action to what its loader runs."""

    def __init__(self, package: str, action: Callable[[], object]) -> None:
        self.package, self.action = package, action

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.package:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self.action()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
