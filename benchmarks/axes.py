"""What is found in the networks of the tests, and whether it is exact; whether anything that is
not is accepted.

- `axes/NAME/seconds`, `lines`: how long it takes to find the axes of a network, and how many
  lines of a user's give axis map and masks.
- `axes/NAME/error`: the largest difference, in float64, of outputs and gradients under random
  plans, the exact one, and frozen, from those at full capacity.
- `axes/silent`: how many wrong declarations and hazards are accepted although they differ, of
  `axes/hazards`.
- `axes/vit24/seconds`: a ViT of 24 blocks.
- `axes/materialize`: tracing that network materialized over tracing it as it is.
"""

import inspect
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.random as jr

import dnarch_eqx as dn
from benchmarks._common import finish, Row
from tests.hazards import Hazard, hazards
from tests.networks import Example, example, NAMES, ViT


def learned(net: Any, inputs: tuple[Any, ...], call: Callable, start: float) -> Any:
    found = dn.find_axes(net, *inputs, call=call)
    return found.learn(start=start)


def run(path: Path | None) -> None:
    # The body of the function above.
    lines = len(inspect.getsource(learned).splitlines()) - 1
    rows, errors = [], []
    with jax.enable_x64(True):
        for name in NAMES:
            seconds, error = _network(example(name))
            errors.append(error)
            rows += [
                Row(f"axes/{name}/seconds", seconds, "s"),
                Row(f"axes/{name}/lines", lines, "", "<= 5"),
                Row(f"axes/{name}/error", error, "", "<= 1e-9"),
            ]
        silent = [_is_silent(hazard) for _, hazard in hazards()]
    seconds, materialize = _vit()
    rows += [
        Row("axes/networks", len(errors), "", ">= 25"),
        Row("axes/error", max(errors), "", "<= 1e-9"),
        Row("axes/hazards", len(silent), "", ">= 60"),
        Row("axes/silent", sum(silent), "", "0"),
        Row("axes/vit24/seconds", seconds, "s", "<= 5"),
        Row("axes/materialize", materialize, "", "<= 1.5"),
    ]
    finish(rows, path)


def _network(made: Example) -> tuple[float, float]:
    """Seconds, error."""
    start = time.perf_counter()
    axes, masks = learned(made.model, made.inputs, made.call, 0.6)
    seconds = time.perf_counter() - start
    return seconds, dn.verify(made.model, axes, masks, *made.inputs, call=made.call)


def _is_silent(hazard: Hazard) -> bool:
    model, axes, masks, inputs, call = hazard
    try:
        dn.check(model, axes, masks, *inputs, call=call)
        dn.verify(model, axes, masks, *inputs, call=call)
    except dn.LawError as error:
        return "under another plan: with" in str(error)  # found by numbers alone
    except ValueError:
        return False
    return False


def _vit() -> tuple[float, float]:
    """Seconds to find its axes; how much longer it takes to trace it materialized."""
    net, x = ViT(192, 3, 24, jr.key(0)), jr.normal(jr.key(1), (1, 8, 8))
    start = time.perf_counter()
    axes, masks = learned(net, (x,), lambda net, x: net(x), 0.5)
    seconds = time.perf_counter() - start
    under = lambda net, masks, x: dn.materialize(net, axes, masks, {}, check_coverage=False)(x)
    ratios = []
    for _ in range(5):
        start = time.perf_counter()
        eqx.filter_make_jaxpr(lambda net, x: net(x))(net, x)
        between = time.perf_counter()
        eqx.filter_make_jaxpr(under)(net, masks, x)
        ratios.append((time.perf_counter() - between) / (between - start))
    return seconds, statistics.median(ratios)
