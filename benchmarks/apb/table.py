"""The tables of the apb benchmark: accuracy against bytes, each way at the rate that validation chose."""

from __future__ import annotations

from statistics import mean
from typing import Any

from ..common.tables import markdown, measured
from .networks import NETWORKS
from .plan import ARMS, chosen_rate

__all__ = ["Rows", "grouped", "kilobytes", "percent", "table"]

Rows = dict[tuple[str, str], list[dict[str, Any]]]  # (arm, form) -> cells of all seeds


def grouped(report: dict[str, Any]) -> dict[str, Rows]:
    """Cells of the chosen rates, by network and by everything but their seed, in the order of the plan."""
    found: dict[str, Rows] = {}
    for network in NETWORKS:
        rows: Rows = {}
        for name, arm in ARMS.items():
            rate = chosen_rate(report["cells"], network, name)
            for form in arm.forms:
                wanted = {"network": network, "arm": name, "form": form, "rate": rate}
                cells = [cell for cell in report["cells"].values() if wanted.items() <= cell.items()]
                rows |= {(name, form): cells} if cells else {}
        found |= {network: rows} if rows else {}
    return found


def kilobytes(cells: list[dict[str, Any]]) -> float:
    return mean(cell["bytes"] for cell in cells) / 1e3


def percent(cells: list[dict[str, Any]]) -> list[float]:
    """Test accuracy of each seed."""
    return [100 * cell["test"] for cell in cells]


def table(report: dict[str, Any]) -> str:
    """A Markdown table for each network."""
    parts = [network_table(network, rows) for network, rows in grouped(report).items()]
    return "\n\n".join([*parts, note(report)])


def network_table(network: str, rows: Rows) -> str:
    dense = {cell["seed"]: cell["test"] for cell in rows.get(("float32", "32 bits"), [])}
    lines = []
    for (arm, form), cells in rows.items():
        found = percent(cells)
        to_dense = [100 * (c["test"] - dense[c["seed"]]) for c in cells if c["seed"] in dense]
        lines.append([
            ARMS[arm].label,
            form,
            f"{cells[0]['bits']:.2f}",
            f"{kilobytes(cells):,.1f}",
            f"{mean(found):.2f}",
            f"{min(found):.2f} to {max(found):.2f}" if len(found) > 1 else "",
            f"{mean(to_dense):+.2f}" if to_dense and arm != "float32" else "",
            str(len(found)),
            f"{cells[0]['rate']:g}",
        ])  # fmt: skip
    head = ["", "Form", "Bits", "kB", "test, %", "seeds", "to float32", "of", "rate"]
    return f"{NETWORKS[network].title}:\n\n{markdown(head, lines, left=2)}"


def note(report: dict[str, Any]) -> str:
    """What the columns are."""
    distilled = " The loss has the answers of the network in float32, too." if report["distilled"] else ""
    return (
        "Bits: stored for each weight of the compressed layers, with scales, exceptions and their places. "
        "kB: the whole file. Test: mean over the seeds, then the least and the most. To float32: points of "
        "accuracy, paired by seed, to the network that was trained on in float32 for as long. Rate: of Adam "
        f"at first, chosen on held-out training images.{distilled} {measured(report)}."
    )
