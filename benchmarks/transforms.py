"""The ways to compute the parts of a block that `"auto"` chooses among, forward and backward,
for a batch of 16 with 140 channels, as the network calls them:

- the Fourier convolution with a global kernel at a learned resolution, by FFTs and by
  products with matrices ("dft");
- bringing its result back to the input's resolution, likewise;
- tiny kernels without a low-pass filter, by FFTs and in the spatial domain.

`auto` is the time of the way that is chosen over that of the fastest.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from benchmarks._common import finish, medians, Row
from dnarch_eqx import nn
from dnarch_eqx.nn._choices import choose_method
from dnarch_eqx.nn._fourier import convolution_transforms, resize_transforms


_BATCH, _CHANNELS, _REPEATS = 16, 140, 11
_REDUCED = (
    ((32,), (32,)),
    ((64,), (64,)),
    ((64,), (32,)),
    ((256,), (256,)),
    ((256,), (128,)),
    ((256,), (64,)),
    ((1024,), (512,)),
    ((1024,), (128,)),
    ((1024,), (64,)),
    ((8, 8), (4, 4)),
    ((16, 16), (16, 16)),
    ((32, 32), (32, 32)),
    ((32, 32), (16, 16)),
    ((32, 32), (8, 8)),
)
_TINY = (
    ((64,), (3,)),
    ((64,), (7,)),
    ((1024,), (3,)),
    ((1024,), (5,)),
    ((1024,), (7,)),
    ((16, 16), (3, 3)),
    ((32, 32), (3, 3)),
)


def run(path: Path | None) -> None:
    rows = []
    for space, reduced in _REDUCED:
        window = [n + 1 - n % 2 for n in space]
        sizes = f"{_text(space)} to {_text(reduced)}"
        ways = {how: _fourier(how) for how in ("fft", "dft")}
        others = (_kernel(window), [jnp.linspace(1.0, 0.1, m) for m in reduced])
        (chosen, *_) = convolution_transforms("auto", space, window, reduced)
        rows += _compare(f"convolution/{sizes}", ways, chosen, space, others)
        if reduced != space:
            ways = {how: _resize(how, space) for how in ("fft", "dft")}
            (chosen, *_) = resize_transforms("auto", reduced, space)
            sizes = f"{_text(reduced)} to {_text(space)}"
            rows += _compare(f"resize/{sizes}", ways, chosen, reduced, ())
    for space, window in _TINY:
        ways = {"fourier": _fourier("fft"), "spatial": nn.spatial_convolution}
        others = (_kernel(window), [None] * len(space))
        chosen = choose_method("auto", window, filtered=False)
        name = f"{_text(window)} taps/{_text(space)}"
        rows += _compare(name, ways, chosen, space, others)
    finish(rows, path)


def _compare(
    name: str,
    ways: dict[str, Callable[..., Any]],
    chosen: str,
    space: Sequence[int],
    others: Sequence[Any],
) -> list[Row]:
    x = jr.normal(jr.key(0), (_BATCH, _CHANNELS, *space))
    seconds = medians({how: _step(way, x, others) for how, way in ways.items()}, _REPEATS)
    rows = [Row(f"{name}/{how}", 1e3 * value, "ms") for how, value in seconds.items()]
    ratio = seconds[chosen] / min(seconds.values())
    return [*rows, Row(f"{name}/auto", ratio, f"x ({chosen})", "<= 1.25")]


def _step(way: Callable[..., Any], x: Any, others: Sequence[Any]) -> Callable[[], Any]:
    """The outputs and the gradients of everything, compiled."""

    @jax.jit
    def step(x, others):
        batched = lambda x, others: jax.vmap(lambda x: way(x, *others))(x)
        out, back = jax.vjp(batched, x, others)
        return out, back(out)

    return lambda: step(x, others)


def _fourier(how: str) -> Callable[..., Any]:
    return lambda x, kernel, low_pass: nn.fourier_convolution(x, kernel, low_pass, how)


def _resize(how: str, space: Sequence[int]) -> Callable[..., Any]:
    return lambda x: nn.resize(x, space, how)


def _kernel(window: Sequence[int]) -> jax.Array:
    return jr.normal(jr.key(1), (_CHANNELS, *window))


def _text(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
