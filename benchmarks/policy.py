"""What plan policies pay, for steps and compilations, over what the best sequence of plans pays
that is chosen with the whole run known.

- `policy/competitive`: `BreakEven`, the worst of 1,200 runs that only shrink: at random, or by
  an adversary who knows the policy and shrinks right after a compilation or right before one.
  They have one to three axes, and a size costs a multiple of the size before. In half of them
  the first plan is compiled already: runs that are not very long come near to twice the best
  only so.
- `policy/competitive/growing`: the worst of 400 runs that also grow: at random, at once after
  every compilation of something smaller, through all sizes, on two axes in turn. No constant
  bounds it.
- `policy/regret`: `BreakEven`, the worst of the recorded runs. A table has all policies.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

import dnarch_eqx as dn
from benchmarks import _trajectories
from benchmarks._common import finish, Row


_POLICIES = {
    "EveryStep": dn.runtime.EveryStep(),
    "Every(100)": dn.runtime.Every(100),
    "Hysteresis": dn.runtime.Hysteresis(),
    "BreakEven": dn.runtime.BreakEven(),
}

_Counts: TypeAlias = Int[np.ndarray, " axes"]
_Cost: TypeAlias = Callable[[_Counts], float]


def run(path: Path | None) -> None:
    rng = np.random.default_rng(0)
    shrinking = [_over_best(*_shrinking(rng, kind)) for kind in _SHRINKS for _ in range(300)]
    growing = [_over_best(*_growing(rng, kind)) for kind in _GROWS for _ in range(100)]
    rows = [
        Row("policy/competitive", max(shrinking), "x", "<= 2.0"),
        Row("policy/competitive/growing", max(growing), "x"),
    ]
    files = sorted(_trajectories.FOLDER.glob("*.npz"))
    recorded = {file.stem: _outcomes(file) for file in files}
    if recorded:
        worst = max(
            outcomes["BreakEven"].seconds / outcomes["best"].seconds
            for outcomes in recorded.values()
        )
        rows.append(Row("policy/regret", worst, "x", "<= 1.5"))
    finish(rows, path)
    if not recorded:
        print("\nNo run is recorded yet: `python -m benchmarks run` does so.")
        return
    table = [("run", "policy", "compilations", "waste", "over the best")]
    for name, outcomes in recorded.items():
        for policy, outcome in outcomes.items():
            ratio = outcome.seconds / outcomes["best"].seconds
            cells = (f"{outcome.compilations}", f"{outcome.waste:.3f}", f"{ratio:.3f}")
            table.append((name, policy, *cells))
    print(f"\n{dn.table(table)}")


def _outcomes(file: Path) -> dict[str, dn.runtime.Outcome]:
    """What each policy pays on a recorded run."""
    trace, masks, buckets, timing = _trajectories.read(file)
    policies = _POLICIES | {"best": dn.runtime.optimum(trace, masks, buckets, timing)}
    return {
        name: dn.runtime.replay(trace, policy, masks, buckets, timing)
        for name, policy in policies.items()
    }


_CAPACITY = 32
_MASK, _LADDER = dn.Sigmoid(_CAPACITY), dn.ladders.every()(_CAPACITY)


def _over_best(
    rows: list[_Counts], timing: dn.runtime.Timing, compiled: tuple[dn.Plan, ...] = ()
) -> float:
    axes = _axes(len(rows[0]))
    trace = dn.runtime.Trace.of(axes, np.stack(rows))
    run = dict.fromkeys(axes, _MASK), dict.fromkeys(axes, _LADDER), timing
    # Not `dn.runtime.regret`: a first plan that is compiled already is so for both.
    paid = lambda policy: dn.runtime.replay(trace, policy, *run, compiled=compiled).seconds
    return paid(dn.runtime.BreakEven()) / paid(dn.runtime.optimum(trace, *run))


def _axes(n: int) -> tuple[str, ...]:
    return tuple(f"x{i}" for i in range(n))


def _mean(rng: np.random.Generator, of: Callable[[_Counts], _Counts]) -> _Cost:
    """From axes that cost alike to one that costs nearly all."""
    weights = rng.exponential(size=3) ** 3
    return lambda sizes: float(np.average(of(sizes), weights=weights[: len(sizes)]))


#
# Runs that only shrink.
#


# Whether they shrink at a step, knowing whether a plan has just been compiled (`bought`), and
# whether one would be at the next step (`about_to`).
_SHRINKS: dict[str, Callable[[np.random.Generator, bool, bool], bool]] = {
    "at random": lambda rng, bought, about_to: rng.random() < 0.2,
    "seldom": lambda rng, bought, about_to: rng.random() < 0.03,
    "after a compilation": lambda rng, bought, about_to: bought,
    "before a compilation": lambda rng, bought, about_to: about_to or rng.random() < 0.05,
}


def _shrinking(
    rng: np.random.Generator, kind: str
) -> tuple[list[_Counts], dn.runtime.Timing, tuple[dn.Plan, ...]]:
    now = rng.integers(2, 9, rng.integers(1, 4))
    base = rng.choice([1.5, 4.0, 16.0])
    cost = _mean(rng, lambda sizes, most=now: base ** (sizes - most))
    compile = 10 ** rng.uniform(-0.5, 2)
    first = dn.Plan(dict(zip(_axes(len(now)), now.tolist())))
    compiled = (first,) if rng.random() < 0.5 else ()
    timing = dn.runtime.Timing(cost, compile, overhead=rng.choice([0.0, 0.1]))
    rows, plan, wasted, bought = [now], now, 0.0, True
    for _ in range(rng.integers(1, 80)):
        about_to = wasted + cost(plan) - cost(now) > compile
        if _SHRINKS[kind](rng, bought, about_to):
            now = _shrunk(rng, now)
        wasted += cost(plan) - cost(now)
        bought = wasted > compile
        if bought:
            plan, wasted = now, 0.0
        rows.append(now)
    return rows, timing, compiled


def _shrunk(rng: np.random.Generator, now: _Counts) -> _Counts:
    """On one axis or on several, by one or by more."""
    which = rng.random(len(now)) < 0.5
    which[rng.integers(len(now))] = True
    by = 1 if rng.random() < 0.7 else rng.integers(1, now + 1)
    return np.maximum(now - which * by, 1)


#
# Runs that also grow.
#


def _growing(rng: np.random.Generator, kind: str) -> tuple[list[_Counts], dn.runtime.Timing]:
    # As long as it takes until the smallest plan is compiled, after the largest.
    compile = 10 ** rng.uniform(-0.5, 1.5)
    power = rng.choice([1.0, 2.0, 3.0])
    cost = _mean(rng, lambda sizes: (sizes / _CAPACITY) ** power)
    small = int(compile / (1 - _CAPACITY**-power)) + 1
    rows = [np.array(row) for row in _GROWS[kind](rng, small)]
    return rows, dn.runtime.Timing(cost, compile)


def _walk(rng: np.random.Generator, small: int) -> Iterator[tuple[int, ...]]:
    del small
    now = rng.integers(1, _CAPACITY)
    for _ in range(100):
        now = np.clip(now + rng.integers(-3, 4), 1, _CAPACITY)
        yield (int(now),)


def _jumps(rng: np.random.Generator, small: int) -> Iterator[tuple[int, ...]]:
    for _ in range(rng.integers(1, 4)):
        yield (_CAPACITY,)
        yield from [(1,)] * small


def _ramps(rng: np.random.Generator, small: int) -> Iterator[tuple[int, ...]]:
    for _ in range(rng.integers(1, 4)):
        yield from ((n,) for n in range(1, _CAPACITY + 1))
        yield from [(1,)] * small


def _in_turn(rng: np.random.Generator, small: int) -> Iterator[tuple[int, ...]]:
    del small
    for _ in range(rng.integers(1, 20)):
        yield (1, int(rng.integers(2, _CAPACITY + 1)))
        yield (int(rng.integers(2, _CAPACITY + 1)), 1)


_GROWS = {"walk": _walk, "jumps": _jumps, "ramps": _ramps, "in turn": _in_turn}
