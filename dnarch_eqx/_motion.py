import numpy as np
from jaxtyping import Float, Int

from ._learner import Aux
from ._timing import Grid
from ._trace import Trace
from ._velocity import Velocity


_Sizes = Int[np.ndarray, " axes"]


class Motion:
    """Where the masks of a run were, step by step, and where they will be: state on the
    host.
    """

    seen: int
    velocity: Velocity

    def __init__(self, grid: Grid):
        self._grid = grid
        # How many steps, when the counts changed, where the masks were last.
        self.seen = 0
        self._changes: list[tuple[int, _Sizes]] = []
        self._reach: np.ndarray | None = None
        self.velocity = Velocity.none(len(grid.axes))

    @property
    def known(self) -> bool:
        """Whether the masks are those of the last step seen, moved."""
        return self._reach is not None

    @property
    def trace(self) -> Trace:
        if not self._changes:
            raise ValueError("No step was looked at yet: `state = planner.finish(state)`.")
        steps, active = zip(*self._changes)
        return Trace(self._grid.axes, np.array(steps), np.stack(active), self.seen)

    def restart(self) -> None:
        """Other masks than the last: what was known does not hold for them."""
        self._reach = None
        self.velocity = Velocity.none(len(self._grid.axes))

    def lose(self) -> None:
        """Masks of a step that was not seen, and does not come to be."""
        self._reach = None

    def see(self, aux: Aux) -> bool:
        """Takes in a step, for which it waits. Whether the step was accepted."""
        if not np.asarray(aux.covered):
            return False
        active = np.asarray(aux.active)
        self._reach = np.asarray(aux.reach)
        self.velocity = self.velocity.update(self._reach)
        if not self._changes or (active != self._changes[-1][1]).any():
            self._changes.append((self.seen, active))
        self.seen += 1
        return True

    def last(self) -> _Sizes:
        """The active counts after the last step seen."""
        return self._changes[-1][1]

    def bound(self, steps: int) -> _Sizes:
        """What the active counts hardly exceed so many steps later."""
        return self._held(steps * self.velocity.peak)

    def expected(self, steps: float) -> _Sizes:
        """The active counts that are exceeded so many steps later, as things go, unless they
        only went back and forth.
        """
        return self._held(self.velocity.rise(steps, -1.0))

    def _held(self, moved: Float[np.ndarray, " axes"]) -> _Sizes:
        return np.minimum(self._reach + moved, self._grid.capacity).astype(int)
