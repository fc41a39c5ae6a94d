"""Compress an image classifier, EfficientNet-Lite0, export it, and classify with onnxruntime.

    python examples/classify_images.py OUT

The network and the images of clothes are those of benchmarks/models, so run this in a checkout, after
`python benchmarks fetch`. Any other network of nn.Conv2d and nn.Linear layers takes the same steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diba.onnx
import diba.torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.models import vision

DENSE = ("_fc",)  # the probe at the end: ten classes


def load() -> tuple[Any, list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The network, batches to calibrate it with, images and labels to test it on."""
    batches = [batch["images"] for batch in vision.batches("full", "train", vision.pictures, 50, 1000)]
    images, labels = vision.chosen("full", "t10k", 1000)
    return vision.load_efficientnet(), batches, vision.pictures(images), labels


def tiny() -> tuple[Any, list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The same without training and without data, to try the steps in seconds."""
    torch.manual_seed(0)
    images = torch.randn(12, 3, 32, 32)
    return vision.EfficientNetLite0(10).eval(), [images[:4]], images, torch.arange(12) % 10


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = arguments.add_argument
    add("out", type=Path, help="folder for the exported model")
    add("--bits", type=float, default=3, help="bits per weight")
    add("--effort", default="normal", choices=("fast", "normal", "best"))
    add("--small", action="store_true", help="a network without training, few layers of it compressed")
    chosen = arguments.parse_args()
    model, batches, images, labels = tiny() if chosen.small else load()

    settings: dict[str, Any] = {"bits_per_weight": chosen.bits, "effort": chosen.effort, "skip": DENSE}
    if chosen.small:
        settings |= {"effort": "fast", "skip": (*DENSE, "_conv_head", r"re:_blocks\.([4-9]|1.)\..*")}
    model = diba.torch.convert(model, batches=batches, **settings)

    chosen.out.mkdir(parents=True, exist_ok=True)
    done = diba.onnx.export(model, images[:2], chosen.out / "model.onnx", output_names=["logits"])
    print(f"{done.path}: {(done.model_bytes + done.data_bytes) / 1e6:.1f} MB")

    session = diba.onnx.session(done.path)
    start = time.perf_counter()
    parts = [session.run(["logits"], {"images": part.numpy()})[0] for part in images.split(8)]
    seconds = time.perf_counter() - start
    found = np.concatenate(parts).argmax(1)
    print(f"{1000 * seconds / len(images):.2f} ms an image")
    print(f"accuracy {np.mean(found == labels.numpy()):.3f}")
    with torch.no_grad():
        same = np.mean([int(model(x[None]).argmax()) == y for x, y in zip(images[:50], found, strict=False)])
    print(f"{100 * same:.0f} % of images as in PyTorch")


if __name__ == "__main__":
    main()
