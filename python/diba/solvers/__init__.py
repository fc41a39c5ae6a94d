"""Solvers: :func:`solve` is the only entry point; each method has its own module."""

from __future__ import annotations

from .options import EFFORTS, METHODS, SolveOptions
from .solver import solve

__all__ = ["EFFORTS", "METHODS", "SolveOptions", "solve"]
