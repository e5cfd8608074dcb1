# The networks of `_hand_written` in PyTorch, on the same parameters, in one dimension and with
# global kernels at the full resolution: the plain one, and DNArch as the paper proposes it
# where shapes may change, which crops in every forward pass what its masks have dropped.

import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import _hand_written


# Where PyTorch is not installed, type checkers take `import torch` for `benchmarks.torch`.
torch: Any = importlib.import_module("torch")
F: Any = torch.nn.functional


def training_step(
    forward: Callable, params: Any, batch: Any, *, compiled: bool = False, device: str = "cpu"
) -> Callable[[], Any]:
    """With a learning rate of 0, whose updates cost the same: the masks stay at the sizes that
    are compared.
    """
    forward = torch.compile(forward) if compiled else forward
    params = tensors(params, device)
    x, y = (torch.tensor(np.asarray(a), device=device) for a in batch)
    y = y.long()
    trained = [leaf for leaf in jax.tree.leaves(params) if leaf.requires_grad]
    optim = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.01, fused=True)

    def step():
        optim.zero_grad()
        loss = F.cross_entropy(forward(params, x), y)
        loss.backward()
        optim.step()
        return loss.detach()

    return step


def tensors(params: Any, device: str = "cpu") -> Any:
    """Parameters of `_hand_written` as leaves to be trained, all but the frequencies."""
    tensor = lambda a: torch.tensor(np.asarray(a), device=device, requires_grad=True)
    params = jax.tree.map(tensor, params)
    params["frequencies"].requires_grad_(False)
    return params


class Convolution(torch.autograd.Function):
    """With a kernel given by the lowest frequencies of its spectrum on a period. PyTorch's own
    gradient of `rfft` is a complex transform of the whole batch; a real one does.
    """

    @staticmethod
    def forward(ctx, x, kernel, period):
        spectrum = torch.fft.rfft(x, period)[..., : kernel.shape[-1]]
        ctx.save_for_backward(spectrum, kernel)
        ctx.period = period
        return torch.fft.irfft(spectrum * kernel, period)[..., : x.shape[-1]]

    @staticmethod
    def backward(ctx, grad):
        spectrum, kernel = ctx.saved_tensors
        period, kept, length = ctx.period, kernel.shape[-1], grad.shape[-1]
        grad = torch.fft.rfft(grad, period)[..., :kept]
        grad_x = torch.fft.irfft(grad * kernel.conj(), period)[..., :length]
        # All frequencies but 0 and half the sampling rate stand for their negatives, too.
        weight = torch.full((kept,), 2 / period, device=grad.device)
        weight[0] /= 2
        if 2 * (kept - 1) == period:
            weight[-1] /= 2
        grad_kernel = weight * (grad * spectrum.conj()).sum(0)
        return grad_x, grad_kernel, None


@torch.compiler.assume_constant_result
def period_of(length):
    return _hand_written.period(length, length, length + 1)


def linear(w, b, x):
    """As a batched product: faster on CPUs than `conv1d`, and than `matmul` of w and x."""
    return torch.baddbmm(b[:, None], w.expand(len(x), *w.shape), x)


def gelu(x):
    return F.gelu(x, approximate="tanh")


def batch_norm(p, x):
    n = x.shape[1]
    return F.batch_norm(x, None, None, p["scale"][:n], p["shift"][:n], training=True, eps=1e-5)


def features(params, length, omega_0, window):
    """On the `window` taps in the middle."""
    frequencies = params["frequencies"][0]
    x = torch.linspace(-1, 1, length + 1, device=frequencies.device)
    x = x[(length + 1 - window) // 2 :][:window]
    turns = omega_0 * frequencies[:, None] * x
    phase = 2 * math.pi * (turns - turns.round())
    h = torch.cat([phase.cos(), phase.sin()])
    for p in params["generator"]:
        h = gelu(torch.addmm(p["b"][:, None], p["w"], h))
    return h


def spectrum(kernel, period):
    window = kernel.shape[-1]
    kernel = F.pad(kernel, (0, period - window)).roll(-(window // 2), -1)
    return torch.fft.rfft(kernel)


def encode(params, x):
    p = params["encoder"]
    return gelu(batch_norm(params["encoder_norm"], linear(p["w"], p["b"], x)))


def decode(params, h):
    h = batch_norm(params["norm"], h).mean(-1)
    return F.linear(h, params["decoder"]["w"], params["decoder"]["b"])


def forward(params, x, omega_0):
    length = x.shape[-1]
    period = period_of(length)
    h = encode(params, x)
    rendered = features(params, length, omega_0, length + 1)
    for p in params["blocks"]:
        kernel = torch.addmm(p["head"]["b"][:, None], p["head"]["w"], rendered)
        y = batch_norm(p["norm"], h)
        y = Convolution.apply(y, spectrum(kernel, period), period) + p["bias"][:, None]
        y = gelu(linear(p["linear1"]["w"], p["linear1"]["b"], y))
        y = gelu(linear(p["linear2"]["w"], p["linear2"]["b"], y))
        h = h + y
    return decode(params, h)


def sigmoid_mask(offset, capacity, temperature=25.0):
    """The mask up to its cutoff, where it is 0.1."""
    cutoff = offset.item() + math.log(9) / temperature
    size = min(math.ceil((cutoff + 1) / 2 * capacity - 1e-3), capacity)
    k = np.arange(max(size, 1))
    x = -1 + 2 * (k + 1e-3 * (k > 0)) / capacity
    x = torch.tensor(x, dtype=offset.dtype, device=offset.device)
    return torch.sigmoid(temperature * (offset - x))


def gaussian_mask(sigma, capacity):
    """The mask between its cutoffs, where it is 0.1."""
    cutoff = min(sigma.item() * math.sqrt(2 * math.log(10)), 1.0)
    half = math.floor(cutoff * (capacity // 2))
    x = torch.linspace(-1, 1, capacity, device=sigma.device)
    x = x[capacity // 2 - half : capacity // 2 + half + 1]
    return torch.exp(-0.5 * (x / sigma) ** 2)


def cropping_forward(params, x, omega_0):
    length = x.shape[-1]
    period = period_of(length)
    depth = sigmoid_mask(params["depth"], len(params["blocks"]), 8.0)
    blocks = params["blocks"][: len(depth)]
    windows = [gaussian_mask(p["offsets"]["sigma"], length + 1) for p in blocks]
    widest = max(map(len, windows))
    h = encode(params, x)
    rendered = features(params, length, omega_0, widest)
    for p, present, window in zip(blocks, depth, windows):
        capacity = len(p["bias"])
        masks = [sigmoid_mask(p["offsets"][name], capacity) for name in ("in", "mid", "out")]
        low_pass = sigmoid_mask(p["offsets"]["resolution"], period // 2 + 1)
        ins, mids, outs = map(len, masks)
        at_in, at_mid, at_out = (mask[:, None] for mask in masks)

        margin = (widest - len(window)) // 2
        taps = rendered[:, margin : margin + len(window)]
        kernel = torch.addmm(p["head"]["b"][:ins, None], p["head"]["w"][:ins], taps)
        # On the cropped kernel's own spectrum, which is smaller than that of the batch.
        filtered = spectrum(kernel * window, period)[:, : len(low_pass)] * low_pass

        y = batch_norm(p["norm"], h[:, :ins])
        y = Convolution.apply(y, filtered, period) + p["bias"][:ins, None]
        w1, w2 = p["linear1"]["w"][:mids, :ins], p["linear2"]["w"][:outs, :mids]
        y = gelu(linear(w1, p["linear1"]["b"][:mids], at_in * y) * at_mid)
        y = gelu(linear(w2, p["linear2"]["b"][:outs], y) * at_out) * present
        h = torch.cat([h[:, :outs] + y, h[:, outs:]], 1)
    return decode(params, h)
