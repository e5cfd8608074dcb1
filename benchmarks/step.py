"""What a training step of materialized networks costs, beside networks of the same sizes
written by hand: three sizes in one dimension and three in two, for most of which kernels are
global and resolutions the input's; those of `1d-96` and `2d-96` are smaller, a block each.
All of KRWD are learned, and the width of the stream with them. The capacities are twice the
widths and depths. Two steps are taken in a row, one from the other's state, as in training.

- `step/hand_written`: the worst of the six medians. Ours and the one by hand have the same
    periods of their Fourier transforms.
- `step/shortest_periods`: the worst of those with shorter kernels, beside networks by hand
    whose periods are as short as the kernels allow.

For CCNN_{4,140} (L = 1024, batch 16) beside

- `full_capacity`: the masked network at full capacity, the same functions under the full plan;
- `papers_masks`: the paper's own way in JAX: full capacity, written by hand, masks on the
    activations.

- `shrink/ideal`: how many times longer the step at full capacity takes, over how many times
    more operations it has by XLA's count, for CCNN_{4,140} and for CCNN_{6,380} (L = 256,
    batch 4), most of whose operations are linear maps.
"""

from pathlib import Path

import dnarch_eqx as dn
from benchmarks._common import finish, medians, Row
from benchmarks._networks import by_hand, Case, CASES, Learned, masked_by_hand, Step


_LARGE = Case(6, 380, (256,), 4)
_REPEATS, _FULL_REPEATS = 11, 5


def run(path: Path | None) -> None:
    ratios, shortest, rows = {}, {}, []
    for name, case in CASES.items():
        learned = Learned(case)
        contestants = {
            "step": learned.step(),
            "hand_written": by_hand(case, learned.plan),
        }
        if case.kernels:
            contestants["shortest"] = by_hand(case, learned.plan, roomy=False)
        seconds = _time(contestants, _REPEATS)
        ratios[name] = seconds["step"] / seconds["hand_written"]
        if case.kernels:
            shortest[name] = seconds["step"] / seconds["shortest"]
        rows += [
            Row(f"{what}/{name}/milliseconds", 1e3 * seconds[what], "ms")
            for what in ("hand_written", "step")
        ]
    rows = [
        Row("step/hand_written", max(ratios.values()), "x", "<= 1.03"),
        *(Row(f"step/hand_written/{name}", ratio, "x") for name, ratio in ratios.items()),
        Row("step/shortest_periods", max(shortest.values()), "x"),
        *(Row(f"step/shortest_periods/{name}", ratio, "x") for name, ratio in shortest.items()),
        *_at_capacity(),
        *_shrinking("/6-380", _pair(_LARGE)),
        *rows,
    ]
    finish(rows, path)


def _at_capacity() -> list[Row]:
    case = CASES["1d-140"]
    steps = {**_pair(case), "papers_masks": masked_by_hand(case)}
    seconds = _time(steps, _FULL_REPEATS)
    ratio = lambda a: seconds[a] / seconds["step"]
    return [
        Row("full_capacity/step", ratio("full_capacity"), "x", ">= 6.0"),
        Row("papers_masks/step", ratio("papers_masks"), "x"),
        *(Row(f"{name}/milliseconds", 1e3 * value, "ms") for name, value in seconds.items()),
        *(Row(f"{name}/temporary", s.temporary / 2**20, "MiB") for name, s in steps.items()),
        *_shrinking("", steps, seconds),
    ]


def _pair(case: Case) -> dict[str, Step]:
    learned = Learned(case)
    return {"step": learned.step(), "full_capacity": learned.step(dn.Plan())}


def _shrinking(
    suffix: str, steps: dict[str, Step], seconds: dict[str, float] | None = None
) -> list[Row]:
    seconds = _time(steps, _FULL_REPEATS) if seconds is None else seconds
    times = seconds["full_capacity"] / seconds["step"]
    more = lambda what: steps["full_capacity"].counted(what) / steps["step"].counted(what)
    return [
        Row(f"shrink/ideal{suffix}", times / more("flops"), "", ">= 0.90"),
        Row(f"shrink/time{suffix}", times, "x"),
        Row(f"shrink/operations{suffix}", more("flops"), "x"),
        Row(f"shrink/bytes{suffix}", more("bytes accessed"), "x"),
    ]


def _time(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    runs = {name: step.run for name, step in steps.items()}
    return medians(runs, repeats, in_a_row=2)
