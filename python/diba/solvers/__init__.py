"""Solvers: :func:`solve` is the one entry; each method lives in a module of its own."""

from __future__ import annotations

from .options import EFFORTS, METHODS, SolveOptions
from .solver import solve

__all__ = ["EFFORTS", "METHODS", "SolveOptions", "solve"]
