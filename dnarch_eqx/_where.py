# The lines of a user's program that operations come from.

import dataclasses
import functools
import inspect
import sysconfig
from pathlib import Path
from typing import Any

from ._blocks import blocks_in
from ._counterpart import counterpart


@dataclasses.dataclass(frozen=True)
class Where:
    """Where in a user's program something is computed.

    - `place`: file, line and function, or "" if no file of the user is known.
    - `layer`: the layer of `eqx.nn` in which it is, or "".
    - `counted`: whether it is in a layer whose counterpart looks at active positions alone.
    - `blocks`: of depths that are gated from outside: the blocks in which it is.
    """

    place: str
    layer: str
    blocks: tuple[tuple[str, int], ...] = ()
    counted: bool = False

    def __str__(self) -> str:
        inside = f"`{self.layer}`" if self.layer else ""
        return ", ".join(filter(None, [inside, self.place])) or "an unknown place"


# The layers of `eqx.nn` whose counterparts look at active positions alone.
COUNTED = frozenset({"eqx.nn.LayerNorm", "eqx.nn.RMSNorm"})
_OURS = str(Path(__file__).parent)
_ROOTS = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))


def where(eqn: Any, around: Where, calls: tuple[str, ...]) -> Where:
    """The innermost line of the user's. JAX keeps programs that it has traced, with the lines
    of their first call: of such a one the call counts.
    """
    stack = str(eqn.source_info.name_stack)
    layer = around.layer or _layer(stack)
    blocks = (*around.blocks, *blocks_in(stack))
    frames = [
        f for f in getattr(eqn.source_info.traceback, "frames", ()) if is_users(f.file_name)
    ]
    names = {f.function_name.split(".")[-1] for f in frames}
    own = _own()
    counted = around.counted or layer in COUNTED
    counted |= any((f.file_name, f.function_name) in own for f in frames)
    if not frames or (calls and calls[-1] not in names and around.place):
        return Where(around.place, layer, blocks, counted)
    first = frames[0]
    place = f"{first.file_name}:{first.line_num} ({first.function_name})"
    return Where(place, layer, blocks, counted)


def _own() -> set[tuple[str, str]]:
    """File and function of the calls of users' layers that have counterparts."""
    return {place for cls in counterpart.registry if (place := _call(cls)) is not None}


@functools.cache
def _call(cls: type) -> tuple[str, str] | None:
    if cls.__module__.partition(".")[0] in ("equinox", "builtins"):
        return None
    return inspect.getsourcefile(cls) or "", f"{cls.__qualname__}.__call__"


@functools.cache
def is_users(file: str) -> bool:
    """Whether a file is neither ours nor a library's."""
    if file.startswith(_OURS) or file.startswith("<frozen"):
        return False
    return not any(root and file.startswith(root) for root in _ROOTS)


def _layer(stack: str) -> str:
    """The outermost layer of `eqx.nn` in a stack of names as `vmap(eqx.nn.Linear)/...`."""
    at = stack.find("eqx.nn.")
    if at < 0:
        return ""
    end = next((i for i in range(at, len(stack)) if stack[i] in ")/"), len(stack))
    return stack[at:end]
