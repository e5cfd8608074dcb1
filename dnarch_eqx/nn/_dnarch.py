import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._axes import Axes, AxisMap, gated
from .._freeze import freeze
from .._gaussian import Gaussian
from .._masks import AbstractMask, Masks
from .._plan import Plan
from .._sigmoid import Sigmoid
from ..ladders import buckets as _buckets, every, geometric, Ladder, odd, smooth
from ._ccnn import CCNN


@dataclasses.dataclass(frozen=True)
class Base:
    """A base network: the one that masks start from, and whose complexity is the target.
    Where width or depth are learned, the capacities are twice the base's (Appx. F).
    """

    depth: int
    width: int


CCNN_4_140 = Base(depth=4, width=140)
CCNN_6_380 = Base(depth=6, width=380)
# The learned widths of a block.
PARTS = ("in", "mid", "out")


def dnarch(
    base: Base,
    learn: str,
    in_channels: int | None,
    out_channels: int,
    shape: tuple[int, ...],
    *,
    start: float = 1.0,
    sigma: float = 0.5,
    resolution_temperature: float = 25.0,
    width_temperature: float = 25.0,
    depth_temperature: float = 8.0,
    stream: bool = False,
    key: PRNGKeyArray,
    **ccnn: Any,
) -> tuple[CCNN, dict[str, AbstractMask]]:
    """`DNArch_{learn}(CCNN_base)`: a CCNN at its capacities, and the masks that start it as
    the base network (Appx. E.1). Weights are drawn accordingly: those of the kernels, and of
    linear maps that read learned channels, are as large as suits the positions that masks keep
    at first. For twice as many they would be too small, and every branch weak.

    **Arguments:**

    - `base`: [`dnarch_eqx.nn.CCNN_4_140`][], [`dnarch_eqx.nn.CCNN_6_380`][] or another.
    - `learn`: of the letters K, R, W, D those whose sizes are learned: kernels, resolutions,
        widths, depth. `"KRWD"` is all; `""` is the base network itself, with global kernels.
    - `in_channels`, `out_channels`, `shape`, `key`, `**ccnn`: see [`dnarch_eqx.nn.CCNN`][].
    - `start`: what learned sizes start at, over those of the base network and `sigma`, or as
        near to it as is admissible. The capacities do not depend on it.
    - `sigma`: what the kernels' masks start at.
    - `resolution_temperature`, `width_temperature`, `depth_temperature`: of the sigmoids.
    - `stream`: whether the residual stream's width is learned with the other widths, which
        the paper does not say. By default it is at the capacity.

    **Returns:**

    The model and the dictionary of masks.

    Raises `ValueError` for arguments out of range.
    """
    if len(set(learn)) != len(learn) or not set(learn) <= set("KRWD"):
        raise ValueError(f"`learn` must be some of the letters K, R, W, D, got {learn!r}.")
    if not start > 0:
        raise ValueError(f"`start` must be positive, got {start}.")
    taps = None
    if "K" in learn:
        with jax.ensure_compile_time_eval():  # so that models can be made inside jit
            grid = [Gaussian(n + 1 - n % 2, sigma=sigma) for n in shape]
            taps = math.prod(int(_scaled(mask, start).active()) for mask in grid)
    model = CCNN(
        in_channels,
        out_channels,
        shape,
        depth=base.depth * (2 if "D" in learn else 1),
        width=base.width * (2 if "W" in learn else 1),
        taps=taps,
        key=key,
        **ccnn,
    )
    masks: dict[str, AbstractMask] = {}
    if "K" in learn:
        masks |= kernel_masks(model, sigma=sigma)
    if "R" in learn:
        masks |= resolution_masks(model, temperature=resolution_temperature)
    if "W" in learn:
        masks |= width_masks(model, base.width, temperature=width_temperature, stream=stream)
    if "D" in learn:
        masks |= depth_masks(model, base.depth, temperature=depth_temperature)
    masks = {axis: _scaled(mask, start) for axis, mask in masks.items()}
    return _made_for(model, masks), masks


def _scaled(mask: Any, factor: float) -> Any:
    """A mask of so many times the size, or as near to it as is admissible."""
    return mask if factor == 1 else mask.resized(factor * mask.unclipped_size())


def _made_for(model: CCNN, masks: Masks) -> CCNN:
    """With linear maps whose outputs have the variance that they have without masks."""
    readers: dict[str, Any] = {"stream": lambda m: m.decoder.weight}
    for i in range(len(model.blocks)):
        readers[f"blocks.{i}.in"] = lambda m, i=i: m.blocks[i].linear1.weight
        readers[f"blocks.{i}.mid"] = lambda m, i=i: m.blocks[i].linear2.weight
    for axis, weight in readers.items():
        if axis in masks:
            mask = masks[axis]
            gain = jnp.sqrt(mask.capacity / jnp.sum(mask() ** 2))
            model = eqx.tree_at(weight, model, gain * weight(model))
    return model


def kernel_masks(model: CCNN, *, sigma: float = 0.5) -> dict[str, AbstractMask]:
    """K: a Gaussian mask on the extents of every block's kernel, a spatial axis each."""
    return {
        gate.axis: Gaussian(gate.size, sigma=sigma)
        for block in model.blocks
        for gate in block.conv.kernel
    }


def resolution_masks(model: CCNN, *, temperature: float = 25.0) -> dict[str, AbstractMask]:
    """R: a sigmoid mask on the frequencies of every block, a spatial axis each. They start
    at the input's resolution, with 0.85 at the end of the axis.
    """
    return {
        gate.axis: Sigmoid(gate.size, temperature=temperature)
        for block in model.blocks
        for gate in block.conv.resolution
    }


def width_masks(
    model: CCNN, size: float, *, temperature: float = 25.0, stream: bool = False
) -> dict[str, AbstractMask]:
    """W: a sigmoid mask on the input, middle and output channels of every block, and with
    `stream` on those of the residual stream. They start at `size`.
    """
    capacity = model.encoder.linear.weight.shape[0]
    names = [f"blocks.{i}.{part}" for i in range(len(model.blocks)) for part in PARTS]
    names += ["stream"] if stream else []
    return {name: Sigmoid(capacity, size=size, temperature=temperature) for name in names}


def depth_masks(
    model: CCNN, size: float, *, temperature: float = 8.0
) -> dict[str, AbstractMask]:
    """D: a sigmoid mask on the blocks, which starts at `size`."""
    return {"depth": Sigmoid(len(model.blocks), size=size, temperature=temperature)}


def axes(model: CCNN) -> AxisMap:
    """What of a CCNN lies on which axis: `depth`, `stream` and, for every block,
    `blocks.0.in`, `.mid`, `.out`. (The axes `.kernel` and `.resolution` are gates.)

    The mask of the stream enters where it is read, by blocks and decoder; it and that of the
    input channels after the norm, which would divide them out; those of the middle and the
    output before the nonlinearity, which is 0 at 0.
    """
    declared = {
        ".blocks": Axes("depth"),
        ".encoder.linear.weight": Axes("stream", None),
        ".encoder.linear.bias": Axes("stream"),
        ".encoder.norm.weight": Axes("stream"),
        ".encoder.norm.bias": Axes("stream"),
        ".norm.weight": Axes("stream"),
        ".norm.bias": Axes("stream"),
        ".decoder.weight": Axes(None, gated("stream")),
    }
    for i in range(len(model.blocks)):
        at, (in_, mid, out) = f".blocks[{i}]", (f"blocks.{i}.{part}" for part in PARTS)
        declared |= {
            f"{at}.norm.weight": Axes(in_),
            f"{at}.norm.bias": Axes(in_),
            f"{at}.conv.head.weight": Axes(in_, None),
            f"{at}.conv.head.bias": Axes(in_),
            f"{at}.conv.bias": Axes(in_),
            f"{at}.linear1.weight": Axes(gated(mid), gated(in_)),
            f"{at}.linear1.bias": Axes(gated(mid)),
            f"{at}.linear2.weight": Axes(gated(out), mid),
            f"{at}.linear2.bias": Axes(gated(out)),
        }
    return declared


def buckets(masks: Masks, *, ratio: float = 1.25, multiple: int = 8) -> dict[str, Ladder]:
    """Ladders that suit a CCNN: odd extents for kernels, 5-smooth lengths for resolutions,
    multiples for widths, every block for the depth.

    **Arguments:**

    - `masks`: the masks.
    - `ratio`: of one size to the next, at least. Nearer to 1 there is less waste, and there
        are more programs to compile.
    - `multiple`: of the widths: 8 on CPU and GPU, 128 on TPU. Widths of at most twice as many
        may be any.
    """
    return _buckets(
        masks,
        {
            "*.kernel*": odd(ratio),
            "*.resolution*": smooth(ratio),
            "depth": every(),
            "*": lambda n: geometric(ratio, multiple if n > 2 * multiple else 1)(n),
        },
    )


def deploy(model: CCNN, masks: Masks, plan: Mapping[str, int]) -> CCNN:
    """The network to be deployed: exact sizes, kernels rendered once, and the resolutions
    of `plan`, which the network was trained at.
    """
    kept = {axis: size for axis, size in plan.items() if ".resolution" in axis}
    return eqx.nn.inference_mode(freeze(model, axes(model), masks, Plan(kept)))
