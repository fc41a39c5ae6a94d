"""The operators in onnxruntime: equal to the products of the core, refused where something is wrong.

Nothing here needs torch, so that it also runs beside the oldest onnxruntime that is supported.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from arrays import Factors, random_factors, vectors  # noqa: E402
from diba import _core  # noqa: E402
from diba._internal.codes import quantize  # noqa: E402
from diba.onnx.library import library_path  # noqa: E402
from onnx_models import (  # noqa: E402
    BFLOAT,
    FLOAT,
    HALF,
    coded,
    coded_constants,
    conv,
    embedding,
    factors,
    file_bytes,
    linear,
    windows,
)


def session(made: Any, threads: int = 1) -> Any:
    """A session of a model in memory, or of a file."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    where = str(made) if isinstance(made, Path) else made.SerializeToString()
    return onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])


# ---------------------------------------------------------------- Linear


@pytest.mark.parametrize("alphabet", ["sign", "binary"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7), (5, 60), (0, 4)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_has_the_bytes_of_the_core(alphabet, threads, batch, length, with_bias):
    f = factors(300, 260, 199, alphabet)
    bias = vectors(1, 300)[0] if with_bias else None
    x = vectors(max(batch * length, 1), 199)[: batch * length].reshape(batch, length, 199)
    run = session(linear(f, bias), threads)
    for _ in range(3):  # some of the first calls count the threads
        (y,) = run.run(None, {"x": x})
        assert y.shape == (batch, length, 300)
        assert np.array_equal(y, f.linear(x.reshape(-1, 199), bias).reshape(y.shape))


def test_exact_products_have_the_bytes_of_the_core():
    f = factors()
    x = vectors(6, 99).reshape(2, 3, 99)
    (y,) = session(linear(f, precision="exact")).run(None, {"x": x})
    assert np.array_equal(y.reshape(6, -1), [f.matvec(one) for one in x.reshape(6, 99)])


@pytest.mark.parametrize("count", [1, 9])
def test_stacked_outputs_are_the_rows_of_one_matrix(count):
    f, bias = factors(), vectors(1, 70)[0]
    x = vectors(count, 99)[None]
    parts = session(linear(f, bias, out_features=[40, 20, 10])).run(None, {"x": x})
    assert [y.shape for y in parts] == [(1, count, 40), (1, count, 20), (1, count, 10)]
    assert np.array_equal(np.concatenate(parts, axis=-1)[0], f.linear(x[0], bias))


def test_float16_is_rounded_once_on_the_way_in_and_out():
    f = factors()
    x = (vectors(6, 99) / 1000).astype(np.float16)[None]
    (y,) = session(linear(f, kind=HALF)).run(None, {"x": x})
    assert y.dtype == np.float16
    assert np.array_equal(y[0], f.linear(x[0].astype(np.float32)).astype(np.float16))


def test_bfloat16_is_rounded_once_on_the_way_in_and_out():
    f = factors()
    cast_in = helper.make_node("Cast", ["x"], ["narrow"], to=BFLOAT)
    made = linear(f, kind=BFLOAT)
    node = made.graph.node[0]
    node.input[0], node.output[0] = "narrow", "result"
    made.graph.node.insert(0, cast_in)
    made.graph.node.append(helper.make_node("Cast", ["result"], ["y0"], to=FLOAT))
    made.graph.input[0].type.tensor_type.elem_type = FLOAT
    made.graph.output[0].type.tensor_type.elem_type = FLOAT
    x = vectors(6, 99)[None]
    (y,) = session(made).run(None, {"x": x})
    assert np.array_equal(y[0], bfloat16(f.linear(bfloat16(x[0]))))


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest multiple of 2^-7 of its power of two, ties to even."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(fraction * 256) / 256, exponent).astype(np.float32)


def test_float16_is_rounded_as_numpy_does():
    """A row for each number: D1 holds them, all bits are 1, one column, k = 1."""
    rng = np.random.default_rng(1)
    numbers = [
        np.ldexp(rng.standard_normal(200), rng.integers(-30, 20, 200)),
        [6e-8, 65519.0, 65520.0, 1e6, 2**-25],
    ]
    d1 = np.concatenate(numbers).astype(np.float32)
    one, bits = np.ones(1, np.float32), np.ones((d1.size, 1), int)
    f = Factors(d1, bits, one, bits[:1], one, "sign").diba
    run = session(linear(f, kind=HALF, precision="exact"))
    for x in (1.0, 2**-24, 2**-14 - 2**-24):  # of both kinds of numbers on the way in
        (y,) = run.run(None, {"x": np.full((1, 1, 1), x, np.float16)})
        with np.errstate(over="ignore"):
            assert np.array_equal(y.ravel(), (d1 * np.float32(x)).astype(np.float16))


def test_shapes_are_inferred_with_their_names():
    made = linear(factors(), out_features=[50, 20])
    assert [o.shape for o in session(made).get_outputs()] == [
        ["batch", "length", 50],
        ["batch", "length", 20],
    ]


def test_threads_may_run_one_session_at_once():
    f = factors(200, 150, 120)
    run = session(linear(f), 2)
    x = vectors(40, 120)[None]
    wanted = f.linear(x[0])
    right: list[bool] = []

    def work() -> None:
        right.extend(np.array_equal(run.run(None, {"x": x})[0][0], wanted) for _ in range(20))

    started = [threading.Thread(target=work) for _ in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert right == [True] * 80


# ---------------------------------------------------------------- Embedding


@pytest.mark.parametrize("alphabet", ["sign", "binary"])
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
def test_rows_of_a_factored_table(alphabet, kind):
    made = random_factors(90, 45, 32, alphabet)
    f = made.diba
    ids = np.array([[0, 89, 3], [-1, 41, 3]] * 40, np.int32 if kind == TensorProto.INT32 else np.int64)
    run = session(embedding({"table": file_bytes(f)}, kind, embedding_dim=32), 2)
    (y,) = run.run(None, {"ids": ids})
    assert y.shape == (80, 3, 32)
    dense, size = made.dense()[ids], made.magnitude()[ids]
    # The rows of B1 are the vectors of one fast product, whose error is below 1/254 of the sum of all terms.
    assert (np.abs(y - dense) <= size.sum(-1, keepdims=True) / 100).all()
    error, signal = ((np.square(part).sum()) for part in (y - dense, dense))
    assert 10 * np.log10(signal / error) > 40  # as the fast products have


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("blocks", [1, 4])
def test_rows_of_a_quantised_table(bits, blocks):
    rng = np.random.default_rng(bits * blocks)
    numbers = rng.integers(0, 1 << bits, (50, 32), dtype=np.uint8)
    scales = rng.random((50, blocks), dtype=np.float32)
    table = numbers if bits == 8 else (numbers[:, 0::2] | numbers[:, 1::2] << 4)
    made = embedding({"table": table, "scales": scales}, embedding_dim=32, bits=bits)
    ids = np.arange(-50, 50).reshape(4, 25)
    (y,) = session(made).run(None, {"ids": ids})
    wanted = np.repeat(scales, 32 // blocks, axis=1) * (numbers.astype(np.float32) - (1 << (bits - 1)))
    assert np.array_equal(y, wanted[ids])
    assert session(made).get_outputs()[0].shape == ["batch", "length", 32]


@pytest.mark.parametrize("wrong", [50, -51])
def test_a_number_that_is_no_row_is_refused(wrong):
    run = session(embedding({"table": file_bytes(factors(50, 8, 16))}, embedding_dim=16))
    with pytest.raises(Exception, match=rf"layer\.0\.dense.*{wrong} is not a row .* 50 rows"):
        run.run(None, {"ids": np.array([[1, wrong]])})


# ---------------------------------------------------------------- CodedLinear, and look-ups in its table


def product(codes: Any, x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """That of the core, on tensors as torch has them."""
    (m, n), y = codes.shape, np.empty((len(x), codes.shape[0]), np.float32)
    steps, shift = (0 if one is None else one.ctypes.data for one in (codes.steps, bias))
    where = codes.codes.ctypes.data, steps, codes.d1.ctypes.data
    _core.multiply_codes(
        *where, m, n, codes.bits, codes.group, x.ctypes.data, len(x), shift, y.ctypes.data, 1
    )
    return y


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 32), (4, 64)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [64, 99])
def test_coded_products_have_the_bytes_of_the_core(bits, group, threads, n):
    codes, x = quantize(vectors(1100, n), bits, group), vectors(21, n, seed=5)
    for bias in (None, vectors(1, 1100)[0]):
        (y,) = session(coded(codes, bias=bias), threads).run(None, {"x": x.reshape(3, 7, n)})
        assert np.array_equal(y.reshape(21, 1100), product(codes, x, bias))
    narrow = (x / 10000).astype(np.float16)
    (y,) = session(coded(codes, HALF)).run(None, {"x": narrow[None]})
    assert np.array_equal(y[0], product(codes, narrow.astype(np.float32), None).astype(np.float16))
    (y,) = session(coded(codes)).run(None, {"x": x[:0][None]})
    assert y.shape == (1, 0, 1100)
    assert session(coded(codes)).get_outputs()[0].shape == ["batch", "length", 1100]
    ids = np.array([[3, -1, 1099]])
    group_of = {} if bits == 8 else {"group": group}
    table = coded_constants(codes)
    (rows,) = session(embedding(table, embedding_dim=n, bits=bits, **group_of)).run(None, {"ids": ids})
    assert np.array_equal(rows, codes.rows(ids))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 3}, "bits is 3; it must be 8 or 4"),
        ({"bits": 8}, "group is 32.*absent with 8"),
        ({"group": 48}, "group is 48.*power of two"),
        ({"in_features": 65}, "table has shape.*uint8 of 36 columns"),
        ({"in_features": 70000}, "in_features is 70000; it must be from 1 to 65536"),
    ],
)
def test_coded_tables_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(Exception, match=rf"diba::CodedLinear 'layer\.0\.dense'.*{message}"):
        session(coded(quantize(vectors(5, 64), 4), **changed))


def test_coded_inputs_that_do_not_fit_are_refused():
    codes = quantize(vectors(5, 64), 8)
    with pytest.raises(Exception, match=r"bias has shape \(4\).*\(5\)"):
        session(coded(codes, bias=vectors(1, 4)[0]))
    made = coded(codes)
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "any"
    with pytest.raises(Exception, match=r"X has shape \(1, 2, 63\); its last dimension must be 64"):
        session(made).run(None, {"x": np.zeros((1, 2, 63), np.float32)})
    table = coded_constants(quantize(vectors(5, 64), 4))
    run = session(embedding(table, embedding_dim=64, bits=4, group=32))
    with pytest.raises(Exception, match=r"65 is not a row"):
        run.run(None, {"ids": np.array([[65]])})


# ---------------------------------------------------------------- Conv


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3)])
@pytest.mark.parametrize(("stride", "pad", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("threads", [1, 2])
def test_convolutions_multiply_patches(kernel, stride, pad, dilation, threads):
    f, bias = factors(20, 30, 6 * kernel[0] * kernel[1]), vectors(1, 20)[0]
    x = vectors(3 * 6 * 17, 19).reshape(3, 6, 17, 19)
    run = session(conv(f, bias, kernel, [stride] * 2, [pad, 0, pad, 1], [dilation] * 2), threads)
    (y,) = run.run(None, {"x": x})
    patches = windows(x, kernel, stride, (pad, 0, pad, 1), dilation)
    wanted = f.linear(patches.reshape(-1, f.shape[1]), bias).reshape(*patches.shape[:3], 20)
    assert np.array_equal(y, np.moveaxis(wanted, -1, 1))


def test_a_convolution_of_one_axis_in_float16():
    f = factors(20, 30, 18)
    x = (vectors(2 * 6, 40) / 1000).astype(np.float16).reshape(2, 6, 40)
    made = conv(f, None, [3], [2], [1, 1], [1], HALF, ("length",))
    (y,) = session(made).run(None, {"x": x})
    patches = windows(x[:, :, None].astype(np.float32), (1, 3), 2, (0, 1, 0, 1), 1)[:, 0]
    wanted = f.linear(patches.reshape(-1, 18)).reshape(2, 20, 20).astype(np.float16)
    assert np.array_equal(y, np.moveaxis(wanted, -1, 1))


def test_an_image_smaller_than_the_kernel_has_no_positions():
    run = session(conv(factors(20, 30, 54), None, [3, 3], [1, 1], [0] * 4, [1, 1]))
    assert run.run(None, {"x": np.zeros((2, 6, 2, 9), np.float32)})[0].shape == (2, 20, 0, 7)


@pytest.mark.parametrize(
    ("pixels", "inferred"), [((17, 19), [9, 19]), (("h", 19), ["(h + -1) // 2 + 1", 19])]
)
def test_positions_are_inferred(pixels, inferred):
    made = conv(factors(20, 30, 54), None, [3, 3], [2, 1], [1, 1, 1, 1], [1, 1], axes=pixels)
    assert session(made).get_outputs()[0].shape == ["batch", 20, *inferred]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("at", [3, 200, -1])
def test_damage_is_refused_when_the_session_is_made(at):
    made = linear(factors())
    damaged = bytearray(made.graph.initializer[0].raw_data)
    damaged[at] ^= 4
    made.graph.initializer[0].raw_data = bytes(damaged)
    with pytest.raises(Exception, match=r"diba::Linear 'layer\.0\.dense'.*factors"):
        session(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_features": [60]}, "sum 60; it must be 70"),
        ({"out_features": [80, -10]}, "at least 1"),
        ({"precision": "half"}, "'half'; it must be 'fast' or 'exact'"),
    ],
)
def test_attributes_that_do_not_fit(change, message):
    with pytest.raises(Exception, match=rf"layer\.0\.dense.*{message}"):
        session(linear(factors(), **change))


def test_a_bias_that_does_not_fit():
    with pytest.raises(Exception, match=r"bias has shape \(69\).*\(70\)"):
        session(linear(factors(), np.zeros(69, np.float32)))


def test_factors_that_are_no_initializer():
    made = linear(factors())
    del made.graph.initializer[0]
    made.graph.input.append(helper.make_tensor_value_info("factors", TensorProto.UINT8, ["bytes"]))
    with pytest.raises(Exception, match="factors must be an initializer"):
        session(made)


def test_vectors_of_another_length():
    made = linear(factors())
    made.graph.input[0].type.tensor_type.shape.dim[2].Clear()
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "any"
    with pytest.raises(Exception, match=r"X has shape \(1, 2, 98\); its last dimension must be 99"):
        session(made).run(None, {"x": np.zeros((1, 2, 98), np.float32)})
