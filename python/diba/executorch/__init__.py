"""Whole models in ExecuTorch, the runtime of PyTorch for phones and other small machines.

``export`` writes a program whose compressed layers are delegates of the backend ``DibaBackend``. The backend
is the library ``libdiba_executorch``, built where ExecuTorch's package is (docs/deploy.md); whoever links or
loads it runs the file with ExecuTorch's own interface, in Python or without.
"""

from __future__ import annotations

from .exporting import export

__all__ = ["export"]
