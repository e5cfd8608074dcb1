from collections.abc import Sequence

import equinox as eqx
import jax.nn as jnn
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from ._fourier import resize
from ._kernel import ContinuousConv
from ._layers import BatchNorm, PointwiseLinear


class Block(eqx.Module):
    """The branch of a residual block: norm, depthwise continuous convolution, pointwise
    linear, GELU, dropout, pointwise linear, GELU (Appx. E.1). It reads as many channels of
    the stream as its norm has, and writes as many as its second linear map has.

    Both linear maps run at the branch's own resolution; bringing the features back to the
    input's is the last act (Appx. B.3). Everything is in the dtype of the input but what
    needs precision, the convolution and the resizing, which is in that of the parameters.
    """

    norm: BatchNorm
    conv: ContinuousConv
    linear1: PointwiseLinear
    dropout: eqx.nn.Dropout
    linear2: PointwiseLinear

    def __call__(
        self,
        x: Float[Array, "stream *space"],
        features: Float[Array, "hidden *grid"] | None,
        *,
        where: Bool[Array, "*space"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "out *space"]:
        h = self.norm(x[: self.norm.weight.shape[0]], where=where)
        if where is not None:
            h = real(h, where)  # the norm's bias is no signal beyond the end
        h = jnn.gelu(self.linear1(self.conv(h, features)))
        h = jnn.gelu(self.linear2(self.dropout(h, key=key)))
        h = resize(h.astype(self.conv.bias.dtype), x.shape[1:], self.conv.transform)
        return h.astype(x.dtype)


def add_branches(
    stream: Float[Array, "stream *space"],
    blocks: Sequence[Block],
    features: Float[Array, "hidden *grid"] | None,
    present: Float[Array, " depth"] | None,
    *,
    where: Bool[Array, "*space"] | None = None,
    keys: Shaped[Array, "depth ..."] | None = None,
    remat: bool = False,
) -> Float[Array, "stream *space"]:
    """The residual stream after all blocks.

    **Arguments:**

    - `stream`: with as many channels as any block reads or writes.
    - `blocks`: the branches.
    - `features`: of the generator.
    - `present`: what each branch is multiplied by, if by anything.
    - `where`, `remat`: see [`dnarch_eqx.nn.CCNN`][].
    - `keys`: for dropout, one for each block.
    """

    def add(h, block, weight, key):
        branch = block(h, features, where=where, key=key)
        if weight is not None:
            branch = branch * weight.astype(branch.dtype)
        return h + real(widened(branch, h.shape[0]), where)

    if remat:
        add = eqx.filter_checkpoint(add)
    for i, block in enumerate(blocks):
        weight, key = jtu.tree_map(lambda x: x[i], (present, keys))
        stream = add(stream, block, weight, key)
    return stream


def reading(block: Block, present: Float[Array, " stream"] | None) -> Block:
    """A block that reads so much of each channel of the stream. After the norm, which would
    divide it out; hence in its weights.
    """
    if present is None:
        return block
    read = len(block.norm.weight)
    # What lies beyond the stream is none.
    share = jnp.pad(present[:read], (0, max(read - len(present), 0)))
    norm = jtu.tree_map(lambda x: x * share.astype(x.dtype), block.norm)
    return eqx.tree_at(lambda b: b.norm, block, norm)


def widened(x: Float[Array, "channels *space"], channels: int) -> Float[Array, "_ *space"]:
    """With channels of zeros at the end, up to so many."""
    return jnp.pad(x, [(0, channels - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def real(
    x: Float[Array, "channels *space"], where: Bool[Array, "*space"] | None
) -> Float[Array, "channels *space"]:
    """`x`, but zero at padded positions."""
    return x if where is None else x * where.astype(x.dtype)[None]
