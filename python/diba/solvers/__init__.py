"""Solvers: :func:`solve` and :func:`apb` are the entry points; each method has its own module."""

from __future__ import annotations

from .exceptions import apb
from .options import EFFORTS, METHODS, SolveOptions
from .solver import solve

__all__ = ["EFFORTS", "METHODS", "SolveOptions", "apb", "solve"]
