# What the benchmark `accelerator` measures: each a function of a `Lab`, which has the programs
# that several share, and gives rows and, as JSON has them, details.

import dataclasses
import functools as ft
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr

from benchmarks import _hand_written, _profile
from benchmarks._common import Row
from benchmarks._lab import Lab, timed, wait
from benchmarks._networks import batch as batch_of, Case, CLASSES, OMEGA, Step


# As JAX has it for products of float32 on GPUs.
TORCH_PRECISION = "high"
Result: TypeAlias = tuple[list[Row], dict[str, Any]]

# Steps in a trace.
_TRACED = 5


class Missing(Exception):
    """Something that cannot be measured here, and why."""


def peaks(lab: Lab) -> Result:
    n, size = lab.setting.matmul, lab.setting.copied // 4
    x = jr.normal(jr.key(0), (n, n)) / math.sqrt(n)
    half, long = x.astype(jnp.bfloat16), jnp.ones(size)
    product, add = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    short = jnp.ones(())
    found = timed(
        {
            "matmul": lambda: product(x),
            "matmul_bfloat16": lambda: product(half),
            "copy": lambda: add(long),
            "call": lambda: add(short),
        },
        lab.setting.seconds,
    )
    per_second = lambda what, much: much / found[what]["median"]
    lab.peaks = {
        "flops": per_second("matmul", 2 * n**3),
        "bytes accessed": per_second("copy", 8 * size),
    }
    rows = [
        Row("peaks/matmul", lab.peaks["flops"] / 1e12, "TFLOP/s"),
        Row("peaks/matmul_bfloat16", per_second("matmul_bfloat16", 2 * n**3) / 1e12, "TFLOP/s"),
        Row("peaks/copy", lab.peaks["bytes accessed"] / 1e9, "GB/s"),
        Row("peaks/call", 1e6 * found["call"]["median"], "us"),
    ]
    return rows, {"seconds": found, "rows_and_columns": n, "bytes": 8 * size}


def step(name: str, case: Case) -> Callable[[Lab], Result]:
    """Ours beside the one by hand, and both beside the peaks."""

    def measure(lab: Lab) -> Result:
        found = lab.time(case, "step", "hand_written")
        steps = {what: lab.step(case, what) for what in found}
        seconds = {what: times["median"] for what, times in found.items()}
        counted = {what: _counted(step) for what, step in steps.items()}
        temporary = {what: step.temporary for what, step in steps.items()}
        if case == dataclasses.replace(lab.setting.one, batch=case.batch):
            lab.example = seconds["step"] / case.batch, temporary["step"] / case.batch
        shares = {
            what: {
                kind: counts[kind] / seconds[what] / peak for kind, peak in lab.peaks.items()
            }
            for what, counts in counted.items()
        }
        ratio = seconds["step"] / seconds["hand_written"]
        rows = [Row(f"{name}/step/hand_written", ratio, "x", "<= 1.03")]
        rows += [
            Row(f"{name}/{what}/milliseconds", 1e3 * s, "ms") for what, s in seconds.items()
        ]
        rows += [
            Row(f"{name}/{what}/{kind.split()[0]}", share, "of the peak")
            for what, kinds in shares.items()
            for kind, share in kinds.items()
        ]
        details = {
            "case": dataclasses.asdict(case),
            "seconds": found,
            "counted": counted,
            "temporary_bytes": temporary,
            "roofline": shares,
        }
        return rows, details

    return measure


def _counted(step: Step) -> dict[str, float]:
    """By XLA, of the compiled program. Off CPUs it does not see into the libraries that
    compiled programs call: there operations are those of the program before.
    """
    counted = {what: step.counted(what) for what in ("flops", "bytes accessed")}
    if jax.default_backend() != "cpu":
        before: Any = step.lower().cost_analysis()
        counted["flops"] = max(counted["flops"], float((before or {}).get("flops", 0.0)))
    return counted


def full_capacity(name: str, case: Case) -> Callable[[Lab], Result]:
    def measure(lab: Lab) -> Result:
        found = lab.time(case, "step", "full_capacity")
        steps = {what: lab.step(case, what) for what in found}
        ratio = found["full_capacity"]["median"] / found["step"]["median"]
        memory = {what: step.temporary for what, step in steps.items()}
        rows = [
            Row(f"{name}/full_capacity/step", ratio, "x", ">= 6.0"),
            Row(
                f"{name}/full_capacity/milliseconds",
                1e3 * found["full_capacity"]["median"],
                "ms",
            ),
            Row(
                f"{name}/full_capacity/temporary",
                memory["full_capacity"] / memory["step"],
                "x",
            ),
        ]
        return rows, {
            "case": dataclasses.asdict(case),
            "seconds": found,
            "temporary_bytes": memory,
        }

    return measure


def masks(name: str, case: Case) -> Callable[[Lab], Result]:
    """From a profile, or, where it has not what is needed, by timing."""

    def measure(lab: Lab) -> Result:
        found = {}
        try:
            for what in ("step", "hand_written"):
                step = lab.step(case, what)
                text = step.program.as_text()
                found[what] = _profile.shares(ft.partial(_in_a_row, step), text, _TRACED)
            if found["step"]["attributed"] < 0.5:
                raise RuntimeError("Most of the trace's events are of no known operation.")
        except Exception as error:
            rows, details = constant_masks(name, case)(lab)
            why = f"{type(error).__name__}: {error}"
            return rows, details | {"why_no_profile": why, "profile": found}
        rows = [
            Row(f"{name}/{what}/{kind}", shares[kind], "of the device's time")
            for what, shares in found.items()
            for kind in ("small", "small_of_masks")
        ]
        for what, shares in found.items():
            rows.append(Row(f"{name}/{what}/events", shares["events"], "a step"))
            if (case, what) in lab.seconds:
                busy = shares["device_seconds"] / lab.seconds[case, what]
                rows.append(Row(f"{name}/{what}/busy", busy, "of the step"))
        return rows, {"how": "profile", "case": dataclasses.asdict(case), "profile": found}

    return measure


def _in_a_row(step: Step) -> Any:
    for _ in range(_TRACED - 1):
        step.run()
    return step.run()


def constant_masks(name: str, case: Case) -> Callable[[Lab], Result]:
    def measure(lab: Lab) -> Result:
        found = lab.time(case, "step", "constant_masks")
        share = 1 - found["constant_masks"]["median"] / found["step"]["median"]
        rows = [Row(f"{name}/step/masks_by_timing", share, "of the step")]
        return rows, {"how": "timing", "case": dataclasses.asdict(case), "seconds": found}

    return measure


def pytorch(case: Case, *, compiled: bool) -> Callable[[Lab], Result]:
    """The network by hand, in one dimension."""
    name = "compiled" if compiled else "eager"

    def measure(lab: Lab) -> Result:
        if importlib.util.find_spec("torch") is None:
            raise Missing("PyTorch is not installed")
        # See the benchmark `torch`. It is read when PyTorch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        _torch_ccnn: Any = importlib.import_module("benchmarks._torch_ccnn")
        torch = _torch_ccnn.torch
        if jax.default_backend() != "cpu" and not torch.cuda.is_available():
            raise Missing("PyTorch does not see the device")
        torch.set_float32_matmul_precision(TORCH_PRECISION)
        params = _hand_written.init(
            jr.key(0),
            shape=case.shape,
            channels=1,
            classes=CLASSES,
            depth=case.depth,
            width=case.width,
        )
        forward = ft.partial(_torch_ccnn.forward, omega_0=OMEGA)
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        batch = batch_of(case)
        theirs = _torch_ccnn.training_step(
            forward, params, batch, compiled=compiled, device=device
        )
        start = time.perf_counter()
        wait(theirs())
        first = time.perf_counter() - start
        found = timed({"step": lab.step(case, "step").run, name: theirs}, lab.setting.seconds)
        found[name]["first_call"] = first
        seconds = {what: times["median"] for what, times in found.items()}
        rows = [
            Row(f"torch/{name}", seconds["step"] / seconds[name], "x", "<= 1.0"),
            Row(f"torch/{name}/milliseconds", 1e3 * seconds[name], "ms"),
        ]
        return rows, {"case": dataclasses.asdict(case), "seconds": found, "device": device}

    return measure
