"""What a training step of the materialized CCNN_{4,140} costs (L = 1024, batch 16, capacity
twice the base; all of KRWD are learned, and the width of the stream with them), beside
networks in PyTorch:

- a CCNN of the same sizes written by hand, eager;
- the same under `torch.compile`;
- DNArch as the paper proposes it where shapes may change: weights at the capacities, cropped
  to the masks in every forward pass, eager. Its stream keeps the width of the capacity.

Memory is kept (`dn.runtime.keep_memory`, as in all benchmarks) for PyTorch as much as for JAX.
"""

import functools as ft
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import jax.random as jr

from benchmarks import _hand_written, _networks
from benchmarks._common import finish, medians, Row


_CASE, _CLASSES, _OMEGA = _networks.CASES["1d-140"], _networks.CLASSES, _networks.OMEGA
_REPEATS = 11


def run(path: Path | None) -> None:
    if importlib.util.find_spec("torch") is None:
        sys.exit(
            "This benchmark needs PyTorch, of which the build for CPUs is enough: "
            "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        )
    # PyTorch's threads would spin into the turns of others, and against each other where cores
    # are shared. It is read when PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from benchmarks import _torch_ccnn

    learned, batch = _networks.Learned(_CASE), _networks.batch(_CASE)
    depth, width, shape = learned.plan["depth"], learned.plan["stream"], _CASE.shape
    plain = _hand_written.init(
        jr.key(0), shape=shape, channels=1, classes=_CLASSES, depth=depth, width=width
    )
    masked = _hand_written.masked_init(
        jr.key(0), shape=shape, channels=1, classes=_CLASSES, depth=depth, width=width
    )
    forward = ft.partial(_torch_ccnn.forward, omega_0=_OMEGA)
    cropping = ft.partial(_torch_ccnn.cropping_forward, omega_0=_OMEGA)
    contestants = {
        "ours": learned.step().run,
        "eager": _torch_ccnn.training_step(forward, plain, batch),
        "compiled": _torch_ccnn.training_step(forward, plain, batch, compiled=True),
        "cropping": _torch_ccnn.training_step(cropping, masked, batch),
    }
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        print(f"Without torch.compile, which needs a C++ compiler: there is no {compiler}.")
        del contestants["compiled"]

    seconds = medians(contestants, _REPEATS, in_a_row=2)
    ours = seconds["ours"]
    rows = [Row("torch/step", ours / seconds["eager"], "x", "<= 1.0")]
    for name in ("compiled", "cropping"):
        if name in seconds:
            rows.append(Row(f"torch/{name}", ours / seconds[name], "x"))
    for name, value in seconds.items():
        rows.append(Row(f"torch/{name}/milliseconds", 1e3 * value, "ms"))
    finish(rows, path)
