"""The documentation site: docs/ and the docstrings of the package, made by Zensical into build/site."""

from __future__ import annotations

import os
import re
import shutil

from .environment import BUILD, PYTHON, ROOT, Failure, environment, run

SITE = BUILD / "site"

_TARGET = re.compile(r'<(a|link|img|script)\b[^>]*?\s(?:href|src)="([^"#?]*)[^"]*"')


def build() -> None:
    """Build all pages anew; a link that leads nowhere or a name without documentation is an error."""
    shutil.rmtree(SITE, ignore_errors=True)
    run(PYTHON, "-m", "zensical", "build", "--strict", "--clean")
    pages = sorted(SITE.rglob("*.html"))
    faults = [fault for page in pages for fault in _faults(page.relative_to(SITE).as_posix())]
    if faults:
        raise Failure("\n   ".join(["the site has faults:", *faults]))
    print(f"   {len(pages)} pages in {SITE.relative_to(ROOT)}")


def _faults(page: str) -> list[str]:
    """Files that a page refers to and the site lacks, and what it would fetch from other sites."""
    faults = []
    for tag, target in _TARGET.findall((SITE / page).read_text(encoding="utf-8")):
        if re.match(r"(https?:)?//", target):
            faults += [f"{page} fetches {target}"] if tag != "a" else []
        elif (
            target and not re.match(r"[a-z]+:", target) and page != "404.html"
        ):  # whose paths are the server's
            there = (SITE / page).parent.joinpath(target).exists()
            faults += [] if there else [f"{page} refers to {target}, which is not there"]
    return faults


def serve() -> None:
    """Show the pages in place of this process, until Ctrl-C; they are built again when a source changes."""
    os.execve(PYTHON, [PYTHON, "-m", "zensical", "serve"], environment())
