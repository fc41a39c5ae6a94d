"""Compress a language model, export it for onnxruntime-genai, and let it answer.

    python examples/chat.py OUT "What is a diagonal matrix?" --calibrate text.txt

Then `diba chat OUT` goes on talking to it. `generate` needs nothing of diba: its operators lie in the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import onnxruntime_genai as genai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import diba.onnx
import diba.torch


def generate(folder: Path, question: str, most: int) -> None:
    """Print an answer while it is made."""
    model = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    messages = json.dumps([{"role": "user", "content": question}])
    prompt = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + most, do_sample=False)
    generator, stream = genai.Generator(model, parameters), tokenizer.create_stream()
    generator.append_tokens(prompt)
    start, count = time.perf_counter(), 0
    while not generator.is_done():
        generator.generate_next_token()
        print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
        count += 1
    print(f"\n{count / (time.perf_counter() - start):.0f} tokens/s")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = arguments.add_argument
    add("out", type=Path, help="folder for the exported model")
    add("question")
    add("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or name on the Hub")
    add("--bits", type=float, default=3, help="bits per weight")
    add("--effort", default="normal", choices=("fast", "normal", "best"))
    add("--calibrate", type=Path, metavar="TEXT", help="a text of the kind that the model is for")
    add("--tokens", type=int, default=200, help="most tokens of the answer")
    chosen = arguments.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32).eval()
    batches = None
    if chosen.calibrate:
        ids = tokenizer(chosen.calibrate.read_text(encoding="utf-8"), return_tensors="pt").input_ids
        batches = [{"input_ids": part} for part in ids.split(512, dim=1)[:32]]
    settings = {"bits_per_weight": chosen.bits, "effort": chosen.effort, "skip": ["lm_head"]}
    model = diba.torch.convert(model, batches=batches, **settings)
    done = diba.onnx.export_genai(model, chosen.out, tokenizer=tokenizer)
    print(f"{chosen.out}: {(done.model_bytes + done.data_bytes) / 1e6:.1f} MB")
    generate(chosen.out, chosen.question, chosen.tokens)


if __name__ == "__main__":
    main()
