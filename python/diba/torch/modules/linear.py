"""Factored linear layers, for ``nn.Linear`` and for the ``Conv1D`` of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._internal import check
from ..ops import operators
from .dense import Kind, forward_owner
from .layer import FactoredLayer, check_factorization

if TYPE_CHECKING:
    from typing import Self

    import diba

    from ..._internal.bit_weights import BitWeights
    from ..._internal.check import Alphabet
    from ..._internal.codes import Codes
    from .apb import APBSizes
    from .bitwise import BitSizes
    from .layer import Sizes
    from .state import CodeSizes

__all__ = ["DibaLinear", "LinearKind", "TransformersConv1DKind", "multiply"]


class DibaLinear(FactoredLayer):
    """``nn.Linear`` with a factored weight: ``y = d1 * (B1 (d2 * (B2 (d3 * x)))) + bias``.

    Args:
        in_features: n, the size of the inputs.
        out_features: m, the size of the outputs.
        k: Inner dimension.
        bias: Whether a bias is added.
        alphabet: ``"binary"`` (entries 0/1) or ``"sign"`` (-1/+1).
        fan_in_fan_out: Whether the dense weight has shape (in_features, out_features), as in the ``Conv1D``
            of transformers. It affects only ``weight`` and dense layers made from it, not the factors.
        device: Device of the tensors; None: torch's default.
        dtype: Dtype of bias and dense weight; None: torch's default. The diagonals are float32.

    Raises:
        TypeError: A size is not an integer, or ``dtype`` is not a floating-point dtype.
        ValueError: A size is below 1, or the alphabet is unknown.

    Example:
        >>> import torch
        >>> dense = torch.nn.Linear(64, 48)
        >>> layer = DibaLinear.from_dense(dense, bits_per_weight=2)
        >>> layer(torch.zeros(5, 64)).shape
        torch.Size([5, 48])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int,
        *,
        bias: bool = True,
        alphabet: Alphabet = "binary",
        fan_in_fan_out: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        n = check.positive_int(in_features, "in_features")
        m = check.positive_int(out_features, "out_features")
        super().__init__(m, n, k, alphabet=alphabet, bias=bias, device=device, dtype=dtype)
        self.in_features, self.out_features = n, m
        self.fan_in_fan_out = bool(fan_in_fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the dtype of ``x``."""
        return multiply(self, x)

    @property
    def weight_shape(self) -> torch.Size:
        """(out_features, in_features), or the reverse for ``fan_in_fan_out``."""
        return super().weight_shape[::-1] if self.fan_in_fan_out else super().weight_shape

    def _as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.T if self.fan_in_fan_out else matrix

    def extra_repr(self) -> str:
        """The arguments of the layer and its size."""
        facts = f"in_features={self.in_features}, out_features={self.out_features}, "
        facts += f"bias={self.bias is not None}, {super().extra_repr()}"
        return f"{facts}, fan_in_fan_out=True" if self.fan_in_fan_out else facts

    @classmethod
    def from_factorization(
        cls,
        f: diba.Factorization,
        *,
        bias: Tensor | None = None,
        fan_in_fan_out: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Make a layer from factors of shape (out_features, in_features).

        Args:
            f: The factors.
            bias: Copied, shape (m,); None: no bias.
            fan_in_fan_out: See :class:`DibaLinear`.
            device: Device of the layer; None: that of ``bias`` if given, else torch's default.
            dtype: Dtype of the layer; None: that of ``bias`` if given, else torch's default.
        """
        if bias is not None:
            device, dtype = device or bias.device, dtype or bias.dtype
        check_factorization(f)
        m, n = f.shape
        facts: dict[str, Any] = {"bias": bias is not None, "alphabet": f.alphabet, "dtype": dtype}
        layer = cls(n, m, f.k, **facts, fan_in_fan_out=fan_in_fan_out, device="meta")
        return layer._fill(f, bias, device)


def multiply(layer: FactoredLayer, x: Tensor) -> Tensor:
    """Multiply every vector along the last axis by the matrix of a layer, and add the bias."""
    if "_origin" in layer.__dict__:
        layer._settle()
    p: Any = layer._parameters
    b: Any = layer._buffers
    try:  # nn.Module's attribute access is slow: six of them would take a third of a small product's time
        d1, d2, d3, bias, b1, b2 = p["d1"], p["d2"], p["d3"], p["bias"], b["b1"], b["b2"]
    except KeyError:  # torch.nn.utils.parametrize has moved one of them
        d1, d2, d3, bias, b1, b2 = *layer.diagonals(), layer.bias, layer.b1, layer.b2
    return operators.linear(x, d1, b1, d2, b2, d3, bias, layer.sign)


class LinearKind(Kind):
    """The kind of ``nn.Linear``, without the ``out_proj`` of ``nn.MultiheadAttention``."""

    def computes(self, module: nn.Module) -> bool:
        """Whether it computes ``nn.Linear``: Falcon's class does; ``out_proj`` is not even called."""
        own = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        return (super().computes(module) and not own) or self._is_falcon(module)

    @staticmethod
    def _is_falcon(module: nn.Module) -> bool:
        """Whether it is Falcon's linear layer, which differs only in rounding before the bias is added.

        The class is recognised by name, because model repositories bring their own copies of it.
        """
        cls = forward_owner(module)
        home = cls.__module__.rpartition(".")[2] == "modeling_falcon"
        return home and cls.__name__ == "FalconLinear" and issubclass(cls, nn.Linear)

    def _built(self, module: Any, sizes: Sizes | diba.Factorization) -> Any:
        (m, n), bias = sizes.shape, module.bias is not None
        options: dict[str, Any] = {"bias": bias, "alphabet": sizes.alphabet, "dtype": module.weight.dtype}
        return self.factored(n, m, sizes.k, **options, device="meta")

    def _coded(self, module: Any, sizes: CodeSizes | Codes) -> Any:
        (m, n), bias = sizes.shape, module.bias is not None
        options: dict[str, Any] = {"bits": sizes.bits, "group": sizes.group, "dtype": module.weight.dtype}
        return self.coded(n, m, bias=bias, **options, device="meta")

    def _binary(self, module: Any, sizes: APBSizes) -> Any:
        (m, n), bias = sizes.shape, module.bias is not None
        options: dict[str, Any] = {"entries": sizes.entries, "alphas": sizes.alphas}
        return self.apb(n, m, bias=bias, **options, dtype=module.weight.dtype, device="meta")

    def _bitwise(self, module: Any, sizes: BitSizes | BitWeights) -> Any:
        (m, n), bias = sizes.shape, module.bias is not None
        bits = {"weight_bits": sizes.weight_bits, "activation_bits": sizes.activation_bits}
        return self.bitwise(n, m, bias=bias, **bits, dtype=module.weight.dtype, device="meta")

    def _dense(self, layer: Any) -> Any:
        bias = layer.bias is not None
        return nn.Linear(layer.in_features, layer.out_features, bias, device="meta", dtype=layer.dtype)

    def made(self, layer: Any) -> bool:
        """See :meth:`Kind.made`."""
        return not layer.fan_in_fan_out


class TransformersConv1DKind(LinearKind):
    """The kind of transformers' ``Conv1D``: a linear layer whose weight has shape (in, out).

    It is recognised without importing transformers.
    """

    def covers(self, module: nn.Module) -> bool:
        """Recognise a layer by the name of its class and by its attributes."""
        named = any(cls.__name__ == self.name for cls in type(module).__mro__)
        if not named or not isinstance(getattr(module, "nf", None), int):
            return False
        weight = getattr(module, "weight", None)
        return isinstance(weight, Tensor) and weight.ndim == 2

    def computes(self, module: nn.Module) -> bool:
        """Whether that class defines ``forward``."""
        return forward_owner(module).__name__ == self.name

    def matrix(self, module: Any) -> Tensor:
        """The transpose of the weight."""
        weight: Tensor = module.weight
        return weight.T

    def input_size(self, module: Any) -> int | None:
        """Rows of the weight."""
        return int(module.weight.shape[0])

    def _plain(self) -> nn.Module:
        module: Any = nn.Module()
        module.nf = module.nx = 1
        return module  # type: ignore[no-any-return]

    def _built(self, module: Any, sizes: Sizes | diba.Factorization) -> Any:
        layer = super()._built(module, sizes)
        layer.fan_in_fan_out = True
        return layer

    def _dense(self, layer: Any) -> Any:
        from transformers.pytorch_utils import Conv1D  # imported here: only models of transformers need it

        with torch.device("meta"):
            dense: Any = Conv1D(layer.out_features, layer.in_features)  # type: ignore[no-untyped-call]
        return dense.to(layer.dtype)

    def made(self, layer: Any) -> bool:
        """See :meth:`Kind.made`."""
        return bool(layer.fan_in_fan_out)
