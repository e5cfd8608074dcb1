# The law: a network is the same function under every plan that covers. Whether what is declared
# keeps it is decided here, over the program that calls the network.

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from ._axes import AxisMap, Gate
from ._flow import Fault, faults
from ._follow import follow
from ._gaussian import Gaussian
from ._layout import Factor, flat, Layout, resolve
from ._masks import Masks
from ._materialize import checked, materialize
from ._nodes import nodes
from ._program import outline, Program, trace
from ._rules import rule
from ._stale import agreeing, distinct, failed, otherwise, Stale, stale
from ._stateful import state_of, together, with_state
from ._terms import Atom, atoms, Cat, new, resolved as settled, Term, unify


class LawError(ValueError):
    """The network would be another one under another plan."""


def check(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    *inputs: PyTree,
    call: Callable[..., PyTree] | None = None,
) -> None:
    """Checks that model, axes and masks fit together; and, given inputs, that the network is
    the same function under every plan that covers. The call is traced, not run.

    **Arguments:**

    - `model`, `axes`, `masks`: as for [`dnarch_eqx.materialize`][].
    - `inputs`: examples, or their shapes.
    - `call`: `call(net, *inputs)`; by default `net(*inputs)`.

    Raises `ValueError` for all that [`dnarch_eqx.declare`][] cannot see: a mask that no
    array lies on, or that is multiplied in nowhere; a capacity on which arrays and masks
    disagree; a mask on integers; a layer that cannot be sliced as declared; a mask that is not
    finite, or holds the parameters of one that was made otherwise. With inputs, the error names
    file and line, too.
    """
    checked(model, axes, masks)
    if inputs or call is not None:
        check_law(model, axes, masks, call or (lambda net, *xs: net(*xs)), *inputs)


def check_law(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    call: Callable[..., PyTree],
    *inputs: PyTree,
) -> frozenset[str]:
    """Checks that a network is the same function under every plan that covers, over the
    program of `call(net, *inputs)`: traced at its capacity and with every axis one smaller,
    never run. Axes of modules whose class says `keeps_law = True`, and those of Gaussian
    masks, are their modules' own affair.

    **Returns:**

    The axes that enter by a `Gate`, of which the program does not tell: numbers have to, see
    [`dnarch_eqx.verify`][].

    Raises [`dnarch_eqx.LawError`][] that names axis, arrays, file and line, and what to do.
    """
    state = state_of(inputs)
    whole = model if state is None else together(model, state)
    resolved = resolve(whole, axes, masks)
    own = {axis for axis, mask in masks.items() if isinstance(mask, Gaussian)}
    trusted = tuple(
        f"{path}{mark}"
        for path, node in nodes(whole)
        if getattr(type(node), "keeps_law", False)
        for mark in ".["
    )
    for path, dims in resolved.items():
        own |= {p.axis for p in flat(*dims) if p.axis and path.startswith(trusted)}
    gates = {path: node.axis for path, node in nodes(whole) if isinstance(node, Gate)}
    own |= {axis for path, axis in gates.items() if path.startswith(trusted)}
    entering = frozenset(gates.values()) & frozenset(masks) - own
    own |= entering
    depths = set(masks).intersection(_gated_blocks(whole, resolved))
    own |= depths
    named = {axis: Atom(mask.capacity) for axis, mask in masks.items() if axis not in own}
    if not named and not depths:
        return entering
    under = functools.partial(traced, model, axes, masks, call, inputs)
    full = under({})
    declared(full, resolved, named)
    names = _found(full, resolved, named)
    for fault in inexact(full, resolved, names):
        _refuse(names[fault.axis], f"`{fault.op}` goes over it {fault.where}", fault.reads)
    capacities = {axis: masks[axis].capacity for axis in sorted(named)}

    def compared(plan: Mapping[str, int]) -> list[Stale]:
        try:
            return stale(full, under(plan), names, plan)
        except Exception as error:
            return [failed(full, error, names)]

    wrong = compared(distinct(capacities)) if named else []
    for plan in agreeing(full, capacities) if named and not wrong else ():
        wrong += differing(full, under, names, plan)
    for one in wrong:
        axis = " or ".join(map(repr, one.near or sorted(named)[:4]))
        raise LawError(
            f"A number goes with the size of {axis}, but is computed in Python: {one}. Under a "
            "smaller plan the network would be another. Take the number from shapes of what is "
            "sliced, declare it on the axis if a module keeps it, count active positions (see "
            "`docs/cannot.md`), or do not learn that axis."
        )
    for one in compared({a: max(masks[a].capacity - 1, 1) for a in depths}) if depths else ():
        axis = " or ".join(map(repr, sorted(depths)))
        raise LawError(
            f"Blocks of {axis} cannot be left out: something goes with their number outside of "
            f"them: {one}."
        )
    return entering


def inexact(program: Program, declared: Layout, names: Mapping[Atom, str]) -> list[Fault]:
    """Where a materialized network is not the same under every plan."""
    gates = {*_gates(program, declared, names), *_marks(program, names)}
    return [fault for fault in faults(program, gates) if fault.axis in names]


def differing(
    full: Program,
    under: Callable[..., list[str]],
    names: Mapping[Atom, str],
    plan: Mapping[str, int],
) -> list[Stale]:
    """Where Python goes another way, or fails, under a plan of which sizes agree.

    - `under`: `traced` but for its last two arguments.
    """
    try:
        return otherwise(full, under(plan, outline), names)
    except Exception as error:
        return [failed(full, error, names)]


def _gated_blocks(model: PyTree, resolved: Layout) -> Iterator[str]:
    """The axes of lists of which blocks are left out from outside."""
    for path, node in nodes(model):
        dims = resolved.get(path)
        if dims is not None and isinstance(node, list | tuple) and dims[0][0].gated:
            yield str(dims[0][0].axis)


def traced(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    call: Callable[..., PyTree],
    inputs: tuple[PyTree, ...],
    plan: Mapping[str, int],
    how: Callable[..., Any] | None = None,
) -> Any:
    """The program of `call(net, *inputs)` under a plan, or its `outline`. A state of the model
    among the inputs is that of the plan.
    """
    state = state_of(inputs)
    net = eqx.filter_eval_shape(
        lambda model, masks, state: materialize(
            model, axes, masks, plan, model_state=state, check_coverage=False
        ),
        model,
        masks,
        state,
    )
    if state is not None:
        net, state = net
        inputs = with_state(inputs, state)
    return how(call, net, inputs) if how else trace(call, net, inputs, rule, follow)


def _refuse(axis: str, why: str, reads: bool) -> None:
    advice = (
        f"Multiply its mask in where it is read: `gated({axis!r})`."
        if reads
        else "That cannot be exact under every plan: do not learn it, or see `docs/cannot.md`."
    )
    inside = ", of what is not zero where it is inactive" if reads else ""
    raise LawError(f"Axis {axis!r}: {why}{inside}. {advice}")


def declared(program: Program, resolved: Layout, named: Mapping[str, Atom]) -> None:
    def term(parts: tuple[Factor, ...]) -> Term:
        pieces: list[Atom | Cat] = []
        for part in parts:
            if part.parts:
                pieces.append(Cat(tuple(map(term, part.parts))))
            elif (atom := named.get(part.axis or "")) is not None:
                pieces.append(atom)
            else:
                pieces += new(part.capacity)
        return tuple(pieces)

    for path, dims in resolved.items():
        value = program.arrays.get(path)
        for i, dim in enumerate(dims if value is not None else ()):
            if any(part.axis in named for part in flat(dim)):
                assert value is not None
                unify(value.dims[i], term(dim), f"dimension {i} of {path!r}, as declared")


def _found(program: Program, declared: Layout, named: Mapping[str, Atom]) -> dict[Atom, str]:
    """The axes as the program has them.

    Raises `ValueError` where it has them otherwise than declared.
    """
    names: dict[Atom, str] = {}
    for axis, atom in named.items():
        term = settled((atom,))
        reasons = [a.fixed for a in atoms(term) if a.fixed]
        if reasons:
            raise LawError(f"Axis {axis!r} cannot change its size: it lies on {reasons[0]}.")
        if len(term) != 1 or not isinstance(term[0], Atom):
            raise LawError(
                f"Axis {axis!r} is taken apart in the program, into {_shown(term)}: declare "
                "the parts, by `fused` or `concatenated`."
            )
        if term[0] in names:
            raise LawError(
                f"The axes {names[term[0]]!r} and {axis!r} are the same in the program, and "
                "have to be declared as one."
            )
        names[term[0]] = axis
    for path, value in program.arrays.items():
        if value.marks:
            continue
        for i, dim in enumerate(value.dims):
            on = {part.axis for part in flat(*declared.get(path, ())[i : i + 1])}
            for atom in atoms(dim):
                if names.get(atom, None) not in (None, *on):
                    raise LawError(
                        f"Dimension {i} of {path!r} goes with axis {names[atom]!r} in the "
                        "program, and is not declared on it."
                    )
    return names


def _shown(term: Term) -> str:
    sizes = [
        str(part.size) if isinstance(part, Atom) else "concatenated parts" for part in term
    ]
    return " x ".join(sizes)


def _gates(
    program: Program, declared: Layout, names: Mapping[Atom, str]
) -> Iterator[tuple[str, int, Atom]]:
    for path, dims in declared.items():
        value = program.arrays.get(path)
        for i, dim in enumerate(dims if value is not None else ()):
            here = {part.axis for part in flat(dim) if part.gated}
            assert value is not None
            for atom in atoms(value.dims[i]):
                if names.get(atom) in here:
                    yield path, i, atom


def _marks(program: Program, names: Mapping[Atom, str]) -> Iterator[tuple[str, int, Atom]]:
    """Marks of active positions are zero where they are not."""
    for path, value in program.arrays.items():
        for i, dim in enumerate(value.dims if value.marks else ()):
            yield from ((path, i, atom) for atom in atoms(dim) if atom in names)
