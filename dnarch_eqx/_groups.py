import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import equinox as eqx
from jaxtyping import PyTree

from ._costs import costs
from ._counterpart import registered
from ._depths import with_depths
from ._flow import Fault, faults, Gate, said
from ._follow import follow
from ._found import Found, FoundAxis
from ._nodes import nodes
from ._program import Op, Program, trace
from ._resized import at_other_sizes
from ._rules import rule
from ._terms import Atom, atoms, Term


def find_axes(
    model: PyTree, *inputs: PyTree, call: Callable[..., PyTree] | None = None
) -> Found:
    """Finds what goes together in a module: which dimensions of its arrays are the same axis,
    where each axis is read, and what stands against learning it. Traces the call, here and at
    other sizes, and computes nothing.

    **Arguments:**

    - `model`: at its capacity.
    - `inputs`: examples, or their shapes as [`jax.ShapeDtypeStruct`][]s.
    - `call`: `call(model, *inputs)`, by default `model(*inputs)`: to map over a batch, to give
        a key, to choose a method.

    !!! Example

        ```python
        found = dn.find_axes(net, x, call=lambda net, x: jax.vmap(net)(x))
        print(found)
        axes, masks = found.learn("*.hidden")
        ```
    """
    call = call or (lambda model, *inputs: model(*inputs))
    found = _from(model, trace(call, model, inputs, rule, follow))
    found = with_depths(at_other_sizes(found, model, inputs, call), model, inputs, call)
    of = lambda axes, masks: costs(model, axes, masks, *inputs, call=call)
    return dataclasses.replace(found, _costs=of)


def _from(model: PyTree, program: Program) -> Found:
    free = _free(program)
    gates = _readers(program)
    counted = _counted(model, program)
    gates, found = _upstream(program, free, gates, counted)
    names = _named(program, free)
    turns = _turns(program)
    axes = {}
    for atom, arrays in free.items():
        hazards = [said(fault) for fault in found if fault.axis is atom]
        mine = sorted({(path, dim) for path, dim, other in gates if other is atom})
        if not (mine or hazards):
            hazards = ["nothing reads it through an array of the module"]
        name = names[atom]
        axes[name] = FoundAxis(
            name,
            atom.size,
            tuple(arrays),
            tuple(mine),
            tuple(dict.fromkeys(hazards)),
            in_order=atom in turns,
        )
    fixed = {
        path: tuple(_fixed(term) for term in value.dims)
        for path, value in program.arrays.items()
    }
    dims = {path: tuple(value.dims) for path, value in program.arrays.items()}
    return Found(axes, fixed, dims, names)


def _free(program: Program) -> dict[Atom, list[tuple[str, int]]]:
    """The axes of the module's arrays that nothing fixes, with where they lie."""
    free: dict[Atom, list[tuple[str, int]]] = {}
    for path, value in program.arrays.items():
        for dim, term in enumerate(value.dims):
            for atom in atoms(term):
                if atom.fixed is None and atom.size > 1:
                    places = free.setdefault(atom, [])
                    if (path, dim) not in places:
                        places.append((path, dim))
    return free


def _counted(model: PyTree, program: Program) -> set[Atom]:
    """The axes that lie on layers whose counterparts look at active positions alone, and on
    none of a class that only derives from these.
    """
    own: dict[bool, set[Atom]] = {True: set(), False: set()}
    for path, node in nodes(model):
        base = registered(type(node)) if isinstance(node, eqx.Module) else None
        stock = base is not None and base.__module__.partition(".")[0] == "equinox"
        if base is None or (stock and base not in (eqx.nn.LayerNorm, eqx.nn.RMSNorm)):
            continue
        for field in node.__dataclass_fields__:
            value = program.arrays.get(f"{path}.{field}")
            on = () if value is None else value.dims
            own[base is type(node)] |= {atom for term in on for atom in atoms(term)}
    return own[True] - own[False]


def _fixed(term: Term) -> str | None:
    reasons = [atom.fixed for atom in atoms(term)]
    return next(filter(None, reasons), None) if all(reasons) else None


def _readers(program: Program) -> set[Gate]:
    """Where arrays of the module are multiplied with an axis and summed over it."""
    found: set[Gate] = set()
    for op in program.ops():
        for value, contracted in zip(op.ins, _contracted(op)):
            if value.array is None:
                continue
            path, at = value.array
            for i in contracted:
                inside = set(atoms(value.dims[i]))
                found |= {
                    (path, dim, atom)
                    for dim in at[i]
                    for atom in inside
                    if atom in set(atoms(program.arrays[path].dims[dim]))
                }
    return found


def _contracted(op: Op) -> tuple[tuple[int, ...], ...]:
    if op.name == "dot_general":
        (left, right), _ = op.params["dimension_numbers"]
        return tuple(left), tuple(right)
    if op.name == "conv_general_dilated" and op.params["feature_group_count"] >= 1:
        return (), (op.params["dimension_numbers"].rhs_spec[1],)
    return ()


def _upstream(
    program: Program,
    free: Mapping[Atom, list[tuple[str, int]]],
    gates: set[Gate],
    counted: set[Atom],
) -> tuple[set[Gate], list[Fault]]:
    """Where an axis is summed over between two values of which neither is an array of the
    module: its mask is multiplied in before, at the arrays of the first layer where that helps.
    """
    found = faults(program, gates, counted)
    open_ = {fault.axis for fault in found if fault.reads}
    open_ -= {fault.axis for fault in found if not fault.reads}
    candidates = {
        atom: _layers(free[atom], {(p, d) for p, d, other in gates if other is atom})
        for atom in open_
        if atom in free
    }
    for i in range(max(map(len, candidates.values()), default=0)):
        tried = {
            (path, dim, atom)
            for atom, layers in candidates.items()
            if i < len(layers)
            for path, dim in layers[i]
        }
        now = faults(program, gates | tried, counted)
        helped = {atom for atom in candidates if not any(f.axis is atom for f in now)}
        gates = gates | {gate for gate in tried if gate[2] in helped}
        candidates = {a: layers for a, layers in candidates.items() if a not in helped}
    gates = _fewest(program, gates, counted)
    return gates, faults(program, gates, counted)


def _fewest(program: Program, gates: set[Gate], counted: set[Atom]) -> set[Gate]:
    """Without those at the turns of scans that are not needed."""
    turns = _turns(program)
    order = {path: i for i, path in enumerate(program.arrays)}
    for gate in sorted((g for g in gates if g[2] in turns), key=lambda g: order[g[0]]):
        fewer = gates - {gate}
        if not any(fault.axis is gate[2] for fault in faults(program, fewer, counted)):
            gates = fewer
    return gates


def _turns(program: Program) -> set[Atom]:
    """The axes that scans go along."""
    return {
        atom
        for op in program.ops()
        if op.name == "scan"
        for value in op.ins[op.params["num_consts"] + op.params["num_carry"] :]
        for atom in atoms(value.dims[0])
    }


def _layers(
    arrays: Iterable[tuple[str, int]], readers: set[tuple[str, int]]
) -> list[list[tuple[str, int]]]:
    """By the module that they are in; then all of them."""
    layers: dict[str, list[tuple[str, int]]] = {}
    rest = [place for place in arrays if place not in readers]
    for path, dim in rest:
        layers.setdefault(_module(path), []).append((path, dim))
    return [*layers.values(), rest]


def _module(path: str) -> str:
    return re.sub(r"(\.[^.\[\]]+|\[[^\]]*\])$", "", path)


def _named(program: Program, free: Mapping[Atom, list[tuple[str, int]]]) -> dict[Atom, str]:
    """By the layer that makes them, and what they are to the program."""
    roles = _roles(program)
    names: dict[Atom, str] = {}
    for atom, arrays in free.items():
        path = min(arrays, key=lambda place: place[1])[0]
        module = ".".join(re.findall(r"[^.\[\]'\"]+", _module(path)))
        name = ".".join(filter(None, [module, roles.get(atom, "hidden")]))
        taken, n = set(names.values()), 1
        unique = name
        while unique in taken:
            n += 1
            unique = f"{name}{n}"
        names[atom] = unique
    return names


def _roles(program: Program) -> dict[Atom, str]:
    roles: dict[Atom, str] = {}
    for op in program.ops():
        if op.name == "dot_general" and not any(value.array for value in op.ins):
            (left, _), (batch, _) = op.params["dimension_numbers"]
            for places, role in ((batch, "heads"), (left, "width")):
                for i in places:
                    roles |= {a: role for a in atoms(op.ins[0].dims[i])}
            for term in op.ins[1].dims:
                for atom in atoms(term):
                    roles.setdefault(atom, "width")
        elif op.name == "conv_general_dilated":
            out = op.params["dimension_numbers"].rhs_spec[0]
            for atom in atoms(op.ins[1].dims[out]):
                roles.setdefault(atom, "channels")
        elif op.name == "gather" and op.ins[0].array is not None:
            for term in op.ins[0].dims:
                for atom in atoms(term):
                    roles.setdefault(atom, "embedding")
        elif op.name == "scan":
            first = op.params["num_consts"] + op.params["num_carry"]
            for value in op.ins[first:]:
                for atom in atoms(value.dims[0]):
                    roles[atom] = "depth"
    return roles
