# Lists of blocks of which some can be left out: found by leaving one out.

import dataclasses
from collections.abc import Callable, Mapping

import equinox as eqx
from jaxtyping import PyTree

from ._axes import Axes, gated
from ._found import Found, FoundAxis
from ._law import traced
from ._nodes import nodes
from ._program import Program
from ._sigmoid import Sigmoid
from ._stale import failed, named, stale
from ._terms import Atom


def with_depths(
    found: Found, model: PyTree, inputs: tuple[PyTree, ...], call: Callable[..., PyTree]
) -> Found:
    """With an axis for each list of blocks of one class of the user's, and what stands against
    learning it.
    """
    lists = {path: len(node) for path, node in nodes(model) if _is_stack(node)}
    against = _against(found, model, inputs, call, lists)
    if any(against.values()):  # each on its own
        alone = [_against(found, model, inputs, call, {p: n}) for p, n in lists.items()]
        against = {path: why for one in alone for path, why in one.items()}
    axes, dims, names = dict(found.axes), dict(found._dims), dict(found._names)
    for path, n in lists.items():
        atom, place = Atom(n), ((path, 0),)
        name = f"{path.replace('[', '.').replace(']', '').strip('.')}.depth".strip(".")
        hazards = (against[path],) if against[path] else ()
        axes[name] = FoundAxis(name, n, place, place, hazards, in_order=True)
        dims[path], names[atom] = ((atom,),), name
    return dataclasses.replace(found, axes=axes, _dims=dims, _names=names)


def _is_stack(node: object) -> bool:
    if not isinstance(node, list | tuple) or hasattr(node, "_fields") or len(node) < 2:
        return False
    cls = type(node[0])
    ours = cls.__module__.partition(".")[0] in ("equinox", "dnarch_eqx")
    block = isinstance(node[0], eqx.Module) and callable(node[0])
    return block and not ours and all(type(x) is cls for x in node)


def _against(
    found: Found,
    model: PyTree,
    inputs: tuple[PyTree, ...],
    call: Callable[..., PyTree],
    lists: Mapping[str, int],
) -> dict[str, str]:
    """Path to what stands against leaving out the last block of these lists; or nothing."""
    if not lists:
        return {}
    axes = {path: Axes(gated(path)) for path in lists}
    masks = {path: Sigmoid(n) for path, n in lists.items()}
    plan = {path: n - 1 for path, n in lists.items()}
    full = None
    try:
        full = traced(model, axes, masks, call, inputs, {})
        why = _joined(found, full)
        if not why:
            wrong = stale(full, traced(model, axes, masks, call, inputs, plan), {}, plan)
            what = "something goes with their number outside of the blocks"
            why = f"{what}: {wrong[0]}" if wrong else ""
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        why = first if full is None else str(failed(full, error, {}))
    return dict.fromkeys(lists, why)


def _joined(found: Found, program: Program) -> str:
    """The axes that leaving blocks out would make one."""
    names: dict[Atom, str] = {}
    for path, terms in found._dims.items():
        here = named({path: terms}, found._names, program)
        for atom, name in here.items():
            if names.setdefault(atom, name) != name:
                return f"it would make {names[atom]!r} and {name!r} one axis"
    return ""
