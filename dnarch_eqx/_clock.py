import functools as ft
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

from ._timing import calibrated, Timing


class Clock:
    """Measures what steps and compilations take, from the times at which steps are seen to
    be done: no step is waited for.
    """

    timing: Timing

    def __init__(self, timing: Timing):
        self.timing = timing
        self._samples: dict[bytes, list[float]] = {}
        self._compilations: list[float] = []
        self._start: float | None = None
        self._plan = b""
        self._seen = 0

    def restart(self) -> None:
        """What went on until now does not count: something else than steps."""
        self._start = None

    def saw(self, sizes: Int[np.ndarray, " axes"]) -> None:
        """One more step of a plan is done."""
        now, plan = time.perf_counter(), sizes.tobytes()
        if self._start is None or plan != self._plan:
            self._start, self._plan, self._seen = now, plan, 0
            return
        self._seen += 1
        samples = self._samples.setdefault(plan, [])
        # The first samples are short, so that there is something to go by.
        if self._seen >= min(2 ** (1 + len(samples)), 16):
            samples.append((now - self._start) / self._seen)
            self._start, self._seen = now, 0
            if (n := len(samples)) & (n - 1) == 0:  # ever more rarely
                self._calibrate(sizes.dtype)

    def compiled(self, price: float) -> None:
        """A compilation cost so many seconds of training."""
        self._compilations.append(price)
        self._update(compile=statistics.median(self._compilations[-5:]))

    def _calibrate(self, dtype) -> None:
        pairs = [
            (np.frombuffer(plan, dtype), statistics.median(samples))
            for plan, samples in self._samples.items()
            if samples
        ]
        timing = calibrated(self.timing, pairs)
        self._update(scale=timing.scale, overhead=timing.overhead)

    def _update(self, **numbers: float) -> None:
        agreed = from_first(np.array(list(numbers.values()), np.float32))
        self.timing = self.timing.replace(**dict(zip(numbers, agreed.tolist())))


def from_first(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The first process's value: times differ, and all have to decide alike."""
    if jax.process_count() == 1:
        return x
    return np.asarray(multihost_utils.broadcast_one_to_all(x))


def everywhere(flag: bool) -> bool:
    """Whether all processes say so."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


@ft.cache
def overlap() -> float:
    """How fast this backend runs steps while another thread compiles, over how fast it does
    otherwise. Measured once, in half a second.
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
    return float(from_first(np.array(min(meanwhile / alone, 1.0), np.float32)))
