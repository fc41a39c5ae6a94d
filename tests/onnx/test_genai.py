"""Language models in onnxruntime-genai: beside dense float32 models of transformers, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

import diba.onnx
import diba.torch
from diba.cli import main
from diba.onnx.genai_run import TextModel
from tiny_language import language_model, tokenizer

FLOAT32 = 1e-3  # what sums of float32 in any order, softmax and norms may be worth
LIBRARY = "libdiba_onnxruntime.so"


def converted(kind: str = "Llama", tied_factors: bool = False, **settings: Any) -> Any:
    model = language_model(kind, **settings)
    return diba.torch.convert(model, k=24, max_iter=2, tied=tied_factors, progress=False)


def export(model: Any, out: Path, **options: Any) -> Any:
    return diba.onnx.export_genai(model, out, tokenizer=tokenizer(), progress=False, **options)


def dense(model: Any, folder: Path) -> Any:
    """The same model with float32 matrices: those of the factors, and the tables that the folder has."""
    found = type(model)(model.config).eval()
    state = {
        name: value
        for name, value in model.state_dict().items()
        if name in found.state_dict() and name.rpartition(".")[2] == "weight"
    }
    for name, layer in model.named_modules():
        if hasattr(layer, "dense_weight"):
            state[f"{name}.weight"] = layer.dense_weight().detach()
    for name, table in tables(folder).items():
        state[f"{name}.weight"] = torch.from_numpy(table)
    found.config.tie_word_embeddings = False
    found.lm_head.weight = torch.nn.Parameter(torch.empty_like(found.lm_head.weight))
    found.load_state_dict(state)
    return found


def tables(folder: Path) -> dict[str, np.ndarray]:
    """Embeddings of 8 or 4 bits in a folder, as the operator defines them."""
    graph = onnx.load(folder / "model.onnx").graph
    tensors = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "Embedding" and len(node.input) == 3:
            codes, scales = (tensors[name] for name in node.input[1:])
            bits = next(x.i for x in node.attribute if x.name == "bits")
            if bits == 4:
                n = next(x.i for x in node.attribute if x.name == "embedding_dim")
                codes, steps = codes[:, : n // 2], codes[:, n // 2 :].astype(np.float32) - 128
                codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
                scales = scales * np.repeat(steps, 32, axis=1)[:, :n]
            found[node.name] = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A model with an output layer of its own, everything factored but the embedding, at 4 bits."""
    out: Path = tmp_path_factory.mktemp("genai") / "tiny"
    model = converted()
    export(model, out, precision="exact", embeddings=4)
    return out


# ---------------------------------------------------------------- the same scores and tokens


@pytest.mark.parametrize("embeddings", [16, 8, 4])
def test_scores_and_tokens_are_those_of_a_dense_model(tmp_path: Path, embeddings: Any) -> None:
    model = converted()
    if embeddings == 16:  # a table of floats is no node of diba's
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight.half().float())
    done = export(model, tmp_path / "out", precision="exact", embeddings=embeddings, tolerance=FLOAT32)
    assert len(done.layers) == 2 * 7 + 1
    assert done.tables == {"model.embed_tokens": embeddings}
    same_as_dense(dense(model, tmp_path / "out"), tmp_path / "out")


def same_as_dense(reference: Any, folder: Path, length: int = 40) -> None:
    """Greedy tokens are equal, except where two scores are closer than the error of the scores."""
    text = TextModel(folder, threads=1, search={"do_sample": False})
    prompt = text.tokens("The quick brown fox")
    pieces = []
    answer = text.answer(prompt, length)
    pieces = list(answer)
    assert answer.tokens == len(pieces) <= length
    tokens = text._generator.get_sequence(0)
    with torch.no_grad():
        scores = reference(input_ids=torch.tensor(tokens[None].astype(np.int64))).logits[0].double().numpy()
        wanted = reference.generate(
            torch.tensor(prompt[None].astype(np.int64)), max_new_tokens=length, do_sample=False
        )[0].numpy()
    shared = min(len(wanted), len(tokens))
    differing = np.flatnonzero(wanted[:shared] != tokens[:shared])
    checked = len(tokens) if not len(differing) else int(differing[0]) + 1
    for place in range(len(prompt), checked):
        before = scores[place - 1]
        allowed = 2 * FLOAT32 * np.linalg.norm(before)
        assert before[tokens[place]] >= before.max() - allowed
    assert checked > len(prompt) + 8


def test_a_tied_output_layer_has_the_table_of_the_embedding(tmp_path: Path) -> None:
    model = converted(tie_word_embeddings=True)
    done = export(model, tmp_path / "out", embeddings=4, head=4)
    assert done.tables == {"model.embed_tokens": 4, "lm_head": 4}
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    at = {
        x.name: {y.key: y.value for y in x.external_data}["offset"]
        for x in graph.initializer
        if len(x.external_data)
    }
    rows = next(node for node in graph.node if node.op_type == "Embedding")
    head = next(node for node in graph.node if node.op_type == "CodedLinear")
    assert at[rows.input[1]] == at[head.input[1]]


def test_tied_factors_are_stored_once(tmp_path: Path) -> None:
    done = export(converted(tied_factors=True, tie_word_embeddings=True), tmp_path / "out")
    graph = onnx.load(done.path, load_external_data=False).graph
    rows = next(node for node in graph.node if node.op_type == "Embedding")
    head = next(node for node in graph.node if node.name == "lm_head")
    assert head.op_type == "Linear"
    assert rows.input[1] == head.input[1]


def test_stacked_projections_are_one_node_with_several_outputs(tmp_path: Path) -> None:
    model = converted("Phi3", original_max_position_embeddings=128, sliding_window=None)
    done = export(model, tmp_path / "out", precision="exact", embeddings=8, tolerance=FLOAT32)
    assert len(done.layers) == 2 * 4 + 1
    nodes = {node.name: node for node in onnx.load(done.path).graph.node}
    assert [len(nodes[f"model.layers.1.{x}"].output) for x in ("self_attn.qkv_proj", "mlp.gate_up_proj")] == [
        3,
        2,
    ]
    same_as_dense(dense(model, tmp_path / "out"), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Mistral", {"sliding_window": 32}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 16}),
        ("SmolLM3", {"tie_word_embeddings": True}),
        ("Granite", {}),
    ],
)
def test_other_architectures(tmp_path: Path, kind: str, settings: Any) -> None:
    model = converted(kind, **settings)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.1)
    done = export(model, tmp_path / "out", precision="exact", embeddings=8, head=8)
    assert all(x.error <= x.allowed for x in done.checks)


def test_an_output_layer_is_factored_on_the_way(tmp_path: Path) -> None:
    model = converted(tie_word_embeddings=True)
    head = model.lm_head
    done = export(model, tmp_path / "out", head="factored")
    assert done.layers[-1] == "lm_head"
    assert done.tables == {"model.embed_tokens": 8}
    assert model.lm_head is head


def test_layers_that_are_dense_stay_so(tmp_path: Path) -> None:
    model = diba.torch.convert(
        language_model(), k=24, max_iter=2, skip=[r"re:.*\.layers\.0\..*"], progress=False
    )
    done = export(model, tmp_path / "out", precision="exact", embeddings=8, tolerance=FLOAT32)
    assert len(done.layers) == 7 + 1
    same_as_dense(dense(model, tmp_path / "out"), tmp_path / "out")


def test_a_saved_checkpoint_is_exported_with_its_tokenizer(tmp_path: Path) -> None:
    converted().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    done = diba.onnx.export_genai(tmp_path / "model", tmp_path / "out", threads=1, progress=False)
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]
    assert options["custom_ops_library"] == LIBRARY
    assert options["intra_op_num_threads"] == 1
    assert (tmp_path / "out" / LIBRARY).read_bytes() == diba.onnx.library_path().read_bytes()
    assert done.data_bytes == (tmp_path / "out" / "model.onnx.data").stat().st_size
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# ---------------------------------------------------------------- the cache


def test_a_conversation_goes_on_from_the_cache(folder: Path) -> None:
    text = TextModel(folder, threads=1, search={"do_sample": False})
    first = [{"role": "user", "content": "Hello"}]
    answer = text.answer(text.prompt(first), 5)
    said = "".join(answer)
    assert answer.finished in ("length", "end")
    then = [*first, {"role": "assistant", "content": "So?"}, {"role": "user", "content": "Go on"}]
    again = text.answer(text.prompt(then), 6)
    list(again)
    assert 0 < again.new_tokens < again.prompt_tokens
    fresh = TextModel(folder, threads=1, search={"do_sample": False})
    alone = fresh.answer(fresh.prompt(then), 6)
    list(alone)
    assert alone.new_tokens == alone.prompt_tokens
    assert again.text == alone.text
    repeated = text.answer(text.prompt(first), 5)
    assert "".join(repeated) == said
    assert repeated.new_tokens == 1


def test_an_answer_ends_where_there_is_no_room(folder: Path) -> None:
    text = TextModel(folder, threads=1, room=30, search={"do_sample": False})
    prompt = text.tokens("x" * 20)
    answer = text.answer(prompt)
    list(answer)
    assert answer.finished in ("length", "end")
    assert answer.tokens <= 30 - len(prompt)
    with pytest.raises(ValueError, match="the prompt has 30 tokens, and there is room for 30"):
        text.answer(text.tokens("x" * 30))
    with pytest.raises(ValueError, match="empty"):
        text.answer(prompt[:0])
    for room in (1, 129):
        with pytest.raises(ValueError, match=f"room for {room} tokens"):
            TextModel(folder, room=room)


# ---------------------------------------------------------------- what is refused


def test_nothing_is_written_where_the_scores_differ(tmp_path: Path) -> None:
    with pytest.raises(diba.onnx.ExportError, match="computes something else"):
        export(converted(), tmp_path / "out", tolerance=1e-12)
    assert not list(tmp_path.iterdir())


def test_an_architecture_that_the_builder_does_not_know(tmp_path: Path) -> None:
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64}
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=259, **sizes))
    with pytest.raises(
        diba.onnx.ExportError, match=r"cannot make a graph of GPT2LMHeadModel; diba\.onnx\.export"
    ):
        export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_arguments_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("keep me")
    (tmp_path / "file").write_text("")
    model = language_model()
    with pytest.raises(FileExistsError, match="not empty and no earlier export"):
        export(model, tmp_path / "full")
    with pytest.raises(NotADirectoryError, match="it is a file"):
        export(model, tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        export(model, tmp_path / "none" / "out")
    for wrong, text in (
        ({"embeddings": 3}, "embeddings is 3; it must be 16 or 8 or 4"),
        ({"head": "dense"}, "head is 'dense'; it must be 16 or 8 or 4 or 'factored'"),
        ({"precision": "best"}, "precision"),
        ({"threads": 0}, "threads"),
    ):
        with pytest.raises(ValueError, match=text):
            export(model, tmp_path / "out", **wrong)
    with pytest.raises(TypeError, match="model is"):
        export(torch.nn.Linear(2, 2), tmp_path / "out")
    with pytest.raises(ValueError, match="generates no text"):
        export(model.model, tmp_path / "out")
    with pytest.raises(ValueError, match="tokenizer is missing"):
        diba.onnx.export_genai(model, tmp_path / "out", progress=False)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        diba.onnx.export_genai(tmp_path / "nothing", tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_modules_of_the_builder_stay_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    mine = ModuleType("builders")  # as a program may have; the model builder has one, too
    monkeypatch.setitem(sys.modules, "builders", mine)
    path, known = list(sys.path), set(sys.modules)
    for name in ("one", "two"):
        export(converted(), tmp_path / name, check=False)
    assert sys.modules["builders"] is mine
    assert sys.path == path
    assert not {"quantization", "builder_config", "builders.base"} & (set(sys.modules) - known)


def test_an_earlier_export_is_replaced(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "out")
    (tmp_path / "out" / "old").write_text("")
    export(converted(), tmp_path / "out", embeddings=8)
    assert not (tmp_path / "out" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---------------------------------------------------------------- the command line


def run(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    code = main(list(map(str, arguments)))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_export(tmp_path: Path, capsys: Any) -> None:
    converted().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    paths = tmp_path / "model", tmp_path / "out"
    for options, said in (
        (("--threads", 2), "--threads is given without --genai"),
        (("--head", "factored"), "--head factored is given without --genai"),
        (("--genai", "--standard"), "--standard is given with --genai"),
        (("--genai", "--opset", 20), "--opset is given with --genai"),
        (("--genai", "--batch", 2), "--batch is given with --genai"),
        (("--library", "a.so"), "--library is given without --executorch"),
        (("--executorch", "--standard"), "--standard is given with --executorch"),
        (("--executorch", "--threads", 2), "--threads is given with --executorch"),
        (("--executorch", "--length", 0), "length is 0"),
        (("--genai", "--head", "none"), "head is None; it must be 16 or 8 or 4 or 'factored'"),
        (("--genai", "--threads", 0), "threads is 0"),
    ):
        code, out, err = run(capsys, "export", *paths, *options)
        assert (code, out) == (2, "")
        assert said in err
    assert not paths[1].exists()
    code, out, _ = run(capsys, "export", *paths, "--genai", "--embeddings", 8, "--json")
    assert code == 0
    done = json.loads(out)
    assert done["path"] == str(paths[1] / "model.onnx")
    assert done["tables"] == {"model.embed_tokens": 8}
    assert run(capsys, "generate", paths[1], "Hello", "--max-tokens", 2, "--quiet")[0] == 0


def test_generate(folder: Path, capsys: Any) -> None:
    code, out, err = run(capsys, "generate", folder, "Hello", "--max-tokens", 9, "--temperature", 0)
    assert code == 0
    assert err.startswith("diba: ")
    code, printed, err = run(
        capsys, "generate", folder, "Hello", "--max-tokens", 9, "--temperature", 0, "--threads", 1, "--json"
    )
    assert (code, err) == (0, "")
    found = json.loads(printed)
    assert found["text"] + "\n" == out
    assert 1 <= found["tokens"] <= 9
    assert found["prompt_tokens"] == len(tokenizer()("<s>user: Hello</s><s>assistant: ")["input_ids"])
    assert found["finished"] == ("length" if found["tokens"] == 9 else "end")
    code, printed, _ = run(capsys, "generate", folder, "Hello", "--raw", "--max-tokens", 1, "--json")
    assert json.loads(printed)["prompt_tokens"] == len("Hello")


def test_sampling_follows_its_seed(folder: Path, capsys: Any) -> None:
    def text(*options: Any) -> str:
        wanted = ("--max-tokens", 20, "--quiet", *options)
        return run(capsys, "generate", folder, "Hello", "--temperature", 1.5, *wanted)[1]

    assert text("--seed", 1) == text("--seed", 1)
    assert len({text("--seed", seed) for seed in range(4)}) > 1
    assert text("--top-k", 1) == text("--top-p", 1e-6) == text("--top-k", 1, "--seed", 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--temperature", -1), "--temperature is -1.0; it must be at least 0"),
        (("--max-tokens", 0), "--max-tokens is 0; it must be at least 1"),
        (("--top-p", 0), "--top-p is 0.0; it must be above 0 and at most 1"),
        (("--top-k", 0), "--top-k is 0; it must be at least 1"),
        (("--threads", 0), "--threads is 0; it must be at least 1"),
    ],
)
def test_options_out_of_range(folder: Path, capsys: Any, options: Any, said: str) -> None:
    assert run(capsys, "generate", folder, "Hello", *options) == (2, "", f"diba: error: {said}\n")


def test_a_chat_with_history(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nHow?\n/new\nHello\n/exit\nnot read\n"))
    monkeypatch.setattr("builtins.input", lambda _: _line())
    code, out, err = run(
        capsys, "chat", folder, "--max-tokens", 4, "--temperature", 0, "--system", "Be brief."
    )
    assert code == 0
    assert "128 tokens at most" in err
    assert err.count("tokens, the first after") == 3
    single = run(capsys, "generate", folder, "Hello", "--max-tokens", 4, "--temperature", 0, "--quiet")[1]
    assert out != single  # there is a system prompt
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert run(capsys, "chat", folder, "--max-tokens", 4, "--temperature", 0, "--quiet") == (0, single, "")


def _line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def test_old_turns_make_room(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one one one one\ntwo two two two\nthree three\n"))
    monkeypatch.setattr("builtins.input", lambda _: _line())
    code, _, err = run(capsys, "chat", folder, "--max-tokens", 8, "--context", 64)
    assert code == 0
    assert err.count("tokens, the first after") == 3


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(
    folder: Path, capsys: Any, monkeypatch: Any
) -> None:
    whole = TextModel._pieces
    interrupted = []

    def pieces(self: Any, *arguments: Any) -> Any:
        for number, piece in enumerate(whole(self, *arguments)):
            yield piece
            if number == 1 and not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt

    monkeypatch.setattr(TextModel, "_pieces", pieces)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\nHello again\n"))
    monkeypatch.setattr("builtins.input", lambda _: _line())
    code, out, err = run(capsys, "chat", folder, "--max-tokens", 5, "--temperature", 0)
    assert code == 0
    assert " ...\n" in out
    assert err.count("tokens, the first after") == 2


# ---------------------------------------------------------------- damaged folders


def test_folders_that_cannot_be_run(folder: Path, tmp_path: Path, capsys: Any) -> None:
    def fails(name: str, *said: str) -> None:
        code, out, err = run(capsys, "generate", tmp_path / name, "Hello")
        assert (code, out) == (2, "")
        assert err.startswith("diba: error: ")
        assert err.count("\n") == 1
        for part in said:
            assert part in err

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    fails("nothing", "there is no such folder")
    (tmp_path / "empty").mkdir()
    fails("empty", "holds no genai_config.json", "diba export MODEL OUT --genai")
    (copy("alone") / LIBRARY).unlink()
    fails("alone", f"the library of its operators, {LIBRARY}, is missing")
    (copy("json") / "genai_config.json").write_text('{"model": ')
    fails("json", "is damaged")
    with (copy("short") / "model.onnx.data").open("r+b") as file:
        file.truncate(1000)
    fails("short", "cannot load it")
    (copy("graph") / "model.onnx").write_bytes(b"no graph")
    fails("graph", "cannot load it")
    data = copy("bits") / "model.onnx.data"
    stored = bytearray(data.read_bytes())
    stored[stored.index(b"format_version") + 20] ^= 1
    data.write_bytes(stored)
    fails("bits", "cannot load it")


def test_without_onnxruntime_genai(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    code, _, err = run(capsys, "generate", folder, "Hello")
    assert code == 2
    assert "python -m pip install 'diba[genai]'" in err
