import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import ArrayLike, Float, PyTree

from ._axes import Axes, AxisMap, concatenated, Fused, fused, gated
from ._costs import Costs
from ._layout import layout
from ._masks import AbstractMask
from ._misc import number
from ._order import permuted
from ._report import table
from ._sigmoid import Sigmoid
from ._stateful import apart, together
from ._terms import Atom, atoms, resolved, size, Term


@dataclasses.dataclass(frozen=True)
class FoundAxis:
    """An axis that was found.

    - `name`, `size`: its name, and how many positions it has.
    - `arrays`: pairs of a path and a dimension that it lies on.
    - `gates`: those of them where its mask is to be multiplied in.
    - `hazards`: what stands against learning it; nothing, if it can be learned.
    - `in_order`: whether its positions come one after the other, as blocks do.
    """

    name: str
    size: int
    arrays: tuple[tuple[str, int], ...]
    gates: tuple[tuple[str, int], ...]
    hazards: tuple[str, ...]
    in_order: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What goes together in a module: see [`dnarch_eqx.find_axes`][]. Immutable.

    - `axes`: the axes, by name.
    - `fixed`: path to what fixes each of its dimensions; `None` where an axis lies.
    """

    axes: Mapping[str, FoundAxis]
    fixed: Mapping[str, tuple[str | None, ...]]
    _dims: Mapping[str, tuple[Term, ...]]
    _names: Mapping[Atom, str]
    # From axis map and masks.
    _costs: Callable[[AxisMap, Mapping[str, AbstractMask]], Costs] | None = None

    @functools.cached_property
    def costs(self) -> Costs:
        """What the call costs, as functions of the sizes of the axes that can be learned: see
        [`dnarch_eqx.costs`][].
        """
        if self._costs is None:
            raise ValueError("Of what was found here no program is known.")
        return self._costs(*self.learn())

    def learn(
        self,
        *patterns: str,
        start: float = 1.0,
        mask: Callable[..., AbstractMask] | None = None,
    ) -> tuple[AxisMap, dict[str, AbstractMask]]:
        """Axis map and masks.

        **Arguments:**

        - `patterns`: names of axes, or patterns as in [`fnmatch`][]; by default all that can be
            learned.
        - `start`: the size to start at, as a share of the capacity. At 1 masks start as open
            as they can be.
        - `mask`: `mask(capacity)` or `mask(capacity, size=size)`; by default a
            [`dnarch_eqx.Sigmoid`][].

        Raises `ValueError` for a name that is none, a pattern that matches nothing, and an axis
        by its name against which something stands.
        """
        if not 0 < number("start", start) <= 1:
            raise ValueError(f"`start` must lie in (0, 1], got {start}.")
        names = self._chosen(patterns)
        chosen = {name: self.axes[name] for name in names}
        masks = {
            name: (mask or Sigmoid)(axis.size)
            if start == 1
            else (mask or Sigmoid)(axis.size, size=start * axis.size)
            for name, axis in chosen.items()
        }
        gates = {(path, dim, name) for name, axis in chosen.items() for path, dim in axis.gates}
        paths = {path for axis in chosen.values() for path, _ in axis.arrays}
        axes = {
            path: Axes(
                *(
                    self._dim(term, lambda name, at=(path, i): (*at, name) in gates, chosen)
                    for i, term in enumerate(dims)
                )
            )
            for path, dims in self._dims.items()
            if path in paths
        }
        return axes, masks

    def ordered(
        self, model: PyTree, importance: Mapping[str, Float[ArrayLike, " _"]]
    ) -> PyTree:
        """The model with the most important positions of its axes first, which masks keep
        longest. It is the same function.

        **Arguments:**

        - `model`: that was looked at; with an [`equinox.nn.State`][] the pair of both.
        - `importance`: axis to a number for each position, see
            [`dnarch_eqx.importance`][]. Axes whose positions come in an order of their own,
            as blocks do, are left as they are.

        Raises `ValueError` for axes that cannot be learned, and other numbers of positions.
        """
        for name, scores in importance.items():
            self._matching((name,))
            if np.shape(scores) != (self.axes[name].size,):
                raise ValueError(
                    f"`importance` has shape {np.shape(scores)} for axis {name!r}, which has "
                    f"{self.axes[name].size} positions."
                )
        free = [name for name in importance if not self.axes[name].in_order]
        if not free:
            return model
        orders = {
            name: np.argsort(-np.asarray(importance[name]), kind="stable") for name in free
        }
        axes, masks = self.learn(*free)
        if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], eqx.nn.State):
            copy = jtu.tree_map(lambda x: x, model[1])
            whole = together(model[0], copy)
            return apart(permuted(whole, layout(whole, axes, masks), orders))
        return permuted(model, layout(model, axes, masks), orders)

    def only(self, *patterns: str) -> "Found":
        """With some of the axes alone."""
        kept = set(self._matching(patterns))
        return dataclasses.replace(
            self, axes={name: axis for name, axis in self.axes.items() if name in kept}
        )

    def rename(self, names: Mapping[str, str]) -> "Found":
        """With other names: old to new.

        Raises `ValueError` for names that are not there, or taken.
        """
        for old in names:
            self._matching((old,))
        new = {name: names.get(name, name) for name in self.axes}
        if len(set(new.values())) < len(new):
            raise ValueError(f"`names` gives two axes the same name: {dict(names)}.")
        axes = {
            new[name]: dataclasses.replace(axis, name=new[name])
            for name, axis in self.axes.items()
        }
        known = {atom: new.get(name, name) for atom, name in self._names.items()}
        return dataclasses.replace(self, axes=axes, _names=known)

    def __repr__(self) -> str:
        rows = [("axis", "size", "arrays", "gated", "against it")]
        for axis in self.axes.values():
            rows.append(
                (
                    axis.name,
                    str(axis.size),
                    _listed(axis.arrays),
                    _listed(axis.gates),
                    "; ".join(axis.hazards),
                )
            )
        return table(rows)

    def _keeping(self, numbers: Mapping[str, Term]) -> "Found":
        """With numbers of modules that are sizes of axes."""
        more = {
            name: tuple((path, 0) for path, term in numbers.items() if atom in atoms(term))
            for atom, name in self._names.items()
        }
        axes = {
            name: dataclasses.replace(axis, arrays=(*axis.arrays, *more.get(name, ())))
            for name, axis in self.axes.items()
        }
        dims = {**self._dims, **{path: (term,) for path, term in numbers.items()}}
        return dataclasses.replace(self, axes=axes, _dims=dims)

    def _refused(self, why: Mapping[str, str]) -> "Found":
        axes = {
            name: dataclasses.replace(axis, hazards=(*axis.hazards, why[name]))
            if name in why
            else axis
            for name, axis in self.axes.items()
        }
        return dataclasses.replace(self, axes=axes)

    def _chosen(self, patterns: tuple[str, ...]) -> list[str]:
        if not patterns:
            return [name for name, axis in self.axes.items() if not axis.hazards]
        names = self._matching(patterns)
        for name in names:
            hazards = self.axes[name].hazards
            if hazards and name in patterns:
                raise ValueError(f"Axis {name!r} cannot be learned: {'; '.join(hazards)}.")
        open_ = [name for name in names if not self.axes[name].hazards]
        if not open_:
            why = {name: self.axes[name].hazards for name in names}
            raise ValueError(f"None of the axes that match {patterns} can be learned: {why}.")
        return open_

    def _matching(self, patterns: tuple[str, ...]) -> list[str]:
        found = []
        for pattern in patterns:
            match = [n for n in self.axes if n == pattern or fnmatch.fnmatchcase(n, pattern)]
            if not match:
                raise ValueError(f"No axis matches {pattern!r}; there are {list(self.axes)}.")
            found += match
        return list(dict.fromkeys(found))

    def _dim(
        self, term: Term, is_gated: Callable[[str], bool], chosen: Mapping[str, Any]
    ) -> Any:
        """What [`dnarch_eqx.Axes`][] says of a dimension."""
        parts: list[Any] = []
        for part in resolved(term):
            if isinstance(part, Atom):
                name = self._names.get(part, "")
                if name in chosen:
                    parts.append(gated(name) if is_gated(name) else name)
                else:
                    parts.append(part.size)
            else:
                inner = [self._dim(piece, is_gated, chosen) for piece in part.parts]
                sizes = [size(piece) for piece in part.parts]
                if all(x is None for x in inner):
                    parts.append(sum(sizes))
                elif all(x == inner[0] for x in inner):
                    first = inner[0]
                    parts.append(len(inner))
                    parts += first.parts if isinstance(first, Fused) else [first]
                else:
                    pieces = (n if x is None else x for x, n in zip(inner, sizes))
                    parts.append(concatenated(*pieces))
        merged: list[Any] = []
        for part in parts:
            if merged and isinstance(part, int) and isinstance(merged[-1], int):
                merged[-1] *= part
            else:
                merged.append(part)
        if all(isinstance(part, int) for part in merged):
            return None
        return merged[0] if len(merged) == 1 else fused(*merged)


_INDEX = re.compile(r"\[\d+\]")


def _listed(places: Iterable[tuple[str, int]]) -> str:
    """Those alike but for their place in a list as one."""
    found: dict[str, int] = {}
    for path, dim in places:
        pattern = f"{re.sub(_INDEX, '[*]', path)}:{dim}"
        found[pattern] = found.get(pattern, 0) + 1
    shown = [f"{p} x{n}" if n > 1 else p for p, n in found.items()]
    return ", ".join(shown[:3]) + (f", and {len(shown) - 3} more" if len(shown) > 3 else "")
