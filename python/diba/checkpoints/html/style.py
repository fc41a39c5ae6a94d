"""Style and script of a report as a page and in notebooks; nothing is fetched from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DARK", "LIGHT", "NOTEBOOK", "PAGE", "SCRIPT", "style", "style_within"]

NOTEBOOK = "diba-report"
"""Class of what notebooks show."""

# What notebooks say of their own theme, which need not be that of the system: JupyterLab and VS Code.
_LIGHT_THEMES = '[data-jp-theme-light="true"]', ".vscode-light"
_DARK_THEMES = '[data-jp-theme-light="false"]', ".vscode-dark"

LIGHT = {
    "page": "#ffffff", "panel": "#f4f6f8", "text": "#1c2329", "soft": "#525e68", "rule": "#d5dbe0",
    "c0": "#1d6fa5", "c1": "#b45f06", "c2": "#2e7d32", "c3": "#7b4fa3",
    "c4": "#b83227", "c5": "#00798a", "c6": "#ad1457", "c7": "#66727d",
}  # fmt: skip
DARK = {
    "page": "#14191d", "panel": "#1e252b", "text": "#e4e9ed", "soft": "#a9b4bd", "rule": "#39434b",
    "c0": "#6fb1dd", "c1": "#f0b35b", "c2": "#7fcf86", "c3": "#c3a1e6",
    "c4": "#f08a7d", "c5": "#5fd0d8", "c6": "#f48fb1", "c7": "#9aa7b2",
}  # fmt: skip

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{content}
</main>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """\
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .85rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); gap: .7rem; }
.tiles { margin: 1rem 0; padding: 0; list-style: none; }
.tiles li { background: var(--panel); border-radius: .4rem; padding: .6rem .8rem; overflow-wrap: anywhere; }
.tiles b { display: block; font-size: 1.15rem; line-height: 1.5; font-variant-numeric: tabular-nums; }
.tiles span { display: block; color: var(--soft); font-size: .85rem; }
.figures { display: grid; gap: 1.6rem }
.figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)) }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
.grid, .axis { stroke: var(--rule); fill: none; }
.axis { stroke: var(--soft); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .thin { stroke-width: 1; opacity: .55; }
svg .dashed { stroke-dasharray: 5 4; stroke: var(--soft); stroke-width: 1.2; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0; padding: 0; }
.legend { font-size: .85rem; }
.legend li { overflow-wrap: anywhere; }
.key, .swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
.key, .swatch { vertical-align: -.08rem; }
.scroll { overflow-x: auto; margin: .6rem 0; min-width: 0; }
.long { max-height: 80vh; }
.long thead th { position: sticky; top: 0; z-index: 1; background: var(--page); }
.long thead th:first-child { z-index: 2; }
.scroll:focus-visible { outline: 2px solid var(--c0); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 400; white-space: normal; overflow-wrap: anywhere; }
tbody th { min-width: min(15rem, 38vw); max-width: 22rem; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--page); padding-left: 0; }
.number { text-align: right; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, input:focus-visible, summary:focus-visible { outline: 2px solid var(--c0); }
th[aria-sort] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
input { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--soft); }
input { border-radius: .3rem; padding: .25rem .5rem; width: min(100%, 20rem); }
details { margin: .5rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
dl { display: grid; gap: .2rem 1.2rem }
dl { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)) }
dl div { display: flex; gap: .5rem; min-width: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
dd { font-family: ui-monospace, monospace; font-size: .85rem; }
@media print { .long { max-height: none; } input { display: none; } }
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const key = (row, column, numeric) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const numeric = head.classList.contains("number");
      const order = (one, other) => {
        const a = key(one, column, numeric), b = key(other, column, numeric);
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (numeric ? a - b : a.localeCompare(b, "en", {numeric: true}));
      };
      body.append(...[...body.rows].sort(order));
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    });
  });
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "Layers with this in their line";
  input.setAttribute("aria-label", input.placeholder);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  table.parentElement.before(input);
}
"""


def style() -> str:
    """The style, for light and dark screens."""
    return (
        f":root {{ color-scheme: light dark; {_variables(LIGHT)}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)}}} }}\n{_colours()}{_STYLE}"
    )


def style_within(name: str) -> str:
    """The same for what is inside of an element of a class, whatever is around it."""
    light, dark = _variables(LIGHT), _variables(DARK)
    themes = [f"@media (prefers-color-scheme: dark) {{ .{name} {{ {dark}}} }}"]
    themes += [f"{theme} .{name} {{ {light}}}" for theme in _LIGHT_THEMES]
    themes += [f"{theme} .{name} {{ {dark}}}" for theme in _DARK_THEMES]
    rules = [_within(name, line) for line in (_colours() + _STYLE).splitlines() if not line.startswith("@")]
    return "\n".join([f".{name} {{ {light}}}", *themes, *rules, ""])


def _within(name: str, line: str) -> str:
    """A line of rules, each for what is inside of an element of a class; the body is that element."""
    rules = [rule.partition("{") for rule in line.split("}") if rule.strip()]
    found = []
    for selectors, _, declarations in rules:
        places = [f".{name} {x.strip()}".replace(f".{name} body", f".{name}") for x in selectors.split(",")]
        found.append(f"{', '.join(places)} {{{declarations}}}")
    return " ".join(found)


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}: {value}; " for name, value in colours.items())


def _colours() -> str:
    return "".join(
        f".s{i} {{ fill: var(--c{i}); background: var(--c{i}); }} svg .line.s{i} {{ stroke: var(--c{i}); }}\n"
        for i in range(8)
    )
