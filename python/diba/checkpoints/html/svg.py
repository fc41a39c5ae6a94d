"""Charts as SVG text: axes, points, lines and bars. Colours come from classes of the page's style."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["COLOURS", "Axis", "Frame", "Point", "bar", "drawing", "line", "marker", "points"]

COLOURS = 8
"""Number of colours, classes ``s0`` to ``s7``; each has a shape of its own, too."""

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 50, 12, 24, 38
_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.5-3.5h7v7h-7z",
    "M0-4.6L4.4 3.4H-4.4z",
    "M0-5L4.4 0L0 5L-4.4 0z",
    "M0 4.6L4.4-3.4H-4.4z",
    "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "M-4.5-2L0-5L4.5-2L2.8 4H-2.8z",
    "M-5-2h10v4h-10z",
)


class Point(NamedTuple):
    """A value of a chart, and what is said of it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Axis:
    """From the smallest to the largest value, with labelled ticks."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    @classmethod
    def linear(cls, label: str, values: Iterable[float], *, whole: bool = False) -> Axis:
        """Round numbers around finite values; ``whole``: none between whole numbers."""
        found = list(values)
        low, high = min(found), max(found)
        margin = 0.0 if whole else 0.05 * (high - low)
        low, high = low - margin, high + margin
        if high <= low:
            low, high = (
                (low - 0.5, high + 0.5) if whole or not low else (low - abs(low) / 2, high + abs(low) / 2)
            )
        step = _round_step((high - low) / 5)
        if whole:
            step = max(1.0, step)
        count = math.floor(high / step + 1e-9)
        ticks = [step * i for i in range(math.ceil(low / step - 1e-9), count + 1)]
        return cls(label, low, high, tuple((x, number(x)) for x in ticks))

    @classmethod
    def logarithmic(cls, label: str, values: Iterable[float], *, unit: str = "") -> Axis:
        """1, 2 and 5 of every power of ten around finite values greater than 0."""
        found = list(values)
        low, high = min(found) / 1.1, max(found) * 1.1
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1,)):
            ticks = [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
            if len(ticks) <= 8:
                break
        return cls(
            label, low, high, tuple((x, number(x) + unit) for x in ticks[:: 1 + len(ticks) // 9]), True
        )

    def share(self, value: float) -> float:
        """Where a value is, from 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log(x) for x in (value, low, high))
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Frame:
    """The axes of a chart."""

    x: Axis
    y: Axis
    height: int = 230

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a value."""
        across, up = self.x.share(x), self.y.share(y)
        bottom = self.height - _BOTTOM
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), bottom - up * (bottom - _TOP)

    def grid(self) -> str:
        """Lines and numbers of both axes, and their labels."""
        bottom, right = self.height - _BOTTOM, _WIDTH - _RIGHT
        parts = [f'<text x="0" y="12">{escape(self.y.label)}</text>']
        for value, label in self.y.ticks:
            y = self.at(self.x.low, value)[1]
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{escape(label)}</text>')
        for value, label in self.x.ticks:
            x = self.at(value, self.y.low)[0]
            parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v4"/>')
            anchor, x = ("end", right + 4.0) if x > right - 14 else ("middle", x)  # inside of the picture
            parts.append(f'<text class="{anchor}" x="{x:.1f}" y="{bottom + 16}">{escape(label)}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
        parts.append(f'<text class="end" x="{right}" y="{self.height - 4}">{escape(self.x.label)}</text>')
        return "".join(parts)


def drawing(key: str, title: str, description: str, content: str, height: int = 230) -> str:
    """An SVG with a title and a description for those who cannot see it; ``key`` is unique on the page."""
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{key}-title {key}-text">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-text">{escape(description)}</desc>'
        f"{content}</svg>"
    )


def points(frame: Frame, values: Iterable[Point], colour: int, scale: float = 1.0) -> str:
    """Markers of one colour and shape, each with its text."""
    grow = "" if scale == 1.0 else f" scale({scale:g})"
    parts = []
    for value in values:
        x, y = frame.at(value.x, value.y)
        place = f'transform="translate({x:.1f} {y:.1f}){grow}"'
        parts.append(f'<path d="{_SHAPES[colour]}" {place}><title>{escape(value.text)}</title></path>')
    return f'<g class="s{colour}">{"".join(parts)}</g>'


def marker(colour: int) -> str:
    """The marker of a colour, for a legend."""
    return (
        f'<svg class="key" viewBox="-6 -6 12 12" aria-hidden="true"><path class="s{colour}" '
        f'd="{_SHAPES[colour]}"/></svg>'
    )


def line(frame: Frame, values: Sequence[tuple[float, float]], style: str) -> str:
    """A line through values, which must be within the axes."""
    places = (frame.at(x, y) for x, y in values)
    return f'<path class="line {style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'


def bar(y: float, height: float, parts: Sequence[tuple[int, float, str]]) -> str:
    """A bar of stacked parts: colour, share of the whole width, and text."""
    found, left = [], 0.0
    for colour, share, text in parts:
        width = share * _WIDTH
        if width > 0:
            found.append(
                f'<rect class="s{colour}" x="{left:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}">'
                f"<title>{escape(text)}</title></rect>"
            )
        left += width
    return "".join(found)


def number(value: float) -> str:
    """A round number without needless digits."""
    return f"{round(value, 12):,.10g}" if abs(value) >= 1e-4 or not value else f"{value:.3g}"


def _round_step(least: float) -> float:
    """The next of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(d * power for d in (1, 2, 5, 10) if d * power >= least * (1 - 1e-9))
