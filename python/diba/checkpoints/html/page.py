"""A report as a page, one file that needs nothing else, and as what a notebook shows of it."""

from __future__ import annotations

import base64
import hashlib
import math
from html import escape
from typing import TYPE_CHECKING

from ...progress import duration
from ..entries import format_bytes, in_order
from ..text import summary
from . import figures, tables
from .groups import Part, groups_of
from .style import NOTEBOOK, PAGE, SCRIPT, style, style_within
from .svg import COLOURS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..contents import Contents
    from ..entries import LayerReport

__all__ = ["notebook", "page"]

_SHOWN = 10  # layers in a notebook

Tile = tuple[str, str, str]
"""What it is about, the figure, and what stands below it."""


def page(report: Contents, title: str | None = None) -> str:
    """The report as HTML.

    Args:
        report: Any.
        title: Of the page; None: the name of the model, if it is known.
    """
    name = title or report.facts.name or "A compressed model"
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    sections = [
        *_figures(report, name),
        _layers(report),
        _dense(report),
        _settings(report),
    ]
    return PAGE.format(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=escape(f"{name}: diba"),
        style=style(),
        content="\n".join(section for section in sections if section),
        script=SCRIPT,
    )


def notebook(report: Contents) -> str:
    """What a notebook shows: the figures and charts of :func:`page`, the worst layers, what stayed dense.

    No script, and a style that holds in here alone; where a notebook drops that, plain lists and tables stay.
    """
    name = report.facts.name or "A compressed model"
    sections = [*_figures(report, name), _worst(report), _dense(report)]
    content = "\n".join(section for section in sections if section)
    return f'<div class="{NOTEBOOK}"><style>\n{style_within(NOTEBOOK)}</style>\n{content}</div>'


def _figures(report: Contents, name: str) -> list[str]:
    return [_head(report, name), _errors(report), _sizes(report), _blocks(report), _retuning(report)]


def _head(report: Contents, name: str) -> str:
    items = "".join(
        f"<li><span>{escape(what)}</span><b>{escape(figure)}</b><span>{escape(more)}</span></li>"
        for what, figure, more in _tiles(report)
    )
    lines = summary(report)
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in lines[1:] if _is_note(line))
    return f'<h1>{escape(name)}</h1><p>{escape(lines[0])}</p><ul class="tiles">{items}</ul>{notes}'


def _is_note(line: str) -> bool:
    """Whether the tiles and the lists below do not say it."""
    return ":" in line and not line.startswith("left dense")


def _tiles(report: Contents) -> list[Tile]:
    files, facts = report.facts.files, report.facts
    before, after = files or (report.bytes_before, report.bytes_after)
    ratio = f", {before / after:.1f} times smaller" if 0 < after < before else ""
    found: list[Tile] = [
        (
            "size",
            f"{format_bytes(before)} → {format_bytes(after)}",
            ("files of weights" if files else "parameters and buffers") + ratio,
        )
    ]
    if report.layers:
        kinds = "in the compressed layers"
        found.append(("bits a weight", f"{report.bits_per_weight:.3f}", kinds))
        share = f"{math.floor(1000 * report.weight_share) / 10:.1f} %"
        found.append(("compressed", share, f"of {report.matrix_weights:,} weights in matrices"))
        found.append(_snr(report))
    found += _measured(facts.figures) if facts.figures else [("quality on data", "unknown", "not measured")]
    found += _forecast(facts.forecast)
    if report.seconds is not None:
        peak = "unknown" if report.peak_bytes is None else format_bytes(report.peak_bytes)
        found.append(("time", duration(report.seconds), f"peak memory {peak}"))
    return found


def _snr(report: Contents) -> Tile:
    worst = report.worst
    if worst is None or worst.snr_db is None:
        return "SNR of weights", "unknown", "not measured"
    return (
        "SNR of weights",
        f"{report.mean_snr_db:.2f} dB",
        f"in the mean; at worst {worst.snr_db:.2f} dB, {worst.name}",
    )


def _measured(values: Mapping[str, float]) -> list[Tile]:
    """Tiles of what was measured; figures of unknown names as they are."""
    left, found = dict(values), list[Tile]()
    tokens, answers = left.pop("tokens_judged", None), left.pop("answers_judged", None)
    of = "on data held back" if tokens is None else f"of {tokens:,.0f} tokens held back"
    if "perplexity" in left:
        after, before = left.pop("perplexity"), left.pop("perplexity_dense", None)
        dense = "unknown" if before is None else f"{before:.4g}"
        found.append(("perplexity", f"{dense} → {after:.4g}", f"dense → compressed, {of}"))
    if "relative_error" in left:
        found.append(("error of outputs", f"{100 * left.pop('relative_error'):.3g} %", of))
    if "agreement" in left:
        count = "answers" if answers is None else f"{answers:,.0f} answers"
        share = f"{100 * left.pop('agreement'):.4g} %"
        found.append(("agreement", share, f"of {count} held back are those of the dense model"))
    return found + [(name.replace("_", " "), f"{value:.4g}", "measured") for name, value in left.items()]


def _forecast(values: Mapping[str, float]) -> list[Tile]:
    found: list[Tile] = []
    if "seconds" in values:
        found.append(("time, as expected", duration(values["seconds"]), "without data, on this machine"))
    if "memory_bytes" in values:
        size = format_bytes(int(values["memory_bytes"]))
        found.append(("memory, as expected", size, "at the peak, beside the interpreter"))
    if "snr_db" in values:
        found.append(
            ("SNR, as expected", f"{values['snr_db']:.1f} dB", "of random matrices; trained ones get more")
        )
    return found


def _section(title: str, *content: str) -> str:
    text = "".join(content)
    return f"<section><h2>{escape(title)}</h2>{text}</section>" if text else ""


def _charts(*charts: str) -> str:
    text = "".join(charts)
    return f'<div class="figures">{text}</div>' if text else ""


def _errors(report: Contents) -> str:
    if not report.layers:
        return ""
    groups = groups_of(report.layers, COLOURS)
    charts = _charts(
        figures.snr_chart(groups), figures.error_chart(groups), figures.snr_chart(groups, outputs=True)
    )
    none = "" if charts else '<p class="note">SNR is unknown: nothing was measured.</p>'
    return _section("Errors", charts or none, tables.groups_table(groups))


def _sizes(report: Contents) -> str:
    factored = [layer for layer in report.layers if layer.k]
    coded = [layer for layer in report.layers if not layer.k]
    before, after = report.bytes_before - report.dense_bytes, report.bytes_after - report.memory_bytes
    parts = [
        Part("factored layers", 0, *_bytes(factored)),
        Part("layers of 8-bit and 4-bit codes", 1, *_bytes(coded)),
        Part("dense: all other parameters and buffers", 7, max(0, before), max(0, after)),
    ]
    return _section("Sizes", _charts(figures.bytes_chart(parts), tables.bytes_table(parts)))


def _bytes(layers: Sequence[LayerReport]) -> tuple[int, int]:
    """Bytes before and after."""
    return sum(layer.dense_bytes for layer in layers), sum(layer.memory_bytes for layer in layers)


def _blocks(report: Contents) -> str:
    if not report.blocks:
        return ""
    blocks = dict(sorted(report.blocks.items(), key=lambda item: in_order(item[0])))
    return _section("Reconstruction", _charts(figures.blocks_chart(blocks)), tables.blocks_table(blocks))


def _retuning(report: Contents) -> str:
    course = report.facts.retuning
    return "" if course is None else _section("Retuning", _charts(figures.retuning_chart(course)))


def _layers(report: Contents) -> str:
    if not report.layers:
        return ""
    places = {layer.name: place for place, layer in enumerate(report.layers, 1)}
    note = '<p class="note">Worst first; a click on a column sorts by it.</p>'
    return _section("Layers", note, tables.layers_table(report.worst_first(), places))


def _worst(report: Contents) -> str:
    """The layers of the lowest SNR, and where all others are."""
    if not report.layers:
        return ""
    shown = report.worst_first()[:_SHOWN]
    places = {layer.name: place for place, layer in enumerate(report.layers, 1)}
    others = len(report.layers) - len(shown)
    how = "<code>print(report)</code> and <code>report.to_html(path)</code> show all"
    note = f'<p class="note">And {others} more: {how}.</p>' if others else ""
    return _section("Layers, worst first", tables.layers_table(shown, places), note)


def _dense(report: Contents) -> str:
    return _section("What stayed dense, and why", tables.dense_lists(report.skipped))


def _settings(report: Contents) -> str:
    given = (
        ("diba.compress", report.facts.settings),
        ("conversion", report.settings),
        ("reconstruction of blocks", report.reconstruction),
    )
    return _section("Settings", *(tables.settings_list(name, x) for name, x in given if x))
