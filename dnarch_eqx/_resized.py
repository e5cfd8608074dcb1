# What is found, looked at once more at other sizes: which axes can change theirs.

import functools
import re
from collections.abc import Callable, Iterable, Mapping

from jaxtyping import PyTree

from ._flow import said
from ._found import Found
from ._law import differing, inexact, traced
from ._materialize import fits
from ._numbers import Numbers, numbers
from ._program import Program
from ._stale import agreeing, distinct, failed, named, Stale, stale
from ._stateful import state_of, together
from ._terms import Atom


def at_other_sizes(
    found: Found, model: PyTree, inputs: tuple[PyTree, ...], call: Callable[..., PyTree]
) -> Found:
    """With the numbers that follow an axis, and the axes refused whose size a layer cannot
    change, or of which something is computed in Python.
    """
    asked: set[str] = set()
    state = state_of(inputs)
    whole = model if state is None else together(model, state)
    while names := found._chosen(()):
        axes, masks = found.learn(*names)
        try:
            resolved = fits(whole, axes, masks)
        except ValueError as error:
            # Errors of layers begin with the path.
            path = str(error).partition("'")[2].partition("'")[0]
            on = lambda name: any(at.startswith(path) for at, _ in found.axes[name].arrays)
            lie = list(filter(on, names))
            found = found._refused({name: str(error) for name in lie or names})
            continue
        under = functools.partial(traced, model, axes, masks, call, inputs)
        full = under({})
        known = named(found._dims, found._names, full)
        chosen = {atom: name for atom, name in known.items() if name in names}
        lost = {known[f.axis]: said(f) for f in inexact(full, resolved, chosen)}
        if lost:  # with the counterparts of layers
            found = found._refused(lost)
            continue

        def compared(some: Iterable[str], with_numbers: Numbers | None = None) -> list[Stale]:
            axes, masks = found._keeping(with_numbers or {}).learn(*names)
            plan = distinct({name: found.axes[name].size for name in some})
            try:
                small = traced(model, axes, masks, call, inputs, plan)
                return stale(full, small, known, plan)
            except Exception as error:
                return [failed(full, error, known)]

        if not (wrong := compared(names)):
            if not (lost := _differing(found, names, full, known, under)):
                break
            found = found._refused(lost)
            continue
        culprits = _culprits(wrong, names, compared)
        free = {atom for atom, name in found._names.items() if name in names}
        kept: Numbers = {}
        for group in _alike(culprits):
            if asked >= set(group):
                continue
            asked |= set(group)
            here = {atom for atom in free if found._names[atom] in group}
            holds = lambda some, group=group: not compared(group, some)
            kept |= numbers(model, found._dims, here, free, holds)
        found = found._keeping(kept) if kept else found._refused(culprits)
    return found


def _differing(
    found: Found,
    names: list[str],
    full: Program,
    known: Mapping[Atom, str],
    under: Callable[..., list[str]],
) -> dict[str, str]:
    """An axis, if Python goes another way where its size agrees with others, and why."""
    for plan in agreeing(full, {name: found.axes[name].size for name in names}):
        for wrong in differing(full, under, known, plan):
            near = [name for name in wrong.near if name in plan]
            # One of them, if that is enough.
            for name in near or list(plan)[:8]:
                rest = {axis: n for axis, n in plan.items() if axis != name}
                if not differing(full, under, known, rest):
                    return {name: str(wrong)}
            return dict.fromkeys(near or plan, str(wrong))
    return {}


def _culprits(
    wrong: list[Stale], names: list[str], compared: Callable[[Iterable[str]], list[Stale]]
) -> dict[str, str]:
    """Whose sizes are to blame, with what: one axis of each place is tried at a time."""
    near = {s.where.place: [n for n in s.near if n in names] or names for s in wrong}
    culprits: dict[str, str] = {}
    for i in range(max(map(len, near.values()))):
        tried = {place: some[i] for place, some in near.items() if i < len(some)}
        for s in compared(set(tried.values())):
            culprit = tried.get(s.where.place)
            if culprit is not None:
                culprits.setdefault(culprit, str(s))
    if culprits:
        return culprits
    # It takes several together: of these the ones that do nothing alone are left out.
    blamed = {name: str(s) for s in wrong for name in near[s.where.place]}
    groups = _alike(blamed)
    sound = {name for group in groups if not compared(group) for name in group}
    return {name: why for name, why in blamed.items() if name not in sound} or blamed


def _alike(names: Iterable[str]) -> list[list[str]]:
    """Those that differ by their place in lists alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return list(groups.values())
