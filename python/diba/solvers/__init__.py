"""Solvers: :func:`solve` is the one entry; each method lives in a module of its own."""

from __future__ import annotations

from .solve import METHODS, solve

__all__ = ["METHODS", "solve"]
