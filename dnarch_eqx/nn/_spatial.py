import itertools as it
from collections.abc import Sequence

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._choices import few_taps
from ._fourier import resampler
from ._layers import beside
from ._transforms import along


def spatial_convolution(
    x: Float[Array, "channels *space"],
    kernel: Float[Array, "channels *window"],
    low_pass: Sequence[Float[Array, " _"] | None],
) -> Float[Array, "channels *reduced"]:
    """The same function as [`fourier_convolution`][], without a transform (Appx. B.4): for
    local kernels.
    """
    margins = [k // 2 for k in kernel.shape[1:]]
    # What the kernel smears beyond the ends counts, as soon as a filter brings it back.
    pads = [
        (half, half) if values is None else (2 * half, 2 * half)
        for half, values in zip(margins, low_pass)
    ]
    flipped = jnp.flip(kernel, range(1, kernel.ndim))
    if jax.default_backend() == "cpu" and few_taps(kernel.shape[1:]):
        y = _shifted(x, flipped, pads)
    else:
        y = lax.conv_general_dilated(
            x[None],
            flipped[:, None],
            (1,) * len(margins),
            pads,
            feature_group_count=x.shape[0],
        )[0]
    for i, (half, values) in enumerate(zip(margins, low_pass)):
        if values is not None:
            y = along(y, resampler(values, x.shape[i + 1], half).T, i + 1)
    return y


def _shifted(
    x: Float[Array, "channels *space"],
    taps: Float[Array, "channels *window"],
    pads: Sequence[tuple[int, int]],
) -> Float[Array, "channels *longer"]:
    """The cross-correlation as a sum over the taps, of which there are few: XLA's depthwise
    convolution is slow on CPUs.
    """
    x = jnp.pad(x, [(0, 0), *pads])
    space = [n - k + 1 for n, k in zip(x.shape[1:], taps.shape[1:])]
    y = jnp.zeros((x.shape[0], *space), x.dtype)
    for tap in it.product(*map(range, taps.shape[1:])):
        window = [slice(t, t + n) for t, n in zip(tap, space)]
        y = y + beside(taps[:, *tap], x) * x[:, *window]
    return y
