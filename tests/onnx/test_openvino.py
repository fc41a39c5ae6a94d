"""The operators in OpenVINO: the same files, the same bytes. dev.py builds the library for this alone."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

LIBRARY = os.environ.get("DIBA_OPENVINO", "")
if not LIBRARY:
    pytest.skip("DIBA_OPENVINO names no libdiba_openvino.so", allow_module_level=True)

import openvino  # noqa: E402

import diba  # noqa: E402
from arrays import random_factors, vectors  # noqa: E402
from diba._internal.codes import quantize  # noqa: E402
from onnx_models import (  # noqa: E402
    FLOAT,
    coded,
    coded_constants,
    conv,
    embedding,
    factors,
    file_bytes,
    linear,
    model,
    windows,
)


@pytest.fixture(scope="module")
def core() -> Any:
    made = openvino.Core()
    made.add_extension(LIBRARY)
    return made


def run(core: Any, made: Any, threads: int = 1, **inputs: np.ndarray) -> list[np.ndarray]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU", settings)
    results = compiled(inputs)
    return [results[output] for output in compiled.outputs]


@pytest.mark.parametrize("alphabet", ["sign", "binary"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 60)])
def test_linear_has_the_bytes_of_the_core(core, alphabet, threads, shape):
    f, bias = random_factors(300, 260, 199, alphabet).diba, vectors(1, 300)[0]
    x = vectors(shape[0] * shape[1], 199).reshape(*shape, 199)
    whole, *parts = run(core, linear(f, bias), threads, x=x) + run(
        core, linear(f, bias, out_features=[200, 60, 40]), threads, x=x
    )
    assert np.array_equal(whole, f.linear(x.reshape(-1, 199), bias).reshape(whole.shape))
    assert [part.shape[-1] for part in parts] == [200, 60, 40]
    assert np.array_equal(whole, np.concatenate(parts, axis=-1))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_convolutions_multiply_patches(core, kernel):
    f = factors(20, 30, 6 * kernel[0] * kernel[1])
    x = vectors(3 * 6 * 17, 19).reshape(3, 6, 17, 19)
    (y,) = run(core, conv(f, None, kernel, [2, 1], [1, 0, 1, 1], [1, 1]), x=x)
    padded = windows(x, kernel, 1, (1, 0, 1, 1), 1)[:, ::2]
    wanted = f.linear(padded.reshape(-1, f.shape[1])).reshape(*padded.shape[:3], 20)
    assert np.array_equal(y, np.moveaxis(wanted, -1, 1))


def test_rows_of_tables(core):
    made = random_factors(90, 45, 32, "sign")
    ids = np.array([[0, 89, 3], [-1, 41, 3]])
    (y,) = run(core, embedding({"table": file_bytes(made.diba)}, embedding_dim=32), ids=ids)
    dense = made.dense()[ids]
    assert 10 * np.log10(np.square(dense).sum() / np.square(y - dense).sum()) > 40  # as fast products have
    numbers = np.random.default_rng(0).integers(0, 256, (50, 32), dtype=np.uint8)
    scales = np.random.default_rng(1).random((50, 1), dtype=np.float32)
    constants = {"table": numbers, "scales": scales}
    (y,) = run(core, embedding(constants, embedding_dim=32, bits=8), ids=ids % 50)
    assert np.array_equal(y, (scales * (numbers.astype(np.float32) - 128))[ids % 50])


def test_damage_is_refused_when_the_model_is_read(core):
    made = linear(factors())
    damaged = bytearray(made.graph.initializer[0].raw_data)
    damaged[200] ^= 4
    made.graph.initializer[0].raw_data = bytes(damaged)
    with pytest.raises(RuntimeError, match=r"layer\.0\.dense[\s\S]*diba::Linear[\s\S]*factors"):
        run(core, made, x=np.zeros((1, 1, 99), np.float32))


@pytest.mark.parametrize(("bits", "threads"), [(8, 1), (4, 2)])
def test_coded_tables_have_the_numbers_of_onnxruntime(core, bits, threads):
    codes = quantize(vectors(600, 64), bits)
    constants = coded_constants(codes)
    x, ids = vectors(10, 64, seed=3).reshape(2, 5, 64), np.array([[0, 599, 3], [-1, 41, 3]])
    (y,) = run(core, coded(codes), threads, x=x)
    exact = x.astype(np.float64) @ codes.rows().astype(np.float64).T
    steps = np.abs(x).max(-1, keepdims=True) / (32767 if bits == 8 else 127 * 256)
    sums = np.abs(codes.rows().astype(np.float64))
    assert (np.abs(y - exact) <= steps / 2 * sums.sum(1) + 8 * 2.0**-23 * np.abs(x) @ sums.T).all()
    group = {} if bits == 8 else {"group": codes.group}
    (rows,) = run(core, embedding(constants, embedding_dim=64, bits=bits, **group), ids=ids)
    assert np.array_equal(rows, codes.rows(ids))


@pytest.mark.parametrize(("bits", "activation_bits", "threads"), [(1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 1)])
def test_layers_of_few_bits_are_sums_of_whole_numbers(core, bits, activation_bits, threads):
    weight, scales = diba.Levels.rounded(vectors(40, 90), bits)
    x, bias = vectors(11, 90, seed=3), vectors(1, 40)[0]
    numbers, steps = diba.Levels.rounded(x, activation_bits)
    wanted = diba.bitgemm(numbers, weight).astype(np.float32) * steps[:, None] * scales + bias
    codes = (weight.to_dense().astype(np.int64) + 2**bits - 1) // 2
    planes = np.stack([np.packbits(codes >> p & 1, axis=1, bitorder="little") for p in range(bits)])
    constants = {"planes": planes, "scales": scales, "bias": bias}
    sizes = {"in_features": 90, "activation_bits": activation_bits}
    made = model("BitLinear", {"x": (FLOAT, ["b", 90])}, constants, {"y": FLOAT}, out_features=[40], **sizes)
    (y,) = run(core, made, threads, x=x)
    assert np.array_equal(y, wanted)
    sizes |= {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    image = x.T.reshape(1, 90, 11, 1)
    shape = [1, 90, "h", "w"]
    made = model("BitConv", {"x": (FLOAT, shape)}, constants, {"y": FLOAT}, out_channels=40, **sizes)
    (y,) = run(core, made, threads, x=np.ascontiguousarray(image))
    assert np.array_equal(y.reshape(40, 11).T, wanted)
