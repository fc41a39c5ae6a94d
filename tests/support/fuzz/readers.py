"""Files of factors, by the compiled reader and the oracle: both accept the same ones and read the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.numpy

from . import oracle
from .files import FilesDriver, decoded, memory

if TYPE_CHECKING:
    from .mutations import Content


class ReadersDriver(FilesDriver):
    """The reader against another; what they accept, the safetensors package reads."""

    name = "readers"

    def check(self, mutant: Content, seed: Content | None) -> int | None:
        assert isinstance(mutant, bytes)
        stored = decoded(mutant)
        try:
            expected = oracle.read(mutant)
        except oracle.RefusedError:
            assert stored is None, "it is accepted, the oracle refuses it"
            return None
        assert stored is not None, "it is refused, the oracle accepts it"
        assert stored.b1.alphabet == stored.b2.alphabet == expected["alphabet"]
        for name in ("d1", "d2", "d3"):
            assert getattr(stored, name).tobytes() == expected[name].tobytes(), name
        for name in ("b1", "b2"):
            assert getattr(stored, name).packed_rows().tobytes() == expected[name].tobytes(), name
        assert safetensors.numpy.load(mutant)["b1"].tobytes() == expected["b1"].tobytes()
        return memory(stored)
