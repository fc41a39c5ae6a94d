"""The operators torch.ops.diba against plain torch in float64, and what torch asks of an operator."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diba
from diba.torch.ops import operators, packed, reference

if TYPE_CHECKING:
    from collections.abc import Iterator

linear, times_bits = torch.ops.diba.linear, torch.ops.diba.times_bits
assert operators.__doc__

SIGNS = pytest.mark.parametrize("sign", [False, True], ids=["binary", "sign"])


class Factors(NamedTuple):
    d1: Tensor
    b1: Tensor
    d2: Tensor
    b2: Tensor
    d3: Tensor


def packed_bits(rows: int, columns: int, random: np.random.Generator) -> Tensor:
    entries = random.integers(0, 2, (rows, columns), dtype=np.uint8)
    return torch.from_numpy(np.packbits(entries, axis=1, bitorder="little"))


def factors(m: int, k: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Factors:
    random = np.random.default_rng(seed)
    d1, d2, d3 = (torch.from_numpy(random.standard_normal(size)).to(dtype) for size in (m, k, n))
    return Factors(d1, packed_bits(m, k, random), d2, packed_bits(k, n, random), d3)


def trained(f: Factors) -> Factors:
    return Factors(*(t.clone().requires_grad_() if t.is_floating_point() else t for t in f))


def normals(*shape: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def snr(exact: Tensor, found: Tensor) -> float:
    """In dB; the fast products keep 40 dB (docs/run.md)."""
    exact, found = exact.detach().double(), found.detach().double()
    return 10 * torch.log10(exact.square().sum() / (exact - found).square().sum()).item()


def in_float64(f: Factors) -> Factors:
    return Factors(*(t.detach().double() if t.is_floating_point() else t for t in f))


# ---------------------------------------------------------------- results


@SIGNS
def test_the_product_is_that_of_the_factorization(sign: bool) -> None:
    f = factors(70, 45, 97)
    x = normals(5, 97)
    alphabet = "sign" if sign else "binary"
    same = diba.Factorization(
        f.d1.numpy(),
        diba.BitMatrix.from_packed_rows(f.b1.numpy(), 45, alphabet),
        f.d2.numpy(),
        diba.BitMatrix.from_packed_rows(f.b2.numpy(), 97, alphabet),
        f.d3.numpy(),
    )
    assert np.array_equal(linear(x, *f, None, sign).numpy(), same.linear(x.numpy()))


@SIGNS
@pytest.mark.parametrize("shape", [(97,), (1, 97), (2, 3, 97), (0, 97), (70, 97)])
def test_results_and_gradients_against_float64(sign: bool, shape: tuple[int, ...]) -> None:
    f, x, bias = trained(factors(70, 45, 97)), normals(*shape).requires_grad_(), normals(70).requires_grad_()
    y = linear(x, *f, bias, sign)
    exact_inputs = [t.detach().double().requires_grad_() for t in (x, f.d1, f.d2, f.d3, bias)]
    ex, e1, e2, e3, eb = exact_inputs
    exact = reference.linear(ex, e1, f.b1, e2, f.b2, e3, eb, sign)
    assert y.shape == exact.shape == (*shape[:-1], 70)
    above = normals(*y.shape, seed=2)
    found = torch.autograd.grad(y, [x, f.d1, f.d2, f.d3, bias], above)
    expected = torch.autograd.grad(exact, exact_inputs, above.double())
    assert all(a.dtype == torch.float32 for a in (y, *found))
    if 0 in shape:
        assert all(not a.any() for a in found)
        return
    for a, b in zip((y, *found), (exact, *expected), strict=True):
        assert a.shape == b.shape
        assert snr(b, a) > 40


@SIGNS
@pytest.mark.parametrize("transposed", [False, True])
def test_times_bits(sign: bool, transposed: bool) -> None:
    random = np.random.default_rng(3)
    bits = packed_bits(60, 45, random)
    x = normals(4, 7, 60 if transposed else 45).requires_grad_()
    y = times_bits(x, bits, 45, sign, transposed)
    exact_x = x.detach().double().requires_grad_()
    exact = reference.times_bits(exact_x, bits, 45, sign, transposed)
    above = normals(*y.shape, seed=4)
    assert y.shape == exact.shape
    assert snr(exact, y) > 40
    (found,), (expected,) = (
        torch.autograd.grad(y, x, above),
        torch.autograd.grad(exact, exact_x, above.double()),
    )
    assert snr(expected, found) > 40


@SIGNS
def test_the_dense_matrix(sign: bool) -> None:
    f = factors(9, 5, 12, dtype=torch.float64)
    x = torch.eye(12, dtype=torch.float64)
    assert torch.allclose(reference.to_dense(*f, sign).T, linear(x, *f, None, sign), rtol=1e-12, atol=1e-12)


@SIGNS
def test_gradcheck_in_float64(sign: bool) -> None:
    f = trained(factors(5, 4, 9, dtype=torch.float64))
    x = normals(3, 9).double().requires_grad_()
    bias = normals(5).double().requires_grad_()

    def product(x: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, bias: Tensor) -> Tensor:
        return linear(x, d1, f.b1, d2, f.b2, d3, bias, sign)

    assert torch.autograd.gradcheck(product, (x, f.d1, f.d2, f.d3, bias))
    assert torch.autograd.gradcheck(lambda x: times_bits(x, f.b2, 9, sign, False), (x,))
    y = normals(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: times_bits(y, f.b2, 9, sign, True), (y,))


def test_a_second_derivative_is_refused() -> None:
    f, x = trained(factors(20, 11, 30)), normals(4, 30).requires_grad_()
    (first,) = torch.autograd.grad(linear(x, *f, None, True).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    f = factors(20, 11, 30)
    x = normals(4, 30)
    assert not linear(x, *f, None, True).requires_grad
    d2 = f.d2.clone().requires_grad_()
    linear(x, f.d1, f.b1, d2, f.b2, f.d3, None, True).sum().backward()
    assert d2.grad is not None
    assert f.d1.grad is None
    assert x.grad is None
    with torch.no_grad():
        assert not linear(x, *trained(f), None, True).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations(dtype: torch.dtype) -> None:
    f, x = trained(factors(70, 45, 97)), normals(3, 97).to(dtype).requires_grad_()
    bias = normals(70).to(dtype).requires_grad_()
    y = linear(x, *f, bias, True)
    rounded = linear(x.detach().float(), *f, bias.detach().float(), True)
    assert y.dtype == dtype
    assert torch.equal(y, rounded.to(dtype))
    y.float().square().sum().backward()
    assert (x.grad is not None and x.grad.dtype) == dtype
    assert (bias.grad is not None and bias.grad.dtype) == dtype
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in (f.d1, f.d2, f.d3))


def test_autocast_gives_its_dtype_as_a_dense_layer_does() -> None:
    f, x = trained(factors(70, 45, 97)), normals(3, 97).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, *f, None, True)
        z = times_bits(normals(2, 97), f.b2, 97, True, False)
        assert y.dtype == z.dtype == torch.bfloat16
        assert linear(x.double(), *in_float64(f), None, True).dtype == torch.float64
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert f.d1.grad is not None
    assert f.d1.grad.dtype == torch.float32


@SIGNS
def test_threads_and_instruction_sets_change_nothing(sign: bool) -> None:
    f, x = trained(factors(130, 65, 97)), normals(70, 97).requires_grad_()

    def everything() -> list[Tensor]:
        y = linear(x, *f, None, sign)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, f.d1, f.d2, f.d3])]

    before, isa = torch.get_num_threads(), diba.isa()
    expected = everything()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, everything(), expected))
        for name in diba.supported_isas():
            diba._core.select_isa(name)
            assert all(map(torch.equal, everything(), expected))
    finally:
        torch.set_num_threads(before)
        diba._core.select_isa(isa)


def test_the_short_way_gives_way_to_whoever_waits_for_the_operator() -> None:
    """Modes, transforms, tracing and autocast see the operator; a plain call does not need it."""
    f, x = factors(30, 20, 40), normals(3, 40)
    expected = linear(x, *f, None, True)
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))  # type: ignore[operator]

    def model(x: Tensor) -> Tensor:
        return operators.linear(x, *f, None, True)

    with torch.no_grad():
        assert torch.equal(model(x), expected)
        with Mode():
            model(x)
        assert seen == ["diba.linear.default"]
        assert torch.equal(torch.vmap(model)(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        traced = torch.fx.experimental.proxy_tensor.make_fx(model)(x)
        assert "diba.linear.default" in [str(node.target) for node in traced.graph.nodes]
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


# ---------------------------------------------------------------- what is kept


def test_changed_diagonals_and_bits_count_at_once() -> None:
    f, x = factors(30, 20, 40), normals(3, 40)
    linear(x, *f, None, False)
    f.d1.mul_(2)
    f.d2.data[3] = 7.0  # torch does not count this one; the diagonals are compared by value
    f.b1.bitwise_xor_(torch.ones_like(f.b1))
    f.b2[5] = 0
    expected = reference.linear(x.double(), *in_float64(f), None, False)
    assert snr(expected, linear(x, *f, None, False)) > 40


def test_inference_tensors_of_the_same_memory_have_the_same_bits() -> None:
    """They have no version, by which the short way would know that nothing has changed."""
    f, x = factors(30, 20, 40), normals(3, 40)
    with torch.no_grad():
        expected = linear(x, *f, None, True)
    with torch.inference_mode():
        b1, b2 = (torch.empty(0, dtype=torch.uint8).set_(b) for b in (f.b1, f.b2))
        assert (b1.data_ptr(), b1.is_inference()) == (f.b1.data_ptr(), True)
        assert torch.equal(linear(x, f.d1, b1, f.d2, b2, f.d3, None, True), expected)


def test_biases_of_any_layout() -> None:
    f, x = factors(30, 20, 40), normals(3, 40)
    wide = normals(30, 2)
    with torch.no_grad():
        expected = linear(x, *f, wide[:, 0].contiguous(), True)
        assert torch.equal(linear(x, *f, wide[:, 0], True), expected)


def test_layouts_are_forgotten_with_their_tensors() -> None:
    gc.collect()
    before = len(packed._kept)
    f, x = factors(30, 20, 40), normals(3, 40)
    linear(x, *f, None, False)
    times_bits(x, f.b2, 40, False, False)
    assert len(packed._kept) == before + 2
    last = weakref.ref(f.b1)
    del f
    gc.collect()
    assert last() is None
    assert len(packed._kept) == before


def test_the_same_bits_in_two_layers() -> None:
    f, other, x = factors(30, 20, 40), factors(30, 20, 40, seed=9), normals(3, 40)
    mixed = f._replace(b2=other.b2, d1=other.d1)
    for one in (f, mixed, f, mixed):
        expected = reference.linear(x.double(), *in_float64(one), None, True)
        assert snr(expected, linear(x, *one, None, True)) > 40


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    f, x = trained(factors(30, 20, 40)), normals(4, 40).requires_grad_()

    def everything() -> list[Tensor]:
        y = linear(x, *f, None, True)
        z = times_bits(x.detach(), f.b2, 40, True, False)
        return [y.detach(), z, *torch.autograd.grad(y.square().sum(), [x, f.d1, f.d2, f.d3])]

    expected = everything()
    torch.set_default_dtype(dtype)
    try:
        found = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_inference_mode_and_views() -> None:
    f, x = factors(30, 20, 40), normals(4, 80)[:, ::2]
    expected = reference.linear(x.double(), *in_float64(f), None, True)
    with torch.inference_mode():
        inside = Factors(*(t.clone() for t in f))
        assert snr(expected, linear(x, *inside, None, True)) > 40
    assert snr(expected, linear(x, *f, None, True)) > 40


# ---------------------------------------------------------------- what torch asks of an operator


@SIGNS
def test_opcheck(sign: bool) -> None:
    f, x, bias = trained(factors(30, 20, 40)), normals(3, 40).requires_grad_(), normals(30).requires_grad_()
    torch.library.opcheck(linear.default, (x, *f, bias, sign))
    torch.library.opcheck(linear.default, (x.detach().bfloat16(), *f, None, sign))
    plain = Factors(*(t.detach() for t in f))
    torch.library.opcheck(
        torch.ops.diba.linear_backward.default, (normals(3, 30), x.detach(), *plain, sign, True)
    )
    torch.library.opcheck(
        torch.ops.diba.linear_backward.default, (normals(3, 30), x.detach(), *plain, sign, False)
    )
    torch.library.opcheck(times_bits.default, (x, f.b2, 40, sign, False))


@pytest.fixture
def eager_backend() -> Iterator[str]:
    """Traces as every backend does, forward and backward, and runs the graphs without generating code."""
    torch.compiler.reset()
    yield "aot_eager"
    torch.compiler.reset()


def test_compile_without_a_graph_break(eager_backend: str) -> None:
    f, x = trained(factors(30, 20, 40)), normals(3, 40).requires_grad_()

    def model(x: Tensor) -> Tensor:
        return torch.relu(linear(x, *f, None, True)).square().sum()

    compiled = torch.compile(model, fullgraph=True, backend=eager_backend)
    found = torch.autograd.grad(compiled(x), [x, f.d1, f.d2, f.d3])
    expected = torch.autograd.grad(model(x), [x, f.d1, f.d2, f.d3])
    assert all(map(torch.equal, found, expected))


def test_export_has_one_node_and_any_batch() -> None:
    f = factors(30, 20, 40)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in f._asdict().items():
                self.register_buffer(name, value)

        def forward(self, x: Tensor) -> Tensor:
            return linear(x, self.d1, self.b1, self.d2, self.b2, self.d3, None, True)  # type: ignore[no-any-return]

    batch = torch.export.Dim("batch", min=1, max=100)
    program = torch.export.export(Model(), (normals(3, 40),), dynamic_shapes=({0: batch},))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == [
        "diba.linear.default"
    ]
    x = normals(7, 40)
    assert torch.equal(program.module()(x), linear(x, *f, None, True))


def test_a_copy_multiplies_like_the_original() -> None:
    f, x = factors(30, 20, 40), normals(3, 40)
    y = linear(x, *f, None, True)
    assert torch.equal(linear(x, *copy.deepcopy(f), None, True), y)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x": torch.ones(3, 40, dtype=torch.int64)},
            TypeError,
            "x is of dtype torch.int64; it must be floating",
        ),
        ({"x": torch.ones(3, 41)}, ValueError, r"x has shape \(3, 41\); its last axis must have 40 entries"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x has shape \(\)"),
        ({"d2": torch.ones(20, dtype=torch.float64)}, TypeError, "must be of one dtype"),
        (
            {"b1": torch.zeros(30, 4, dtype=torch.uint8)},
            ValueError,
            r"b1 .* must be contiguous uint8 of shape \(30, 3\)",
        ),
        ({"b2": torch.zeros(20, 5)}, ValueError, r"b2 is a torch.float32 tensor"),
        ({"bias": torch.ones(31)}, ValueError, r"bias has shape \(31,\); it must be \(30,\)"),
    ],
)
def test_bad_input(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    arguments = {"x": normals(3, 40), **factors(30, 20, 40)._asdict(), "bias": None, "sign": True} | change
    with pytest.raises(error, match=message):
        linear(*arguments.values())


def test_bad_input_of_times_bits() -> None:
    bits = torch.zeros(20, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="its last axis must have 20 entries"):
        times_bits(normals(3, 40), bits, 40, True, True)
    with pytest.raises(TypeError, match="must be floating point"):
        times_bits(torch.ones(3, 40, dtype=torch.int32), bits, 40, True, False)
    with pytest.raises(ValueError, match=r"must be contiguous uint8 of shape \(20, 6\)"):
        times_bits(normals(3, 41), bits, 41, True, False)
