"""The networks in PyTorch that the benchmark `torch` measures are those of `_hand_written`."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import close, noise, outcome

from benchmarks import _hand_written


torch: Any = pytest.importorskip("torch")
_torch_ccnn: Any = importlib.import_module("benchmarks._torch_ccnn")

LENGTH, OMEGA = 12, 10.0
SIZES: Any = dict(shape=(LENGTH,), channels=2, classes=3, depth=2, width=5, hidden=6)


@pytest.fixture(autouse=True)
def double(x64):
    """In float32 gradients of masks are inexact: sums over everything, which cancel."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def agree(forward, params, x):
    """Asserts that `forward` has the logits of `_hand_written.forward`, and its gradients."""
    blocks = len(params["blocks"])
    by_hand = lambda params, _: _hand_written.forward(
        params, x, OMEGA, [(LENGTH + 1,)] * blocks, [(LENGTH,)] * blocks
    )
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        logits, (grads, _) = outcome(by_hand, params, {})
    tensors = _torch_ccnn.tensors(params)
    out = forward(tensors, torch.tensor(np.asarray(x)), OMEGA)
    along = torch.cos(1.0 + torch.arange(out.numel()))
    (out * along.reshape(out.shape)).sum().backward()
    zero_or = lambda t: torch.zeros_like(t) if t.grad is None else t.grad
    close(jnp.asarray(out.detach().numpy()), logits)
    close(jax.tree.map(lambda t: jnp.asarray(zero_or(t).numpy()), tensors), grads)


def disturbed(params, key):
    """No scales of ones, no biases of zeros."""
    leaves, treedef = jax.tree.flatten(params)
    add = lambda i, leaf: leaf + 0.2 * noise(jr.fold_in(key, i), *leaf.shape)
    arrays = [add(i, leaf) if leaf.ndim else leaf for i, leaf in enumerate(leaves)]
    return treedef.unflatten(arrays)


def test_plain(getkey):
    params = disturbed(_hand_written.init(getkey(), **SIZES), getkey())
    agree(_torch_ccnn.forward, params, noise(getkey(), 4, 2, LENGTH))


def test_cropping_at_initial_masks(getkey):
    params = _hand_written.masked_init(getkey(), **SIZES)
    width = _torch_ccnn.sigmoid_mask(torch.tensor(params["blocks"][0]["offsets"]["in"]), 10)
    depth = _torch_ccnn.sigmoid_mask(torch.tensor(params["depth"]), 4, 8.0)
    assert (len(width), len(depth)) == (SIZES["width"], SIZES["depth"])
    params = disturbed(params, getkey())
    agree(_torch_ccnn.cropping_forward, params, noise(getkey(), 4, 2, LENGTH))


def test_cropping(getkey):
    """Masks of other sizes, no two of a block the same."""
    params = disturbed(_hand_written.masked_init(getkey(), **SIZES), getkey())
    for i, block in enumerate(params["blocks"]):
        offsets = {"in": -0.3, "mid": 0.2, "out": -0.1, "resolution": 0.3}
        block["offsets"] = {name: jnp.array(x - 0.2 * i) for name, x in offsets.items()}
        block["offsets"]["sigma"] = jnp.array(0.2 + 0.1 * i)
    params["depth"] = jnp.array(0.2)
    agree(_torch_ccnn.cropping_forward, params, noise(getkey(), 4, 2, LENGTH))
