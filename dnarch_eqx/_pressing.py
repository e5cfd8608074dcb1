# When a capacity is to be another: pure functions of masks.

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ._extended import extended
from ._gaussian import Gaussian
from ._masks import AbstractMask, check_masks, Masks
from ._misc import at_least, number, positive
from ._plan import counts
from .ladders import buckets, geometric, Ladder, odd, Rule


def pressing(
    masks: Masks,
    *,
    share: float = 0.95,
    rules: Rule | Mapping[str, Rule] | None = None,
    limits: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The axes that are to grow, see [`dnarch_eqx.grow`][]: those all of whose positions are
    active, or whose size is nearly the capacity. Capacities move in coarse steps, as plans do,
    so that few programs are compiled.

    **Arguments:**

    - `masks`: the masks, not traced. Ones that have just begun open press against their
        capacity: look when they have trained.
    - `share`: of the capacity, from which on a size counts as nearly that.
    - `rules`: as for [`dnarch_eqx.buckets`][]: an axis grows to the next size on its ladder.
        By default each is at least 1.5 times the one before: odd ones for Gaussian masks,
        multiples of 8 for others from 16 on. `{"depth": dn.ladders.multiples(2), ...}` adds
        two blocks at a time.
    - `limits`: axis, or pattern as in [`fnmatch`][], to the largest capacity it may have.

    **Returns:**

    Axis to new capacity, of those that are to grow.

    Raises `ValueError` for numbers out of their ranges, and a limit below the capacity.
    """
    check_masks(masks)
    if not 0 < number("share", share) <= 1:
        raise ValueError(f"`share` must lie in (0, 1], got {share}.")
    active, found = counts(masks), {}
    for axis, mask in masks.items():
        limit = _limit(axis, mask, {} if limits is None else limits)
        if active[axis] < mask.capacity:
            if float(mask.unclipped_size()) < share * mask.capacity:
                continue
        # An odd end, as for Gaussians; far enough for multiples of what hardware likes.
        end = limit or 4 * mask.capacity + 513
        ladder = _ladder(axis, mask, end, rules)
        larger = [size for size in ladder if size > mask.capacity and (limit or size < end)]
        if larger:
            found[axis] = larger[0]
    return found


def slack(
    history: Masks | Sequence[Masks],
    *,
    factor: float = 1.5,
    headroom: float = 0.25,
    rules: Rule | Mapping[str, Rule] | None = None,
) -> dict[str, int]:
    """The axes that are to give back capacity, see [`dnarch_eqx.compact`][].

    **Arguments:**

    - `history`: the masks, the last of them now. Earlier ones say for how long positions have
        been inactive: one that was active in any of them is kept.
    - `factor`: how many times as large as needed a capacity must be to be given back.
    - `headroom`: how many more positions than the active ones are kept, as a share of them.
    - `rules`: as for [`dnarch_eqx.pressing`][].

    **Returns:**

    Axis to new capacity, of those that are to shrink.

    Raises `ValueError` for numbers out of their ranges.
    """
    moments = [history] if isinstance(history, Mapping) else list(history)
    if not moments:
        raise ValueError("`history` is empty: give masks.")
    at_least("factor", factor, 1)
    at_least("headroom", headroom, 0)
    active = [counts(masks) for masks in moments]
    found = {}
    for axis, mask in moments[-1].items():
        most = max(count.get(axis, 0) for count in active)
        for size in _ladder(axis, mask, mask.capacity, rules):
            enough = math.ceil(most * (1 + headroom)) <= size and size * factor <= mask.capacity
            if enough and size < mask.capacity and _possible(mask, size):
                found[axis] = size
                break
    return found


def _possible(mask: AbstractMask, capacity: int) -> bool:
    try:
        return extended(mask, capacity) is not None
    except ValueError:
        return False


def _limit(axis: str, mask: AbstractMask, limits: Mapping[str, int]) -> int | None:
    for pattern, limit in limits.items():
        if pattern == axis or fnmatch.fnmatchcase(axis, pattern):
            if positive(f"limits[{pattern!r}]", limit) < mask.capacity:
                raise ValueError(
                    f"`limits` has {limit} for axis {axis!r}, below its capacity "
                    f"{mask.capacity}."
                )
            return int(limit)
    return None


def _ladder(axis: str, mask: Any, end: int, rules: Any) -> Ladder:
    """The sizes of an axis up to an end."""
    if rules is None:
        short = geometric(1.5, 1 if mask.capacity < 16 else 8)
        rules = odd(1.5) if isinstance(mask, Gaussian) else short
    try:
        longest = extended(mask, end)
    except ValueError as error:
        raise ValueError(f"Axis {axis!r} cannot have capacity {end}: {error}") from error
    return buckets({axis: longest}, rules)[axis]
