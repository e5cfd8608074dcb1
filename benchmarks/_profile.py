# Which operations of a compiled program a device spends its time on: a trace of JAX's profiler,
# read without any other package, beside the program's text.

import collections
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax


# The files of dnarch_eqx all of whose operations are on masks.
_OF_MASKS = ("_masks", "_gaussian", "_sigmoid", "_sizes", "_budget", "_cost")
# Operations none of whose arrays has more bytes are small: no vector of masks has as many,
# most weights have more.
_SMALL = 16 * 1024

# What only has other computations run.
_OF_OTHERS = ("call", "while", "conditional")

_BITS = re.compile(r"\d+")
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+\w*|c\d+)\[([\d,]*)\]")
_RESULT = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_NUMBERED = re.compile(r"^(\d+) (.*)$")


@dataclasses.dataclass(frozen=True)
class Event:
    """What a device was at: the operation of the program where the trace tells, and else what
    ran, and its seconds without those of events within it.
    """

    name: str
    program: str | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a program: the bytes of its largest array, operands included, and
    whether any line of the code that it comes from is on masks.
    """

    largest: int
    of_masks: bool

    @property
    def small(self) -> bool:
        return self.largest <= _SMALL


def shares(run: Callable[[], Any], text: str, steps: int) -> dict[str, Any]:
    """Traces `run`, so many steps of one program, and sorts what the device was at.

    **Returns:**

    Of a step, the seconds that the device was at work (`device_seconds`; on CPUs, of all
    threads) and the events (`events`). Of these seconds, the shares in `attributed` (those of
    which the program's text says what they are), `small` (of operations all of whose arrays
    are small), `small_of_masks` (of those, the ones that come from code on masks) and
    `large_with_masks` (of others with such code in them); and `small_events`.

    Raises `RuntimeError` if the trace has no events of the device.
    """
    events = record(run)
    if not events:
        raise RuntimeError("The trace has no events of the device.")
    module, known = text.split(",", 1)[0].removeprefix("HloModule").strip(), operations(text)
    if any(event.program == module for event in events):
        events = [event for event in events if event.program in (module, None)]
    kinds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for event in events:
        operation = known.get(event.name)
        for kind in _kinds(operation):
            kinds[kind] += event.seconds  # pyright: ignore[reportArgumentType]
            counts[kind] += 1
    total = kinds["all"]
    share = lambda kind: kinds[kind] / total if total > 0 else 0.0
    return {
        "device_seconds": total / steps,
        "events": counts["all"] / steps,
        "small_events": counts["small"] / steps,
        **{
            kind: share(kind)
            for kind in ("attributed", "small", "small_of_masks", "large_with_masks")
        },
    }


def _kinds(operation: Operation | None) -> Iterator[str]:
    yield "all"
    if operation is not None:
        yield "attributed"
        if operation.small:
            yield "small"
        if operation.of_masks:
            yield "small_of_masks" if operation.small else "large_with_masks"


def record(run: Callable[[], Any]) -> list[Event]:
    """What the device was at during a call."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        return [event for line in _lines(data) for event in _events(line)]


def _lines(data: Any) -> list[Any]:
    """Those of the accelerator: its streams, or what it has in their place. On CPUs all
    threads, whose events may be the host's, too.
    """
    devices = [plane for plane in data.planes if plane.name.startswith("/device:")]
    lines = [line for plane in devices for line in plane.lines]
    streams = [line for line in lines if line.name.startswith("Stream")]
    on_device = streams or [line for line in lines if line.name == "XLA Ops"]
    if on_device:
        return on_device
    return [line for p in data.planes if p.name.startswith("/host:CPU") for line in p.lines]


def _events(line: Any) -> list[Event]:
    on_device = line.name.startswith("Stream") or line.name == "XLA Ops"
    found = []
    for event in line.events:
        stats = dict(event.stats)
        if on_device or "hlo_op" in stats:
            name = str(stats.get("hlo_op", event.name))
            module = stats.get("hlo_module")
            module = None if module is None else str(module)
            found.append((event.start_ns, event.duration_ns, name, module))
    found.sort(key=lambda e: (e[0], -e[1]))
    alone = [duration for _, duration, _, _ in found]
    within: list[int] = []
    for i, (start, duration, _, _) in enumerate(found):
        while within and found[within[-1]][0] + found[within[-1]][1] <= start:
            within.pop()
        if within:
            alone[within[-1]] -= duration
        within.append(i)
    return [
        Event(name, module, max(seconds, 0) / 1e9)
        for (_, _, name, module), seconds in zip(found, alone)
    ]


def operations(text: str) -> dict[str, Operation]:
    """Those of a compiled program, from its text, by name, and by the names that kernels get
    from these on GPUs.
    """
    frames = _frames_of_masks(text)
    sizes: dict[str, int] = {}
    lines: list[tuple[str, str, str]] = []
    computation, of_masks = "", collections.defaultdict(set)
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[1]
        elif found := _RESULT.match(line):
            name, shape, what, rest = found.groups()
            sizes[name] = max(map(_bytes, _SHAPE.finditer(shape)), default=0)
            if what not in _OF_OTHERS:
                lines.append((name, computation, rest))
            if any(int(frame) in frames for frame in _FRAME.findall(rest)):
                of_masks[computation].add(name)
    known: dict[str, Operation] = {}
    for name, computation, rest in lines:
        operands = re.findall(r"%([\w.-]+)", rest.split(")", 1)[0])
        largest = max(sizes.get(x, 0) for x in (name, *operands))
        inner = any(of_masks[called] for called in _CALLS.findall(rest))
        known[name] = Operation(largest, inner or name in of_masks[computation])
    return {re.sub(r"\W", "_", name): found for name, found in known.items()} | known


def _bytes(shape: re.Match) -> int:
    size = 1
    for n in filter(None, shape[2].split(",")):
        size *= int(n)
    bits = _BITS.search(shape[1])
    return size * (int(bits[0]) if bits else 8) // 8


def _frames_of_masks(text: str) -> set[int]:
    """The stack frames that are in the files on masks, or were called from there."""
    tables = {
        title: dict(_numbered(text, title))
        for title in ("FileNames", "FileLocations", "StackFrames")
    }
    files = {
        i
        for i, name in tables["FileNames"].items()
        if "dnarch_eqx" in name and Path(name.strip('"')).stem in _OF_MASKS
    }
    field = lambda row, name: (
        int(found[1]) if (found := re.search(rf"{name}=(\d+)", row)) else 0
    )
    places = {
        i for i, row in tables["FileLocations"].items() if field(row, "file_name_id") in files
    }
    # A frame's caller has a smaller number; where it seems to be its own, callers' numbers are
    # written one too large.
    parents = {i: field(row, "parent_frame_id") for i, row in tables["StackFrames"].items()}
    shift = int(any(i == parent for i, parent in parents.items()))
    found: set[int] = set()
    for i, row in sorted(tables["StackFrames"].items()):
        if field(row, "file_location_id") in places or parents[i] - shift in found:
            found.add(i)
    return found


def _numbered(text: str, title: str) -> Iterable[tuple[int, str]]:
    """The rows of a table in front of a program's computations."""
    _, _, rest = text.partition(f"\n{title}\n")
    for line in rest.splitlines():
        if not (found := _NUMBERED.match(line)):
            return
        yield int(found[1]), found[2]
