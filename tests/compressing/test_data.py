"""What ``--data`` reads beside texts: images, recordings and scripts; what comes of them, what is refused."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import diba.compressing
from diba.compressing.data import wav
from diba.compressing.data.kinds import Data
from diba.compressing.recipe import CompressSettings
from diba.compressing.source import Source
from tiny_language import tokenizer

SMALL: dict[str, Any] = {
    "tokens": 8, "rows": 2, "batches": 4, "reconstruct": 4, "retune": 0, "threads": 1, "progress": False,
}  # fmt: skip
SETTINGS = CompressSettings(tokens=8, rows=2)
pytestmark = pytest.mark.usefixtures("few")
RATE = 16_000
BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


# ---------------------------------------------------------------- tiny models with their processors


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **BLOCKS, image_size=16, patch_size=8, num_labels=5, initializer_range=0.3
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 8}
    widths = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_source_positions": 50}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        **heads,
        **sizes,
        **widths,
        **tokens,
        vocab_size=259,
        max_target_positions=24,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.3,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    layers = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (80, 4)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(
        **BLOCKS, **layers, **positions, num_feat_extract_layers=2, vocab_size=12, initializer_range=0.3
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    tokens = {"vocab_size": 259, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = transformers.T5Config(**shape, **tokens, relative_attention_num_buckets=8)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- data


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images in folders of classes, in two forms, and what is no image."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(16):
        place = folder / f"class{number // 8}"
        place.mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        image = Image.fromarray(pixels if number % 3 else pixels[:, :, 0])
        image.save(place / f"{number:02}.{'png' if number % 2 else 'JPG'}")
    (folder / "labels.csv").write_text("x")
    (folder / ".hidden.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 recordings of chirps, of 0.3 to 0.9 seconds, at the models' rate and at others."""
    folder = tmp_path_factory.mktemp("recordings")
    for number in range(12):
        rate = (RATE, 8_000, 44_100)[number % 3]
        time = np.arange(int(rate * (0.3 + 0.05 * number))) / rate
        sound = np.sin(2 * np.pi * (200 + 40 * number + 300 * time) * time)
        write_wav(folder / f"{number:02}.wav", np.stack([sound, 0.5 * sound], 1), rate, 2 + number % 3)
    return folder


def write_wav(path: Path, sound: Any, rate: int, width: int) -> None:
    """Sound of shape (count, channels) from -1 to 1 as PCM of so many bytes a sample."""
    scaled = np.round(np.asarray(sound) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    content = scaled.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    if width == 1:
        content = (scaled + 128).astype(np.uint8).tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((scaled.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(content)


def batches_of(model: Path, data: Path, **settings: Any) -> Any:
    chosen = CompressSettings(**{"tokens": 8, "rows": 2, **settings})
    return Data.at(Source.at(model), data, chosen).batches()


# ---------------------------------------------------------------- images


def test_images_come_as_their_processor_makes_them(vit: Path, images: Path) -> None:
    batches = batches_of(vit, images)
    processor = transformers.AutoImageProcessor.from_pretrained(vit)
    files = [path for path in images.rglob("*") if path.suffix in (".png", ".JPG") and path.name[0] != "."]
    expected = {
        processor(images=Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"].tobytes()
        for path in files
    }
    assert len(batches) == 8
    found = [row.numpy().tobytes() for batch in batches for row in batch["pixel_values"]]
    assert set(found) == expected
    assert len(found) == 16
    assert all(
        torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(batches, batches, strict=True)
    )


def test_a_classifier_of_images(vit: Path, images: Path, tmp_path: Path) -> None:
    done = diba.compressing.compress(vit, tmp_path / "out", data=images, **{**SMALL, "retune": 8})
    assert 0 < done.figures["relative_error"] < 1
    assert 0 <= done.figures["agreement"] <= 1
    assert done.figures["answers_judged"] == 2
    assert done.report is not None
    assert all(layer.objective == "covariance" for layer in done.report.layers if layer.k)
    assert len(done.report.blocks) == 2
    assert "top class of 2 answers held back" in (tmp_path / "out" / "README.md").read_text()
    figures = diba.compressing.evaluate(tmp_path / "out", images, against=vit, rows=2)
    dense, model = (
        transformers.ViTForImageClassification.from_pretrained(folder) for folder in (vit, tmp_path / "out")
    )
    answers = [
        torch.cat([each(**batch).logits for batch in batches_of(vit, images)]).detach()
        for each in (dense, model)
    ]
    assert figures["agreement"] == float((answers[0].argmax(-1) == answers[1].argmax(-1)).double().mean())
    error = (answers[0] - answers[1]).norm() / answers[0].norm()
    assert figures["relative_error"] == pytest.approx(float(error), rel=1e-4)


def test_images_that_are_none(vit: Path, images: Path, tmp_path: Path) -> None:
    for number in range(8):
        Image.effect_noise((64, 64), 50.0).save(tmp_path / f"{number}.png")
    good = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"3.png is a damaged image"):
        list(batches_of(vit, tmp_path))
    (tmp_path / "3.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"3.png is no image that Pillow reads"):
        batches_of(vit, tmp_path)
    with pytest.raises(ValueError, match=r"has images .*; for BertModel it must have texts"):
        Data.at(_Fake(), images, SETTINGS)


class _Fake:
    """A source of which only the class is known."""

    kind = transformers.BertModel


# ---------------------------------------------------------------- recordings


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_any_width(width: int, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    write_wav(tmp_path / "a.wav", sound, RATE, width)
    found = wav.read(tmp_path / "a.wav", RATE)
    assert found.dtype == np.float32
    assert wav.length_of(tmp_path / "a.wav") == 1000 / RATE
    step = 2.0 ** (1 - 8 * width)
    assert np.abs(found - sound.mean(1)).max() <= 2 * step + 2e-7  # rounded, and scaled by 2^b - 1
    part = wav.read(tmp_path / "a.wav", RATE, 100 / RATE, 50 / RATE)
    assert np.array_equal(part, found[100:150])


@pytest.mark.parametrize(
    ("own", "wanted"), [(8_000, 16_000), (44_100, 16_000), (16_000, 22_050), (48_000, 16_000)]
)
def test_another_rate_has_the_same_sound(own: int, wanted: int) -> None:
    """Sines below both limits are what they would be at the new rate; those above the new one are gone."""

    def sine(hertz: float, rate: int) -> Any:
        return np.sin(2 * np.pi * hertz * np.arange(rate // 2) / rate)

    low = 0.4 * min(own, wanted)
    found = wav.resampled(sine(low, own), own, wanted)
    assert len(found) == -(-(own // 2) * wanted // own)
    middle = slice(len(found) // 4, len(found) // 2)  # the ends know nothing of what comes beyond
    assert np.abs(found - sine(low, wanted)[: len(found)])[middle].max() < 1e-3
    if wanted < own:
        gone = wav.resampled(sine(0.55 * wanted, own), own, wanted)
        assert np.abs(gone[middle]).max() < 1e-3


def test_what_is_no_recording(wav2vec2: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros((0, 1)), RATE, 2)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    (tmp_path / "c.wav").write_bytes(b"text" * 20)
    for name, problem in (("a", "0 samples of 2 bytes"), ("b", "it ends too soon"), ("c", "RIFF")):
        with pytest.raises(ValueError, match=rf"{name}.wav is no WAV file .*{problem}"):
            batches_of(wav2vec2, tmp_path / f"{name}.wav")


def test_long_recordings_come_in_pieces(wav2vec2: Path, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (100 * 100, 1))
    write_wav(tmp_path / "a.wav", sound, 100, 2)  # 100 seconds at 100 samples
    batches = batches_of(wav2vec2, tmp_path, rows=1)
    assert [batch["input_values"].shape for batch in batches] == [(1, 25 * RATE)] * 4


def test_a_model_of_speech(wav2vec2: Path, recordings: Path, tmp_path: Path) -> None:
    done = diba.compressing.compress(wav2vec2, tmp_path / "out", data=recordings, **SMALL)
    assert 0 < done.figures["relative_error"] < 1


def test_decoders_read_what_the_dense_model_says(
    whisper: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = diba.torch.convert

    def convert(model: Any, *args: Any, **options: Any) -> Any:
        seen.append(options)
        return original(model, *args, **options)

    monkeypatch.setattr("diba.torch.convert", convert)
    done = diba.compressing.compress(whisper, tmp_path / "out", data=recordings, **SMALL)
    assert 0 < done.figures["relative_error"] < 1
    dense = transformers.WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    for batch in seen[0]["batches"]:
        logits = dense(**batch).logits
        ids, mask = batch["decoder_input_ids"], batch["decoder_attention_mask"].bool()
        assert bool((ids[:, 0] == 1).all())
        following = mask[:, 1:]
        assert torch.equal(logits.argmax(-1)[:, :-1][following], ids[:, 1:][following])


def test_texts_beside_recordings(whisper: Path, recordings: Path, tmp_path: Path) -> None:
    for path in recordings.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / f"{path.stem}.txt").write_text(f"no {path.stem}\n")
    (batch, *_) = batches_of(whisper, tmp_path)
    assert batch["decoder_input_ids"][:, 0].tolist() == [1, 1]
    texts = tokenizer().batch_decode(batch["decoder_input_ids"][:, 1:])
    assert all(text.startswith("no ") for text in texts)
    names = Data.at(Source.at(whisper), tmp_path, SETTINGS).digests()
    assert {"00.wav", "00.txt"} < set(names)
    (tmp_path / "05.txt").unlink()
    with pytest.raises(ValueError, match=r"05.wav has no 05.txt beside it"):
        batches_of(whisper, tmp_path)


# ---------------------------------------------------------------- texts for encoders with a decoder


def test_a_model_from_text_to_text(t5: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(f"line {number}") for number in range(16)))
    done = diba.compressing.compress(t5, tmp_path / "out", data=tmp_path / "a.jsonl", **SMALL)
    assert done.figures["relative_error"] > 0
    assert not (tmp_path / "out" / ".diba").exists()


# ---------------------------------------------------------------- scripts

SCRIPT = """
import random
import torch

def batches(model_folder):
    for i in range(8):
        yield {"pixel_values": torch.rand(2, 3, 16, 16) + random.random()}
"""


def test_a_script(vit: Path, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    state = torch.get_rng_state()
    data = Data.at(Source.at(vit), script, SETTINGS)
    digests = data.digests()
    assert torch.equal(torch.get_rng_state(), state)
    assert set(digests) == {"mine.py", "batches of mine.py"}
    assert Data.at(Source.at(vit), script, SETTINGS).digests() == digests
    done = diba.compressing.compress(vit, tmp_path / "out", data=script, **SMALL)
    assert 0 < done.figures["relative_error"] < 1
    figures = diba.compressing.evaluate(tmp_path / "out", script, against=vit)
    assert figures["answers_judged"] == 16


def test_a_script_that_gives_other_batches_is_refused(vit: Path, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("import time\n" + SCRIPT.replace("random.random()", "time.time() % 1"))
    few = {**SMALL, "reconstruct": 0}
    diba.compressing.compress(vit, tmp_path / "out", data=script, **few)
    with pytest.raises(ValueError, match=r"holds the result of other input \(data batches of mine.py: "):
        diba.compressing.compress(vit, tmp_path / "out", data=script, **few)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("x = 1", r"mine.py.*: it has no batches; it must define batches\(model_folder\)"),
        ("batches = 1", "it has batches, which is no function"),
        ("def batches(", "SyntaxError"),
        ("def batches(folder):\n    raise KeyError('a')", "mine.py, line 2: KeyError: 'a'"),
        ("def batches(folder):\n    return 3", "returned int; it must yield dicts of tensors"),
        ("def batches(folder):\n    return []", "gave nothing"),
        ("def batches(folder):\n    yield [1]", "batch 1 is list; it must be a dict"),
        ("def batches(folder):\n    yield {'pixel_values': [1.0]}", "list; it must be a tensor"),
        (SCRIPT.replace("pixel_values", "pixels"), "'pixels', of which ViT.* takes none"),
        ("def batches(folder):\n    yield {'return_dict': True}", "has no tensor"),
        (SCRIPT.replace("8", "3"), "makes 3 batches"),
    ],
)  # fmt: skip
def test_scripts_that_are_wrong(script: str, error: str, vit: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(script)
    with pytest.raises(ValueError, match=error):
        batches_of(vit, tmp_path / "mine.py")


# ---------------------------------------------------------------- what is refused


def test_data_of_another_kind(vit: Path, images: Path, recordings: Path, tmp_path: Path) -> None:
    for path, error in (
        (recordings, r"has recordings \(00.wav\); for ViTForImageClassification it must have images"),
        (recordings / "00.wav", "is one of recordings; for"),
        (images / "labels.csv", "ends in .csv; for"),
        (tmp_path, "is an empty folder; for"),
    ):
        with pytest.raises(ValueError, match=error):
            Data.at(Source.at(vit), path, SETTINGS)
    with pytest.raises(FileNotFoundError):
        Data.at(Source.at(vit), tmp_path / "none.png", SETTINGS)


def test_models_without_a_processor(vit: Path, images: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((vit / name).read_bytes())
    with pytest.raises(ValueError, match=r"has no image processor"):
        batches_of(tmp_path, images)
