import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ._masks import axis_name, check_masks, count_or_fault, fault, Masks
from ._misc import at_least
from ._sizes import covered
from .ladders import Ladder, ladders_of


class Plan(Mapping[str, int]):
    """Axis -> bucket. Immutable, hashable and comparable: a static argument of the one
    compiled step. An axis that a plan does not name is at its capacity.
    """

    __slots__ = ("_hash", "_sizes", "_vector")

    def __init__(self, sizes: Mapping[str, int] | None = None):
        sizes = {} if sizes is None else sizes
        if not isinstance(sizes, Mapping):
            raise ValueError(
                f"`sizes` must be a dictionary from axis to bucket, got {type(sizes).__name__}."
            )
        for axis, size in sizes.items():
            axis_name("sizes", axis)
            if not (
                isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1
            ):
                raise ValueError(
                    f"Axis {axis!r}: a bucket is a positive integer, not {size!r}."
                )
        self._sizes = {axis: int(sizes[axis]) for axis in sorted(sizes)}
        self._hash = hash(tuple(self._sizes.items()))
        self._vector = np.array(list(self._sizes.values()), int)
        self._vector.flags.writeable = False

    def __getitem__(self, axis: str) -> int:
        return self._sizes[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Plan) and self._sizes == other._sizes)

    @property
    def sizes(self) -> Int[np.ndarray, " axes"]:
        """The buckets as a vector, in the order of the axes' names."""
        return self._vector

    def __or__(self, other: Mapping[str, int]) -> "Plan":
        """The buckets of both, those of `other` where both name an axis."""
        return Plan({**self._sizes, **other})

    def __ror__(self, other: Mapping[str, int]) -> "Plan":
        return Plan({**other, **self._sizes})

    def __reduce__(self):
        return Plan, (self._sizes,)  # the hash of a string is another in every process

    def __repr__(self) -> str:
        return f"Plan({self._sizes!r})"

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
def _counted(masks: Masks) -> Int[Array, " axes"]:
    return jnp.stack([count_or_fault(masks[axis]) for axis in sorted(masks)])


def counts(masks: Masks) -> dict[str, int]:
    """The active counts as integers on the host, in one transfer.

    Raises `ValueError` for masks that are not finite, or that hold the parameters of masks made
    otherwise.
    """
    check_masks(masks)
    if not masks:
        return {}
    try:
        with jax.ensure_compile_time_eval():  # inside jit, too, for masks that are not traced
            values = np.asarray(_counted(dict(masks)))
    except jax.errors.TracerArrayConversionError:
        raise ValueError(
            "`masks` are traced, so that nothing can be counted: inside `jax.jit` look at "
            "`plan.covers(masks)`, which is an array."
        ) from None
    found = dict(zip(sorted(masks), values.tolist()))
    for axis, n in found.items():
        if n < 0:
            raise fault(axis, masks[axis], n)
    return found


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
    check_masks(masks)
    ladders, sizes = ladders_of(masks, buckets), {}
    for axis, n in counts(masks).items():
        ladder = ladders[axis]
        wanted = math.floor(min(n * (1 + headroom), ladder[-1]))
        sizes[axis] = next(size for size in ladder if size >= wanted)
    return Plan(sizes)


def as_plan(plan: Plan | Mapping[str, int]) -> Plan:
    """A plan, from any mapping. Raises `ValueError` for what is none."""
    if isinstance(plan, Plan):
        return plan
    if not isinstance(plan, Mapping):
        raise ValueError(f"`plan` must be a `dn.Plan` or a dictionary, not {plan!r}.")
    return Plan(plan)


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
            "Make another: `plan = dn.plan(masks, buckets)`."
        )
