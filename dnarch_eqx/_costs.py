# Costs of any module, from the program that calls it.

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._axes import AxisMap, Gate
from ._blocks import placed
from ._cost import parameter_terms
from ._count import add, Count, Largest, largest
from ._follow import follow
from ._gaussian import Gaussian
from ._law import declared
from ._layout import Factor, Layout
from ._masks import Masks
from ._materialize import fits, Slicing
from ._nodes import is_shape, nodes
from ._operations import alive, bytes_of, calls, kept, moved, operations
from ._program import Program, trace
from ._rules import rule
from ._stateful import apart, state_of, together, with_state
from ._terms import Atom, atoms, unify


# How far what is derived may be from what is counted at other sizes.
_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a call of a network costs, each a differentiable function of the sizes of its axes:
    see [`dnarch_eqx.costs`][].

    - `operations`: arithmetic operations, as XLA counts them: two for a multiplication and an
        addition, one for an element of anything else.
    - `parameters`: numbers in arrays of floats.
    - `activations`: bytes that a backward pass keeps of a forward pass, without weights, if
        nothing is computed anew.
    - `memory`: bytes alive at most during the call, weights included.
    - `traffic`: bytes read and written by operations that are not fused with others.
    - `calls`: how many of these there are.
    """

    operations: Count
    parameters: Count
    activations: Count
    memory: Largest
    traffic: Count
    calls: Count


def costs(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    *inputs: PyTree,
    call: Callable[..., PyTree] | None = None,
) -> Costs:
    """Derives costs from the program of `call(net, *inputs)`, traced once and never run; of the
    network as it is deployed, with the masks in its weights. The bodies of scans count as often
    as they run, those of `while` once. Of blocks that are left out only what they compute
    themselves is left out. What is derived is counted once more at other sizes.

    **Arguments:**

    - `model`, `axes`, `masks`: as for [`dnarch_eqx.materialize`][]. Of masks only the
        capacities count.
    - `inputs`: examples, or their shapes: for a batch the costs are those of a batch.
    - `call`: by default `net(*inputs)`.

    Raises `ValueError` if the operations do not follow the size of an axis, as where a size is
    computed in Python from that of a [`dnarch_eqx.Gate`][]: such an axis needs a cost of your
    own.
    """
    call = call or (lambda net, *inputs: net(*inputs))
    capacities = {axis: mask.capacity for axis, mask in masks.items()}
    state = state_of(inputs)
    whole = model if state is None else together(model, state)
    resolved = fits(whole, axes, masks)
    under = lambda plan: _traced(whole, resolved, masks, plan, call, inputs)
    program = under({})
    names = _names(whole, program, resolved, masks)
    terms = operations(program.block, names)
    found = Count.of("operations", terms, capacities)
    _compare(found, masks, lambda plan: sum(operations(under(plan).block, {}).values()))
    weights = parameter_terms(model, axes, masks, bytes=True)
    given = {id(x) for x in program.arrays.values()}
    inside = add(*(bytes_of(x, names) for x in program.block.ins if id(x) not in given))
    of = lambda unit, terms: Count.of(unit, terms, capacities)
    points = alive(program.block, names, add(weights, inside))
    return Costs(
        found,
        of("parameters", parameter_terms(model, axes, masks)),
        of("bytes", kept(program.block, names, given)),
        largest("bytes", points, capacities),
        of("bytes", moved(program.block, names)),
        of("calls", calls(program.block, names)),
    )


def _traced(
    model: PyTree,
    resolved: Layout,
    masks: Masks,
    plan: Mapping[str, int],
    call: Callable[..., PyTree],
    inputs: tuple[PyTree, ...],
) -> Program:
    """The program of the network that is deployed at these sizes."""
    lists = {path for path, node in nodes(model) if _is_list(node)}
    plain = {
        path: dims if path in lists else tuple(tuple(map(_ungated, dim)) for dim in dims)
        for path, dims in resolved.items()
    }

    def build(model: PyTree) -> PyTree:
        values = {}
        for axis, mask in masks.items():
            bucket = plan.get(axis, mask.capacity)
            values[axis] = (mask.window(bucket).start, jnp.ones(bucket))
        net = Slicing(plain, values, frozenset(masks))(model)
        return net if state is None else apart(net)

    state = state_of(inputs)
    net = eqx.filter_eval_shape(build, model)
    if state is not None:
        net, state = net
        inputs = with_state(inputs, state)
    net = _with_places(net, {p: resolved[p][0][0] for p in lists & set(resolved)})
    return trace(call, net, inputs, rule, follow)


def _is_list(node: Any) -> bool:
    return isinstance(node, list | tuple) and not is_shape(node)


def _ungated(part: Factor) -> Factor:
    parts: Any = tuple(tuple(map(_ungated, inner)) for inner in part.parts)
    return dataclasses.replace(part, gated=False, parts=parts)


def _with_places(net: PyTree, lists: Mapping[str, Factor]) -> PyTree:
    """With blocks of lists that say where they are; those that fade say so already."""

    def walk(node: Any, path: str) -> Any:
        pairs, treedef = jtu.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        if not pairs or not pairs[0][0]:
            return node
        children = [walk(child, path + jtu.keystr(key)) for key, child in pairs]
        node = treedef.unflatten(children)
        part = lists.get(path)
        if part is None or part.gated or part.axis is None:
            return node
        is_block = lambda x: isinstance(x, eqx.Module) and callable(x)
        some = (placed(x, str(part.axis), i) if is_block(x) else x for i, x in enumerate(node))
        return type(node)(some)

    return walk(net, "")


def _names(model: PyTree, program: Program, resolved: Layout, masks: Masks) -> dict[Atom, str]:
    """The axes as the program has them, fixed or not."""
    named = {axis: Atom(mask.capacity) for axis, mask in masks.items()}
    declared(program, resolved, named)
    for path, node in nodes(model):
        value = program.arrays.get(f"{path}.stored")
        if isinstance(node, Gate) and node.axis in named and value is not None:
            unify(value.dims[0], (named[node.axis],), f"the gate at {path!r}")
    names: dict[Atom, str] = {}
    for axis, atom in named.items():
        parts = [a for a in atoms((atom,)) if a.size > 1]
        if len(parts) == 1:
            names[parts[0]] = axis
    return names


def _compare(
    derived: Count, masks: Masks, counted: Callable[[Mapping[str, int]], float]
) -> None:
    plan = {axis: _smaller(mask) for axis, mask in masks.items()}

    def wrong(plan: Mapping[str, int]) -> tuple[float, float] | None:
        a, b = float(derived(plan)), counted(plan)
        return None if abs(a - b) <= _TOLERANCE * abs(b) else (a, b)

    if not plan or wrong(plan) is None:
        return
    for axis, n in plan.items():
        if (off := wrong({axis: n})) is not None:
            raise ValueError(
                f"The operations cannot be derived from the size of axis {axis!r}: at {n} they "
                f"are {off[1]:.4g}, and {off[0]:.4g} follow from the program at its capacity. "
                "A size is computed from it in Python. Give the budget a function of your own, "
                "or leave that axis out."
            )
    raise ValueError(f"The operations cannot be derived from the sizes of {sorted(plan)}.")


def _smaller(mask: Any) -> int:
    n = max(round(0.6 * mask.capacity), 1)
    return n - 1 + n % 2 if isinstance(mask, Gaussian) else n
