from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from .._masks import Masks
from .._plan import Plan
from ..ladders import Ladder, ladders_of


# Everything in this folder that decides on plans is plain numpy on vectors with an entry an
# axis, in the order of the axes' names: it runs between two steps, on the host.


class Grid:
    """The ladders of all axes as one array, so that all are searched at once."""

    axes: tuple[str, ...]
    capacity: Int[np.ndarray, " axes"]

    def __init__(self, masks: Masks, buckets: Mapping[str, Ladder]):
        """**Arguments:**

        - `masks`: the masks, for their names and capacities.
        - `buckets`: the ladders. An axis without one is at its capacity.

        Raises `ValueError` for ladders that do not rise or do not end at the capacity.
        """
        self.axes = tuple(sorted(masks))
        checked = ladders_of(masks, buckets)
        ladders = [checked[axis] for axis in self.axes]
        most = max(map(len, ladders), default=1)
        padded = [(*ladder, *(most - len(ladder)) * ladder[-1:]) for ladder in ladders]
        rows = np.array(padded, int).reshape(len(self.axes), most)
        self.capacity = rows[:, -1]
        # The bucket of every count, all axes one behind the other.
        fits = [row[np.searchsorted(row, np.arange(row[-1] + 1))] for row in rows]
        self._fits = np.concatenate([*fits, np.zeros(0, int)])
        self._starts = np.cumsum([0, *map(len, fits)])[:-1]
        # Plans are made once; there are not many at a time.
        self._made = lru_cache(maxsize=1024)(self._plan)

    def check(self, masks: Masks) -> None:
        """Raises `ValueError` for masks of other names or capacities."""
        given = {axis: masks[axis].capacity for axis in sorted(masks)}
        if given != (wanted := dict(zip(self.axes, self.capacity.tolist()))):
            raise ValueError(
                f"The masks of `state` have the capacities {given}; those of the planner have "
                f"{wanted}."
            )

    def fit(self, counts: Int[np.ndarray, "*n axes"]) -> Int[np.ndarray, "*n axes"]:
        """The smallest buckets that hold these counts, of one plan or of an array of them."""
        return self._fits[self._starts + np.minimum(counts, self.capacity)]

    def plan(self, sizes: Int[np.ndarray, " axes"]) -> Plan:
        """The plan of these buckets."""
        return self._made(np.asarray(sizes, int).tobytes())

    def complete(self, plan: Mapping[str, int]) -> Plan:
        """The plan, with the capacity of every axis that it does not name."""
        full = zip(self.axes, self.capacity.tolist())
        return Plan({axis: plan.get(axis, capacity) for axis, capacity in full})

    def _plan(self, sizes: bytes) -> Plan:
        return Plan(dict(zip(self.axes, np.frombuffer(sizes, int).tolist())))
