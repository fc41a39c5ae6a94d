"""The model card of a compressed model, and its figures in words."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from .._internal.disk import replace_file
from ..checkpoints.entries import format_bytes
from ..checkpoints.facts import Facts, Retuning

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..checkpoints.report import Report
    from .files import FileSource
    from .recipe import CompressSettings

__all__ = ["figure_lines", "write"]

_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_LICENCE = re.compile(r"^license(?:_name|_link)?:.*$", re.MULTILINE)


_TEXT = """\
---
{licence}library_name: {library}
tags: [diba]
---

# {name}, compressed with diba

{title} in {size} instead of {dense_size}, at {bits:.2f} bits a weight in the compressed layers. It is read
with diba installed:

```python
{usage}
```

{figures}`report.html` shows every layer, in charts and a table. The settings
repeat it, with the same data if there were any: `diba.compress(model, out, **settings)`.

```json
{settings}
```

## Layers

{layers}"""


def figure_lines(figures: Mapping[str, float]) -> list[str]:
    """What was measured, in words."""
    if "perplexity" in figures:
        before, after = figures["perplexity_dense"], figures["perplexity"]
        count = f"{figures['tokens_judged']:,.0f} tokens held back"
        return [f"perplexity of {count}: {before:.4g} dense, {after:.4g} compressed"]
    if "relative_error" in figures:
        lines = [f"answers to data held back: relative error {figures['relative_error']:.3g}"]
        if "agreement" in figures:
            count = f"{figures['answers_judged']:,.0f} answers held back"
            lines.append(f"top class of {count}: that of the dense model in {figures['agreement']:.1%}")
        return lines
    return []


def write(
    folder: Path, source: FileSource, settings: CompressSettings, facts: Mapping[str, Any], report: Report
) -> None:
    """Write ``README.md``: what the model is made from and by which settings, its figures, its layers.

    And ``report.html``, the same with charts. Neither has times in it, which differ from run to run.
    """
    try:
        dense = (source.folder / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        dense = ""
    front = _FRONT.match(dense)
    licence = _LICENCE.findall(front.group(1)) if front else []
    figures = "".join(f"- {line}\n" for line in figure_lines(facts["figures"]))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    course = facts.get("retuning")
    known = Facts(
        name=f"{source.path.resolve().name}, compressed",
        settings=settings.to_dict(),
        files=(source.bytes, size),
        figures=facts["figures"],
        retuning=None if course is None else Retuning.from_dict(course),
    )
    dataclasses.replace(report.without_times(), facts=known).to_html(folder / "report.html")
    text = _TEXT.format(
        licence="".join(f"{line}\n" for line in licence),
        name=source.path.resolve().name,
        library=source.library,
        title=source.title.capitalize() if " " in source.title else source.title,
        usage=source.usage,
        size=format_bytes(size),
        dense_size=format_bytes(source.bytes),
        bits=report.bits_per_weight,
        figures=f"{figures}\n" if figures else "",
        settings=json.dumps(settings.to_dict()),
        layers=report.to_markdown(),
    )
    replace_file(folder / "README.md", text.encode())
