# Which of several ways to the same result is cheaper: by the sizes of the materialized
# network, which are known while it is traced, and the backend. (The number of channels and
# of examples is a factor of both costs.) `python -m benchmarks transforms` measures them.

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax


# Entries of a matrix that are multiplied in the time of one operation of an FFT. On CPUs 4
# to 7 were measured; on a GPU an FFT is hard to beat; on a TPU it is slow beside the matrix
# unit. Neither of these two has been measured.
_ENTRIES = {"cpu": 5.0, "gpu": 0.0, "tpu": 16.0}
# The matrices are constants of the program: at most 4 MiB in float32.
_MAX_ENTRIES = 2**20
METHODS = ("auto", "fourier", "spatial")
TRANSFORMS = ("auto", "fft", "dft")


class Path(NamedTuple):
    """How a block is computed, see [`dnarch_eqx.nn.paths`][].

    - `method`: of the convolution: `"fourier"` or `"spatial"`.
    - `transforms`: of a Fourier convolution, on each axis: `"fft"` or `"dft"`.
    - `resize`: how the result is brought back to the input's resolution, on each axis:
        `"fft"`, `"dft"`, or `"none"` where it is at that resolution.
    """

    method: str
    transforms: tuple[str, ...]
    resize: tuple[str, ...]


def choose_transform(transform: str, entries: int, lengths: Sequence[int]) -> str:
    """`"dft"`, products with matrices of so many entries, or `"fft"`, of these lengths."""
    one_of("transform", transform, TRANSFORMS)
    if transform != "auto":
        return transform
    operations = sum(2.5 * n * math.log2(n) for n in lengths)
    affordable = min(_ENTRIES.get(jax.default_backend(), 0.0) * operations, _MAX_ENTRIES)
    return "dft" if entries <= affordable else "fft"


def choose_method(method: str, window: Sequence[int], filtered: bool) -> str:
    """`"spatial"` or `"fourier"`, for a kernel of these extents. On CPUs XLA's depthwise
    convolution is 20 to 60 times slower than going through the spectrum; what pays there is a
    sum of shifted products, for the smallest kernels and without a low-pass filter. Elsewhere
    it is extents of at most 50, as the predecessors have it.
    """
    if method != "auto":
        return method
    if jax.default_backend() == "cpu":
        local = few_taps(window) and not filtered
    else:
        local = max(window) <= 50
    return "spatial" if local else "fourier"


def few_taps(window: Sequence[int]) -> bool:
    """Whether a sum of shifted products is what a CPU computes fastest: 3 or 5 taps, or 3 x 3,
    but not 7.
    """
    return max(window) <= 5 and math.prod(window) <= 9


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """`value`. Raises `ValueError` if it is none of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
    return value
