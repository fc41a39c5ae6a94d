"""The documentation site: docs/ and the docstrings of the package, made by MkDocs into build/site."""

from __future__ import annotations

import os

from .environment import BUILD, PYTHON, ROOT, environment, run

SITE = BUILD / "site"


def build() -> None:
    """Every warning is an error: a link that leads nowhere, a page that no menu has."""
    run(
        PYTHON,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        ROOT / "mkdocs.yml",
        "--site-dir",
        SITE,
    )
    pages = sorted(SITE.rglob("index.html"))
    print(f"   {len(pages)} pages in {SITE.relative_to(ROOT)}")


def serve() -> None:
    """In place of this process, until Ctrl-C: pages are built anew when their sources change."""
    os.execve(
        PYTHON, [PYTHON, "-m", "mkdocs", "serve", "--config-file", str(ROOT / "mkdocs.yml")], environment()
    )
