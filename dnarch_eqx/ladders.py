"""The sizes that a plan may take, by axis: rules from a capacity to a ladder of buckets."""

import fnmatch
import functools as ft
import itertools as it
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ._gaussian import Gaussian
from ._masks import check_masks, Masks
from ._misc import at_least, positive


# The sizes that a plan may take on one axis: increasing, the last is the capacity (whatever
# the rule, it closes the ladder).
Ladder: TypeAlias = tuple[int, ...]
Rule: TypeAlias = Callable[[int], Ladder]


#
# Rules: from a capacity to a ladder.
#


def multiples(of: int = 8) -> Rule:
    """Every multiple of `of`: little waste, many programs."""
    of = positive("of", of)
    return lambda capacity: _closed(range(of, capacity, of), capacity)


def geometric(ratio: float = 1.25, multiple: int = 8) -> Rule:
    """Multiples of `multiple` (what the hardware likes: 8 or 16 on CPU and GPU, 128 on
    TPU), each at least `ratio` times the one before: few programs, waste below
    `1 - 1 / ratio` but for rounding.
    """
    at_least("ratio", ratio, 1)
    multiple = positive("multiple", multiple)
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
    - `rules`: one rule for all axes, or a dictionary from the name of an axis or a pattern
        (`"*.kernel*"`, as in [`fnmatch`][]) to rule, of which the first that matches an axis
        counts. By default `odd()` for Gaussian masks, and for the others every size if there
        are at most 16 (depths, numbers of heads) and `multiples(8)` of longer ones.

    **Returns:**

    A dictionary from axis to increasing sizes, the last of which is the capacity.

    Raises `ValueError` for what is no rule, a ladder that is none, and an axis that no pattern
    matches.
    """
    check_masks(masks)

    def rule_of(axis: str) -> Any:
        if rules is None:
            short = masks[axis].capacity <= 16
            by_default = every() if short else multiples(8)
            return odd() if isinstance(masks[axis], Gaussian) else by_default
        if not isinstance(rules, Mapping):
            return rules
        for pattern, rule in rules.items():
            if pattern == axis or fnmatch.fnmatchcase(axis, pattern):
                return rule
        raise ValueError(f"No pattern of `rules` matches axis {axis!r}: {list(rules)}.")

    def ladder_of(axis: str) -> Any:
        rule = rule_of(axis)
        if rule in (every, full, multiples, geometric, smooth, odd):
            raise ValueError("`rules` must be a rule: call it, as in `dn.ladders.every()`.")
        if not callable(rule):
            raise ValueError(
                f"`rules` has {rule!r} for axis {axis!r}: give a rule, as `dn.ladders.every()`."
            )
        return rule(masks[axis].capacity)

    return {axis: check_ladder(axis, ladder_of(axis), mask) for axis, mask in masks.items()}


def ladders_of(masks: Masks, buckets: Mapping[str, Ladder]) -> dict[str, Ladder]:
    """The ladders of all axes, of which those that `buckets` leaves out are at their capacity.

    Raises `ValueError` for what is no ladder, and for axes without a mask.
    """
    if not isinstance(buckets, Mapping):
        raise ValueError(
            "`buckets` must be a dictionary from axis to ladder, as `dn.buckets(masks)` gives; "
            f"got {type(buckets).__name__}."
        )
    if unknown := set(buckets) - set(masks):
        raise ValueError(f"`buckets` names axes without a mask: {sorted(unknown, key=str)}.")
    return {
        axis: check_ladder(axis, buckets.get(axis, (mask.capacity,)), mask)
        for axis, mask in masks.items()
    }


def check_ladder(axis: str, ladder: Any, mask: Any) -> Ladder:
    """The ladder as a tuple. Raises `ValueError` if it is none of this mask."""
    whole = isinstance(ladder, Sequence | np.ndarray) and not isinstance(ladder, str)
    if not whole or not all(_is_whole(size) for size in ladder):
        raise ValueError(
            f"The buckets of axis {axis!r} must be a tuple or list of integers, got {ladder!r}."
        )
    ladder = tuple(int(size) for size in ladder)
    rising = all(a < b for a, b in it.pairwise((0, *ladder)))
    if not (ladder and rising and ladder[-1] == mask.capacity):
        raise ValueError(
            f"The buckets of axis {axis!r} must be increasing, and the last must be its "
            f"capacity {mask.capacity}; got {ladder}."
        )
    if isinstance(mask, Gaussian) and any(size % 2 == 0 for size in ladder):
        raise ValueError(f"The buckets of axis {axis!r}, a Gaussian's, must be odd: {ladder}.")
    return ladder


def _is_whole(size: Any) -> bool:
    return isinstance(size, int | np.integer) and not isinstance(size, bool)


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
