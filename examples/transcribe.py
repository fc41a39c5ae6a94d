"""Compress Whisper, export it, and transcribe with onnxruntime; transcribe.cpp runs the same folder.

python examples/transcribe.py OUT sound.wav --calibrate recordings/*.wav
"""

from __future__ import annotations

import argparse
import sys
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode
from whisper_parts import Transcriber, export

import diba.torch

RATE = 16_000


def read(path: Path) -> np.ndarray:
    """Samples of a recording of one channel and 16 bits at 16 kHz."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            sys.exit(f"{path}: it must have one channel of 16 bits at {RATE} Hz")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def load(name: str) -> tuple[Any, Any, list[int], list[bytes]]:
    """Model, feature extractor, the tokens before each answer, and the bytes of each token."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(name)
    begin = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    texts = tokenizer.convert_ids_to_tokens(list(range(model.config.vocab_size)))
    plain = ["" if text is None or text.startswith("<|") else text for text in texts]
    return model, extractor, begin, [bytes(letters[letter] for letter in text) for text in plain]


def tiny() -> tuple[Any, Any, list[int], list[bytes]]:
    """The same of a model that knows nothing, to try the steps in seconds."""
    torch.manual_seed(0)
    widths = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size"), 96)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "decoder_layers"), 2)
    special = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"), 95)
    config = transformers.WhisperConfig(**widths, **heads, **special, encoder_layers=1, init_std=0.3)
    extractor = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    return model, extractor, [1, 2], [bytes([32 + number]) for number in range(96)]


def write(path: Path, config: Any, begin: list[int], vocabulary: list[bytes]) -> None:
    """What transcribe.cpp must know: layers, heads, size; first tokens; last token; hexadecimal texts."""
    size = config.d_model // config.decoder_attention_heads
    numbers = [[config.decoder_layers, config.decoder_attention_heads, size], begin, [config.eos_token_id]]
    lines = [" ".join(map(str, line)) for line in numbers] + [text.hex() for text in vocabulary]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = arguments.add_argument
    add("out", type=Path, help="folder for the exported models")
    add("sounds", type=Path, nargs="+", help="recordings: WAV, 16 kHz, one channel of 16 bits")
    add("--model", default="openai/whisper-tiny.en", help="folder or name on the Hub, of English Whisper")
    add("--bits", type=float, default=3, help="bits per weight")
    add("--effort", default="normal", choices=("fast", "normal", "best"))
    add("--calibrate", type=Path, nargs="*", default=[], metavar="WAV", help="recordings of the same kind")
    add("--small", action="store_true", help="a tiny model without training, in seconds")
    chosen = arguments.parse_args()
    model, extractor, begin, vocabulary = tiny() if chosen.small else load(chosen.model)

    def hear(path: Path) -> torch.Tensor:
        return extractor(read(path), sampling_rate=RATE, return_tensors="pt").input_features

    batches = []  # what the dense model understands is what the compressed one should
    for sound in map(hear, chosen.calibrate):
        with torch.no_grad():
            answer = model.generate(sound, decoder_input_ids=torch.tensor([begin]), max_length=64)
        batches.append({"input_features": sound, "decoder_input_ids": answer})
    effort = "fast" if chosen.small else chosen.effort
    settings = {"bits_per_weight": chosen.bits, "effort": effort, "convolutions": False}
    model = diba.torch.convert(model, batches=batches or None, **settings)

    chosen.out.mkdir(parents=True, exist_ok=True)
    precision = "exact" if chosen.small else "fast"
    for done in export(model, chosen.out, precision=precision):
        print(f"{done.path}: {(done.model_bytes + done.data_bytes) / 1e6:.1f} MB")
    write(chosen.out / "whisper.txt", model.config, begin, vocabulary)

    transcriber = Transcriber(chosen.out, begin, model.config.eos_token_id)
    for path in chosen.sounds:
        start = time.perf_counter()
        text = b"".join(vocabulary[token] for token in transcriber(hear(path).numpy()))
        print(f"{path}, {time.perf_counter() - start:.2f} s:", text.decode(errors="replace").strip())


if __name__ == "__main__":
    main()
