"""Whole models, from a folder to a folder: ``diba.compress`` and ``diba compress``.

``run.py`` is the course of it, ``forecast.py`` says before what comes out; ``recipe.py`` has the settings, ``workplace.py`` what is on the disk
meanwhile, ``texts.py`` reads data, ``card.py`` writes what was done.
"""

from __future__ import annotations

from .forecast import Plan, plan
from .recipe import RECIPES, CompressSettings
from .run import Compressed, compress

__all__ = ["RECIPES", "CompressSettings", "Compressed", "Plan", "compress", "plan"]
