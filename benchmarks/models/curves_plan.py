"""What the curves benchmark measures, and by which settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["GROUP", "IMPORTANCE", "RECIPES", "WHOLE", "Cell", "Recipe", "cells", "recipe_of"]

GROUP = 64  # neighbouring weights that share scale and offset in GPTQ
WHOLE = 8  # bits an entry of embeddings that lose nothing
TABLE = ", table of "  # other bits, in the name of a form
IMPORTANCE = 16  # batches that show the dense model's inputs, to llama.cpp and where bits are shared out


@dataclass(frozen=True)
class Recipe:
    """The settings of one task, the same for every arm that sees data.

    Attributes:
        task: Its name.
        joined: Batches of the task that make one batch here.
        calibration: Batches that conversion sees; retuning begins with the others.
        steps: Of retuning, which trains normalisation too.
        bits: Per weight, of diba's models.
        rounded: Bits of GPTQ's codes.
        tables: Bits an entry of embeddings and output layers, in the arms that choose them here.
        files: Types of llama.cpp's files.
        types: Types of llama.cpp, one on every matrix.
        onnx: Kinds of onnxruntime's models.
        reconstruct: Settings of the reconstruction of blocks, where they are not the defaults.
        flip_steps: Of a second retuning of diba's models, in which bits move.
        windows: Of each kind of text, for a language model; None: as many as its task takes.
        drawn: Texts of each kind that the language model writes itself; retuning begins with them.
        spoken: Batches of sentences that a synthesizer reads out, for a speech model, and as many of
            recordings; 0: only those of recordings that its task takes.
        shared: How bits are shared out between layers: "fisher" or "loss", as ``by`` of
            ``diba.torch.allocate``; "": they are not.
        config: Settings of ``diba.torch.Config`` beside those of the task, such as ``layers``.
        table_last: Batches for whose vectors tables of fewer bits are rounded once more, from the dense ones,
            in a model converted with tables of ``WHOLE`` bits, so that one conversion serves both forms;
            0: conversion rounds them, for all that it sees.
    """

    task: str
    calibration: int
    steps: int
    joined: int = 1
    bits: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    rounded: tuple[int, ...] = (2, 3, 4)
    tables: tuple[int, ...] = (WHOLE,)
    files: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    onnx: tuple[str, ...] = ()
    reconstruct: dict[str, Any] = field(default_factory=dict)
    flip_steps: int = 0
    windows: int | None = None
    drawn: int = 0
    spoken: int = 0
    shared: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    table_last: int = 0

    def forms(self, sizes: Sequence[float]) -> Iterator[str]:
        """Names of forms of so many bits a weight, with every table."""
        for bits, table in itertools.product(sizes, self.tables):
            name = "1 bit" if bits == 1 else f"{bits:g} bits"
            yield name if table == WHOLE else f"{name}{TABLE}{table}"


@dataclass(frozen=True)
class Cell:
    """One model to measure; ``form`` is its size or type."""

    task: str
    arm: str
    form: str
    seed: int = 0

    @property
    def key(self) -> str:
        """Its name in the results."""
        return " | ".join((self.task, self.arm, self.form, str(self.seed)))

    @property
    def bits(self) -> float:
        """The number that the form begins with."""
        return float(self.form.split()[0])

    @property
    def table(self) -> int:
        """Bits an entry of embeddings and output layers."""
        _, _, bits = self.form.partition(TABLE)
        return int(bits or WHOLE)


RECIPES = {
    recipe.task: recipe
    for recipe in (
        Recipe("minilm", calibration=96, steps=160, tables=(WHOLE, 4), onnx=("int8, dynamic", "int4")),
        Recipe("efficientnet", calibration=64, steps=160, onnx=("int8, static",)),
        Recipe("whisper", calibration=48, steps=128, tables=(WHOLE, 4)),
        Recipe(
            "smollm2",
            joined=2,  # of two windows of 256 tokens each
            calibration=64,
            steps=96,
            bits=(1.0, 1.5, 2.0, 3.0, 4.0),
            tables=(WHOLE, 4),
            files=(
                "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K_S", "IQ4_XS", "Q4_0",
                "Q8_0",
            ),
            types=("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "IQ4_XS"),
            onnx=("int8, dynamic", "int4"),
        ),
    )
}  # fmt: skip


def recipe_of(task: str, quick: bool, changes: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a task; ``quick`` cuts it down to what shows that every arm works.

    Raises:
        TypeError: ``changes`` has a name that no setting has.
    """
    whole = replace(RECIPES[task], **(changes or {}))
    if not quick:
        return whole
    small = replace(whole, calibration=8, steps=8, reconstruct={"steps": 16, "tune_steps": 4})
    if whole.files:  # the other arms of a language model take long with any data
        return replace(small, files=("Q2_K",), types=("IQ2_XXS",), bits=(), rounded=(), onnx=())
    return replace(small, bits=(1.0,), rounded=(2,))


def cells(recipe: Recipe, seeds: int) -> Iterator[Cell]:
    """All of a task, those that cost least first; only what has a seed is measured several times."""
    task = recipe.task
    for arm, forms in (
        ("dense", ("float32", "float16")),
        ("onnxruntime", recipe.onnx),
        ("llama.cpp", recipe.files),
        ("llama.cpp's types", recipe.types),
        ("GPTQ", tuple(recipe.forms(recipe.rounded))),
    ):
        yield from (Cell(task, arm, form) for form in forms)
    for form in recipe.forms(recipe.bits):
        yield from (Cell(task, "diba", form, seed) for seed in range(seeds))
