"""Products always follow the bits that a layer holds, whoever wrote them and however; copies keep theirs."""

from __future__ import annotations

import copy
import io
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diba.torch import DibaConv2d, DibaEmbedding, DibaLinear
from diba.torch.ops.operators import packed, reference

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL, LARGE = (64, 96, 32), (1000, 1500, 300)  # n, m, k: all bits are looked at, or some
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])


def layer(size: tuple[int, int, int], seed: int = 0, alphabet: str = "sign") -> DibaLinear:
    torch.manual_seed(seed)
    return DibaLinear(*size, alphabet=alphabet, bias=False)  # type: ignore[arg-type]


def exact(module: DibaLinear, x: Tensor) -> Tensor:
    """From the bits as they are, in float64, without anything that is kept."""
    d1, d2, d3 = (d.detach().double() for d in module.diagonals())
    return reference.linear(x.double(), d1, module.b1, d2, module.b2, d3, None, module.sign)


def near(found: Tensor, wanted: Tensor) -> bool:
    """Within 40 dB, which fast products keep (docs/run.md); other bits would be about 0 dB away."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return bool((found - wanted).norm() < 1e-2 * wanted.norm())


def follows(module: DibaLinear, x: Tensor) -> bool:
    """Whether a product is that of the bits."""
    return near(module(x), exact(module, x))


# ---------------------------------------------------------------- writes to all bits


def by_broadcast(module: DibaLinear, other: DibaLinear) -> None:
    """As rank 1 of two, from rank 0; gloo writes without counting."""
    store = dist.HashStore()

    def rank(number: int, tensors: list[Tensor]) -> None:
        group = dist.ProcessGroupGloo(store, number, 2, timedelta(seconds=60))
        for tensor in tensors:
            group.broadcast([tensor], dist.BroadcastOptions()).wait()

    sending = threading.Thread(target=rank, args=(0, [other.b1, other.b2]))
    sending.start()
    rank(1, [module.b1, module.b2])
    sending.join()


def by_swapping(module: DibaLinear, other: DibaLinear) -> None:
    torch.utils.swap_tensors(module.b1, other.b1.clone())
    torch.utils.swap_tensors(module.b2, other.b2.clone())


def by_data(module: DibaLinear, other: DibaLinear) -> None:
    module.b1.data = other.b1.clone()
    module.b2.data = other.b2.clone()


def through_data(module: DibaLinear, other: DibaLinear) -> None:
    module.b1.data.copy_(other.b1)
    module.b2.data.copy_(other.b2)


def through_numpy(module: DibaLinear, other: DibaLinear) -> None:
    module.b1.numpy()[...] = other.b1.numpy()
    module.b2.numpy()[...] = other.b2.numpy()


def in_inference_mode(module: DibaLinear, other: DibaLinear) -> None:
    with torch.inference_mode():
        module.b1.copy_(other.b1)
        module.b2.copy_(other.b2)


def by_storage(module: DibaLinear, other: DibaLinear) -> None:
    module.b1.set_(other.b1.clone())  # type: ignore[call-overload]
    module.b2.untyped_storage().copy_(other.b2.untyped_storage())


def by_assignment(module: DibaLinear, other: DibaLinear) -> None:
    module.b1, module.b2 = other.b1.clone(), other.b2.clone()


WRITES: list[Callable[[DibaLinear, DibaLinear], object]] = [
    by_broadcast,
    by_swapping,
    by_data,
    through_data,
    through_numpy,
    in_inference_mode,
    by_storage,
    by_assignment,
    lambda module, other: module.load_state_dict(other.state_dict()),
    lambda module, other: module.load_state_dict(other.state_dict(), assign=True),
    lambda module, other: module.set_factorization(other.factorization()),
]


@SIZES
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("grad", [False, True])
def test_other_bits_count_at_once(
    size: tuple[int, int, int], write: Callable[[DibaLinear, DibaLinear], object], grad: bool
) -> None:
    module, other, x = layer(size), layer(size, seed=1), torch.randn(1, size[0])
    with torch.set_grad_enabled(grad):
        assert follows(module, x)
        write(module, other)
        assert torch.equal(module.b1, other.b1)
        assert torch.equal(module.b2, other.b2)
        assert follows(module, x)


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_a_model_of_inference_mode(alphabet: str) -> None:
    first, second = layer(SMALL, 0, alphabet), layer(SMALL, 1, alphabet)
    with torch.inference_mode():
        model = copy.deepcopy(first)
        assert model.b1.is_inference()
        x = torch.randn(3, SMALL[0])
        assert follows(model, x)
        model.load_state_dict(second.state_dict())
        assert torch.equal(model(x), second(x))
        model.b2[5, 2] ^= 64  # of its own tensors torch counts nothing here
        assert follows(model, x)


# ---------------------------------------------------------------- writes to some


def test_one_bit_of_a_small_layer() -> None:
    module, x = layer(SMALL), torch.randn(1, SMALL[0])
    before = module(x)
    module.b1.numpy()[7, 1] ^= 16
    after = module(x)
    assert (before != after).nonzero().tolist() == [[0, 7]]


def test_one_bit_of_a_large_layer() -> None:
    module, x = layer(LARGE), torch.randn(1, LARGE[0])
    many, row = x.expand(32, -1), 777

    def write() -> None:
        module.b1.numpy()[row, 19] ^= 4  # no byte that every product looks at

    with torch.no_grad():
        before = module(x)
        write()
        assert (module(many) != before).any(0).nonzero().tolist() == [[row]]  # 32 vectors: all bits
        write()
        module.bits_changed()
        assert torch.equal(module(x), before)
        write()
        told = [not torch.equal(module(x), before) for _ in range(128)]
    assert told[-1]
    assert told == sorted(told)


def test_gradients_are_those_of_the_bits() -> None:
    module, x = layer(LARGE), torch.randn(2, LARGE[0])
    rows = slice(700, 800)
    module(x).sum().backward()
    module.b1.numpy()[rows] ^= 255
    module.zero_grad()
    module(x).sum().backward()
    found = module.d1.grad
    d1 = module.d1.detach().double().requires_grad_()
    d2, d3 = module.d2.detach().double(), module.d3.detach().double()
    reference.linear(x.double(), d1, module.b1, d2, module.b2, d3, None, True).sum().backward()
    assert found is not None
    assert d1.grad is not None
    assert near(found[rows], d1.grad[rows])


def test_embeddings_and_convolutions() -> None:
    torch.manual_seed(0)
    table, ids = DibaEmbedding(30, 40, 24), torch.arange(30)
    table(ids)
    table.b2.numpy()[3] ^= 255
    assert near(table(ids), table.dense_weight())
    conv, image = DibaConv2d(4, 6, 3, 20, bias=False), torch.randn(1, 4, 8, 8)
    conv(image)
    conv.b1.data[2] ^= 255
    assert torch.equal(conv(image), copy.deepcopy(conv)(image))


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_bits_past_the_last_column_do_not_count(alphabet: str) -> None:
    module, x = layer((50, 30, 20), 0, alphabet), torch.randn(4, 50)  # of 3 bytes a row, 20 bits; of 7, 50
    with torch.no_grad():
        wanted = module(x), torch.ops.diba.times_bits(x, module.b2, 50, module.sign, False)
        module.b1[:, -1] |= 0xF0
        module.b2[:, -1] |= 0xFC
        assert torch.equal(module(x), wanted[0])
        assert torch.equal(torch.ops.diba.times_bits(x, module.b2, 50, module.sign, False), wanted[1])
    found = torch.autograd.grad(module(x).square().sum(), module.parameters())
    module.b1[:, -1] &= 0x0F
    module.b2[:, -1] &= 0x03
    clean = torch.autograd.grad(module(x).square().sum(), module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))


# ---------------------------------------------------------------- equal bits are not packed again


def test_a_broadcast_of_equal_bits_packs_nothing() -> None:
    module, x = layer(SMALL), torch.randn(1, SMALL[0])
    module(x)
    kept = packed._kept[module.b1.data_ptr()].compiled
    with torch.no_grad():
        module.b1.copy_(module.b1.clone())  # as DistributedDataParallel does before every forward pass
        module(x)
        assert packed._kept[module.b1.data_ptr()].compiled is kept
        module.b1.bitwise_xor_(torch.ones_like(module.b1))
        module(x)
    assert packed._kept[module.b1.data_ptr()].compiled is not kept


def test_another_view_of_the_same_memory() -> None:
    square = DibaLinear(64, 16, 128, alphabet="sign", bias=False)  # b1: 16 rows of 16 bytes
    x = torch.randn(2, 64)
    square(x)
    with pytest.raises(ValueError, match="must be contiguous"):
        torch.ops.diba.linear(x, square.d1, square.b1.T, square.d2, square.b2, square.d3, None, True)


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize("decay", [0.9, 0.9999])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_models_keep_their_bits(decay: float, use_buffers: bool) -> None:
    model = nn.Sequential(layer(SMALL), DibaEmbedding(50, 24, 40)).requires_grad_(False)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=use_buffers)
    for _ in range(5):
        for module in model:
            module.d1 *= 1.1
        average.update_parameters(model)
    if use_buffers:  # what torch makes of the bits
        assert not torch.equal(average.module[0].b1, model[0].b1)
    mine, theirs = average.module.state_dict(), model.state_dict()
    for name in ("0.b1", "0.b2", "1.b1", "1.b2"):
        assert torch.equal(mine[name], theirs[name])
    assert not torch.equal(mine["0.d1"], theirs["0.d1"])
    assert follows(average.module[0], torch.randn(2, SMALL[0]))
    ids = torch.arange(50)
    assert near(average.module[1](ids), average.module[1].dense_weight())


@pytest.mark.parametrize("use", ["forward", "factorization", "dense_weight"])
def test_whatever_reads_an_average_first(use: str) -> None:
    model = layer(SMALL).requires_grad_(False)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(model)
    average.update_parameters(model)
    {
        "forward": lambda m: m(torch.randn(1, SMALL[0])),
        "factorization": lambda m: m.factorization(),
        "dense_weight": lambda m: m.dense_weight(),
    }[use](average.module)
    assert torch.equal(average.module.b1, model.b1)


def test_a_copy_has_bits_of_its_own() -> None:
    module, x = layer(SMALL), torch.randn(1, SMALL[0])
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for row in range(0, 96, 7):  # lower by one, as averages are, but not wherever the same byte stands
            twin.b1[row, 0] = twin.b1[row, 0] & 254
        twin.b2 &= 0xFE
    changed = twin.b1.clone(), twin.b2.clone()
    assert follows(twin, x)
    assert torch.equal(twin.b1, changed[0])
    assert torch.equal(twin.b2, changed[1])
    assert follows(module, x)


def test_a_copy_of_a_layer_without_values() -> None:
    module = layer(SMALL).to("meta")
    twin = copy.deepcopy(module)
    assert all(tensor.is_meta for tensor in twin.state_dict().values())
    source = layer(SMALL)
    twin.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(1, SMALL[0])
    assert torch.equal(twin(x), source(x))


def test_a_copy_is_written_without_its_origin() -> None:
    module = layer(SMALL)
    sizes = []
    for each in (module, copy.deepcopy(module)):
        file = io.BytesIO()
        torch.save(each, file)
        sizes.append(file.tell())
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False).b1, module.b1)
    assert sizes[0] == sizes[1]


def test_functional_call_multiplies_by_what_it_is_given() -> None:
    module, other, x = layer(SMALL), layer(SMALL, seed=1), torch.randn(1, SMALL[0])
    module(x)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    assert torch.equal(torch.func.functional_call(module, state, (x,)), other(x))
    assert follows(module, x)
