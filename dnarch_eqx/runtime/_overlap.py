import functools as ft
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from ._processes import largest


@ft.cache
def overlap() -> float:
    """How fast this backend runs steps while another thread compiles, over how fast it does
    otherwise. Measured once, in half a second; on several processes by all of them.
    """
    x = jnp.ones((256, 256))
    step = jax.jit(lambda x: x @ x / 256).lower(x).compile()

    def layers(x):
        for i in range(10):
            x = jnp.sort(jnp.sin(x @ x.T)[:, : 255 - i], axis=0)
        return x

    heavy = jax.jit(layers).lower(x)

    def rate(going) -> float:
        start, steps = time.perf_counter(), 0
        while steps < 4 or going(time.perf_counter() - start):
            jax.block_until_ready(step(x))
            steps += 1
        return steps / (time.perf_counter() - start)

    rate(lambda seconds: seconds < 0.02)
    alone = rate(lambda seconds: seconds < 0.1)
    with ThreadPoolExecutor(1) as worker:
        future = worker.submit(heavy.compile)
        meanwhile = rate(lambda _: not future.done())
    slowest = -largest(np.array(-min(meanwhile / alone, 1.0), np.float32))
    return float(slowest)
