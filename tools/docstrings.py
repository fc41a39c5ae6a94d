"""How the reference reads the package's docstrings, for griffe: its names become links."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """Sphinx roles become cross-references, and an ``Example:`` is read as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of every module, class, function and attribute."""
        if obj.docstring is not None:
            text = _ROLE.sub(_link, obj.docstring.value)
            text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


def _link(match: re.Match[str]) -> str:
    name = match[1]
    return f"[`{name}`][{name}]" if name.startswith("diba.") else f"`{name}`"
