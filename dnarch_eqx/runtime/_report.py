from collections.abc import Sequence

from .._report import table
from ._store import Compilation


def summary(
    compilations: Sequence[Compilation], background: bool, waste: float, regret: float
) -> str:
    """Every compilation, and what they and the plans cost, as text."""
    rows = [("step", "seconds", "overlapped", "cache", "changes")]
    for c in compilations:
        listed = [f"{axis} {a}->{b}" for axis, (a, b) in c.changes.items()]
        more = f", and {len(listed) - 3} more" if len(listed) > 3 else ""
        changes = ", ".join(listed[:3]) + more
        share = c.overlapped / max(c.seconds, 1e-9)
        cells = (f"{c.seconds:.2f}", f"{share:.0%}", "hit" if c.cached else "miss")
        rows.append((str(c.call), *cells, changes or "new"))
    total = sum(c.seconds for c in compilations)
    overlapped = sum(c.overlapped for c in compilations)
    mode = "in the background" if background else "while training waits"
    count = f"{len(compilations)} compilation{'s' * (len(compilations) != 1)}"
    return (
        f"{table(rows)}\n\n{count} ({mode}): {total:.1f} s, "
        f"{overlapped / max(total, 1e-9):.0%} of it overlapped with steps. Operations over "
        f"those of exact sizes: {waste:.3f}. Cost over that of the best plans: {regret:.2f}."
    )
