"""Whole models, from a folder to a folder: ``diba.compress``, and what stands before and after it.

``run.py`` is the course of a compression, ``fitted.py`` that with data, ``forecast.py`` says before what
comes out, ``checking.py`` what is there afterwards; ``recipe.py`` has the settings, ``workplace.py`` what is
on the disk meanwhile, ``texts.py`` reads data, ``card.py`` writes what was done.
"""

from __future__ import annotations

from .checking import evaluate, verify
from .forecast import Plan, plan
from .recipe import RECIPES, CompressSettings
from .run import Compressed, compress
from .workplace import status

__all__ = [
    "RECIPES",
    "CompressSettings",
    "Compressed",
    "Plan",
    "compress",
    "evaluate",
    "plan",
    "status",
    "verify",
]
