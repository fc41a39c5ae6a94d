"""What tests of whole models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import few_steps

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    """Solvers and trainings take few steps in this process."""
    with few_steps.few_steps():
        yield
