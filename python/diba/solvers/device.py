"""The ramp of ADMM in plain PyTorch, on whatever device torch has: the same steps, with dense products.

The recipe is that of ``admm`` and ``metric``, and so are the starts. What differs: products are torch's, in
float32, where compiled code rounds them to a few bits, so that results are as good but have other bits. Signs
stay dense on the device. torch is imported here alone, and this module only where a device is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..bits import BitMatrix
from .admm import Admm, Iterate
from .metric import FIRST_PENALTY, iterations_for
from .sign_side import POWER_STEPS, RIDGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._internal.check import Alphabet

__all__ = ["DeviceAdmm", "DeviceMetric", "usable"]

_TINY = 2.0**-126


def usable(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: torch knows no such device, or cannot use it on this machine.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"device is {name!r}, which torch {torch.__version__} cannot use here ({reason}); use 'cpu', or "
            "leave it out for diba's compiled code"
        ) from None
    return device


class DeviceMetric:
    """Second moments as the steps need them, like :class:`diba.solvers.metric.Metric`.

    Args:
        C: Second moments with a diagonal of ones, float64, shape (n, n).
        device: Name of the device.
    """

    def __init__(self, C: NDArray[np.float64], device: str) -> None:
        place = usable(device)
        self.C = torch.from_numpy(C.astype(np.float32)).to(place)
        exact = self.C if place.type == "mps" else torch.from_numpy(C).to(place)
        values, vectors = torch.linalg.eigh(exact)
        self.values = values.clamp(min=0).float()[:, None]
        self.vectors = vectors.float()


class DeviceSide:
    """One side, as :class:`diba.solvers.sign_side.SignSide`; all variables are tensors.

    Args:
        A: Shape (p, rows): ``A X`` are the correlations with the other side.
        k: Inner dimension.
        random: Generator of the normal start.
        balance: Weights w (k,) of the balance penalty; None for no penalty.
        outer: u to keep, of length one; None to fit it.
    """

    def __init__(
        self, A: Tensor, k: int, random: np.random.Generator, balance: Tensor | None, outer: Tensor | None
    ) -> None:
        self.k, self._A = k, A
        rows = A.shape[1]
        self.state = torch.from_numpy(random.standard_normal((rows, k), dtype=np.float32)).to(A.device)
        self.balance, self.fixed = balance, outer is not None
        self.scale = self.state.new_ones(rows) if outer is None else outer
        self.inner, self.norms = self.state.new_ones(k), self.state.new_ones(k)
        self._project(self.inner, POWER_STEPS)
        self.state = self.X * self.inner  # the dual U starts at zero

    def _project(self, start: Tensor, steps: int = 1) -> None:
        """Signs, u and v of the state, by power iteration from v = ``start``."""
        magnitudes, self.inner = self.state.abs(), start
        for _ in range(steps):
            if not self.fixed:
                self.scale = _of_length_one(magnitudes @ _of_length_one(self.inner))
            self.inner = self.scale @ magnitudes
        self.negative = self.state < 0
        self.X = torch.where(self.negative, -1.0, 1.0) * self.scale[:, None]
        self._changed()

    def _changed(self) -> None:
        self.gram, self.correlations = self.X.T @ self.X, self._A @ self.X

    def as_partner(self) -> tuple[Tensor, Tensor, Tensor]:
        """(X'X, A X, lengths of the columns of Z): what the other side's steps take this side X for."""
        return self.gram, self.correlations, self.column_norms()

    def column_norms(self) -> Tensor:
        """Lengths of the columns of Z in the units of A."""
        return _divided(self.inner, self.norms)

    def advance(
        self,
        gram: Tensor,
        correlations: Tensor,
        norms: Tensor,
        penalties: tuple[float, ...],
        power_steps: int = 1,
    ) -> float:
        """Make one ADMM step; see :meth:`diba.solvers.sign_side.SignSide.advance`."""
        (penalty,) = penalties
        weights, before, rescaled, projected = self._in_units(norms, self.state, self.X)
        along = _total(correlations * self.X * weights)
        target = correlations + penalty * (2 * projected - rescaled)
        system = _shifted(gram, RIDGE + penalty, self.balance)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(system).L)
        self.state = rescaled - projected + target @ inverse
        self._project(before, power_steps)
        return along

    def _in_units(self, norms: Tensor, state: Tensor, X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """d2, and in the units of new norms v, the state and its projection Z."""
        weights, ratio = norms * self.column_norms(), _divided(norms, self.norms)
        self.norms = norms
        before = self.inner * ratio
        return weights, before, state * ratio, X * before

    def along(self, correlations: Tensor, d2: Tensor) -> float:
        """``<X diag(d2) Y', A>`` for the other side's Y, of which ``correlations`` are ``A Y``."""
        return _total(correlations * self.X * d2)

    @staticmethod
    def energy_with(own: Tensor, other: Tensor, d2: Tensor) -> float:
        """``|X diag(d2) Y'|^2`` from the Gram matrices of both sides."""
        return _total(own * other * d2 * d2[:, None])

    def excess(self) -> NDArray[np.intc]:
        """Exponents of the norms."""
        exponents: NDArray[np.intc] = np.frexp(self.norms.cpu().numpy())[1]
        return exponents

    def shift(self, exponents: NDArray[np.intc]) -> None:
        """Multiply the norms by powers of two."""
        self.norms = torch.ldexp(self.norms, torch.from_numpy(exponents).to(self.norms.device))

    def kept(self) -> tuple[Tensor, Tensor]:
        """The signs and u as they are now: what is negative, and u."""
        return self.negative, self.scale


class DeviceInputSide(DeviceSide):
    """The right side for a metric, as :class:`diba.solvers.metric.InputSide`.

    Args:
        metric: Of the inputs.
        AC: ``A C``, shape (m, n).
        k: See :class:`DeviceSide`; so are the others.
        iterations: Steps of conjugate gradients.
    """

    def __init__(
        self,
        metric: DeviceMetric,
        AC: Tensor,
        k: int,
        random: np.random.Generator,
        balance: Tensor | None,
        outer: Tensor | None,
        iterations: int,
    ) -> None:
        self._metric, self._iterations = metric, iterations
        super().__init__(AC, k, random, balance, outer)
        self._solution = self.image * self.inner
        self._eigen_state = self._solution

    def _changed(self) -> None:
        self.image = self._metric.vectors.T @ self.X
        self.gram = self.image.T @ (self._metric.values * self.image)
        self.correlations = self._A @ self.X

    def as_partner(self) -> tuple[Tensor, Tensor, Tensor]:
        lengths = self.gram.diagonal().clamp(min=0).sqrt()
        shares = _divided(torch.ones_like(lengths), lengths)
        return (
            self.gram * shares * shares[:, None],
            self.correlations * shares,
            self.column_norms() * lengths,
        )

    def advance(
        self,
        gram: Tensor,
        correlations: Tensor,
        norms: Tensor,
        penalties: tuple[float, ...],
        power_steps: int = 1,
    ) -> float:
        (penalty,), values = penalties, self._metric.values
        ratio = _divided(norms, self.norms)
        weights, before, rescaled, projected = self._in_units(norms, self._eigen_state, self.image)
        along = _total(values * correlations * self.image * weights)
        dual, start = rescaled - projected, self._solution * ratio
        system = _shifted(gram, RIDGE, self.balance)
        right = values * correlations + penalty * (projected - dual)
        self._solution = _solved(system, values, penalty, right, start, self._iterations)
        self._eigen_state = self._solution + dual
        self.state = self._metric.vectors @ self._eigen_state
        self._project(before, power_steps)
        return along


class DeviceAdmm(Admm):
    """One run of ADMM on a device; its arguments and attributes are those of :class:`Admm`.

    Args:
        device: Name of the device.
        metric: Of the inputs, to minimise the error of outputs; None for the squared error.
        A: Matrix to factor, float32, shape (m, n), magnitudes up to about 1.
        k: Inner dimension.
        seed: Seed of the normal start, the same as that of compiled code.
        balance: See :class:`Admm`; so is ``outer``.
    """

    def __init__(
        self,
        device: str,
        metric: DeviceMetric | None,
        A: NDArray[np.float32],
        k: int,
        seed: int,
        balance: float,
        *,
        outer: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    ) -> None:
        self._device, self._metric = usable(device), metric
        self.left: Any
        self.right: Any
        super().__init__(A, k, seed, balance, 1, outer=outer)
        if metric is not None:
            self.first_penalty = FIRST_PENALTY

    def _sides(
        self,
        A: NDArray[np.float32],
        square: float,
        k: int,
        random: np.random.Generator,
        balance: Any,
        outer: Any,
        threads: int,
    ) -> tuple[float, Any, Any]:
        weights = [None if w is None else self._there(w) for w in balance]
        kept = [None if u is None else self._there(u) for u in outer]
        matrix, metric = self._there(A), self._metric
        unit = float(self._unit)
        if metric is None:
            scaled = matrix / unit
            left = DeviceSide(scaled.T, k, random, weights[0], kept[0])
            return square, left, DeviceSide(scaled, k, random, weights[1], kept[1])
        m, n = A.shape
        AC = matrix @ metric.C
        left = DeviceSide((matrix @ metric.vectors / unit).T, k, random, weights[0], kept[0])
        count = iterations_for(m, n, k)
        right = DeviceInputSide(metric, AC / unit, k, random, weights[1], kept[1], count)
        return _total(matrix * AC), left, right

    def _step(self, penalties: tuple[float, ...], power_steps: int, last: bool) -> None:
        try:
            super()._step(penalties, power_steps, last)
        except torch.cuda.OutOfMemoryError as error:
            m, n = self.left.X.shape[0], self.right.X.shape[0]
            raise MemoryError(
                f"device {str(self._device)!r} has too little memory for a {m} x {n} matrix with k = "
                f"{self.left.k}; use a smaller k, split A by rows, or leave the device out"
            ) from error

    def _there(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.array(values, np.float32, order="C")).to(self._device)

    def factors(
        self, alphabet: Alphabet
    ) -> tuple[NDArray[np.float32], BitMatrix, NDArray[np.float32], BitMatrix, NDArray[np.float32]]:
        """Factors of the best iterate, brought from the device; see :meth:`Admm.factors`."""
        left, right = _words(self.best.left), _words(self.best.right)
        d1, d2, d3 = (np.ascontiguousarray(_here(d)) for d in (self.best.d1, self.best.d2, self.best.d3))
        self.best = Iterate(self.best.objective, left, d1, d2, right, d3)
        return super().factors(alphabet)


def _solved(system: Tensor, values: Tensor, penalty: float, right: Tensor, x: Tensor, steps: int) -> Tensor:
    """Rows of x after steps of conjugate gradients, each for its ``value * system + penalty``."""

    def times(rows: Tensor) -> Tensor:
        return values * (rows @ system) + penalty * rows

    residual = right - times(x)
    direction, square = residual, residual.square().sum(1, keepdim=True)
    for step in range(steps):
        product = times(direction)
        length = _divided(square, (direction * product).sum(1, keepdim=True))
        x = x + length * direction
        if step + 1 < steps:
            residual = residual - length * product
            before, square = square, residual.square().sum(1, keepdim=True)
            direction = residual + _divided(square, before) * direction
    return x


def _shifted(gram: Tensor, shift: float, w: Tensor | None) -> Tensor:
    """``gram + shift I + w w'``."""
    system = gram.clone() if w is None else gram + w * w[:, None]
    system.diagonal().add_(shift)
    return system


def _of_length_one(x: Tensor) -> Tensor:
    result: Tensor = x / torch.linalg.vector_norm(x).clamp(min=_TINY)
    return result


def _divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is not positive."""
    result: Tensor = torch.where(b > 0, a / b, 0.0)
    return result


def _total(x: Tensor) -> float:
    return float(x.sum(dtype=None if x.device.type == "mps" else torch.float64))


def _here(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def _words(negative: Any) -> NDArray[np.uint64]:
    """Packed signs of what is negative."""
    packed = np.packbits(~_here(negative), axis=1, bitorder="little")
    return BitMatrix.from_packed_rows(packed, negative.shape[1], "sign").words
