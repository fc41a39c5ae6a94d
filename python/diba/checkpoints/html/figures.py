"""The charts of a report: SNR of layers, error against bits, bytes, blocks, and the course of retuning."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from ..entries import format_bytes
from .groups import finite
from .svg import COLOURS, Axis, Frame, Point, bar, drawing, line, marker, points

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..blocks import BlockRecipe
    from ..entries import LayerReport
    from ..facts import Retuning
    from .groups import Group, Part

__all__ = ["blocks_chart", "bytes_chart", "error_chart", "retuning_chart", "snr_chart"]

_FEW, _MANY = 150, 600  # points of these numbers are drawn smaller
_DRAWN = 400  # points of a line at most
_WIDE = 20.0  # values this many times apart are drawn on a logarithmic axis


def snr_chart(groups: Sequence[Group], outputs: bool = False) -> str:
    """SNR of every factored layer in the order of the model, of coded ones if there are no others.

    Nothing where none is known.
    """
    mixed = len({layer.k > 0 for group in groups for layer in group.layers.values()}) > 1

    def value(layer: LayerReport) -> float | None:
        if mixed and not layer.k:  # several times as high, so that all others would be one line
            return None
        return layer.output_snr_db if outputs else layer.snr_db

    known = finite(value(layer) for group in groups for layer in group.layers.values())
    if not known:
        return ""
    count = max(place for group in groups for place in group.layers)
    x = Axis.linear("layer, in the order of the model", (1, count), whole=True)
    frame = Frame(x, Axis.linear("dB", known))
    what = "SNR of each layer's outputs" if outputs else "SNR of each layer's weights"
    mean = sum(known) / len(known)
    text = f"{len(known)} layers, from {min(known):.2f} to {max(known):.2f} dB, {mean:.2f} dB in the mean."
    note = "Higher is better: 6 dB more is half the error."
    if outputs:
        note = "On the data that compression saw, against what the layer was to compute. Higher is better."
    note += " Layers of codes are in the table only." if mixed else ""
    content = _of_groups(frame, groups, lambda i, x: (float(i), value(x)))
    drawn = [
        (i, name)
        for (i, name), group in zip(_names(groups), groups, strict=True)
        if finite(value(layer) for layer in group.layers.values())
    ]
    return _figure(what, text, note, frame, content, drawn)


def error_chart(groups: Sequence[Group]) -> str:
    """Relative error of every layer's weights against its bits; nothing where no SNR is known."""

    def place(_: int, layer: LayerReport) -> tuple[float, float | None]:
        known = finite([layer.snr_db])
        return layer.bits_per_weight, 100 * 10 ** (-known[0] / 20) if known else None

    found = [place(0, layer) for group in groups for layer in group.layers.values()]
    errors = [error for _, error in found if error is not None]
    if not errors:
        return ""
    bits = [x for x, error in found if error is not None]
    high = max(4.0, math.ceil(max(bits)))
    x = Axis.linear("bits a weight", (0.0, high), whole=True)
    least = min(*errors, 100 * 2.0**-high) if len(errors) > 1 else min(errors[0], 100 * 2.0**-high)
    frame = Frame(x, Axis.logarithmic("relative error", [*errors, least, 100.0], unit=" %"))
    content = line(frame, [(0.0, 100.0), (high, 100 * 2.0**-high)], "dashed") + _of_groups(
        frame, groups, place
    )
    text = f"Relative errors of weights from {min(errors):.3g} % to {max(errors):.3g} %."
    note = (
        "Root of the error's share of the energy, by bits a weight. Dashed: the least possible error of "
        "independent Gaussian numbers, 6.02 dB a bit; weights of models can be below it."
    )
    return _figure("Error against bits", text, note, frame, content, _names(groups))


def bytes_chart(parts: Sequence[Part]) -> str:
    """Bars of bytes before and after, and the second one enlarged."""
    before, after = [part.before for part in parts], [part.after for part in parts]
    whole = max(sum(before), sum(after))
    if not whole:
        return ""
    rows = [(f"before: {format_bytes(sum(before))}", before, whole)]
    rows.append((f"after: {format_bytes(sum(after))}", after, whole))
    if 0 < sum(after) < whole / 2:
        rows.append((f"after, enlarged {whole / sum(after):.3g} times", after, sum(after)))
    content = ""
    for i, (label, sizes, scale) in enumerate(rows):
        y = 12 + 52 * i
        shares = [
            (part.colour, size / scale, f"{part.name}: {format_bytes(size)}")
            for part, size in zip(parts, sizes, strict=True)
        ]
        content += f'<text x="0" y="{y}">{escape(label)}</text>' + bar(y + 6, 24, shares)
    text = "; ".join(
        f"{part.name}: {format_bytes(part.before)} before, {format_bytes(part.after)} after" for part in parts
    )
    svg = drawing("bytes", "Where the bytes are", text, content, 52 * len(rows) - 6)
    legend = _legend([(part.colour, part.name) for part in parts if part.before or part.after], marks=False)
    return f"<figure><figcaption>Where the bytes are</figcaption>{svg}{legend}</figure>"


def blocks_chart(blocks: Mapping[str, BlockRecipe]) -> str:
    """Losses of every block before it was changed, with its layers factored, and at the end."""
    values = list(enumerate(blocks.items(), 1))
    kinds: list[tuple[int, str, Callable[[BlockRecipe], float]]] = [
        (7, "before: what earlier blocks did to its inputs", lambda block: block.loss_before),
        (3, "all layers factored", lambda block: block.loss_factored),
        (0, "reconstructed", lambda block: block.loss),
    ]
    losses = [x for x in finite(of(block) for block in blocks.values() for _, _, of in kinds) if x > 0]
    if not losses:
        return ""
    frame = Frame(Axis.linear("block", (1, len(values)), whole=True), _axis("loss", losses))
    content = ""
    for colour, what, of in kinds:
        found = [(i, name, of(block)) for i, (name, block) in values]
        drawn = [
            Point(i, y, f"{name}, {what}: {y:.3g}") for i, name, y in found if math.isfinite(y) and y > 0
        ]
        content += line(frame, [(p.x, p.y) for p in drawn], f"thin s{colour}") if len(drawn) > 1 else ""
        larger = 1.4 if colour == 3 else 1.0  # to be seen behind the end, where that is the same
        content += points(frame, drawn, colour, larger * _scale(len(values)))
    after = [block.loss / block.loss_factored for block in blocks.values() if block.loss_factored > 0]
    mean = (
        f"{math.exp(sum(math.log(x) for x in after if x > 0) / len(after)):.2f}"
        if all(after) and after
        else "-"
    )
    text = f"{len(values)} blocks; reconstruction leaves {mean} of the loss in the geometric mean."
    note = "Squared error of outputs on batches held out, relative to the dense block's. Lower is better."
    return _figure(
        "Reconstruction of blocks", text, note, frame, content, [(c, what) for c, what, _ in kinds]
    )


def retuning_chart(course: Retuning) -> str:
    """The loss of every step, and the means before and after."""
    steps = [(float(i), x) for i, x in enumerate(course.losses, 1) if x is not None and math.isfinite(x)]
    means = finite([course.loss_before, course.loss_after])
    if not steps:
        return ""
    thin, smooth = _means(steps, _DRAWN), _means(steps, 20)
    values = [y for _, y in thin] + means
    x = Axis.linear("step", (1, len(course.losses)), whole=True)
    frame = Frame(x, _axis("loss", values))
    content = line(frame, thin, "thin s1") if len(thin) > 1 else points(frame, [Point(*thin[0], "")], 1)
    content += line(frame, smooth, "s1") if len(steps) > 60 else ""
    legend: list[tuple[int, str]] = [(1, "training loss of a step, and its mean over many")]
    for colour, what, mean in ((7, "before", course.loss_before), (0, "after", course.loss_after)):
        if mean is not None and math.isfinite(mean):
            content += line(frame, [(frame.x.low, mean), (frame.x.high, mean)], f"dashed s{colour}")
            legend.append((colour, f"mean of the same few batches {what}: {mean:.4g}"))
    text = (
        f"{len(course.losses)} steps, loss {steps[0][1]:.4g} at the first and {steps[-1][1]:.4g} at the last."
    )
    skipped = len(course.losses) - len(steps)
    note = f"Steps that were skipped: {skipped}." if skipped else ""
    if course.restored:
        note = f"The mean loss had risen, so everything was put back. {note}".strip()
    return _figure("Retuning of the whole model", text, note, frame, content, legend)


# ---------------------------------------------------------------- details


def _figure(
    title: str,
    text: str,
    note: str,
    frame: Frame,
    content: str,
    legend: Sequence[tuple[int, str]],
) -> str:
    key = "-".join(title.lower().replace("'", "").split())
    svg = drawing(key, title, text, frame.grid() + content, frame.height)
    notes = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}{_legend(legend)}{notes}</figure>"


def _names(groups: Sequence[Group]) -> list[tuple[int, str]]:
    return [(i, group.name) for i, group in enumerate(groups)]


def _legend(entries: Sequence[tuple[int, str]], marks: bool = True) -> str:
    keys = (marker(i) if marks else f'<span class="swatch s{i}"></span>' for i, _ in entries)
    items = "".join(f"<li>{key}{escape(name)}</li>" for key, (_, name) in zip(keys, entries, strict=True))
    return f'<ul class="legend">{items}</ul>'


def _of_groups(
    frame: Frame, groups: Sequence[Group], place: Callable[[int, LayerReport], tuple[float, float | None]]
) -> str:
    """A marker for every layer of which both numbers are known and finite."""
    scale, content = _scale(sum(len(group.layers) for group in groups)), ""
    for colour, group in enumerate(groups):
        found = []
        for i, layer in group.layers.items():
            x, y = place(i, layer)
            if y is not None and math.isfinite(y):
                text = f"{layer.name}: {_known(layer.snr_db)} dB at {layer.bits_per_weight:.2f} bits"
                found.append(Point(x, y, text))
        content += points(frame, found, colour % COLOURS, scale)
    return content


def _known(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _scale(count: int) -> float:
    return 1.0 if count <= _FEW else 0.75 if count <= _MANY else 0.5


def _axis(label: str, values: Sequence[float]) -> Axis:
    """A logarithmic one for values that are far apart."""
    if min(values) > 0 and max(values) > _WIDE * min(values):
        return Axis.logarithmic(label, values)
    return Axis.linear(label, values)


def _means(steps: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: means of runs of equal length."""
    run = -(-len(steps) // most)
    parts = [steps[i : i + run] for i in range(0, len(steps), run)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]
