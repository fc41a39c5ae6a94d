"""The model to compress: a folder that ``from_pretrained`` reads."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.folders import UnknownClass, model_class
from .files import FileSource, complete

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..checkpoints.description import Description
    from .outline import Outline
    from .recipe import CompressSettings

__all__ = ["Source", "source_at"]

_USAGE = """\
import diba.hf  # pip install 'diba[hf]'
from transformers import {0}

model = {0}.from_pretrained("FOLDER")"""


@dataclass(frozen=True)
class Source(FileSource):
    """A folder with a dense model of a class that transformers has."""

    @classmethod
    def at(cls, folder: Path) -> Source:
        """Look at a folder.

        Raises:
            OSError: It is no folder, or has no ``config.json``.
            ValueError: The model is compressed already, or its class is unknown.
            ImportError: transformers is missing.
        """
        source = cls.any(folder)
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
        from transformers import CONFIG_MAPPING

        named = source.json.get("model_type")
        if named not in CONFIG_MAPPING:
            raise UnknownClass(
                f"{folder / 'config.json'} names the model type {named!r}, which transformers does not have"
            )
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

    @property
    def title(self) -> str:
        """Name of its class."""
        return str(self.kind.__name__)

    @property
    def library(self) -> str:
        """The library that reads the result."""
        return "transformers"

    @property
    def usage(self) -> str:
        """How the result is read."""
        return _USAGE.format(self.title)

    @cached_property
    def is_causal(self) -> bool:
        """Whether it predicts every token from those before."""
        return self.title.endswith(("CausalLM", "LMHeadModel"))

    @cached_property
    def has_output_layer(self) -> bool:
        """Whether there is an output layer with a weight of its own."""
        return self._heads(self.empty())

    def _heads(self, model: Any) -> bool:
        """Whether the model, which may be empty, has an output layer with a weight of its own."""
        from ..torch.model.coding import output_layer

        return output_layer(model) is not None and not getattr(self.config, "tie_word_embeddings", False)

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

    def outline(self, settings: CompressSettings, *, files: bool = True) -> Outline | str:
        """What a compression by these settings gives; or why the files do not tell.

        Args:
            settings: Of the compression.
            files: Whether to find the tensors in the files; without, the outline tells names and sizes only.
        """
        from .models import outlined

        model = self.empty().to(self.dtype)
        return outlined(model, settings.config(self._heads(model)), self.tensors if files else None)

    def write_config(self, folder: Path, description: Description, names: Iterable[str]) -> None:
        """Write ``config.json`` of the compressed model.

        Args:
            folder: Of the model.
            description: With its checksums.
            names: Of all its tensors.
        """
        from ..hf import DibaConfig

        config = copy.deepcopy(self.config)
        config.architectures = [self.title]
        config.dtype = self.dtype
        config.quantization_config = DibaConfig.of(description)
        config.save_pretrained(folder)
        complete(folder / "config.json", names)


def source_at(path: Path) -> FileSource:
    """The model at a path: of a class of transformers, or tensors in files if there is no such class.

    Raises:
        OSError: There is nothing, or nothing that has weights.
        ValueError: The model is compressed already.
    """
    if not (path / "config.json").is_file():
        return FileSource.by_name(path)
    try:
        return Source.at(path)
    except (ImportError, UnknownClass) as error:
        return FileSource.by_name(path, str(error))
