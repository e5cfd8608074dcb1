import jax.numpy as jnp
from jaxtyping import Array, Float

from .._count import check_sizes
from .._custom_types import Cost, Sizes
from .._misc import as_float
from .._sizes import present
from ._ccnn import CCNN
from ._dnarch import Base, PARTS


def base_sizes(model: CCNN, base: Base) -> dict[str, float]:
    """The sizes at which a CCNN of larger capacity is the base network: what
    [`dnarch_eqx.Budget`][] takes as a target.
    """
    widths = {
        f"blocks.{i}.{part}": float(base.width)
        for i in range(len(model.blocks))
        for part in PARTS
    }
    return {**widths, "depth": float(base.depth)}


def complexity(model: CCNN, *, per_channel: bool = True) -> Cost:
    r"""The operations of a CCNN as a differentiable function of its sizes (Appx. C): for
    every block, at a resolution of $r$ positions (the product over the spatial axes),

    - $r \, n_{in} n_{mid} + r \, n_{mid} n_{out}$ for the pointwise linear maps;
    - $n_{in} \, r \log_2 r$ for the Fourier convolution. The paper prints no $n_{in}$, and
        its tables lean a little that way: `per_channel=False` is the paper's. We count what
        runs;
    - $r \, (2 n_{mid} + n_{out})$ for two GELUs and the dropout.

    A block beyond the depth counts nothing, and the last one by its fraction. As in the
    paper's tables, which fit nothing else, encoder, decoder and kernels do not count, and
    neither do the transforms of a branch's input and output at the full resolution. XLA's
    count follows this one at the paper's widths, and less well in much narrower networks,
    where those transforms are half of all operations. Transforms are FFTs here; products with
    matrices (see [`dnarch_eqx.nn.ContinuousConv`][]) have more operations and take less time.

    **Arguments:**

    - `model`: at its capacities.
    - `per_channel`: whether every channel's Fourier convolution counts.

    **Returns:**

    A function of a dictionary from axis to size. An axis that it lacks counts at its
    capacity.
    """
    capacities = {"depth": len(model.blocks)}
    for i, block in enumerate(model.blocks):
        capacities |= {gate.axis: gate.size for gate in block.conv.resolution}
        capacities |= dict(zip((f"blocks.{i}.{part}" for part in PARTS), _widths(block)))
    resolutions = [
        [block.conv.resolution[i].axis for block in model.blocks]
        for i in range(len(model.shape))
    ]
    widths = [[f"blocks.{i}.{part}" for i in range(len(model.blocks))] for part in PARTS]

    uncounted = {gate.axis: gate.size for block in model.blocks for gate in block.conv.kernel}
    uncounted["stream"] = model.encoder.linear.weight.shape[0]

    def cost(sizes: Sizes) -> Float[Array, ""]:
        check_sizes(sizes, capacities | uncounted)
        size = lambda axis: as_float(sizes.get(axis, capacities[axis]))
        # Each a vector over the blocks: many scalar operations compile slowly.
        over_blocks = lambda axes: jnp.stack([size(axis) for axis in axes])
        r = jnp.prod(jnp.stack([over_blocks(axes) for axes in resolutions]), axis=0)
        in_, mid, out = (over_blocks(axes) for axes in widths)
        linear = r * (in_ * mid + mid * out)
        fourier = (in_ if per_channel else 1.0) * r * jnp.log2(r)
        pointwise = r * (2 * mid + out)
        return present(size("depth"), len(in_)) @ (linear + fourier + pointwise)

    return cost


def _widths(block) -> tuple[int, int, int]:
    return (
        block.linear1.weight.shape[1],
        block.linear1.weight.shape[0],
        block.linear2.weight.shape[0],
    )
