"""What the tests of exports share."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _operators_are_read_once() -> Iterator[None]:
    """For each export, torch's exporter parses the source of 500 operators; for all tests once is enough."""
    try:
        home = importlib.import_module("onnxscript._framework_apis.torch_2_5")
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "get_torchlib_ops", functools.cache(home.get_torchlib_ops))
        yield
