"""Images: files in a folder, in folders of classes or not; what they show is not asked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .batches import Made, read_processor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..recipe import CompressSettings
    from ..source import Source
    from .batches import Batch

__all__ = ["image_batches"]


def image_batches(source: Source, files: Sequence[Path], settings: CompressSettings) -> Made:
    """Batches of ``settings.rows`` images, as the model's processor makes them; a rest is dropped.

    Images are decoded whenever their batch is read. Neighbours in a folder, often of one class, come into
    different batches.

    Raises:
        ImportError: Pillow is missing.
        ValueError: A file is no image; the model has no processor.
    """
    _pillow()
    processor, mode = _processor(source), "L" if getattr(source.config, "num_channels", 3) == 1 else "RGB"
    for path in files:
        _opened(path).close()
    count = len(files) // settings.rows
    groups = [files[first::count][: settings.rows] for first in range(count)]
    return Made(groups, partial(_batch, processor, mode))


def _batch(processor: Any, mode: str, files: Sequence[Path]) -> Batch:
    return {
        "pixel_values": processor(images=[_image(path, mode) for path in files], return_tensors="pt")[
            "pixel_values"
        ]
    }


def _image(path: Path, mode: str) -> Any:
    with _opened(path) as image:
        try:
            return image.convert(mode)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is a damaged image ({error}); mend it or take it away") from error


def _opened(path: Path) -> Any:
    """An image of which the header was read."""
    try:
        return _pillow().open(path)
    except OSError as error:
        if error.errno is not None:  # it cannot be read at all
            raise
        raise ValueError(f"{path} is no image that Pillow reads; mend it or take it away") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"{error}; images need Pillow: python -m pip install pillow") from error
    return Image


def _processor(source: Source) -> Any:
    from transformers import AutoImageProcessor

    return read_processor(AutoImageProcessor.from_pretrained, source, "images", "image processor")
