# What decides on a compiled program beside its plan: `Key`. Computed at every step, hence with
# care for the microseconds.

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding
from jaxtyping import PyTree

from .._state import State


_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)

# The settings of JAX that tracing depends on and that users change: those that `jax.jit` looks
# at, too, and that are public.
_SETTINGS = tuple(
    name
    for name in (
        "jax_default_device",
        "jax_default_matmul_precision",
        "jax_default_prng_impl",
        "jax_disable_most_optimizations",
        "jax_enable_x64",
        "jax_high_dynamic_range_gumbel",
        "jax_memory_fitting_level",
        "jax_numpy_dtype_promotion",
        "jax_numpy_rank_promotion",
        "jax_optimization_level",
        "jax_softmax_custom_jvp",
        "jax_threefry_partitionable",
    )
    if hasattr(jax.config, name)
)


def is_traced(x: Any) -> bool:
    """Whether a leaf is traced: arrays, and their shapes; all else is static."""
    return isinstance(x, _ARRAYS)


class Signature:
    """All that a compiled function depends on of one argument, but the values of its arrays.

    Raises `RuntimeError` for arrays that are being traced, `ValueError` for what cannot be
    an argument, and for meshes with explicit axes.
    """

    __slots__ = ("_hash", "devices", "leaves", "treedef")

    def __init__(self, name: str, tree: PyTree):
        """**Arguments:**

        - `name`: of the argument, for errors.
        - `tree`: the argument.
        """
        leaves, self.treedef = jtu.tree_flatten(tree)
        devices: set[Any] = set()
        try:
            self.leaves: tuple[Any, ...] = tuple([_leaf(x, devices) for x in leaves])
            self._hash = hash((self.treedef, self.leaves))
        except _Unfit as error:
            raise error.said(name, tree) from None
        except TypeError:
            raise _Unfit("is neither an array nor hashable", None).said(name, tree) from None
        # Devices of arrays that lie on one by the user's will. Others come along.
        self.devices = frozenset(devices)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Signature)
            and self._hash == other._hash
            and self.leaves == other.leaves
            and self.treedef == other.treedef
        )


class Key:
    """What decides on a program beside its plan: the signatures of its arguments, the device if
    that is chosen, and JAX's settings.
    """

    __slots__ = ("_hash", "_of")

    def __init__(self, *signatures: Signature):
        devices = frozenset().union(*(s.devices for s in signatures))
        # The default device is where arrays lie that nobody has put anywhere.
        default = jax.config.jax_default_device or jax.local_devices()[0]  # pyright: ignore
        chosen = devices - {default}
        settings = tuple([getattr(jax.config, name) for name in _SETTINGS])
        self._of = (signatures, chosen, settings, jax.sharding.get_abstract_mesh())
        self._hash = hash(self._of)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Key) and self._hash == other._hash and self._of == other._of
        )

    def changes(self, other: "Key") -> list[tuple[Any, Any]]:
        """The static leaves that differ, as pairs, where nothing else does."""
        pairs = [*zip(self._of[0], other._of[0])]
        if any(a.treedef != b.treedef for a, b in pairs):
            return []
        differ = [(x, y) for a, b in pairs for x, y in zip(a.leaves, b.leaves) if x != y]
        if not all(isinstance(x, _Static) for pair in differ for x in pair):
            return []
        return [(x.value, y.value) for x, y in differ]


def signature_of(state: State) -> Signature:
    """Raises `ValueError` for a state that is none, or whose arrays were given up."""
    if not isinstance(state, State):
        raise ValueError(f"`state` must be a `dn.State`, from `Learner.init`, not {state!r}.")
    for x in jtu.tree_leaves(state):
        if isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted():
            raise ValueError(
                "The arrays of `state` were given up to an earlier step, as `donate=True` "
                "says: go on with the state that that step returned."
            )
    return Signature("state", state)


def arguments(batch: PyTree, key: Any, budget: PyTree) -> tuple[Any, Any, Any]:
    """What a step takes beside the state. Floats in the batch become arrays, as under
    `jax.jit`: else every new one would be a compilation.
    """
    if not (key is None or hasattr(key, "dtype")):
        raise ValueError(f"`key` must be a key, as `jax.random.key(0)` gives, not {key!r}.")
    if any(type(x) in (float, complex) for x in jtu.tree_leaves(batch)):
        batch = jtu.tree_map(
            lambda x: jnp.asarray(x) if type(x) in (float, complex) else x, batch
        )
    return batch, key, budget


def is_ready(x: Any) -> bool:
    """Whether an array is computed: does not wait for it."""
    return x.is_ready()


class _Static:
    """A leaf that is no array: 1, 1.0 and True are different ones."""

    __slots__ = ("value",)

    def __init__(self, value: Hashable):
        self.value = value

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Static)
            and type(self.value) is type(other.value)
            and self.value == other.value
        )


def _leaf(x: Any, devices: set[Any]) -> Hashable:
    if not isinstance(x, _ARRAYS):
        return _Static(x)
    if isinstance(x, Tracer):
        raise _Unfit("is being traced", x)
    sharding = getattr(x, "sharding", None)
    if sharding is None:
        if not jnp.issubdtype(x.dtype, jax.dtypes.extended) and x.dtype.kind in "OSUMm":
            raise _Unfit(f"is an array of {x.dtype}", x)
    elif len(sharding.device_set) == 1:
        if getattr(x, "committed", True):
            devices.update(sharding.device_set)
        sharding = None  # so that shapes stand for arrays
    elif isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types:
        raise _Unfit(f"lies on {sharding.mesh}, some of whose axes are explicit", x)
    return x.shape, x.dtype, getattr(x, "weak_type", False), sharding


class _Unfit(Exception):
    """A leaf that cannot be an argument of a program."""

    def __init__(self, why: str, leaf: Any):
        self.why = why
        self.leaf = leaf

    def said(self, name: str, tree: PyTree) -> Exception:
        for path, x in jtu.tree_leaves_with_path(tree):
            if x is self.leaf if self.leaf is not None else not _is_hashable(x):
                name = f"{name}{jtu.keystr(path)}"
                break
        if isinstance(self.leaf, Tracer):
            return RuntimeError(
                f"`{name}` is being traced: learners and planners run compiled steps by "
                "themselves. Inside jit call the function that `dn.make_step` gives."
            )
        advice = "Make it an array of numbers, or static and hashable."
        if "explicit" in self.why:
            advice = "Slices of such arrays need shardings of their own: make the mesh with "
            advice += "`axis_types=(jax.sharding.AxisType.Auto, ...)`."
        return ValueError(f"`{name}` {self.why}. {advice}")


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return is_traced(x)
    return True
