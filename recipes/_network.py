"""The networks of the recipes: a CCNN, or two towers of one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

import dnarch_eqx as dn
from dnarch_eqx import nn


@dataclasses.dataclass(frozen=True)
class Network:
    """What a task asks of a network.

    - `shape`: the grid, one or two axes.
    - `out_channels`: classes, or channels of a field.
    - `in_channels`: of the input, or `None` for tokens.
    - `vocabulary`: how many tokens there are, or `None`.
    - `embedding`: the width of theirs: that of S4's first settings, 128, and 256 for Retrieval.
    - `pool`: whether there is one prediction, or one at each position.
    - `towers`: whether an example is a pair of inputs.
    """

    shape: tuple[int, ...]
    out_channels: int
    in_channels: int | None = 1
    vocabulary: int | None = None
    embedding: int = 128
    pool: bool = True
    towers: bool = False


class TwoTower(eqx.Module):
    """Two inputs through one encoder, and an MLP on [a, b, a b, a - b] of their features
    (Appx. D.1; S4's decoder in src/tasks/decoders.py). Features are as many as the base network
    has channels.

    Called with a pair of batches, which the encoder sees as one, so that it normalises by the
    statistics of both.
    """

    encoder: nn.CCNN
    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __call__(
        self,
        x: tuple[Int[Array, "batch *shape"], Int[Array, "batch *shape"]],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch out"]:
        both = jtu.tree_map(lambda a, b: jnp.concatenate([a, b]), *x)
        a, b = jnp.split(_each(self.encoder, both, key), 2)
        joined = jnp.concatenate([a, b, a * b, a - b], axis=1)
        return jax.vmap(lambda h: self.last(jnn.gelu(self.first(h))))(joined)


def apply(
    net: nn.CCNN | TwoTower, x: PyTree[Array], key: PRNGKeyArray | None = None
) -> Float[Array, "batch *out"]:
    """The outputs of a network for a batch.

    - `x`: of arrays with the batch in front; a pair of them for two towers.
    - `key`: for dropout.
    """
    return net(x, key) if isinstance(net, TwoTower) else _each(net, x, key)


def _each(net: nn.CCNN, x: Array, key: PRNGKeyArray | None) -> Float[Array, "batch *out"]:
    keys = None if key is None else jr.split(key, len(x))
    call = lambda x, key: net(x, key=key)
    return jax.vmap(call, (0, None if key is None else 0), axis_name="batch")(x, keys)


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """A network at its capacities, and all that a learner needs of it."""

    model: Any
    masks: dn.Masks
    axes: dn.AxisMap
    cost: dn.Cost
    target: Mapping[str, float]


def build(
    network: Network,
    base: nn.Base,
    learn: str,
    *,
    sigma: float,
    temperatures: tuple[float, float, float],
    omega_0: float,
    dropout: float,
    start: float = 1.0,
    stream: bool = False,
    below: float = 0.0,
    key: PRNGKeyArray,
) -> Built:
    """The network at its capacities, its masks, and its budget's cost and target.

    - `learn`: of the letters K, R, W, D.
    - `temperatures`: of resolutions, widths and depth.
    - `below`: by how many blocks a learned depth starts lower, which are as many to begin with:
        noise alone is not to add one, for which the step would have to be compiled anew.
    - The others are those of [`dnarch_eqx.nn.dnarch`][].
    """
    ckey, fkey, lkey = jr.split(key, 3)
    tokens: dict[str, Any] = {}
    if network.vocabulary is not None:
        tokens = {"vocabulary": network.vocabulary, "embedding": network.embedding}
    resolution, width, depth = temperatures
    ccnn, masks = nn.dnarch(
        base,
        learn,
        network.in_channels,
        base.width if network.towers else network.out_channels,
        network.shape,
        start=start,
        sigma=sigma,
        resolution_temperature=resolution,
        width_temperature=width,
        depth_temperature=depth,
        omega_0=omega_0,
        dropout=dropout,
        pool=network.pool,
        stream=stream,
        key=ckey,
        **tokens,
    )
    if below and "depth" in masks:
        depth = masks["depth"]
        masks["depth"] = depth.resized(depth.size() - below)
    axes, cost, target = nn.axes(ccnn), nn.complexity(ccnn), nn.base_sizes(ccnn, base)
    if not network.towers:
        return Built(ccnn, masks, axes, cost, target)
    model = TwoTower(
        ccnn,
        eqx.nn.Linear(4 * base.width, base.width, key=fkey),
        eqx.nn.Linear(base.width, network.out_channels, key=lkey),
    )
    axes = {f".encoder{path}": lies for path, lies in axes.items()}
    return Built(model, masks, axes, cost, target)


def deploy(built: Built, model: Any, masks: dn.Masks, plan: Mapping[str, int]) -> Any:
    """The small network, at the resolutions of `plan`; [`dnarch_eqx.nn.deploy`][] also for two
    towers.
    """
    kept = {axis: size for axis, size in plan.items() if ".resolution" in axis}
    return eqx.nn.inference_mode(dn.freeze(model, built.axes, masks, dn.Plan(kept)))
