import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from dnarch_eqx import table


@dataclasses.dataclass(frozen=True)
class Row:
    """One result. `target` says what it is held to, as text, if to anything."""

    name: str
    value: float
    unit: str
    target: str | None = None


def medians(
    contestants: Mapping[str, Callable[[], object]], repeats: int, *, in_a_row: int = 1
) -> dict[str, float]:
    """Median seconds of each, the contestants in turn, after a warm-up. In its turn each is
    called so often in a row, and only the last result is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(repeats + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            for _ in range(in_a_row - 1):
                run()
            jax.block_until_ready(run())
            if i > 0:
                seconds[name].append((time.perf_counter() - start) / in_a_row)
    return {name: statistics.median(times) for name, times in seconds.items()}


def paces(seconds: Float[np.ndarray, " steps"], over: int) -> Float[np.ndarray, " steps"]:
    """What steps take about each: means over so many calls that it does not matter which of
    them wait for others.
    """
    over = min(over, len(seconds))
    means = np.convolve(seconds, np.ones(over) / over, "valid")
    before = over // 2
    return np.pad(means, (before, over - 1 - before), "edge")


def finish(rows: list[Row], path: Path | None) -> None:
    """Prints the rows as a table and, where a path is given, writes them as JSON."""
    cells = [(row.name, f"{row.value:.4g}", row.unit, row.target or "") for row in rows]
    print(table([("name", "value", "unit", "target"), *cells]))
    if path is not None:
        path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
