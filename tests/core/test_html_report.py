"""The report as an HTML file: every number is there, names are only text, and a browser shows it."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import reports
from diba.checkpoints.entries import format_bytes, in_order
from diba.checkpoints.facts import Facts, Retuning
from diba.checkpoints.html import style
from diba.checkpoints.html.groups import groups_of
from diba.checkpoints.html.svg import Axis
from diba.checkpoints.report import Report
from diba.errors import FormatError
from reports import HOSTILE, layer, report

EMPTY = {"meta", "link", "img", "br", "hr", "input", "wbr"}


class Page(HTMLParser):
    """The elements of a page, and the text of every table; it fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        self.texts: list[str] = []
        self._open: list[str] = []
        self._rows: list[list[tuple[str, str | None]]] = []
        self._caption = ""
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append(("", found.get("data-value")))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "td" in self._open or "th" in self._open:
            text, value = self._rows[-1][-1]
            self._rows[-1][-1] = (text + data, value)
        elif "caption" in self._open:
            self._caption += data

    def column(self, table: str, name: str) -> list[tuple[str, str | None]]:
        head, *rows = self.tables[table]
        place = [text for text, _ in head].index(name)
        return [row[place] for row in rows]


# ---------------------------------------------------------------- what is in it


def test_every_number_is_that_of_the_report(tmp_path: Path) -> None:
    found = report()
    text = found.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text("utf-8") == text == found.to_html()
    page, data = Page(text), found.to_dict()
    layers = {x["name"]: x for x in data["layers"]}
    names = [name for name, _ in page.column("Compressed layers", "layer")]
    assert names == [" = ".join((x.name, *x.tied)) for x in found.worst_first()]
    for column, key in (
        ("SNR, dB", "snr_db"),
        ("SNR of outputs, dB", "output_snr_db"),
        ("bits a weight", "bits_per_weight"),
        ("bytes before", "dense_bytes"),
        ("bytes after", "memory_bytes"),
        ("bytes in a diba file", "file_bytes"),
        ("seconds", "seconds"),
    ):
        values = [value for _, value in page.column("Compressed layers", column)]
        assert values == [repr(layers[name.split(" = ")[0]][key]) for name in names], column
    for (shown, _), name in zip(page.column("Compressed layers", "relative error"), names, strict=True):
        snr = layers[name.split(" = ")[0]]["snr_db"]
        assert float(shown.removesuffix(" %")) == pytest.approx(100 * 10 ** (-snr / 20), rel=5e-3)
    blocks = data["blocks"]
    assert [x for x, _ in page.column("Blocks that were reconstructed", "block")] == list(blocks)
    for column, key in (
        ("loss before", "loss_before"),
        ("factored", "loss_factored"),
        ("reconstructed", "loss"),
    ):
        values = [value for _, value in page.column("Blocks that were reconstructed", column)]
        assert values == [repr(block[key]) for block in blocks.values()]
    for entry in data["skipped"]:
        [row] = [row for row in page.tables[entry["reason"]] if row[0][0] == entry["name"]]
        assert [cell for cell, _ in row[3:]] == [f"{entry['weights']:,}", format_bytes(entry["bytes"])]
    tiles = " ".join("".join(page.texts).split())
    for said in ("1 MB → 100 kB", "10.0 times smaller", "17.25 → 21.5", "4,096 tokens", "1 min 15 s", "2 GB"):
        assert said in tiles
    whole = [
        int(value or 0) for _, value in page.tables["Bytes of parameters and buffers in memory"][-1][1:3]
    ]
    assert whole == [data["bytes_before"], data["bytes_after"]]


def test_charts_have_a_point_for_every_number() -> None:
    found = report()
    text = found.to_html()
    charts = dict(re.findall(r"<figcaption>(.*?)</figcaption>(<svg.*?</svg>)", text))
    assert list(charts) == [
        "SNR of each layer&#x27;s weights", "Error against bits", "SNR of each layer&#x27;s outputs",
        "Where the bytes are", "Reconstruction of blocks", "Retuning of the whole model",
    ]  # fmt: skip
    factored = [x for x in found.layers if x.k]
    weights, bits, outputs, *_ = charts.values()
    for chart, layers in ((weights, factored), (bits, found.layers), (outputs, factored)):
        said = re.findall(r"<title>(.*?): [-\d.]+ dB at ", chart)
        assert sorted(said) == sorted(x.name for x in layers)
    drawn = [float(y) for y in re.findall(r"translate\([\d.]+ ([\d.]+)\)", weights)]
    snrs = [x.snr_db or 0.0 for x in factored]
    by_group = [x.snr_db for group in groups_of(found.layers, 8) for x in group.layers.values() if x.k]
    slope = (max(drawn) - min(drawn)) / (max(snrs) - min(snrs))  # heights are linear in dB, downwards
    for y, snr in zip(drawn, by_group, strict=True):
        assert y == pytest.approx(max(drawn) - slope * ((snr or 0.0) - min(snrs)), abs=0.11)
    assert charts["Reconstruction of blocks"].count("<title>") == 3 * 6 - 1  # but the first loss, 0
    [course] = re.findall(r'class="line thin s1" d="M(.*?)"', charts["Retuning of the whole model"])
    assert len(course.split("L")) == 95  # steps that were not skipped


def test_it_needs_nothing_else_and_says_what_it_shows() -> None:
    text = report().to_html()
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "img", "iframe", "object", "base", "image"})
    assert not re.search(r"https?:|url\(|@import|src=|href=", text)
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    for tag, found in page.tags:
        if tag == "svg" and "aria-hidden" not in found:
            assert found["role"] == "img"
            assert set(str(found["aria-labelledby"]).split()) <= set(ids)
        if tag == "th":
            assert found["scope"] in ("col", "row")
    assert ("html", {"lang": "en"}) in page.tags
    assert len(re.findall("<table", text)) == len(re.findall("<caption>", text))


def test_names_are_only_text() -> None:
    found = report(
        layers=(layer(HOSTILE, kind=HOSTILE, objective=HOSTILE, tied=(HOSTILE,)),),
        settings={HOSTILE: HOSTILE},
        reconstruction={HOSTILE: [HOSTILE]},
        skipped=(reports.Skipped(HOSTILE, HOSTILE, HOSTILE, (2, 2)),),
        facts=Facts(name=HOSTILE, figures={HOSTILE: 1.0}, settings={"x": HOSTILE}),
        blocks={HOSTILE: reports.BlockRecipe(loss_before=0.1, loss_factored=0.2, loss=0.15)},
    )
    text = found.to_html(title=HOSTILE)
    page, plain = Page(text), Page(report().to_html())
    known = {(tag, name) for tag, attributes in plain.tags for name in (*attributes, "")}
    assert {(tag, name) for tag, attributes in page.tags for name in (*attributes, "")} <= known
    assert text.count("<script") == text.count("</script") == 1
    assert page.column("Compressed layers", "layer")[0][0] == f"{HOSTILE} = {HOSTILE}"
    assert page.column("Compressed layers", "kind")[0][0] == HOSTILE


def test_what_is_unknown_is_not_zero() -> None:
    unknown: dict[str, Any] = dict.fromkeys(("snr_db", "output_snr_db", "seconds", "objective"))
    found = report(
        layers=(layer("a", **unknown), layer("b", snr_db=math.inf), layer("c", snr_db=-math.inf)),
        facts=Facts(), seconds=None, blocks={}, settings=None, reconstruction=None, skipped=(),
    )  # fmt: skip
    text = found.to_html()
    page = Page(text)
    names = [name for name, _ in page.column("Compressed layers", "layer")]
    assert dict(zip(names, page.column("Compressed layers", "SNR, dB"), strict=True)) == {
        "a": ("unknown", None), "b": ("exact", "1000000000.0"), "c": ("no signal", "-1000000000.0"),
    }  # fmt: skip
    assert "SNR of each layer&#x27;s weights" not in text
    assert "quality on data</span><b>unknown" in text
    for title in ("Reconstruction", "Retuning", "What stayed dense", "Settings"):
        assert f"<h2>{title}" not in text
    nothing = report(layers=(layer("a", **unknown), layer("b", **unknown)), facts=Facts(), blocks={})
    text = nothing.to_html()
    assert "SNR is unknown: nothing was measured." in text
    assert "Unknown for all layers: SNR, dB, relative error, SNR of outputs, dB, objective, seconds." in text


@pytest.mark.parametrize(
    "found",
    [
        Report(),
        report(0, blocks={}),
        report(1, facts=Facts(retuning=Retuning(losses=(1.0,)))),
        report(facts=Facts(retuning=Retuning(losses=(None, None), restored=True))),
        report(3, facts=Facts(figures={"accuracy": 0.5, "agreement": 0.25}, forecast={"seconds": 3.0})),
        report(500),
    ],
    ids=["nothing", "one layer", "one step", "no step", "figures of other names", "1,001 layers"],
)
def test_of_any_size(found: Report) -> None:
    text = found.to_html()
    page = Page(text)
    assert not re.search(r"\bnan\b|\binf\b|None", text.partition("<main>")[2].partition("<script>")[0])
    rows = page.tables.get("Compressed layers", [[]])
    assert len(rows) == len(found.layers) + 1
    assert len(text) < 30_000 + 2_500 * len(found.layers)


def test_colours_can_be_told_from_the_page() -> None:
    """WCAG 2.1: 4.5 for text, 3 for what is drawn."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colours in (style.LIGHT, style.DARK):
        for name, colour in colours.items():
            least = 4.5 if name in ("text", "soft") else 3.0 if name.startswith("c") else 1.0
            for behind in ("page", "panel"):
                low, high = sorted(luminance(x) for x in (colour, colours[behind]))
                assert (high + 0.05) / (low + 0.05) >= least, (name, behind)


@pytest.mark.parametrize("values", [(1.0,), (0.0,), (3.0, 3.0), (-5.0, 7.5), (1e-9, 2e-9), (1.0, 1e9)])
def test_axes_have_round_ticks(values: tuple[float, ...]) -> None:
    whole = all(value == round(value) for value in values)
    for axis in {Axis.linear("x", values), Axis.linear("x", values, whole=whole)}:
        assert axis.low <= min(values) <= max(values) <= axis.high
        assert 1 <= len(axis.ticks) <= 8
        assert all(axis.low - 1e-12 <= tick <= axis.high + 1e-12 for tick, _ in axis.ticks)
        for tick, label in axis.ticks:
            assert float(label.replace(",", "")) == pytest.approx(tick, rel=1e-2, abs=1e-12)
    if min(values) > 0:
        axis = Axis.logarithmic("x", values)
        assert 0 <= axis.share(min(values)) <= axis.share(max(values)) <= 1
        assert len(axis.ticks) <= 9


def test_layers_are_grouped_by_what_they_are() -> None:
    names = ["embed", "h.0.attn.q", "h.0.mlp.0", "h.1.attn.q", "h.1.mlp.0", "3", "lm_head"]
    groups = groups_of([layer(name, i) for i, name in enumerate(names)], 8)
    assert {group.name: list(group.layers) for group in groups} == {
        "embed": [1], "attn.q": [2, 4], "mlp": [3, 5], "Linear": [6], "lm_head": [7],
    }  # fmt: skip
    few = groups_of([layer(name, i) for i, name in enumerate(names)], 3)
    assert [group.name for group in few] == ["attn.q", "mlp", "others"]
    assert sorted(place for group in few for place in group.layers) == list(range(1, 8))


def test_names_are_in_the_order_of_people() -> None:
    names = ["a.10.q", "a.2.q", "a.2.k", "b", "a.x", "a.²"]
    assert sorted(names, key=in_order) == ["a.2.k", "a.2.q", "a.10.q", "a.x", "a.²", "b"]


# ---------------------------------------------------------------- facts


def test_facts_of_a_folder(tmp_path: Path) -> None:
    assert Facts.of_folder(tmp_path) == Facts(name=tmp_path.name)
    course = Retuning(losses=(1.5, None, 0.25), loss_before=1.5, loss_after=0.5, restored=True)
    known = {"run": {"settings": {"bits": 2}}, "bytes": 5, "dense_bytes": 50, "figures": {"perplexity": 3}}
    (tmp_path / "diba-compress.json").write_text(json.dumps(known | {"retuning": course.to_dict()}))
    facts = Facts.of_folder(tmp_path)
    assert facts == Facts(
        name=tmp_path.name, settings={"bits": 2}, files=(50, 5), figures={"perplexity": 3.0}, retuning=course
    )
    assert json.loads(json.dumps(facts.to_dict()))["retuning"]["losses"] == [1.5, None, 0.25]
    for damage in (
        "{",
        "[]",
        "{}",
        json.dumps(known | {"figures": 3}),
        json.dumps(known | {"retuning": {"x": 1}}),
    ):
        (tmp_path / "diba-compress.json").write_text(damage)
        with pytest.raises(FormatError, match=r"diba-compress\.json is damaged"):
            Facts.of_folder(tmp_path)


def test_without_times_it_is_the_same_every_time() -> None:
    one = report()
    layers = tuple(dataclasses.replace(x, seconds=99.0) for x in one.layers)
    blocks = {name: dataclasses.replace(block, seconds=1.0) for name, block in one.blocks.items()}
    other = dataclasses.replace(one, layers=layers, blocks=blocks, seconds=1.0, peak_bytes=3)
    assert one.to_html() != other.to_html()
    assert one.without_times().to_html() == other.without_times().to_html()


# ---------------------------------------------------------------- in a notebook


def test_a_notebook_shows_the_same_figures() -> None:
    found = report()
    text, whole = found._repr_html_(), found.to_html()
    assert text == found._repr_html_()
    charts = re.findall(r"<figure>.*?</figure>", whole)
    tiles = re.findall(r'<ul class="tiles">.*?</ul>', whole)
    assert len(charts) == 6
    assert re.findall(r"<figure>.*?</figure>", text) == charts
    assert re.findall(r'<ul class="tiles">.*?</ul>', text) == tiles
    page = Page(text)
    names = [name for name, _ in page.column("Compressed layers", "layer")]
    assert names == [" = ".join((x.name, *x.tied)) for x in found.worst_first()[:10]]
    assert f"And {len(found.layers) - 10} more:" in text
    for entry in found.skipped:
        assert entry.name in "".join(page.texts)
    assert page.tags[0] == ("div", {"class": "diba-report"})
    assert not {"script", "link", "img", "html", "body"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(text) < 60_000


@pytest.mark.parametrize("found", [report(), report(layers=(layer(HOSTILE),)), report(layers=(), skipped=())])
def test_its_style_reaches_nothing_else(found: Report) -> None:
    text = found._repr_html_()
    assert "<img" not in text
    Page(text)
    [rules] = re.findall(r"<style>\n(.*?)</style>", text, re.DOTALL)
    for line in rules.splitlines():
        inside = re.sub(r"^@media \(prefers-color-scheme: dark\) \{(.*)\}$", r"\1", line)
        for selectors, _ in re.findall(r"([^{}]+)\{([^{}]*)\}", inside):
            for selector in selectors.split(","):
                assert re.match(
                    r"(\[data-jp-theme-light=\S+\] |\.vscode-\w+ )?\.diba-report\b", selector.strip()
                )
    assert rules.count("{") == rules.count("}")


# ---------------------------------------------------------------- in a browser

_PROBE = """<script>
const errors = [];
window.addEventListener("error", event => errors.push(String(event.message)));
window.addEventListener("load", () => setTimeout(() => {
  const rows = () => [...document.querySelectorAll("table.sortable tbody tr")];
  const column = () => rows().map(row => row.cells[1].textContent);
  const found = {before: column(), width: innerWidth, needed: document.documentElement.scrollWidth};
  const head = document.querySelectorAll("table.sortable thead th")[1];
  head.querySelector("button").click();
  found.rising = column(), found.sorted = head.getAttribute("aria-sort");
  head.querySelector("button").click();
  found.falling = column();
  const input = document.querySelector("input[type=search]");
  input.value = "Q_PROJ", input.dispatchEvent(new Event("input"));
  found.left = rows().filter(row => !row.hidden).length;
  found.sizes = [...document.querySelectorAll("figure > svg")].map(svg => svg.getBoundingClientRect())
    .map(box => [box.width, box.height, box.right]);
  found.letters = [...document.querySelectorAll("figure > svg")].map(
    svg => 13 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width);
  found.background = getComputedStyle(document.body).backgroundColor;
  found.errors = errors;
  const place = document.createElement("pre");
  place.id = "found", place.textContent = JSON.stringify(found);
  parent.document.body.append(place);
}, 0));
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        if os.environ.get("DIBA_REQUIRE_BROWSER") == "1":
            pytest.fail("DIBA_REQUIRE_BROWSER is 1, but there is no chromium")
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    return found


def opened(browser: str, page: Path, width: int, *options: str) -> tuple[str, str]:
    """The document as it is after its scripts, and what the browser logs."""
    options = (*options, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom")
    options += ("--enable-logging=stderr", "--virtual-time-budget=2000", f"--window-size={width},800")
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={page.parent / 'profile'}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1000, True)])
def test_a_browser_shows_it(browser: str, width: int, dark: bool, tmp_path: Path) -> None:
    found = report(20)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", found.to_html())  # for the probe
    path = tmp_path / "report.html"
    text = text.replace("<head>", f"<head>{_PROBE}")
    if width < 500:  # windows are not as narrow
        frame = (
            f'<iframe srcdoc="{html.escape(text)}" width="{width}" height="800" style="border: 0"></iframe>'
        )
        text = f"<!doctype html><body>{frame}</body>"
    path.write_text(text, "utf-8")
    document, _ = opened(browser, path, width, *(["--blink-settings=preferredColorScheme=0"] if dark else []))
    [probed] = re.findall(r'<pre id="found">(.*?)</pre>', document)
    seen: dict[str, Any] = json.loads(html.unescape(probed))
    assert seen["errors"] == []
    snrs = sorted(x.snr_db or 0.0 for x in found.layers)
    assert seen["before"] == seen["rising"] == [f"{x:.2f}" for x in snrs]
    assert seen["falling"] == [f"{x:.2f}" for x in reversed(snrs)]
    assert seen["sorted"] == "ascending"
    assert seen["left"] == 20
    assert seen["width"] == width
    assert seen["needed"] <= width  # nothing reaches beyond the page
    assert len(seen["sizes"]) == 6
    for across, up, right in seen["sizes"]:
        assert across > 300
        assert up > 100
        assert right <= width
    assert min(seen["letters"]) >= 10  # pixels
    behind = (style.DARK if dark else style.LIGHT)["page"]
    assert seen["background"] == _rgb(behind)


_NOTEBOOK = """<body data-jp-theme-light="{light}"><p>outside</p>{text}<script>
const colour = element => getComputedStyle(element)[element.tagName === "P" ? "color" : "backgroundColor"];
const [own, tile] = [document.querySelector("p"), document.querySelector(".tiles li")];
const sizes = [...document.querySelectorAll("figure > svg")].map(svg => svg.getBoundingClientRect().width);
const found = {{own: colour(own), tile: colour(tile), sizes}};
const place = document.createElement("pre");
place.id = "found", place.textContent = JSON.stringify(found);
document.body.append(place);
</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_notebook_in_a_browser(browser: str, dark: bool, tmp_path: Path) -> None:
    """It has the colours of the notebook's theme, whatever the system's is, and changes nothing around it."""
    path = tmp_path / "notebook.html"
    path.write_text(_NOTEBOOK.format(light=str(not dark).lower(), text=report()._repr_html_()), "utf-8")
    document, log = opened(browser, path, 1000)
    assert "CONSOLE" not in log
    [probed] = re.findall(r'<pre id="found">(.*?)</pre>', document)
    seen = json.loads(html.unescape(probed))
    assert seen["own"] == "rgb(0, 0, 0)"
    assert seen["tile"] == _rgb((style.DARK if dark else style.LIGHT)["panel"])
    assert len(seen["sizes"]) == 6
    assert min(seen["sizes"]) > 300


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.slow
def test_a_browser_runs_nothing_but_its_script(browser: str, tmp_path: Path) -> None:
    """The policy lets the page's own script run, and no other."""
    path = tmp_path / "report.html"
    path.write_text(report(layers=(layer(HOSTILE), layer("b"))).to_html(title=HOSTILE), "utf-8")
    document, log = opened(browser, path, 1000)
    assert 'type="search"' in document  # made by the script
    assert "CONSOLE" not in log
    injected = path.read_text("utf-8").replace("<main>", "<main><script>document.title = 'in'</script>")
    path.write_text(injected, "utf-8")
    document, log = opened(browser, path, 1000)
    assert "CONSOLE" in log
    assert "<title>in</title>" not in document
