"""diba in Hugging Face transformers: importing this module registers ``quant_method: "diba"``.

    import diba.hf
    from transformers import AutoModel

    model = AutoModel.from_pretrained(dense, quantization_config=diba.hf.DibaConfig(bits_per_weight=2))
    model.save_pretrained(folder)
    model = AutoModel.from_pretrained(folder)  # in any process that has imported diba.hf

A compressed checkpoint that is loaded without diba raises an error. Models that :func:`diba.torch.convert`
compressed in place are saved in the same way, and ``model.dequantize()`` makes the layers dense again. PEFT,
which is not imported here, puts LoRA on the linear layers. ``from_pretrained`` calls ``quantizer``, which
calls ``loading`` for a compressed checkpoint and ``compression`` for a dense one.
"""

from __future__ import annotations

import warnings

_NEEDED = (5, 0)

try:
    import transformers
except ImportError as error:
    raise ImportError(
        f"diba.hf needs transformers, which cannot be imported ({error}); install it with "
        "'python -m pip install diba[hf]'"
    ) from error
if tuple(map(int, transformers.__version__.split(".")[:2])) < _NEEDED:
    raise ImportError(
        f"diba.hf needs transformers 5.0 or newer, and {transformers.__version__} is installed; "
        "upgrade it with 'python -m pip install --upgrade diba[hf]'"
    )

from transformers.quantizers.auto import (  # noqa: E402
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
)

from diba_autoload import after_import, register  # noqa: E402

from .config import METHOD, DibaConfig  # noqa: E402
from .model_methods import attach, teach  # noqa: E402
from .quantizer import DibaQuantizer  # noqa: E402

__all__ = ["DibaConfig", "DibaQuantizer", "attach"]

# transformers' own decorators refuse a second registration, as after importlib.reload.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = DibaConfig
AUTO_QUANTIZER_MAPPING[METHOD] = DibaQuantizer
teach()
register()


def _teach_peft() -> None:
    """PEFT must not fail to import because of diba."""
    try:
        from . import peft  # noqa: F401
    except (ImportError, AttributeError) as error:
        text = f"PEFT's adapters will not work on diba's layers, which need PEFT 0.18 or newer: {error}"
        warnings.warn(text, stacklevel=2)


after_import("peft", _teach_peft)
