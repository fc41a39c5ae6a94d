"""The loss of retuning: the distance from a teacher, the model's own loss, or any callable.

A loss is a callable ``loss(model, batch)`` that returns a scalar tensor.
Which tensors of a model's output are compared: ``outputs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..._internal import check
from ..._internal.check import describe
from .batches import call, digest, evaluating
from .logits import divergence
from .outputs import Answer, answers, choices, field, positions

__all__ = [
    "Distillation",
    "Forward",
    "Loss",
    "check_loss",
    "chosen_loss",
    "distillation",
    "loss_value",
    "model_loss",
]

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch) -> scalar tensor``; a smaller value is better."""

Forward = Callable[[nn.Module, Any], Any]
"""``forward(model, batch) -> output``; the default is ``batches.call``."""


def chosen_loss(loss: Loss | None, teacher: nn.Module | None) -> Loss:
    """What ``retune`` lowers: distillation, the loss given, their sum, or the model's own."""
    check_loss(loss)
    if teacher is None:
        return model_loss if loss is None else loss
    imitation, task = distillation(teacher), loss
    return imitation if task is None else lambda model, batch: imitation(model, batch) + task(model, batch)


def check_loss(loss: Any) -> None:
    """Refuse what is neither None nor callable."""
    if loss is not None and not callable(loss):
        raise TypeError(f"loss is {describe(loss)}; it must be None or a callable loss(model, batch)")


def loss_value(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """The loss of a batch.

    Raises:
        TypeError: it is no scalar tensor.
    """
    value: Any = loss(model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TypeError(f"loss returned {describe(value)}; it must return a scalar tensor, with one number")
    return value


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a transformers model returns when its batch has labels.

    Raises:
        ValueError: the output has no loss.
    """
    loss = field(call(model, batch), "loss")
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"loss is None and {type(model).__name__} returns no loss for this batch; it must be a callable "
            f"loss(model, batch), or a batch with labels; or give teacher=, the dense model to imitate"
        )
    return loss


def distillation(
    teacher: nn.Module,
    *,
    temperature: float = 1.0,
    weight: float = 1.0,
    features: bool = False,
    cache: bool | int = False,
    forward: Forward = call,
) -> Distillation:
    """A loss that is small where a model answers as its teacher does.

    For models with logits it is the mean over positions of ``T^2 KL(teacher | student)``, both softened by
    the temperature T. For models without it is ``|student - teacher|^2 / |teacher|^2`` of their embeddings
    (``text_embeds`` and ``image_embeds`` of CLIP and SigLIP), else of ``last_hidden_state``. Several answers,
    as the start and end of one to a question or classes and boxes, add up. A plain tensor counts as logits.
    Classes lie along the last axis, in images along axis 1; labels that do not exclude each other
    (``problem_type="multi_label_classification"``, masks) are compared one by one, a single number as the
    values that are no logits.

    Positions count where ``attention_mask``, that of the decoder if there is one, is 1 if the batch has one
    that fits the output, else where ``labels`` are not -100, else all of them.

    Args:
        teacher: The dense model, ``copy.deepcopy(model)`` from before the conversion. It runs in eval mode
            and without gradients.
        temperature: T > 0.
        weight: From 0 to 1: ``weight * distillation + (1 - weight) * model_loss``.
        features: Compare the first output that is not a loss or logits (``last_hidden_state`` or the last of
            ``hidden_states``) even where there are logits; a plain tensor counts as features.
        cache: Keep the teacher's outputs, found again by the content of a batch: for few batches and many
            epochs. They take 4 bytes x positions x vocabulary for every batch, 100 MB for 512 positions of a
            language model, see ``Distillation.cached_bytes``. A number: keep at most so many bytes.
        forward: ``forward(model, batch)``, for batches that hold more than a model's arguments; the default
            is ``model(**batch)`` for a dict, ``model(*batch)`` for a tuple or list, else ``model(batch)``.

    Returns:
        A callable ``loss(model, batch)``. Its ``remember(batches)`` keeps the teacher's answers to some
        batches; the teacher may then be changed, and be the model itself.

    Raises:
        TypeError: the teacher is no module.
        ValueError: a temperature of 0, a weight outside [0, 1]; later, outputs that cannot be compared.

    Source:
        Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531.
    """
    check.instance(teacher, "teacher", nn.Module, "use copy.deepcopy(model) from before the conversion")
    temperature = check.number(temperature, "temperature", minimum=0, exclusive=True)
    weight = check.number(weight, "weight", minimum=0)
    if weight > 1:
        raise ValueError(f"weight is {weight:g}; it must be at most 1, the share of the distillation")
    limit = math.inf if cache is True else 0
    if not isinstance(cache, bool):
        limit = check.integer(cache, "cache", minimum=0, maximum=2**62)
    return Distillation(teacher, temperature, weight, features, limit, forward)


class Distillation:
    """A loss made by ``distillation``.

    Attributes:
        temperature: That softens logits.
        cached_bytes: Bytes of the teacher's outputs that are kept, by ``cache`` or ``remember``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float,
        weight: float,
        features: bool,
        cache: float,
        forward: Forward,
    ) -> None:
        self.teacher = teacher
        self.cached_bytes = 0
        self.temperature = temperature
        self._weight, self._features = weight, features
        self._forward = forward
        self._cache: dict[bytes, list[Answer]] = {}
        self._limit = cache

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a model for one batch: a scalar, float32."""
        if model is self.teacher and digest(batch) not in self._cache:
            raise ValueError(
                "teacher is the model itself; it must be a copy from before the conversion: "
                "teacher = copy.deepcopy(model); or loss.remember(batches) before the model changes"
            )
        output = self._forward(model, batch)
        pairs = self._compared(output, model, batch)
        loss = torch.stack([self._distance(*pair) for pair in pairs]).sum()
        if self._weight == 1:
            return loss
        own = field(output, "loss")
        if own is None:
            raise ValueError(
                f"weight is {self._weight:g} and {type(model).__name__} returns no loss for this batch; "
                f"weight must be 1, or the batch must have labels"
            )
        total: Tensor = self._weight * loss + (1 - self._weight) * own
        return total

    def compared(self, model: nn.Module, batch: Any) -> list[tuple[str, Tensor, Tensor]]:
        """What is compared, answer by answer: its kind, the model's numbers, the teacher's."""
        return self._compared(self._forward(model, batch), model, batch)

    def _compared(self, output: Any, model: nn.Module, batch: Any) -> list[tuple[str, Tensor, Tensor]]:
        students, teachers = answers(output, model, self._features), self._teach(batch)
        found, wanted = ([(x.name, tuple(x.values.shape)) for x in side] for side in (teachers, students))
        if found != wanted:
            raise ValueError(
                f"the teacher's output has shape {_shown(found)}; it must be {_shown(wanted)}, "
                f"the shape of the model's: use the model from before its conversion"
            )
        result: list[tuple[str, Tensor, Tensor]] = []
        for student, teacher in zip(students, teachers, strict=True):
            mine, its = choices(student), choices(teacher).to(student.values.device)
            chosen = positions(batch, mine, model)
            result.append((student.kind, mine[chosen].float(), its[chosen].float()))
        return result

    def _distance(self, kind: str, student: Tensor, teacher: Tensor) -> Tensor:
        if kind == "features":
            return _relative_error(student, teacher)
        return divergence(student, teacher, self.temperature)

    def _teach(self, batch: Any) -> list[Answer]:
        if self._limit == 0 and not self._cache:
            return self._run_teacher(batch)
        key = digest(batch)
        found = self._cache.get(key)
        if found is None:
            found = self._run_teacher(batch)
            if self.cached_bytes + _bytes(found) <= self._limit:
                self._keep(key, found)
        return found

    def remember(self, batches: Iterable[Any]) -> None:
        """Keep the teacher's answers to these batches, whatever ``cache`` says.

        Later losses of these batches do not run the teacher, so it may become another model meanwhile, and be
        compared with what it was.
        """
        for batch in batches:
            key = digest(batch)
            if key not in self._cache:
                self._keep(key, self._run_teacher(batch))

    def _keep(self, key: bytes, found: list[Answer]) -> None:
        self._cache[key] = found
        self.cached_bytes += _bytes(found)

    def _run_teacher(self, batch: Any) -> list[Answer]:
        with torch.no_grad(), evaluating(self.teacher):
            return answers(self._forward(self.teacher, batch), self.teacher, self._features)


def _bytes(found: list[Answer]) -> int:
    return sum(answer.values.nbytes for answer in found)


def _shown(shapes: list[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{shape} ({name})" if name else f"{shape}" for name, shape in shapes)


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(
        torch.finfo(teacher.dtype).tiny
    )
