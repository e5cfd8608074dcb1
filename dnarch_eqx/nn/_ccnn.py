from collections.abc import Callable, Sequence
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from .._axes import Gate
from .._freeze import AbstractFreezable
from ._blocks import add_branches, Block, reading, real, widened
from ._choices import Path
from ._encoder import Encoder, known_tokens
from ._kernel import ContinuousConv, KernelGenerator
from ._layers import BatchNorm, PointwiseLinear


class CCNN(AbstractFreezable):
    """The continuous CNN of Appx. E.1, for inputs with any number of spatial axes. All that
    DNArch learns of it lies on axes: see [`dnarch_eqx.nn.axes`][].

    Works on one example: call it under `jax.vmap(net, axis_name="batch")`, since it
    normalises by the statistics of the batch.

    Resolutions are learned by a low-pass filter in the Fourier domain, and under a plan the
    branch runs on a grid of the bucket's size. The convolution is then exactly the one of
    the full grid. The nonlinearities alias on a coarser grid, so that a switch of a
    resolution's bucket changes the function slightly, and a network is defined at the
    resolutions of its plan: deploy it at those that it was trained at.
    """

    # Blocks read and write parts of one stream, which no axis map can say.
    keeps_law: ClassVar[bool] = True

    encoder: Encoder
    generator: KernelGenerator | None
    blocks: tuple[Block, ...]
    depth: Gate
    stream: Gate
    norm: BatchNorm
    decoder: PointwiseLinear
    shape: tuple[int, ...] = eqx.field(static=True)
    pool: bool = eqx.field(static=True)
    dtype: DTypeLike | None = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        shape: Sequence[int],
        *,
        depth: int,
        width: int,
        vocabulary: int | None = None,
        embedding: int = 128,
        pool: bool = True,
        omega_0: float = 10_000.0,
        hidden: int = 128,
        taps: float | None = None,
        dropout: float = 0.0,
        method: str = "auto",
        transform: str = "auto",
        dtype: DTypeLike | None = None,
        remat: bool = False,
        axis_name: str = "batch",
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`: of the input; `None` for tokens.
        - `out_channels`: of the output.
        - `shape`: the spatial shape of the input, one to three axes. It is also the largest
            kernel, made odd by one more. Where resolutions are learned, transforms are 1.5
            times as long as an even extent, and twice as long as an odd one.
        - `depth`: how many blocks.
        - `width`: how many channels everywhere.
        - `vocabulary`: for tokens: how many there are. The input is then of integers.
        - `embedding`: for tokens: the width of their embedding.
        - `pool`: whether the output is one prediction, of the mean over the positions, or
            dense: one at each position.
        - `omega_0`: the prior on the kernels' frequencies. The paper tunes it a task, from 1
            to 30,000.
        - `hidden`: the width of the kernel generator.
        - `taps`: how many positions of a kernel are active at first, by which the generator's
            last layer is scaled. By default all.
        - `dropout`: the probability, in every block.
        - `method`, `transform`: of convolution, see `ContinuousConv`. What they come to is
            listed by [`dnarch_eqx.nn.paths`][].
        - `dtype`: of what is computed for every example: the linear maps, what is pointwise
            and the residual stream; `jnp.bfloat16` is for accelerators, and saves nothing on
            a CPU. The kernels, all transforms, the statistics of the norms, the mean over
            positions and the decoder are in the dtype of the parameters, which is the default
            of all; as are gradients.
        - `remat`: whether the backward pass computes the insides of a block again, instead
            of keeping them. (XLA for CPUs moves what is computed again to where it was
            computed first, and saves little.)
        - `axis_name`: of the batch.
        - `key`: for the weights.

        Raises `ValueError` for arguments out of range.
        """
        if not 1 <= len(shape) <= 3 or min(shape) < 2:
            raise ValueError(
                f"`shape` must have one to three axes of at least 2 positions, got {shape}."
            )
        for name, value in {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "depth": depth,
            "width": width,
            "vocabulary": vocabulary,
            "embedding": embedding,
            "hidden": hidden,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if (in_channels is None) == (vocabulary is None):
            raise ValueError(
                "Give `in_channels` or `vocabulary`, one of them; got "
                f"in_channels={in_channels} and vocabulary={vocabulary}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must lie in [0, 1), got {dropout}.")
        if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"`dtype` must be a floating one, got {dtype}.")
        ekey, tkey, gkey, dkey, *bkeys = jr.split(key, 4 + depth)
        grid = tuple(n + 1 - n % 2 for n in shape)
        norm = lambda: BatchNorm(width, axis_name=axis_name)

        def block(i: int, key: PRNGKeyArray) -> Block:
            ckey, key1, key2 = jr.split(key, 3)
            conv = ContinuousConv(
                width,
                [Gate(name, k) for name, k in zip(spatial(f"blocks.{i}.kernel", shape), grid)],
                [Gate(a, n) for a, n in zip(spatial(f"blocks.{i}.resolution", shape), shape)],
                hidden=hidden,
                taps=taps,
                method=method,
                transform=transform,
                key=ckey,
            )
            return Block(
                norm(),
                conv,
                PointwiseLinear(width, width, key=key1),
                eqx.nn.Dropout(dropout, inference=dropout == 0),
                PointwiseLinear(width, width, key=key2),
            )

        if in_channels is None:
            assert vocabulary is not None
            tokens = eqx.nn.Embedding(vocabulary, embedding, key=tkey)
        else:
            tokens = None
        first = PointwiseLinear(in_channels or embedding, width, key=ekey)
        self.encoder = Encoder(tokens, first, norm())
        self.generator = KernelGenerator(grid, omega_0=omega_0, hidden=hidden, key=gkey)
        self.blocks = tuple(block(i, bkey) for i, bkey in enumerate(bkeys))
        self.depth = Gate("depth", depth)
        self.stream = Gate("stream", width)
        self.norm = norm()
        self.decoder = PointwiseLinear(width, out_channels, key=dkey)
        self.shape = tuple(shape)
        self.pool = pool
        self.dtype = None if dtype is None else jnp.dtype(dtype)
        self.remat = remat

    def fixed_axes(self, lies: Callable[[str], str | None]) -> set[str | None]:
        """The axes whose positions cannot change places: channels that blocks read and write,
        as they are the first ones of the stream; but not where all are the stream's own.

        - `lies`: the axis that the first dimension of a path lies on.
        """
        ends = (".norm.weight", ".linear2.weight")
        found = {lies(f".blocks[{i}]{end}") for i in range(len(self.blocks)) for end in ends}
        found.add(lies(".encoder.linear.weight"))
        return set() if len(found) == 1 else found

    def __call__(
        self,
        x: Shaped[Array, "*channels_and_space"],
        *,
        where: Bool[Array, "*space"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "out *dense"]:
        """**Arguments:**

        - `x`: one example, of shape `(in_channels, *shape)`, or tokens of shape `shape`.
        - `where`: for examples that are padded: which positions are real. The others are
            neither pooled nor normalised over, and are zero for the convolutions.
        - `key`: for dropout.

        **Returns:**

        The prediction, of shape `(out_channels,)`, or `(out_channels, *shape)` if dense.

        Raises `ValueError` for an input of another rank, shape or number of channels, and for
        a token out of the vocabulary where the tokens are known. Where they are traced, as
        under `jax.jit`, such a token makes the output NaN, of all examples of the batch.
        """
        x = self._checked(x, where)
        h = self.encoder(x, where=where, dtype=self.dtype)
        # Beyond the channels that somebody writes or reads the stream is zero.
        read = [block.norm.weight.shape[0] for block in self.blocks]
        written = [block.linear2.weight.shape[0] for block in self.blocks]
        h = add_branches(
            real(widened(h, max(h.shape[0], *read, *written, 0)), where),
            [reading(block, self.stream.values) for block in self.blocks],
            self._features(),
            self.depth.values,
            where=where,
            keys=None if key is None else jr.split(key, len(self.blocks)),
            remat=self.remat,
        )
        h = self.norm(h[: self.norm.weight.shape[0]], where=where)
        h = h.astype(self.decoder.weight.dtype)
        if not self.pool:
            return self.decoder(h)
        space = tuple(range(1, h.ndim))
        if where is None:
            return self.decoder(jnp.mean(h, space))
        count = jnp.maximum(jnp.sum(where.astype(h.dtype)), 1)
        return self.decoder(jnp.sum(real(h, where), space) / count)

    def freeze(self) -> "CCNN":
        """With all kernels rendered, and no generator."""
        features = self._features()
        if features is None:
            return self
        blocks = tuple(
            eqx.tree_at(lambda b: b.conv, block, block.conv.freeze_kernel(features))
            for block in self.blocks
        )
        return eqx.tree_at(
            lambda m: (m.blocks, m.generator), self, (blocks, None), is_leaf=lambda x: x is None
        )

    def _features(self) -> Float[Array, "hidden *window"] | None:
        """Rendered once, on a window that holds that of every block."""
        if self.generator is None:
            return None
        windows = [block.conv.window for block in self.blocks]
        return self.generator([max(sizes) for sizes in zip(*windows)])

    def _checked(self, x: Array, where: Array | None) -> Array:
        tokens = self.encoder.embedding
        if tokens is None:
            expected = (self.encoder.linear.weight.shape[1], *self.shape)
            kind, ok = "floats", jnp.issubdtype(x.dtype, jnp.floating)
        else:
            expected = self.shape
            kind, ok = "token ids (integers)", jnp.issubdtype(x.dtype, jnp.integer)
        if x.shape != expected or not ok:
            raise ValueError(
                f"`x` must be {kind} of shape {expected}, got {x.dtype} of shape {x.shape}. "
                'Batches go through `jax.vmap(net, axis_name="batch")`.'
            )
        if where is not None and where.shape != self.shape:
            raise ValueError(f"`where` must have shape {self.shape}, got {where.shape}.")
        ids = None if tokens is None else known_tokens(x)
        if tokens is not None and ids is not None and ids.size > 0:
            last = tokens.weight.shape[0] - 1
            if ids.min() < 0 or ids.max() > last:
                raise ValueError(
                    f"`x` has tokens from {ids.min()} to {ids.max()}: out of the vocabulary, "
                    f"whose ids go from 0 to {last}."
                )
        return x


def paths(net: CCNN) -> tuple[Path, ...]:
    """How every block of a network is computed, by its sizes and the backend: the method of
    its convolution and the transforms on each axis. Of a network that is trained, give what
    [`dnarch_eqx.materialize`][] makes of it.

    !!! Example

        ```python
        net = dn.materialize(model, axes, masks, plan)
        nn.paths(net)[0]  # Path(method='fourier', transforms=('dft',), resize=('fft',))
        ```
    """
    return tuple(block.conv.path(net.shape) for block in net.blocks)


def spatial(name: str, shape: Sequence[int]) -> list[str]:
    """The names of an axis a spatial dimension: `name`, or `name.y` and `name.x`."""
    if len(shape) == 1:
        return [name]
    return [f"{name}.{letter}" for letter in "zyx"[3 - len(shape) :]]
