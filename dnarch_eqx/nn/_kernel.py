import math
from collections.abc import Sequence

import equinox as eqx
import jax.lax as lax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._axes import Gate
from .._freeze import AbstractFreezable
from .._masks import product
from .._misc import as_float, Constant, constant, value
from ._choices import choose_method, METHODS, one_of, Path, TRANSFORMS
from ._fourier import convolution_transforms, fourier_convolution, resize_transforms
from ._layers import beside, PointwiseLinear
from ._spatial import spatial_convolution


class KernelGenerator(AbstractFreezable):
    r"""The kernels of a whole network as functions of the coordinate (Appx. E.1): a
    4-layer MLP on the features $\cos, \sin(2 \pi \omega_0 W x)$, of which this is all but
    the last layer. That one has a slice for every block and channel, and lies with the
    block.

    At the paper's $\omega_0$, up to 30,000, kernels oscillate far above the grid's Nyquist
    frequency: on a coarser grid they would be unrelated kernels. So the grid is always that
    of the full resolution, of which a window is rendered.

    Our choices, where the paper is silent: GELU; $W$ is frozen, since one step of Adam on it
    would redraw all kernels.
    """

    frequencies: tuple[Float[Array, " features"] | Constant, ...]
    layers: tuple[PointwiseLinear, ...]
    omega_0: Float[Array, ""] | Constant
    grid: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, grid: Sequence[int], *, omega_0: float, hidden: int = 128, key: PRNGKeyArray
    ):
        """**Arguments:**

        - `grid`: the largest extent on each axis, odd.
        - `omega_0`: what the frequencies are multiplied by.
        - `hidden`: the width of the MLP and the number of frequencies.
        - `key`: for the weights.
        """
        wkey, *keys = jr.split(key, 4)
        # One vector an axis and not a matrix: the phase is summed over axes one by one, in
        # full precision on every backend (TF32 and bfloat16 would turn it to noise).
        self.frequencies = tuple(jr.normal(wkey, (len(grid), hidden)))
        self.layers = tuple(
            PointwiseLinear(size, hidden, key=key)
            for size, key in zip((2 * hidden, hidden, hidden), keys)
        )
        self.omega_0 = as_float(omega_0)
        self.grid = tuple(grid)

    def __call__(self, window: Sequence[int]) -> Float[Array, "hidden *window"]:
        """The hidden features at the centred window of the grid."""
        dim = len(self.grid)
        turns = []
        for i, (size, kept) in enumerate(zip(self.grid, window)):
            start = (size - kept) // 2
            x = as_float(np.linspace(-1, 1, size)[start : start + kept])
            w = lax.stop_gradient(value(self.omega_0) * value(self.frequencies[i]))
            along = [axis for axis in range(dim) if axis != i]
            x = jnp.expand_dims(x, along)[None]
            turns.append(x * jnp.expand_dims(w, range(1, dim + 1)))
        turns = sum(turns[1:], turns[0])
        # Whole turns are taken off while they are exact.
        phase = 2 * math.pi * (turns - jnp.round(turns))
        h = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])
        for layer in self.layers:
            h = jnn.gelu(layer(h))
        return h

    def freeze(self) -> "KernelGenerator":
        """With frequencies that no optimizer finds."""
        fixed = (tuple(map(constant, self.frequencies)), constant(self.omega_0))
        return eqx.tree_at(lambda g: (g.frequencies, g.omega_0), self, fixed)


class ContinuousConv(eqx.Module):
    """A depthwise convolution whose kernel is generated, masked (Section 3.1), and fused
    with learned downsampling (Section 3.2, Appx. B).

    The axes are those of the kernel's extents and of the frequencies kept; without masks
    the kernel is global and the resolution that of the input.
    """

    head: PointwiseLinear | None
    bias: Float[Array, " channels"]
    kernel: tuple[Gate, ...]
    resolution: tuple[Gate, ...]
    rendered: Float[Array, "channels *window"] | None
    method: str = eqx.field(static=True)
    transform: str = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        kernel: Sequence[Gate],
        resolution: Sequence[Gate],
        *,
        hidden: int = 128,
        taps: float | None = None,
        method: str = "auto",
        transform: str = "auto",
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `channels`: how many.
        - `kernel`: the gates of the kernel's extents, odd.
        - `resolution`: the gates of the frequencies, as many as samples on each axis.
        - `hidden`: the features that the generator gives.
        - `taps`: how many positions of the kernel are active at first; the weights are
            scaled by one over the square root. By default all.
        - `method`: `"fourier"`, `"spatial"` (Appx. B.4), or by the sizes and the backend,
            `"auto"`: spatial for extents of at most 50, as the predecessors do; on a CPU only
            for a handful of taps without a low-pass filter.
        - `transform`: `"fft"`; `"dft"`, products with matrices, which pays where few
            frequencies are kept; or on each axis by the sizes and the backend, `"auto"`: on a
            GPU it is the FFT.
        - `key`: for the weights.
        """
        taps = math.prod(gate.size for gate in kernel) if taps is None else taps
        self.head = PointwiseLinear(hidden, channels, gain=2 / taps, key=key)
        self.bias = as_float(jnp.zeros(channels))
        self.kernel = tuple(kernel)
        self.resolution = tuple(resolution)
        self.rendered = None
        self.method = one_of("method", method, METHODS)
        self.transform = one_of("transform", transform, TRANSFORMS)

    @property
    def window(self) -> tuple[int, ...]:
        """The extents that are rendered."""
        return tuple(gate.size for gate in self.kernel)

    def render(
        self, features: Float[Array, "hidden *grid"]
    ) -> Float[Array, "channels *window"]:
        """The masked kernel, from the generator's features on a window at least as large."""
        if self.rendered is not None:
            return self.rendered
        assert self.head is not None
        for axis, size in enumerate(self.window, 1):
            start = (features.shape[axis] - size) // 2
            features = lax.slice_in_dim(features, start, start + size, axis=axis)
        kernel = self.head(features)
        if all(gate.values is None for gate in self.kernel):
            return kernel
        mask = product(*(gate() for gate in self.kernel))
        return kernel * mask.astype(kernel.dtype)[None]

    def freeze_kernel(self, features: Float[Array, "hidden *grid"]) -> "ContinuousConv":
        """The same convolution with its kernel rendered once and for all."""
        where = lambda conv: (conv.rendered, conv.head, conv.kernel)
        gates = tuple(Gate(gate.axis, gate.size) for gate in self.kernel)
        return eqx.tree_at(
            where,
            self,
            (self.render(features), None, gates),
            is_leaf=lambda x: x is None,
        )

    def __call__(
        self,
        x: Float[Array, "channels *space"],
        features: Float[Array, "hidden *grid"] | None,
    ) -> Float[Array, "channels *reduced"]:
        """**Arguments:**

        - `x`: one example, zero outside its samples.
        - `features`: of the generator. A frozen kernel needs none.

        **Returns:**

        The convolution at the resolution kept.
        """
        kernel = self.rendered if features is None else self.render(features)
        assert kernel is not None
        low_pass = [
            None if gate.values is None else gate.values.astype(kernel.dtype)
            for gate in self.resolution
        ]
        y = x.astype(kernel.dtype)
        if self.path(x.shape[1:]).method == "spatial":
            y = spatial_convolution(y, kernel, low_pass)
        else:
            y = fourier_convolution(y, kernel, low_pass, self.transform)
        return (y + beside(self.bias, y)).astype(x.dtype)

    def path(self, space: Sequence[int]) -> Path:
        """How an example of this shape is convolved and brought back to its resolution."""
        sizes = [None if gate.values is None else gate.size for gate in self.resolution]
        filtered = any(size is not None for size in sizes)
        method = choose_method(self.method, self.window, filtered)
        transforms = ()
        if method == "fourier":
            transforms = convolution_transforms(self.transform, space, self.window, sizes)
        reduced = [n if m is None else m for n, m in zip(space, sizes)]
        return Path(method, transforms, resize_transforms(self.transform, reduced, space))
