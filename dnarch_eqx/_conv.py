# The convolutions of `eqx.nn`, whose channels and kernel extents may be learned.

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._fit import Fit
from ._misc import recast, replace


class CroppedConv(eqx.nn.Conv):
    """A convolution whose padding is not of zeros, and negative somewhere: as many samples
    are left out, after the rest is padded from all of them.
    """

    def __call__(self, x: Float[Array, "channels *space"], *, key=None) -> Array:
        padding: Any = self.padding
        wide = [(max(low, 0), max(high, 0)) for low, high in padding]
        x = jnp.pad(x, [(0, 0), *wide], _MODES[self.padding_mode])
        left_out = tuple((min(low, 0), min(high, 0)) for low, high in padding)
        conv = recast(eqx.nn.Conv, self, padding=left_out, padding_mode="ZEROS")
        return conv(x, key=key)


_MODES = {"REFLECT": "reflect", "REPLICATE": "edge", "CIRCULAR": "wrap"}


def conv(layer: eqx.nn.Conv, fit: Fit) -> eqx.Module:
    stacked = layer.weight.ndim - layer.num_spatial_dims - 2
    fit = fit.within(stacked)
    if layer.bias is not None:
        fit.agree("weight", 0, "bias", 0)
    out, in_, *kernel = layer.weight.shape[stacked:]
    groups, in_channels = layer.groups, in_
    if groups > 1 and (fit.learned("weight", 0) or fit.learned("weight", 1)):
        if not groups == layer.in_channels == layer.out_channels:
            raise fit.refuse(
                f"its channels are in {groups} groups, across which an axis cannot be sliced. "
                "Only ungrouped and depthwise convolutions have learnable channels."
            )
        groups = in_channels = out
    elif groups > 1:
        in_channels = in_ * groups
    padding = _left(layer, kernel, fit)
    # Zeros can be left out by a negative padding; of other samples Equinox only adds some.
    crops = not isinstance(padding, str) and min(min(pair) for pair in padding) < 0
    return recast(
        CroppedConv if crops and layer.padding_mode != "ZEROS" else type(layer),
        layer,
        in_channels=in_channels,
        out_channels=out,
        kernel_size=tuple(kernel),
        groups=groups,
        padding=padding,
    )


def _left(
    layer: eqx.nn.Conv, kernel: Sequence[int], fit: Fit
) -> str | tuple[tuple[int, int], ...]:
    """The padding with which the taps that are left read the same samples as before."""
    learned = [fit.learned("weight", 2 + i) for i in range(layer.num_spatial_dims)]
    if not any(learned):
        return layer.padding
    padding = []
    for i, (low, high) in enumerate(_padding(layer, layer.kernel_size, fit)):
        start = 0
        if learned[i]:
            if len((fit.dims("weight") or ())[2 + i]) > 1:
                raise fit.refuse("a kernel extent that is learned is one axis, not `fused`.")
            start = fit.starts[str(learned[i][0].axis)]
        rest = layer.kernel_size[i] - start - kernel[i]
        padding.append((low - start * layer.dilation[i], high - rest * layer.dilation[i]))
    padding = tuple(padding)
    unchanged = isinstance(layer.padding, str) and padding == _padding(layer, kernel, fit)
    return layer.padding if unchanged else padding


def _padding(
    layer: eqx.nn.Conv, kernel: Sequence[int], fit: Fit
) -> tuple[tuple[int, int], ...]:
    """What the padding of the layer amounts to, for a kernel of this size."""
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    if layer.padding == "VALID":
        return ((0, 0),) * layer.num_spatial_dims
    if max(layer.stride) > 1:
        raise fit.refuse(
            f"a kernel extent is learned, the stride is {layer.stride} and the padding "
            f"{layer.padding!r} would move with the extent: give the padding as numbers."
        )
    totals = [(k - 1) * d for k, d in zip(kernel, layer.dilation)]
    less = [(total // 2, total - total // 2) for total in totals]
    return tuple((b, a) if layer.padding == "SAME_LOWER" else (a, b) for a, b in less)


def conv_transpose(layer: eqx.nn.ConvTranspose, fit: Fit) -> eqx.Module:
    stacked = layer.weight.ndim - layer.num_spatial_dims - 2
    fit = fit.within(stacked)
    if layer.bias is not None:
        fit.agree("weight", 0, "bias", 0)
    out, in_ = layer.weight.shape[stacked : stacked + 2]
    learned = [i for i in range(layer.num_spatial_dims + 2) if fit.learned("weight", i)]
    if learned and (layer.groups > 1 or max(learned) > 1):
        raise fit.refuse(
            "grouped channels and kernel extents of a ConvTranspose are not learnable."
        )
    return replace(layer, in_channels=in_ * layer.groups, out_channels=out)
