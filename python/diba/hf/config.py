"""The ``quantization_config`` of a model: its settings and the description of its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from .._internal import check
from ..checkpoints.description import FORMAT_VERSION, METHOD, Description, config_of
from ..layers.config import Config, suggestion

__all__ = ["METHOD", "DibaConfig"]

_SETTINGS = tuple(f.name for f in dataclasses.fields(Config))


class DibaConfig(QuantizationConfigMixin):
    """``quantization_config`` of models with diba's layers.

    To compress a dense checkpoint while it is loaded, give what :class:`diba.torch.Config` takes::

        AutoModel.from_pretrained(folder, quantization_config=DibaConfig(bits_per_weight=2))

    In the ``config.json`` of a compressed checkpoint it also describes the layers to build; the settings then
    only record how they were made.

    Args:
        factors: Name -> entry of a factored layer, as written by ``save_pretrained``.
        left_dense: Name -> why a layer stays dense, as written by ``save_pretrained``.
        seconds: Time of the conversion, as written by ``save_pretrained``.
        reconstruction: Settings of the reconstruction of blocks, as written by ``save_pretrained``.
        blocks: Name -> how a block was reconstructed, as written by ``save_pretrained``.
        modules_to_not_convert: Prefixes, suffixes or patterns of names of layers that stay dense, in addition
            to ``skip``, as for other quantizers of transformers.
        format_version: The checkpoint's.
        quant_method: ``"diba"``.
        **settings: Fields of :class:`diba.torch.Config`; one of ``bits_per_weight``, ``k`` and ``snr_db`` is
            needed unless ``factors`` are given.

    Attributes:
        settings: The :class:`diba.torch.Config`, or None where layers were made by other means.
        description: The description of the factored layers.

    Raises:
        TypeError: a value is of the wrong kind.
        ValueError: a key is unknown, a value out of range, or the checkpoint of a newer diba.
        FormatError: ``factors`` are damaged.
    """

    def __init__(
        self,
        *,
        factors: Mapping[str, Mapping[str, Any]] | None = None,
        left_dense: Mapping[str, str] | None = None,
        seconds: float | None = None,
        reconstruction: Mapping[str, Any] | None = None,
        blocks: Mapping[str, Mapping[str, Any]] | None = None,
        modules_to_not_convert: list[str] | None = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = METHOD,
        **settings: Any,
    ) -> None:
        if quant_method != METHOD:
            raise ValueError(f"quant_method is {quant_method!r}; it must be {METHOD!r}")
        _check_version(format_version)  # before its keys are judged: they may be new
        for key in settings:
            if key not in _SETTINGS:
                known = [*_SETTINGS, "modules_to_not_convert", "factors"]
                raise ValueError(
                    f"DibaConfig has the unknown key {key!r}{suggestion(key, known)}; "
                    f"known: {', '.join(known)}"
                )
        self.quant_method = METHOD  # type: ignore[assignment]  # a plain string serves
        self.format_version = format_version
        values = {"factors": factors or {}, "left_dense": left_dense or {}, "seconds": seconds}
        values |= {"reconstruction": reconstruction, "blocks": blocks or {}}
        self.description = Description.from_dict(values, whole=False)
        self.modules_to_not_convert = _names(modules_to_not_convert)
        if isinstance(settings.get("layers"), list):
            settings["layers"] = dict(settings["layers"])
        self.settings = Config.from_dict(settings) if settings or not factors else None

    @classmethod
    def of(cls, description: Description, modules_to_not_convert: list[str] | None = None) -> DibaConfig:
        """The config of a model whose layers are described."""
        values = {**description.to_dict(), "modules_to_not_convert": modules_to_not_convert}
        result: DibaConfig = cls.from_dict(values)
        return result

    # ------------------------------------------------------------ other forms

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` takes them back."""
        settings = None if self.settings is None else self.settings.to_dict()
        recipe = dataclasses.replace(self.description.recipe, settings=settings)
        more: dict[str, Any] = {"format_version": self.format_version}
        if self.modules_to_not_convert is not None:
            more["modules_to_not_convert"] = list(self.modules_to_not_convert)
        return config_of(dataclasses.replace(self.description, recipe=recipe), more)

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: a later version may have other defaults. Transformers 5.0 does not define it."""
        return self.to_dict()

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A config from the values of :meth:`to_dict`, and keywords that take the place of some.

        Raises:
            ValueError: a key of ``config_dict`` is unknown.
            FormatError: its ``factors`` are damaged.
        """
        values = dict(config_dict)
        _check_version(values.get("format_version", FORMAT_VERSION))
        description = Description.from_dict(values)  # all of it, by its CRC
        for key in ("crc32_factors", "crc32_names"):
            values.pop(key, None)
        config = cls(**values)
        config.description = dataclasses.replace(config.description, crc32_names=description.crc32_names)
        unused = config.update(**kwargs)
        return (config, unused) if return_unused_kwargs else config

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Change settings by name, with checks; returns the keywords that are not settings."""
        known = {key: value for key, value in kwargs.items() if key in _SETTINGS}
        if known:
            before = {} if self.settings is None else self.settings.to_dict()
            self.settings = Config.from_dict(before | known)
        return {key: value for key, value in kwargs.items() if key not in known}

    def __iter__(self) -> Any:
        """``dict(config)``."""
        yield from self.to_dict().items()

    def __eq__(self, other: object) -> bool:
        """Equal values."""
        return isinstance(other, DibaConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # its values change


# ---------------------------------------------------------------- checks


def _check_version(version: Any) -> None:
    check.positive_int(version, "format_version")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version is {version}, written by a newer diba; this one reads up to {FORMAT_VERSION}: "
            "upgrade diba (python -m pip install --upgrade diba)"
        )


def _names(value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise TypeError(
            f"modules_to_not_convert is {value!r}; it must be a list of names, such as ['lm_head']"
        )
    return list(value)
