import numpy as np
from jaxtyping import Bool

from .._state import checked, State


class NotFiniteError(FloatingPointError):
    """A step of which something is not finite. The state is as it was before that step."""


def raised(state: State, flags: Bool[np.ndarray, " flags"], step: int) -> str:
    """What of a step is not finite, and what to do."""
    return (
        f"{_said(state, flags, step)} The state is as it was before that step; training can go "
        "on. `Learner(..., on_nonfinite='skip')` leaves such steps out."
    )


def skipped(state: State, flags: Bool[np.ndarray, " flags"], step: int) -> str:
    """What of a step is not finite that was left out."""
    return f"{_said(state, flags, step)} The step was left out, with its batch."


def _said(state: State, flags: Bool[np.ndarray, " flags"], step: int) -> str:
    found = [name for name, fine in zip(checked(state), flags[1:]) if not fine]
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return f"At step {step} this is not finite: {', '.join(found[:3])}{more}."
