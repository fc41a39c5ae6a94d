"""Progress of a conversion: tqdm's bar, weighted by work, or plain lines without tqdm."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from ..._internal import check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...progress import Progress
    from .report import LayerReport

__all__ = ["Display"]

_BAR = "{desc}{percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
_STEPS = 1000  # of the bar
_SECONDS_BETWEEN_LINES = 3.0


class Display:
    """Shows how far a conversion has got.

    Args:
        wanted: True for a bar or lines on stderr, False for nothing, or a callable
            ``(LayerReport, layers done, layers in all)``.
        work: Layer name -> its share of the whole, in any unit.

    Raises:
        TypeError: ``wanted`` is neither a bool nor callable.
    """

    def __init__(
        self, wanted: bool | Callable[[LayerReport, int, int], object], work: Mapping[str, float]
    ) -> None:
        if not isinstance(wanted, bool) and not callable(wanted):
            raise TypeError(
                f"progress is {check.describe(wanted)}; it must be True, False, or a callable that takes "
                "(LayerReport, done, total)"
            )
        self._callback = None if isinstance(wanted, bool) else wanted
        self._work = dict(work)
        self._shown: dict[str, float] = {}  # share of each layer that the bar has counted
        self._lock = threading.Lock()  # several layers may be solved at once
        self._done = 0
        self._line = time.monotonic()
        self._bar: Any = None
        self._lines = False
        if wanted is True and work:
            try:
                from tqdm import tqdm
            except ImportError:
                self._lines = True
            else:
                self._bar = tqdm(total=_STEPS, desc="diba", bar_format=_BAR, file=sys.stderr)

    def watch(self, name: str) -> Callable[[Progress], None]:
        """A progress callback for the solver of one layer."""

        def show(progress: Progress) -> None:
            part = progress.done / max(1, progress.total or 0)
            with self._lock:
                self._advance(name, min(part, 0.99))  # measuring and replacing are to come

        return show

    def finished(self, layer: LayerReport) -> None:
        """Count a layer that has been replaced."""
        self._done += 1
        with self._lock:
            self._advance(layer.name, 1.0)
            if self._bar is not None:
                self._bar.set_postfix_str(f"{layer.name} {layer.snr_db:.2f} dB")
        now = time.monotonic()
        if self._lines and (now - self._line > _SECONDS_BETWEEN_LINES or self._done == len(self._work)):
            self._line = now
            count = f"{self._done}/{len(self._work)} layers"
            print(f"diba: {count}, {layer.name} {layer.snr_db:.2f} dB", file=sys.stderr)
        if self._callback is not None:
            self._callback(layer, self._done, len(self._work))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _advance(self, name: str, part: float) -> None:
        if self._bar is not None and part > self._shown.get(name, 0.0):
            self._shown[name] = part
            done = sum(self._work[name] * part for name, part in self._shown.items())
            self._bar.update(round(_STEPS * done / sum(self._work.values())) - self._bar.n)
