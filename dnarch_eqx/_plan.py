import fnmatch
import functools as ft
import itertools as it
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ._custom_types import Cost
from ._gaussian import Gaussian
from ._masks import Masks
from ._misc import at_least
from ._sizes import active, covered


# The sizes that a plan may take on one axis: increasing, the last is the capacity (whatever
# the rule, it closes the ladder).
Ladder: TypeAlias = tuple[int, ...]
Rule: TypeAlias = Callable[[int], Ladder]


#
# Rules: from a capacity to a ladder.
#


def multiples(of: int = 8) -> Rule:
    """Every multiple of `of`: little waste, many programs."""
    at_least("of", of, 1)
    return lambda capacity: _closed(range(of, capacity, of), capacity)


def geometric(ratio: float = 1.25, multiple: int = 8) -> Rule:
    """Multiples of `multiple` (what the hardware likes: 8 or 16 on CPU and GPU, 128 on
    TPU), each at least `ratio` times the one before: few programs, waste below
    `1 - 1 / ratio` but for rounding.
    """
    at_least("ratio", ratio, 1)
    at_least("multiple", multiple, 1)
    return lambda capacity: _thinned(range(multiple, capacity, multiple), ratio, capacity)


def smooth(ratio: float = 1.125) -> Rule:
    """Lengths whose prime factors are 2, 3 and 5, for resolutions: FFTs of other lengths
    can be several times slower. Each is at least `ratio` times the one before. Even lengths
    of an even capacity, which need less padding.
    """
    at_least("ratio", ratio, 1)
    step = lambda capacity: 1 + (capacity + 1) % 2
    return lambda capacity: _thinned(
        filter(is_smooth, range(step(capacity), capacity, step(capacity))), ratio, capacity
    )


def odd(ratio: float = 1.25) -> Rule:
    """Odd extents, for kernels: one position lies at the centre. Each is at least `ratio`
    times the one before.
    """
    at_least("ratio", ratio, 1)
    return lambda capacity: _thinned(range(3, capacity, 2), ratio, capacity)


def every() -> Rule:
    """Every size, for depth: each block counts."""
    return lambda capacity: _closed(range(1, capacity), capacity)


def full() -> Rule:
    """The capacity alone: masks, but no shrinking."""
    return lambda capacity: (capacity,)


def buckets(masks: Masks, rules: Rule | Mapping[str, Rule] | None = None) -> dict[str, Ladder]:
    """The ladder of every axis.

    **Arguments:**

    - `masks`: the masks, for their names and capacities.
    - `rules`: one rule for all axes, or a dictionary from pattern (`"*.kernel*"`, as in
        [`fnmatch`][]) to rule, of which the first that matches an axis counts. By default
        `odd()` for Gaussian masks and `multiples(8)` for the others. Give short axes,
        like a depth or a number of heads, `every()`.

    **Returns:**

    A dictionary from axis to increasing sizes, the last of which is the capacity.
    """

    if rules in (every, full, multiples, geometric, smooth, odd):
        raise ValueError("`rules` must be a rule: call it, as in `every()`.")

    def rule_of(axis: str) -> Rule:
        if rules is None:
            return odd() if isinstance(masks[axis], Gaussian) else multiples(8)
        if not isinstance(rules, Mapping):
            return rules
        for pattern, rule in rules.items():
            if fnmatch.fnmatchcase(axis, pattern):
                return rule
        raise ValueError(f"No pattern of `rules` matches axis {axis!r}: {list(rules)}.")

    ladders = {axis: tuple(rule_of(axis)(mask.capacity)) for axis, mask in masks.items()}
    for axis, ladder in ladders.items():
        check_ladder(axis, ladder, masks[axis])
    return ladders


#
# Plans.
#


class Plan(Mapping[str, int]):
    """Axis -> bucket. Immutable, hashable and comparable: a static argument of the one
    compiled step. An axis that a plan does not name is at its capacity.
    """

    __slots__ = ("_hash", "_sizes")

    def __init__(self, sizes: Mapping[str, int] | None = None):
        sizes = {} if sizes is None else sizes
        for axis, size in sizes.items():
            if not (
                isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1
            ):
                raise ValueError(f"Axis {axis!r}: a bucket is a positive integer, not {size}.")
        self._sizes = {axis: int(sizes[axis]) for axis in sorted(sizes)}
        self._hash = hash(tuple(self._sizes.items()))

    def __getitem__(self, axis: str) -> int:
        return self._sizes[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._sizes == other._sizes

    def __or__(self, other: Mapping[str, int]) -> "Plan":
        """The buckets of both, those of `other` where both name an axis."""
        return Plan({**self._sizes, **other})

    def __ror__(self, other: Mapping[str, int]) -> "Plan":
        return Plan({**other, **self._sizes})

    def __reduce__(self):
        return Plan, (self._sizes,)  # the hash of a string is another in every process

    def __repr__(self) -> str:
        return f"Plan({', '.join(f'{axis}={size}' for axis, size in self.items())})"

    def covers(self, masks: Masks) -> Bool[Array, ""]:
        """Whether no active position of any axis is cropped. Works inside jit."""
        return covered(self, masks)

    def changes(self, before: "Plan") -> dict[str, tuple[int | None, int | None]]:
        """The axes whose buckets differ from those of `before`: `{axis: (old, new)}`."""
        return {
            axis: (before.get(axis), self.get(axis))
            for axis in sorted({*self, *before})
            if before.get(axis) != self.get(axis)
        }


@jax.jit
def _active(masks: Masks) -> Int[Array, " axes"]:
    return jnp.stack([n for _, n in sorted(active(masks).items())])


def counts(masks: Masks) -> dict[str, int]:
    """The active counts as integers on the host, in one transfer."""
    if not masks:
        return {}
    with jax.ensure_compile_time_eval():  # inside jit, too, for masks that are not traced
        return dict(zip(sorted(masks), np.asarray(_active(masks)).tolist()))


def exact(masks: Masks) -> Plan:
    """The plan without buckets: every axis at its active count. What is deployed."""
    return Plan({axis: max(n, 1) for axis, n in counts(masks).items()})


def plan(masks: Masks, buckets: Mapping[str, Ladder], *, headroom: float = 0.0) -> Plan:
    """The smallest plan that covers the masks. On the host.

    **Arguments:**

    - `masks`: the masks, not traced.
    - `buckets`: the ladders. An axis without one is at its capacity.
    - `headroom`: how many more positions than the active ones every bucket is to hold, as a
        share of them (rounded down: a depth of 4 has none at 0.1).
    """
    at_least("headroom", headroom, 0)
    return _fit(counts(masks), masks, buckets, headroom)


def replan(
    plan: Plan,
    masks: Masks,
    buckets: Mapping[str, Ladder],
    *,
    slack: float = 0.25,
    headroom: float = 0.1,
    cost: Cost | None = None,
) -> Plan:
    """The same plan while it covers the masks and fits them well, else the plan that a
    new compilation should have. On the host; lazy, since every new plan is a compilation.

    **Arguments:**

    - `plan`, `masks`, `buckets`: the present plan, masks and ladders.
    - `slack`: how much larger than a new plan the present one may be before it is given up
        although it covers: 0.25 is 25 %.
    - `headroom`: of the new plan, see [`dnarch_eqx.plan`][]. Since all axes share a
        compilation, all are given some when one has to grow: those that grow together
        then do not cross their boundaries one by one. With `slack` and `headroom` at 0
        every plan is tight.
    - `cost`: by what "larger" is measured. By default the mean over the axes of their
        buckets' ratios.

    **Returns:**

    A plan that covers the masks: `plan` itself, unless it must grow or it pays to shrink.
    """
    at_least("slack", slack, 0)
    at_least("headroom", headroom, 0)
    now = counts(masks)
    new = _fit(now, masks, buckets, headroom)
    present = {axis: plan.get(axis, mask.capacity) for axis, mask in masks.items()}
    if any(now[axis] > present[axis] for axis in now):
        return new
    if cost is None:
        excess = sum(present[axis] / new[axis] for axis in now) / max(len(now), 1)
    else:
        excess = float(cost(present)) / float(cost(new))
    return new if excess > 1 + slack else plan


def check_covers(plan: Mapping[str, int], masks: Masks) -> None:
    """Raises `ValueError` if an active position is cropped, naming axis and sizes."""
    cropped = {
        axis: n for axis, n in counts(masks).items() if n > plan.get(axis, masks[axis].capacity)
    }
    if cropped:
        listed = ", ".join(
            f"{axis!r} (bucket {plan[axis]}, {n} active)" for axis, n in cropped.items()
        )
        raise ValueError(
            f"`plan` does not cover the masks: active positions would be cropped on {listed}. "
            "Make a new one with `plan = replan(plan, masks, buckets)`."
        )


def _fit(
    now: Mapping[str, int], masks: Masks, buckets: Mapping[str, Ladder], headroom: float
) -> Plan:
    if unknown := set(buckets) - set(masks):
        raise ValueError(f"`buckets` names axes without a mask: {sorted(unknown)}.")
    sizes = {}
    for axis, n in now.items():
        ladder = buckets.get(axis, (masks[axis].capacity,))
        check_ladder(axis, ladder, masks[axis])
        wanted = math.floor(n * (1 + headroom))
        sizes[axis] = next((size for size in ladder if size >= wanted), ladder[-1])
    return Plan(sizes)


def check_ladder(axis: str, ladder: Ladder, mask) -> None:
    rising = all(a < b for a, b in it.pairwise((0, *ladder)))
    if not (ladder and rising and ladder[-1] == mask.capacity):
        raise ValueError(
            f"The buckets of axis {axis!r} must be increasing, and the last must be its "
            f"capacity {mask.capacity}; got {ladder}."
        )
    if isinstance(mask, Gaussian) and any(size % 2 == 0 for size in ladder):
        raise ValueError(f"The buckets of axis {axis!r}, a Gaussian's, must be odd: {ladder}.")


@ft.cache
def is_smooth(n: int) -> bool:
    for p in (2, 3, 5):
        while n % p == 0:
            n //= p
    return n == 1


def _closed(sizes, capacity: int) -> Ladder:
    return (*sizes, capacity)


def _thinned(sizes, ratio: float, capacity: int) -> Ladder:
    kept: list[int] = []
    for size in sizes:
        if not kept or size >= ratio * kept[-1]:
            kept.append(size)
    return _closed(kept, capacity)
