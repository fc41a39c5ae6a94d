"""The command line: what it reads, prints, writes and refuses."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy

import diba
from diba import cli
from diba.cli import inputs
from fuzz import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable

A = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test, with the matrix A in a.npy."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", A)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as error:  # how argparse ends
            code = int(error.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Run a command line that must fail with one line and exit code 2; that line without its prefix."""

    def call(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("diba: error: ")
        assert err.count("\n") == 1
        return err.removeprefix("diba: error: ").rstrip("\n")

    return call


# ---------------------------------------------------------------- solve


def test_solve_writes_what_solve_returns(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("solve", "a.npy", "--bits", "4", "-o", "a.diba", "--seed", "3", "--max-iter", "4")
    assert (code, err) == (0, "")
    expected = diba.solve(A, bits_per_weight=4, seed=3, max_iter=4)
    assert diba.load("a.diba") == expected
    assert f"k = {expected.k}, binary, {expected.bits_per_weight:.4g} bits per weight" in out
    assert f"SNR {expected.snr_db(A):.2f} dB" in out
    assert f"a.diba: {(folder / 'a.diba').stat().st_size:,} bytes (dense float32: {A.nbytes:,})" in out


def test_solve_as_json(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    options = ["--k", "5", "--alphabet", "sign", "--tol", "0.01", "--threads", "1", "--json"]
    code, out, err = run("solve", "a.npy", "-o", "a.diba", *options)
    assert (code, err, out.count("\n")) == (0, "", 1)
    report = json.loads(out)
    f = diba.load("a.diba")
    assert report.pop("seconds") > 0
    assert report == {
        "input": "a.npy",
        "input_dtype": "float32",
        "output": "a.diba",
        "shape": [24, 16],
        "k": 5,
        "alphabet": "sign",
        "diagonal_bits": 16,
        "bits_per_weight": f.bits_per_weight,
        "storage_ratio": f.storage_ratio,
        "dense_bytes": 24 * 16 * 4,
        "snr_db": f.snr_db(A),
        "file_bytes": (folder / "a.diba").stat().st_size,
    }


def test_exact_fits_stay_json(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    np.save("zero.npy", np.zeros((3, 4)))
    code, out, _ = run("solve", "zero.npy", "--k", "1", "-o", "z", "--json")
    assert code == 0
    assert json.loads(out)["snr_db"] is None
    code, out, _ = run("solve", "zero.npy", "--k", "1", "-o", "z")
    assert "SNR inf dB" in out


def test_quiet_and_ratio(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("solve", "a.npy", "--ratio", "0.1", "-o", "a.diba", "--quiet") == (0, "", "")
    assert diba.load("a.diba") == diba.solve(A, storage_ratio=0.1)


def test_method_effort_and_time_limit(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    size = ("solve", "a.npy", "--k", "9", "-o", "a.diba", "--quiet")
    for given, expected in (
        ((), {}),
        (("--method", "greedy", "--time-limit", "1000"), {"method": "greedy"}),
        (("--method", "dbf", "--alphabet", "sign"), {"method": "dbf", "alphabet": "sign"}),
        (("--effort", "fast"), {"effort": "fast"}),
    ):
        assert run(*size, *given) == (0, "", "")
        assert diba.load("a.diba") == diba.solve(A, k=9, **expected)
    assert run(*size, "--max-iter", "100000000", "--tol", "0", "--time-limit", "0.2") == (0, "", "")
    assert diba.load("a.diba").snr_db(A) > 1


def test_snr(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("solve", "a.npy", "--snr-db", "6", "--effort", "fast", "-o", "a.diba", "--quiet") == (
        0,
        "",
        "",
    )
    f = diba.load("a.diba")
    assert f.snr_db(A) >= 6
    assert f == diba.solve(A, snr_db=6, effort="fast")


# ---------------------------------------------------------------- inputs


def save_model(path: str, **tensors: np.ndarray) -> None:
    safetensors.numpy.save_file(tensors, path)


def save_bfloat16(path: str, values: np.ndarray) -> None:
    """A safetensors file with one bfloat16 tensor "w", written by the format's definition."""
    data = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({"w": entry}).encode()
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(len(header).to_bytes(8, "little") + header + data)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "i4", "i8", "u8", "f2", "f4", "f8"])
def test_formats_and_types(folder: Path, dtype: str) -> None:
    values = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    np.save("m.npy", values)
    np.save("fortran.npy", np.asfortranarray(values))
    np.savez("m.npz", values)
    np.savez_compressed("c.npz", w=values, b=np.ones(3))
    save_model("m.safetensors", w=values, b=np.ones(3))
    (folder / "no_suffix").write_bytes((folder / "m.safetensors").read_bytes())
    for argument, source in (
        ("m.npy", "m.npy"),
        ("fortran.npy", "fortran.npy"),
        ("m.npz", "m.npz:arr_0"),
        ("c.npz", "c.npz:w"),
        ("c.npz:w", "c.npz:w"),
        ("m.safetensors", "m.safetensors:w"),
        ("m.safetensors:w", "m.safetensors:w"),
        ("no_suffix:w", "no_suffix:w"),
    ):
        matrix = inputs.read_matrix(argument)
        assert (matrix.source, matrix.note) == (source, None)
        assert matrix.entries.dtype == values.dtype
        assert np.array_equal(matrix.entries, values)


def test_bfloat16(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    values = np.array([[1.0, -2.5, 3e38], [1e-30, 0.0, 0.15625]], np.float32)
    save_bfloat16("b.safetensors", values)
    matrix = inputs.read_matrix("b.safetensors")
    assert (matrix.dtype, matrix.entries.dtype) == ("BF16", np.float32)
    assert np.allclose(matrix.entries, values, rtol=2.0**-7)
    assert matrix.entries[0, 1] == -2.5
    assert run("solve", "b.safetensors:w", "--k", "2", "-o", "b.diba", "--quiet") == (0, "", "")


def test_convolutions_of_one_by_one(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    save_model("m.safetensors", conv=A.reshape(24, 16, 1, 1), real=np.ones((3, 3, 3, 3)))
    code, _, err = run("solve", "m.safetensors", "--k", "3", "-o", "c.diba")
    assert code == 0
    assert err == (
        "diba: note: m.safetensors:conv: a 1x1 convolution of shape (24, 16, 1, 1), "
        "taken as a matrix of shape (24, 16)\n"
    )
    assert diba.load("c.diba") == diba.solve(A, k=3)


def test_colons_in_paths_and_tensor_names(folder: Path) -> None:
    save_model("a:b.safetensors", **{"layer:0:weight": A, "other": A})
    save_model("a", **{"b.safetensors": A[:2]})
    assert inputs.read_matrix("a:b.safetensors:layer:0:weight").source == "a:b.safetensors:layer:0:weight"
    assert inputs.read_matrix("a:b.safetensors:other").source == "a:b.safetensors:other"
    with pytest.raises(
        ValueError, match="has 2 matrices"
    ):  # the existing path wins over tensor b.safetensors
        inputs.read_matrix("a:b.safetensors")


def test_inputs_that_do_not_fit(folder: Path, refused: Callable[..., str]) -> None:
    def solve(argument: str) -> str:
        return refused("solve", argument, "--k", "1", "-o", "out")

    save_model("m.safetensors", w=A, v=A, bias=np.ones(3), empty=np.ones((0, 3)))
    np.savez("m.npz", w=A, bias=np.ones(3), v=A)
    for file in ("m.safetensors", "m.npz"):
        assert solve(file) == f"{file}: has 2 matrices; name one as {file}:TENSOR; matrices in it: v, w"
        assert solve(f"{file}:x") == f"{file}: has no tensor 'x'; matrices in it: v, w"
        assert solve(f"{file}:bias").startswith(
            f"{file}: tensor 'bias' has shape (3,); it must be a matrix (2-D)"
        )
    save_model("many.safetensors", **{f"w{i:02}": A for i in range(30)})
    assert solve("many.safetensors").endswith("w18, w19 and 10 more")
    save_model("none.safetensors", bias=np.ones(3))
    assert solve("none.safetensors").endswith("matrices in it: none")
    assert solve("a.npy:w") == "a.npy: an npy file holds one array without a name; leave out ':w'"
    np.save("cube.npy", np.ones((2, 2, 2)))
    assert solve("cube.npy") == "cube.npy: has shape (2, 2, 2); it must be a matrix (2-D)"
    announced = np.lib.format.header_data_from_array_1_0(A) | {"shape": (1 << 30, 1 << 20)}
    with Path("huge.npy").open("wb") as file:  # which claims petabytes
        np.lib.format.write_array_header_1_0(file, announced)
    with zipfile.ZipFile("huge.npz", "w") as archive:
        archive.write("huge.npy", "w.npy")
    for name in ("huge.npy", "huge.npz:w"):
        assert re.match(
            rf"{name}: cannot be read .*it has \d+ bytes, but its header announces \d{{16}}", solve(name)
        )
    np.save("objects.npy", np.array([[None]]), allow_pickle=True)
    assert solve("objects.npy").startswith("objects.npy: cannot be read as an array of numbers")
    np.savez("objects.npz", w=np.array([[None]]))
    assert solve("objects.npz:w").startswith("objects.npz:w: cannot be read as an array of numbers")
    np.save("nan.npy", np.array([[1, np.nan]]))
    assert solve("nan.npy").startswith(
        "nan.npy: A has NaN or infinite entries (1 of 2, the first is nan at A[0, 1])"
    )
    with zipfile.ZipFile("odd.npz", "w") as archive:
        archive.writestr("w.npy", b"no header")
    assert solve("odd.npz") == "odd.npz: has 0 matrices; name one as odd.npz:TENSOR; matrices in it: none"
    assert solve("odd.npz:w").startswith("odd.npz: tensor 'w'")
    header = json.dumps({"w": {"dtype": "F8_E5M2", "shape": [2, 3], "data_offsets": [0, 6]}}).encode()
    Path("f8.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(6))
    assert solve("f8.safetensors").startswith("f8.safetensors:w: has dtype F8_E5M2; it must be one of ")
    diba.solve(A, k=1).save("a.diba")
    assert "is a diba file, the result of a solve" in solve("a.diba")
    assert solve("missing.npy") == "No such file or directory: missing.npy"
    assert solve("missing.npz:w") == "No such file or directory: missing.npz"
    assert solve(".") == "Is a directory: ."
    (folder / "text.txt").write_text("1 2 3\n4 5 6\n")
    assert solve("text.txt").startswith("text.txt: is not a safetensors file")
    assert solve("text.txt").endswith("diba solve reads npy, npz and safetensors files")
    for name in ("a.npy", "m.npz", "m.safetensors"):
        data = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(data[: len(data) // 2])
        assert solve(f"cut-{name}").startswith(f"cut-{name}: ")
    assert not (folder / "out").exists()


# ---------------------------------------------------------------- arguments and output paths


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND; see 'diba --help'"),
        (
            ("solve",),
            "the following arguments are required: FILE[:TENSOR], -o/--output; see 'diba solve --help'",
        ),
        (
            ("solve", "a.npy", "-o", "x", "--k", "1", "--efort=fast"),
            "unrecognized arguments: --efort=fast (is --effort meant?); see 'diba solve --help'",
        ),
        (
            ("generate", "folder", "Hello", "you"),
            "unrecognized arguments: you; see 'diba generate --help'",
        ),
        (("solve", "a.npy", "-o", "x"), "one of the arguments --bits --k --ratio --snr-db is required"),
        (
            ("solve", "a.npy", "-o", "x", "--k", "1", "--bits", "1"),
            "--bits: not allowed with argument --k",
        ),
        (("solve", "a.npy", "-o", "x", "--k", "many"), "argument --k: invalid int value: 'many'"),
        (
            ("solve", "a.npy", "-o", "x", "--k", "1", "--alphabet", "ternary"),
            "--alphabet: invalid choice",
        ),
        (("solve", "a.npy", "-o", "x", "--k", "0"), "a.npy: k is 0; it must be an integer of at least 1"),
        (("solve", "a.npy", "-o", "x", "--bits", "nan"), "a.npy: bits_per_weight is nan"),
        (("solve", "a.npy", "-o", "x", "--k", "1", "--threads", "0"), "a.npy: threads is 0"),
        (("solve", "a.npy", "-o", "x", "--k", "1", "--seed", "-1"), "a.npy: seed is -1"),
        (("solve", "a.npy", "-o", "x", "--k", "1", "--effort", "much"), "--effort: invalid choice"),
        (
            ("solve", "a.npy", "-o", "x", "--k", "1", "--method", "dbf"),
            "a.npy: alphabet is 'binary'; it must be 'sign' for method='dbf'",
        ),
        (("solve", "a.npy", "-o", "x", "--k", "1", "--time-limit", "-1"), "a.npy: time_limit is -1"),
        (("solve", "a.npy", "-o", "no/x", "--k", "1"), "the output's folder does not exist: no"),
        (("solve", "a.npy", "-o", ".", "--k", "1"), "the output is a folder; name a file in it: ."),
        (
            ("solve", "a.npy", "-o", "a.npy", "--k", "1"),
            "the output a.npy is the input file; name another",
        ),
        (("inspect", "missing"), "No such file or directory: missing"),
        (("inspect", "a.npy"), "a.npy: is not a safetensors file"),
        (("cure",), "argument COMMAND: invalid choice: 'cure'"),
    ],
)
def test_bad_command_lines(
    folder: Path, refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(*arguments)
    assert sorted(path.name for path in folder.iterdir()) == ["a.npy"]


def test_the_output_is_checked_before_the_work(
    folder: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(cli.solve, "solve", never)
    monkeypatch.setattr(inputs, "read_matrix", never)
    assert "does not exist" in refused("solve", "a.npy", "-o", "no/x", "--k", "1")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # whom root cannot ask
    assert "the output's folder is not writable: ." in refused("solve", "a.npy", "-o", "x", "--k", "1")


def test_running_out_of_memory_is_one_line(
    folder: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cli.solve, "solve", fail)
    assert refused("solve", "a.npy", "-o", "x", "--k", "1") == "out of memory"


# ---------------------------------------------------------------- inspect, doctor, version


def test_inspect(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    f = diba.solve(A, k=9)
    f.save("a.diba")
    code, out, err = run("inspect", "a.diba", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    size = (folder / "a.diba").stat().st_size
    header = 8 + int.from_bytes((folder / "a.diba").read_bytes()[:8], "little")
    assert report == {
        "file": "a.diba",
        "format_version": 1,
        "written_by": f"diba {diba.__version__}",
        "shape": [24, 16],
        "k": 9,
        "alphabet": "binary",
        "diagonal_bits": 16,
        "bits_per_weight": f.bits_per_weight,
        "storage_ratio": f.storage_ratio,
        "dense_bytes": 24 * 16 * 4,
        "file_bytes": size,
        "tensor_bytes": size - header,
        "file_padding_bits": 24 * 7,
        "memory_bytes": f.nbytes,
        "memory_padding_bits": f.padding_bits,
    }
    code, out, err = run("inspect", "a.diba")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(report)
    assert "shape                24, 16\n" in out


def test_inspect_of_signs_and_exceptions(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    f = diba.apb(A, exceptions=0.1)
    f.save("a.apb")
    code, out, err = run("inspect", "a.apb", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "file": "a.apb",
        "format_version": 1,
        "written_by": f"diba {diba.__version__}",
        "shape": [24, 16],
        "alphas": 1,
        "exceptions": 38,
        "exceptions_share": 38 / 384,
        "bits_per_weight": f.bits_per_weight,
        "storage_ratio": f.bits_per_weight / 32,
        "dense_bytes": 24 * 16 * 4,
        "file_bytes": (folder / "a.apb").stat().st_size,
        "memory_bytes": f.nbytes,
    }
    damaged = (folder / "a.apb").read_bytes()
    (folder / "a.apb").write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
    code, out, err = run("inspect", "a.apb")
    assert (code, out) == (2, "")
    assert "a.apb: tensor" in err


def test_inspect_of_a_checkpoint(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """Layers, sizes, what they share, how they were made; without torch."""
    sizes = {"a.b": (5, 3, 11, "sign"), "c": (4, 2, 6, "binary")}
    (folder / "model").mkdir()
    for name, data in checkpoints.example(sizes, {"e": "a.b"}).items():
        (folder / "model" / name).write_bytes(data)
    code, out, err = run("inspect", "model")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("2 layers compressed: ")
    assert any(re.match(r"a\.b = e +Linear +5 x 11 +3 ", line) for line in lines), out
    assert lines[-2:] == ["alphabet binary: c", "alphabet sign: a.b"]
    code, out, err = run("inspect", "model", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    found = {layer["name"]: layer for layer in json.loads(out)["layers"]}
    assert [found["c"][key] for key in ("shape", "k", "alphabet")] == [[4, 6], 2, "binary"]
    assert found["a.b"]["tied"] == ["e"]


def test_folders_that_are_no_checkpoints(folder: Path, refused: Callable[..., str]) -> None:
    (folder / "model").mkdir()
    assert refused("inspect", "model") == f"No such file or directory: {Path('model', 'config.json')}"
    (folder / "model" / "config.json").write_text("{}")
    assert refused("inspect", "model") == "model has no safetensors file; give the folder of a checkpoint"


def test_doctor(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("doctor", "--json")
    assert (code, err) == (0, "")
    report: dict[str, Any] = json.loads(out)
    assert report["isa"] == diba.isa()
    assert report.keys() == diba.info().keys()
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert f"isa                     {diba.isa()}\n" in out


def test_doctor_where_a_package_is_missing(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "scipy":
            raise metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert json.loads(run("doctor", "--json")[1])["scipy"] is None
    lines = dict(line.split(maxsplit=1) for line in run("doctor")[1].splitlines())
    assert (lines["scipy"], lines["numpy"]) == ("-", "1.2.3")


def test_version_and_help(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"diba {diba.__version__}\n", "")
    for command in ((), ("solve",), ("inspect",), ("doctor",)):
        code, out, err = run(*command, "--help")
        assert (code, err) == (0, "")
        assert out.startswith("usage: diba")


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diba", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"diba {diba.__version__}\n"


# ---------------------------------------------------------------- terminals, pipes, Ctrl-C


def on_a_terminal(*arguments: str) -> str:
    """What a child whose stderr is a terminal writes to it."""
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # rows, columns
    try:
        code = "import sys; from diba.cli import main; sys.exit(main())"
        if arguments[0] == "without tqdm":
            code, arguments = f"import sys; sys.modules['tqdm'] = None\n{code}", arguments[1:]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=60,
            check=True,
        )
        assert done.stdout.startswith(b"a.npy: 24 x 16, float32\n")
    finally:
        os.close(terminal)
    try:
        return os.read(main_end, 1 << 16).decode()
    except OSError:  # nothing was written
        return ""
    finally:
        os.close(main_end)


def test_progress_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("solve", "a.npy", "--k", "4", "--method", "greedy", "-o", "a.diba")
    assert re.fullmatch(r"diba: solve \d+/100, SNR \S+ dB, 0 s\s+", on_a_terminal("without tqdm", *arguments))
    pytest.importorskip("tqdm")
    monkeypatch.setenv("TQDM_MININTERVAL", "0")  # every iteration, however fast
    shown = on_a_terminal(*arguments)
    assert "diba solve 1/100: " in shown
    assert "SNR " in shown
    assert " left, done by " in shown


def test_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "diba", "doctor"],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_interrupt_ends_promptly_and_writes_nothing(folder: Path) -> None:
    np.save("large.npy", np.random.default_rng(0).standard_normal((1500, 1500)).astype(np.float32))
    code = """
import signal
import sys
from diba import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
solve = cli.solve.solve
def announced(*arguments, progress=None, **options):
    def started(report):
        print("started", flush=True)
    return solve(*arguments, progress=started, **options)
cli.solve.solve = announced
sys.exit(cli.main())
"""
    command = [
        sys.executable,
        "-c",
        code,
        "solve",
        "large.npy",
        "--bits",
        "3",
        "--tol",
        "0",
        "-o",
        "large.diba",
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "started\n"
            time.sleep(0.2)
            start = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=60)
        finally:
            child.kill()
    assert time.monotonic() - start < 10
    assert (child.returncode, err) == (130, "diba: error: interrupted\n")
    assert sorted(path.name for path in folder.iterdir()) == ["a.npy", "large.npy"]
