# What the measurements of the benchmark `accelerator` share: sizes, programs, a clock.

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

import dnarch_eqx as dn
from benchmarks._networks import by_hand, Case, Learned, Step
from dnarch_eqx import nn


# A training step is one of a case: `"step"` is ours.
Name: TypeAlias = tuple[Case, str]

_TURN = 0.15


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a planner: `batch` examples a step, or as many as make all steps take about
    `seconds`, by what the step of the 1-D case took. Masks learn at `mask_rate` times the rate
    of the weights.
    """

    base: nn.Base
    length: int
    steps: int
    seconds: float
    batch: int | None = None
    mask_rate: float = 0.05


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured: two cases, larger `batches` of them, products of so many rows and
    columns, copies of so many bytes; how many seconds to spend on a comparison.
    """

    one: Case
    two: Case
    batches: tuple[int, ...]
    matmul: int
    copied: int
    run: Run
    seconds: float


def setting(platform: str, *, small: bool) -> Setting:
    """That for a kind of device."""
    if small:
        one, two = Case(1, 8, (32,), 4), Case(1, 8, (8, 8), 4)
        run = Run(nn.Base(1, 8), 64, 120, 5.0, batch=8, mask_rate=2.0)
        return Setting(one, two, (), 128, 2**20, run, 0.2)
    one, two = Case(4, 140, (1024,), 16), Case(4, 140, (32, 32), 16)
    if platform == "cpu":
        run = Run(nn.Base(2, 48), 64, 500, 60.0, batch=256, mask_rate=0.2)
        return Setting(one, two, (), 2048, 2**28, run, 12.0)
    return Setting(one, two, (64, 256), 8192, 2**30, Run(nn.Base(4, 140), 1024, 500, 60.0), 4.0)


class Lab:
    """The training steps of the cases, compiled once they are needed; how many seconds each
    took to compile and to run the first time, and takes; and the peaks of the device, once
    measured.
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        self.first_calls: dict[Name, float] = {}
        self.seconds: dict[Name, float] = {}
        self.peaks: dict[str, float] = {}
        # Of a batch's example, in the 1-D case: seconds, and bytes of temporary memory.
        self.example: tuple[float, float] | None = None
        self._steps: dict[Name, Step] = {}
        self._learned: dict[Case, Learned] = {}

    def step(self, case: Case, name: str) -> Step:
        """Ours, `"step"`, under the plan; `"full_capacity"`, under the full one; with
        `"constant_masks"`; or `"hand_written"`.
        """
        if (case, name) not in self.first_calls:
            step, start = self._make(case, name), time.perf_counter()
            jax.block_until_ready(step.run())
            self.first_calls[case, name] = time.perf_counter() - start
            self._steps[case, name] = step
        return self._steps[case, name]

    def time(self, case: Case, *names: str) -> dict[str, dict[str, float]]:
        """See [`benchmarks._lab.timed`][]; and the time of the first call."""
        runs = {name: self.step(case, name).run for name in names}
        found = timed(runs, self.setting.seconds)
        for name, times in found.items():
            times["first_call"] = self.first_calls[case, name]
            self.seconds[case, name] = times["median"]
        return found

    def _make(self, case: Case, name: str) -> Step:
        if case not in self._learned:
            self._learned[case] = Learned(case)
        learned = self._learned[case]
        match name:
            case "step":
                return learned.step()
            case "full_capacity":
                return learned.step(dn.Plan())
            case "constant_masks":
                return learned.constant_masks()
        return by_hand(case, learned.plan)


def timed(
    contestants: Mapping[str, Callable[[], Any]], seconds: float
) -> dict[str, dict[str, float]]:
    """Seconds of a call of each, in turn, about so many in all: the median, the smallest and
    the largest of the turns' means. In its turn each is called in a row, for long enough, and
    only the last result is waited for.
    """
    calls = {}
    for name, run in contestants.items():
        wait(run())
        start = time.perf_counter()
        wait(run())
        once = time.perf_counter() - start
        calls[name] = min(max(math.ceil(_TURN / once), 2), 100), once
    a_round = sum(n * once for n, once in calls.values())
    repeats = min(max(int(seconds / a_round), 3), 25)
    means: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            n, _ = calls[name]
            start = time.perf_counter()
            for _ in range(n - 1):
                run()
            wait(run())
            means[name].append((time.perf_counter() - start) / n)
    return {
        name: {"median": statistics.median(x), "low": min(x), "high": max(x)}
        for name, x in means.items()
    }


def wait(x: Any) -> None:
    """Also for PyTorch: whose streams are in order, so that a value waits for all before."""
    x.item() if hasattr(x, "backward") else jax.block_until_ready(x)
