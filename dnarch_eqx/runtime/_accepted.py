from collections.abc import Callable
from typing import Any

import jax.tree_util as jtu

from .._state import StepInfo


class AcceptedInfo:
    """What a step of a planner reported once it was accepted: a [`dnarch_eqx.StepInfo`][] that
    waits for its step when it is looked at. A step whose plan proved too small is done again,
    and this is what it reports then.

    To keep steps going ahead of the host, keep this and look at its fields later. It is a
    PyTree: functions of trees see the [`dnarch_eqx.StepInfo`][].
    """

    __slots__ = ("_again", "_info")

    def __init__(self, again: Callable[[], None]):
        # Does steps again that were not accepted.
        self._again = again
        self._info: StepInfo | None = None

    def start(self, info: StepInfo) -> None:
        """The step was started, maybe not for the first time."""
        self._info = info

    def get(self) -> StepInfo:
        """Waits for the step.

        Raises `RuntimeError` if it was not accepted and its batch was given up.
        """
        if self._info is None or not self._info.covered:
            self._again()
        if self._info is None or not self._info.covered:
            raise RuntimeError("This step was not accepted, and its batch was given up.")
        return self._info

    def __getattr__(self, name: str) -> Any:
        return getattr(self.get(), name)

    def __repr__(self) -> str:
        return f"AcceptedInfo({self._info!r})"


_flatten: Any = lambda info: ((info.get(),), None)
jtu.register_pytree_node(AcceptedInfo, _flatten, lambda _, children: children[0])
