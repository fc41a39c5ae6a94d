"""Which tensors of a model's output count, of every kind of output, and how losses read them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diba.torch
from diba.torch import distillation, fisher
from diba.torch.retuning.outputs import answers, choices, positions


class Says(nn.Module):
    """A model whose output is what it is told to be, times a number that trains."""

    def __init__(self, output: Any = None, **config: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.config = SimpleNamespace(**config)
        self.output = output

    def forward(self, x: Any = None) -> Any:
        return self.output


def kinds(output: Any, features: bool = False, **config: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = answers(output, Says(**config), features)
    return {a.name: (a.kind, tuple(a.values.shape)) for a in found}


def t(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


class Named(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


@dataclass
class Clip:
    loss: Tensor | None
    logits_per_image: Tensor
    logits_per_text: Tensor
    text_embeds: Tensor
    image_embeds: Tensor
    text_model_output: Any


HIDDEN = {"last_hidden_state": t(2, 5, 8), "pooler_output": t(2, 8)}
CLIP = Clip(t(), t(2, 3), t(3, 2), t(3, 8), t(2, 8), OrderedDict(HIDDEN))
EMBEDS = {"text_embeds": ("features", (3, 8)), "image_embeds": ("features", (2, 8))}
CASES = {
    "tensor": (t(2, 5, 9), {}, {"": ("classes", (2, 5, 9))}),
    "one number": ({"logits": t(2, 1)}, {}, {"logits": ("features", (2, 1))}),
    "language": ({"loss": t(), "logits": t(2, 5, 9)}, {}, {"logits": ("classes", (2, 5, 9))}),
    "segmentation": (SimpleNamespace(logits=t(2, 4, 6, 7)), {}, {"logits": ("classes", (2, 6, 7, 4))}),
    "codebooks": ({"logits": t(2, 4, 6, 7)}, {"vocab_size": 7}, {"logits": ("classes", (2, 4, 6, 7))}),
    "several labels": (
        {"logits": t(2, 5)},
        {"problem_type": "multi_label_classification"},
        {"logits": ("labels", (2, 5))},
    ),
    "question": (
        {"start_logits": t(2, 5), "end_logits": t(2, 5)},
        {},
        {"start_logits": ("classes", (2, 5)), "end_logits": ("classes", (2, 5))},
    ),
    "detection": (
        {"logits": t(2, 5, 4), "pred_boxes": t(2, 5, 4), "last_hidden_state": t(2, 5, 8)},
        {},
        {"logits": ("classes", (2, 5, 4)), "pred_boxes": ("features", (2, 5, 4))},
    ),
    "detection, focal loss": (
        {"logits": t(2, 5, 4), "pred_boxes": t(2, 5, 4)},
        {"focal_alpha": 0.25},
        {"logits": ("labels", (2, 5, 4)), "pred_boxes": ("features", (2, 5, 4))},
    ),
    "masks of classes": (
        {"class_queries_logits": t(2, 5, 4), "masks_queries_logits": t(2, 5, 3, 3)},
        {},
        {"class_queries_logits": ("classes", (2, 5, 4)), "masks_queries_logits": ("labels", (2, 5, 3, 3))},
    ),
    "named tuple": (Named(t(2, 5), t(2, 5)), {}, {"logits": ("classes", (2, 5))}),
    "CLIP": (CLIP, {}, EMBEDS),
    "encoder": (HIDDEN, {}, {"last_hidden_state": ("features", (2, 5, 8))}),
    "pooled only": (
        {"pooler_output": t(2, 8), "ids": torch.ones(2, 5, dtype=torch.long)},
        {},
        {"pooler_output": ("features", (2, 8))},
    ),
    "nested": (
        {"text": OrderedDict(HIDDEN), "image": {"logits": t(2, 3)}},
        {},
        {"text.last_hidden_state": ("features", (2, 5, 8)), "image.logits": ("classes", (2, 3))},
    ),
    "tuple": ((t(), t(2, 5, 8), t(2, 8)), {}, {"1": ("features", (2, 5, 8))}),
    "the only one": (
        {"loss": t(), "predicted_depth": t(2, 6, 7)},
        {},
        {"predicted_depth": ("features", (2, 6, 7))},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_counts(case: str) -> None:
    output, config, expected = CASES[case]
    assert kinds(output, **config) == expected


def test_features_come_before_logits_where_they_are_asked_for() -> None:
    states = {"logits": t(2, 5, 9), "hidden_states": (t(2, 5, 3), t(2, 5, 8))}
    assert kinds(states, True) == {"last_hidden_state": ("features", (2, 5, 8))}
    normed = {"last_hidden_state": t(2, 5, 4), "hidden_states": (t(2, 5, 8),)}
    assert kinds(normed) == kinds(normed, True) == {"last_hidden_state": ("features", (2, 5, 4))}
    decoder = {
        "logits": t(2, 5, 9),
        "decoder_hidden_states": (t(2, 5, 8),),
        "encoder_last_hidden_state": t(2, 4, 8),
    }
    assert kinds(decoder, True) == {"last_hidden_state": ("features", (2, 5, 8))}
    assert kinds(CLIP, True) == EMBEDS
    assert kinds({"text_embeds": t(2, 4), **HIDDEN}, True) == {"last_hidden_state": ("features", (2, 5, 8))}
    assert kinds(t(2, 4, 6, 7), True) == {"": ("features", (2, 4, 6, 7))}
    with pytest.raises(ValueError, match="output_hidden_states=True"):
        kinds({"logits": t(2, 5, 9)}, True)


@pytest.mark.parametrize(
    ("output", "listed"),
    [
        (
            {"out": t(2, 3, 4, 4), "aux": t(2, 3, 4, 4)},
            r"dict with 'out' \(2, 3, 4, 4\), 'aux' \(2, 3, 4, 4\), and",
        ),
        ([{"boxes": 1}], "list with no tensors"),
        (None, "NoneType with no tensors"),
        ({"loss": t()}, r"dict with 'loss' \(\), and"),
    ],
)
def test_what_cannot_be_known_is_an_error_that_lists_what_there_is(output: Any, listed: str) -> None:
    for loss in (fisher(), distillation(Says(output))):
        with pytest.raises(ValueError, match=f"Says is {listed}.*forward="):
            loss(Says(output), torch.ones(1))
    if isinstance(output, dict) and "out" in output:
        chosen = distillation(Says(output), forward=lambda model, batch: model(batch)["out"])
        assert chosen(Says(output), torch.ones(1)).item() == 0


def test_several_answers_add_up() -> None:
    teacher = {"logits": t(2, 5, 4), "pred_boxes": t(2, 5, 4)}
    student = {"logits": t(2, 5, 4) * 0.5, "pred_boxes": t(2, 5, 4) + 1}
    p, q = (F.softmax(x["logits"].double(), -1) for x in (teacher, student))
    boxes = teacher["pred_boxes"].double()
    expected = (p * (p / q).log()).sum(-1).mean() + 40 / boxes.square().sum()
    loss = distillation(Says(teacher), cache=True)
    assert loss(Says(student), torch.ones(1)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.cached_bytes == 2 * 40 * 4
    with pytest.raises(
        ValueError, match=r"shape \(2, 5, 4\) \(logits\), \(2, 5, 4\) \(pred_boxes\); it must be"
    ):
        loss(Says({"logits": t(2, 5, 4)}), torch.ones(1))


def test_labels_are_compared_one_by_one() -> None:
    config = {"problem_type": "multi_label_classification"}
    a, b = t(3, 5), t(5, 3).T
    p, q = a.double().sigmoid(), b.double().sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    loss = distillation(Says({"logits": a}, **config))
    found = loss(Says({"logits": b}, **config), torch.ones(1)).item()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    shifted = loss(Says({"logits": a + 1}, **config), torch.ones(1)).item()
    assert shifted > 0.01  # where a softmax would see no difference


def test_classes_of_images_lie_along_axis_one() -> None:
    a, b = t(2, 3, 4, 5), t(2, 3, 5, 4).transpose(2, 3)
    p, q = (F.softmax(x.double(), 1) for x in (a, b))
    expected = (p * (p / q).log()).sum(1).mean().item()
    assert distillation(Says(a))(Says(b), torch.ones(1)).item() == pytest.approx(expected, rel=1e-5)


def test_classes_that_are_ruled_out_cost_nothing() -> None:
    a, b = t(2, 4), t(4, 2).T.contiguous().requires_grad_()
    ruled = a.masked_fill(torch.tensor([False, True, False, False]), -torch.inf)
    loss = distillation(Says(ruled))(Says(b.masked_fill(ruled.isinf(), -torch.inf)), torch.ones(1))
    kept = distillation(Says(a[:, [0, 2, 3]]))(Says(b[:, [0, 2, 3]]), torch.ones(1))
    assert loss.item() == pytest.approx(kept.item(), rel=1e-6)
    loss.backward()
    assert b.grad is not None
    assert b.grad.isfinite().all()


def test_a_mask_of_the_encoder_is_not_one_of_the_decoder() -> None:
    mask = torch.tensor([[1, 1, 0]])
    batch = {"attention_mask": mask, "decoder_attention_mask": torch.tensor([[1, 0, 0]])}
    seq2seq, plain, values = Says(is_encoder_decoder=True), Says(is_encoder_decoder=False), t(1, 3, 4)
    assert positions(batch, values, plain).tolist() == [[True, True, False]]
    assert positions(batch, values, seq2seq).tolist() == [[True, False, False]]
    assert positions({"attention_mask": mask}, values, seq2seq) is ...


def test_the_fisher_loss_draws_each_answer() -> None:
    output = {"start_logits": t(4000, 3), "end_logits": t(4000, 3) + 1}
    leaves = {name: value.requires_grad_() for name, value in output.items()}
    fisher()(Says(output), torch.ones(1)).backward()
    for leaf in leaves.values():
        p = leaf.detach().softmax(-1).double()
        assert leaf.grad is not None
        counts = (p - leaf.grad.double()).sum(0)  # of the classes that were drawn
        spread = (p * (1 - p)).sum(0).sqrt()
        assert ((counts - p.sum(0)).abs() < 5 * spread).all()
    masks = t(50, 2, 3, 3).requires_grad_()
    fisher()(Says({"pred_masks": masks}), torch.ones(1)).backward()
    assert masks.grad is not None
    drawn = masks.detach().sigmoid() - masks.grad
    assert torch.allclose(drawn, drawn.round(), atol=1e-6)
    assert choices(answers({"pred_masks": masks}, Says(), False)[0]).shape == (50, 2, 3, 3, 2)


# ---------------------------------------------------------------- models of transformers


def towers(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {
        "vocab_size": 40,
        "max_position_embeddings": 8,
        "projection_dim": 16,
        "projection_size": 32,
    }
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = tower | {"image_size": 8, "patch_size": 4, "projection_dim": 16}
    make = {
        "CLIP": (transformers.CLIPConfig, transformers.CLIPModel),
        "SigLIP": (transformers.SiglipConfig, transformers.SiglipModel),
    }
    config, model = make[name]
    torch.manual_seed(0)
    dense = model(config(text_config=text, vision_config=vision, projection_dim=16)).eval()
    ids = torch.randint(3, 40, (3, 8))
    return dense, {"input_ids": ids, "pixel_values": torch.randn(2, 3, 8, 8)}


@pytest.mark.parametrize("name", ["CLIP", "SigLIP"])
def test_models_of_text_and_images_are_calibrated_and_retuned(name: str) -> None:
    dense, batch = towers(name)
    assert [a.name for a in answers(dense(**batch), dense, False)] == ["text_embeds", "image_embeds"]
    model = copy.deepcopy(dense)
    moments = diba.torch.calibrate(model, [batch], loss=fisher(), progress=False)
    both = [n for n in moments if "q_proj" in n]
    assert {n.split(".")[0] for n in both} == {"text_model", "vision_model"}
    assert all(moments[n].gradient_rms.max() > 0 for n in both)
    diba.torch.convert(model, calibration=moments, bits_per_weight=3, effort="fast", progress=False)
    result = diba.torch.retune(model, [batch], teacher=dense, max_steps=5, progress=False)
    assert result.loss_after < result.loss_before
