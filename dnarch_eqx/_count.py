# Polynomials of sizes: what counts of operations, parameters and bytes are.

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._custom_types import Sizes
from ._misc import as_float, known
from ._sizes import present
from ._terms import Atom, resolved, Term


# The size of an axis, or how much of a block of a depth is there.
Factor: TypeAlias = tuple[str, int | None]
# A product of factors -> how often.
Terms: TypeAlias = dict[tuple[Factor, ...], float]


@dataclasses.dataclass(frozen=True)
class Count:
    """A number of operations, parameters or bytes as a differentiable function of the sizes:
    a cost for [`dnarch_eqx.Budget`][]. Comparable, as programs depend on it: one that is
    made again is the same.

    - `unit`: of what.
    - `terms`: products of factors, with how often. A factor is an axis (its size), or an axis
        and an index (how much of that block is there).
    - `capacities`: of the axes. One that is not among the sizes counts at its capacity.
    """

    unit: str
    terms: tuple[tuple[float, tuple[Factor, ...]], ...]
    capacities: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, unit: str, terms: Terms, capacities: Mapping[str, int]) -> "Count":
        listed = sorted((n, factors) for factors, n in terms.items() if n)
        return cls(unit, tuple(listed), tuple(sorted(capacities.items())))

    def __call__(self, sizes: Sizes) -> Float[Array, ""]:
        capacities = dict(self.capacities)
        check_sizes(sizes, capacities)
        size = {a: as_float(sizes.get(a, n)) for a, n in capacities.items()}
        values = [as_float(1.0)[None]]
        values += [size[axis][None] for axis in capacities]
        values += [present(size[axis], capacities[axis]) for axis in self._depths]
        known, coefficients, places = self._table
        of = jnp.concatenate(values)
        total = jnp.asarray(coefficients, of.dtype)
        for column in places:
            total = total * of[column]
        return known + jnp.sum(total)

    @functools.cached_property
    def _depths(self) -> tuple[str, ...]:
        found = {axis for _, factors in self.terms for axis, i in factors if i is not None}
        return tuple(sorted(found))

    @functools.cached_property
    def _table(self) -> tuple[float, np.ndarray, np.ndarray]:
        """What is constant; of other terms the numbers and, by factor, which value it is."""
        at: dict[Factor, int] = {
            (axis, None): i + 1 for i, (axis, _) in enumerate(self.capacities)
        }
        start, capacities = 1 + len(at), dict(self.capacities)
        for axis in self._depths:
            at |= {(axis, i): start + i for i in range(capacities[axis])}
            start += capacities[axis]
        fixed = sum(n for n, factors in self.terms if not factors)
        some = [(n, factors) for n, factors in self.terms if factors]
        most = max((len(factors) for _, factors in some), default=0)
        places = np.zeros((most, len(some)), np.int32)
        for j, (_, factors) in enumerate(some):
            places[: len(factors), j] = [at[factor] for factor in factors]
        return float(fixed), np.array([n for n, _ in some]), places


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest of some counts: what is alive at once."""

    unit: str
    counts: tuple[Count, ...]

    def __call__(self, sizes: Sizes) -> Float[Array, ""]:
        return jnp.max(jnp.stack([count(sizes) for count in self.counts]))

    @property
    def capacities(self) -> tuple[tuple[str, int], ...]:
        return self.counts[0].capacities


def number(n: float) -> Terms:
    return {(): float(n)} if n else {}


def factor(axis: str, index: int | None = None) -> Terms:
    return {((axis, index),): 1.0}


def add(*some: Terms) -> Terms:
    total: Terms = {}
    for terms in some:
        for factors, n in terms.items():
            total[factors] = total.get(factors, 0.0) + n
    return total


def times(*some: Terms) -> Terms:
    total = number(1)
    for terms in some:
        if len(terms) == 1 and () in terms:  # as most are
            total = {factors: n * terms[()] for factors, n in total.items()}
            continue
        product: Terms = {}
        for a, n in total.items():
            for b, m in terms.items():
                factors = tuple(sorted((*a, *b), key=_order))
                product[factors] = product.get(factors, 0.0) + n * m
        total = product
    return total


def scaled(by: float, terms: Terms) -> Terms:
    return {factors: by * n for factors, n in terms.items()}


def _order(factor: Factor) -> tuple[str, int]:
    axis, index = factor
    return axis, -1 if index is None else index


def size_of(dims: Iterable[Term], names: Mapping[Atom, str]) -> Terms:
    """How many positions an array of these dimensions has."""

    def part(x: Any) -> Terms:
        if not isinstance(x, Atom):
            return add(*(times(*map(part, resolved(inner))) for inner in x.parts))
        return factor(names[x]) if x in names else number(x.size)

    return times(*(part(x) for dim in dims for x in resolved(dim)))


def largest(unit: str, some: Iterable[Terms], capacities: Mapping[str, int]) -> Largest:
    """The largest of many, of which those are left out that never are, at sizes tried."""
    counts = list(dict.fromkeys(Count.of(unit, terms, capacities) for terms in some))
    rng = np.random.default_rng(0)
    shares = [1.0, 0.5, *rng.uniform(0.1, 1.0, (24, len(capacities)))]
    kept: dict[int, None] = {}
    for share in shares:
        share = np.broadcast_to(share, len(capacities))
        sizes = {a: x * n for x, (a, n) in zip(share, capacities.items())}
        kept[int(np.argmax([_evaluated(count, sizes) for count in counts]))] = None
    return Largest(unit, tuple(counts[i] for i in kept))


def _evaluated(count: Count, sizes: Mapping[str, float]) -> float:
    """On the host: there may be thousands."""
    total = 0.0
    for n, factors in count.terms:
        for axis, index in factors:
            n *= sizes[axis] if index is None else min(max(sizes[axis] - index, 0.0), 1.0)
        total += n
    return total


def check_sizes(sizes: Any, capacities: Mapping[str, int]) -> None:
    """Raises `ValueError` for sizes of other axes, and for those, if they are known, that no
    axis of this capacity can have.
    """
    if not isinstance(sizes, Mapping):
        raise ValueError(f"`sizes` must be a dictionary from axis to size, got {sizes!r}.")
    for axis, size in sizes.items():
        if axis not in capacities:
            raise ValueError(f"`sizes` names {axis!r}; the axes are {sorted(capacities)}.")
        x = known(f"sizes[{axis!r}]", size)
        if x is not None and not 0 <= x <= capacities[axis]:
            raise ValueError(
                f"`sizes` has {size} for axis {axis!r}; sizes lie between 0 and the capacity, "
                f"here {capacities[axis]}."
            )
