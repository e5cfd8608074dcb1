# All that is asked of other processes. What is measured, or happens on one process alone,
# enters a decision only by way of these functions, so that all processes decide alike. They are
# collectives: every process calls them at the same steps, whatever it has measured.

import jax
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jaxtyping import Float, PyTree


def alone() -> bool:
    """Whether there is only this process."""
    return jax.process_count() == 1


def largest(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The largest of what all processes have: a step takes as long as on the slowest."""
    if alone():
        return x
    return np.max(multihost_utils.process_allgather(np.asarray(x, np.float32)), axis=0)


def everywhere(flag: bool) -> bool:
    """Whether all processes say so."""
    if alone():
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.array(flag))))


def check_global(name: str, tree: PyTree) -> None:
    """Raises `ValueError` for arrays that lie on this process's devices alone, where there are
    several processes: each would train a network of its own.
    """
    if alone():
        return
    for path, x in jtu.tree_leaves_with_path(tree):
        if isinstance(x, (jax.Array, np.ndarray)) and not isinstance(x, Tracer):
            devices = x.sharding.device_set if isinstance(x, jax.Array) else ()
            if len({device.process_index for device in devices}) < jax.process_count():
                raise ValueError(
                    f"`{name}{jtu.keystr(path)}` lies on one process of {jax.process_count()}, "
                    "and each would train a network of its own. Put it on all, as by "
                    "`jax.make_array_from_process_local_data(sharding, x, x.shape)`, with a "
                    "sharding over `jax.devices()`."
                )
