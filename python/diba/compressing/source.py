"""The model to compress: a folder that ``from_pretrained`` reads."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.folders import WEIGHTS, is_beside_weights, model_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Source", "sha256_of"]

_WRITTEN = {"config.json", "README.md"}  # by the compressed model
_BLOCK = 2**20


@dataclass(frozen=True)
class Source:
    """A folder with a dense model.

    Attributes:
        folder: The folder.
    """

    folder: Path

    @classmethod
    def at(cls, folder: Any) -> Source:
        """Look at a folder.

        Raises:
            OSError: It is no folder, or has no ``config.json``.
            ValueError: The model is compressed already, or its class is unknown.
            ImportError: transformers is missing.
        """
        source = cls.any(Path(folder))
        if getattr(source.config, "quantization_config", None) is not None:
            raise ValueError(
                f"{folder} is quantized already, as its config.json says; it must be the dense model"
            )
        return source

    @classmethod
    def any(cls, folder: Path) -> Source:
        """The same for a model that may be compressed."""
        if not folder.is_dir():
            raise NotADirectoryError(20, "it must be a folder that from_pretrained reads", str(folder))
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(2, "there is no config.json in it, which names the class", str(folder))
        source = cls(folder)
        source.kind  # noqa: B018  # an unknown class is an error now, not in an hour
        return source

    @cached_property
    def config(self) -> Any:
        """What transformers makes of ``config.json``."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.folder)

    @cached_property
    def kind(self) -> Any:
        """The class of transformers that the model was saved from."""
        import transformers

        return model_class(transformers, self.config, self.folder)

    @cached_property
    def is_causal(self) -> bool:
        """Whether it predicts every token from those before."""
        return str(self.kind.__name__).endswith(("CausalLM", "LMHeadModel"))

    @cached_property
    def has_output_layer(self) -> bool:
        """Whether there is an output layer with a weight of its own."""
        from ..torch.model.coding import output_layer

        return output_layer(self.empty()) is not None and not getattr(
            self.config, "tie_word_embeddings", False
        )

    def empty(self) -> Any:
        """The model on the meta device, without values; its weights are tied as they will be."""
        import torch

        with torch.device("meta"):
            model = self.kind(self.config).eval()
        model.tie_weights()
        return model

    def dense(self) -> Any:
        """The model in float32, in evaluation mode."""
        return self.dense_and_missing()[0]

    def dense_and_missing(self) -> tuple[Any, list[str]]:
        """The same, and the names of layers whose weights are not in the files, and so are random."""
        import torch

        options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
        model, found = self.kind.from_pretrained(self.folder, **options)
        weights = [name for name in found["missing_keys"] if name.endswith(".weight")]
        return model.eval(), sorted(name.removesuffix(".weight") for name in weights)

    def compressed(self, settings: Mapping[str, Any]) -> Any:
        """The model, each weight factored as it is read, by fields of :class:`diba.torch.Config`."""
        from ..hf import DibaConfig

        found = DibaConfig(**settings)
        return self.kind.from_pretrained(self.folder, dtype=self.dtype, quantization_config=found).eval()

    def read(self, folder: Path) -> Any:
        """A compressed model of this class from another folder, in float32."""
        import torch

        return self.kind.from_pretrained(folder, dtype=torch.float32).eval()

    @cached_property
    def dtype(self) -> Any:
        """The dtype of its weights."""
        import torch

        found = getattr(self.config, "dtype", None)
        return found if isinstance(found, torch.dtype) else torch.float32

    @property
    def bytes(self) -> int:
        """Bytes of the files of weights."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.suffix in WEIGHTS)

    def digests(self) -> dict[str, str]:
        """SHA-256 of what the result depends on: weights and configuration, by name."""
        names = [path for path in self._files() if path.suffix in WEIGHTS or path.name.endswith(".json")]
        return {str(path.relative_to(self.folder)): sha256_of(path) for path in names}

    def copy_others(self, folder: Path) -> None:
        """Copy the files of tokenizer, processor, generation and licence to a folder."""
        for path in self._files():
            name = path.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if not is_beside_weights(path) or hidden or str(name) in _WRITTEN:
                continue
            target = folder / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)

    def _files(self) -> Iterator[Path]:
        return (path for path in sorted(self.folder.rglob("*")) if path.is_file())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
