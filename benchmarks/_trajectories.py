# Recorded runs: a trace, and beside it a JSON file with all that a replay needs, the arguments
# that the network was made with among it.

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.random as jr

import dnarch_eqx as dn
from dnarch_eqx import nn


FOLDER = Path(__file__).parent / "trajectories"


def write(
    path: Path,
    trace: dn.runtime.Trace,
    network: Mapping[str, Any],
    buckets: Mapping[str, dn.Ladder],
    timing: dn.runtime.Timing,
) -> None:
    """Writes `path`, an `.npz`, and the `.json` beside it.

    **Arguments:**

    - `network`: the arguments of [`dnarch_eqx.nn.dnarch`][], by name and without the key.
    - `timing`: as measured. Its cost is not written, but is the complexity of the network.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    trace.save(path)
    about = {
        "network": {**network, "base": dataclasses.asdict(network["base"])},
        "buckets": buckets,
        "timing": {name: getattr(timing, name) for name in ("compile", "scale", "overhead")},
    }
    path.with_suffix(".json").write_text(json.dumps(about) + "\n")


def read(
    path: Path,
) -> tuple[dn.runtime.Trace, dn.Masks, dict[str, dn.Ladder], dn.runtime.Timing]:
    """What was written, to be replayed. The masks have shapes in place of parameters."""
    about = json.loads(path.with_suffix(".json").read_text())
    network = about["network"]
    network |= {"base": nn.Base(**network["base"]), "shape": tuple(network["shape"])}
    model, masks = eqx.filter_eval_shape(lambda key: nn.dnarch(**network, key=key), jr.key(0))
    buckets = {axis: tuple(ladder) for axis, ladder in about["buckets"].items()}
    cost = dn.runtime.host_cost(nn.complexity(model), dn.runtime.Grid(masks, buckets))
    timing = dn.runtime.Timing(cost, **about["timing"])
    return dn.runtime.Trace.load(path), masks, buckets, timing
