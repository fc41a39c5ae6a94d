"""Whole models, from a folder to a folder: ``diba.compress``, and what stands before and after it.

``run.py`` is its course: ``plain.py`` without data, weight by weight, which ``solving.py`` solves;
``fitted.py`` with data. ``forecast.py`` says before what comes out (``outline.py``), ``checking.py`` what is
there afterwards. ``recipe.py`` has the settings, ``source.py`` and ``files.py`` the dense model,
``workplace.py`` what is on the disk meanwhile; ``data`` reads data, of which ``drawing.py`` makes some;
``writing.py`` and ``card.py`` write the result. Torch and transformers are imported where a model's code is
needed.
"""

from __future__ import annotations

from .checking import evaluate, verify
from .drawing import draw
from .forecast import Plan, plan
from .reading import Weights, weights
from .recipe import RECIPES, CompressSettings
from .run import Compressed, compress, compress_shard, merge
from .workplace import status

__all__ = [
    "RECIPES",
    "CompressSettings",
    "Compressed",
    "Plan",
    "Weights",
    "compress",
    "compress_shard",
    "draw",
    "evaluate",
    "merge",
    "plan",
    "status",
    "verify",
    "weights",
]
