# Numbers that modules keep and that go with an axis: a number of heads, a hidden size. Which
# ones do shows when the program is traced at other sizes, with some of them brought in line.

import itertools as it
import math
from collections.abc import Callable, Collection, Iterator, Mapping

from jaxtyping import PyTree

from ._nodes import is_number, nodes
from ._terms import Atom, atoms, new, resolved, Term


# For each number at most so many axes that it may go with, and tries in all.
_OPTIONS, _TRIES = 3, 24

Numbers = dict[str, Term]


def numbers(
    model: PyTree,
    dims: Mapping[str, tuple[Term, ...]],
    group: Collection[Atom],
    free: Collection[Atom],
    holds: Callable[[Numbers], bool],
) -> Numbers:
    """Path to the axes whose size is kept there; nothing, if there is no way.

    - `dims`: what lies on the arrays; what is known of numbers is left as it is.
    - `group`: the axes that are asked about, which change their sizes together.
    - `free`: all that can be learned.
    - `holds`: whether the program is right at other sizes of the group with these brought in
        line. Traces it.
    """
    kinds: dict[tuple[type, str], list[tuple[str, list[Term]]]] = {}
    for kind, path, value, above in _kept(model):
        if path not in dims and value > 1:
            kinds.setdefault(kind, []).append((path, _options(value, above, dims, free)))
    choices = [_choices(places, group) for places in kinds.values()]
    tries = it.product(*([None, *some] for some in choices if some))
    # All of them first: the fewer follow, the less likely.
    ordered = sorted(tries, key=lambda some: -sum(x is not None for x in some))
    for some in ordered[:_TRIES]:
        union = {path: term for x in some if x is not None for path, term in x.items()}
        if union and holds(union):
            return union
    return {}


def _kept(model: PyTree) -> Iterator[tuple[tuple[type, str], str, int, str]]:
    """Kind, path, value and module of the numbers that modules of users keep."""
    modules: dict[str, type] = {}
    for path, node in nodes(model):
        modules[path] = type(node)
        above, _, field = path.rpartition(".")
        cls = modules.get(above, object)
        ours = cls.__module__.partition(".")[0] in ("equinox", "dnarch_eqx")
        if is_number(node) and field and "[" not in field and not ours:
            yield (cls, field), path, int(node), above


def _options(
    value: int, above: str, dims: Mapping[str, tuple[Term, ...]], free: Collection[Atom]
) -> list[Term]:
    """Products of axes below a module that have this size, likely ones first."""
    inside = tuple(f"{above}{mark}" for mark in ".[")
    near: dict[Atom, None] = {}
    for path, terms in dims.items():
        if path.startswith(inside):
            near |= {a: None for term in terms for a in atoms(term) if a.fixed is None}
    near = {atom: None for atom in near if atom in free}
    found: list[Term] = [(a,) for a in near if a.size == value]
    for k in (2, 3):
        some = it.combinations(near, k)
        found += [axes for axes in some if math.prod(a.size for a in axes) == value]
    times = [(a, value // a.size) for a in near if value % a.size == 0 and a.size < value]
    found += [(*new(n, "a number"), a) for a, n in times if n <= 8]
    return found[:_OPTIONS]


def _choices(places: list[tuple[str, list[Term]]], group: Collection[Atom]) -> list[Numbers]:
    """The first option of all numbers of a kind, the second of all, ..."""
    found = []
    for i in range(max((len(options) for _, options in places), default=0)):
        some = {path: options[i] for path, options in places if i < len(options)}
        if any(part in group for term in some.values() for part in resolved(term)):
            found.append(some)
    return found
