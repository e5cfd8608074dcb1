"""From the command line to everything that a run depends on."""

import dataclasses
import re
from pathlib import Path
from typing import Literal, TypeVar

from dnarch_eqx import nn
from recipes import _hyperparameters, _pruning


Variant = Literal[
    "base", "k", "kr", "krwd", "fno", "s4d", "magnitude", "l0", "diffstride"
]  # fmt: skip
_Value = TypeVar("_Value", int, float, bool)


@dataclasses.dataclass(frozen=True)
class Overrides:
    """What to change of a preset."""

    steps: int | None = None
    """How many steps, instead of epochs."""
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    omega_0: float | None = None
    """The prior on the kernels' frequencies."""
    sigma: float | None = None
    """What the kernels' masks start at: 0.0325 to 0.5 in the paper."""
    hold: Literal["exact", "penalty"] | None = None
    """How the complexity is held where widths and depth are learned: exactly, the default on a
    laptop, or by the paper's penalty."""
    budget_weight: float | None = None
    """λ: what a complexity off its target costs, of a penalty. 0 unless widths and depth are
    learned."""
    stream: bool | None = None
    """Whether the residual stream's width is learned with the others, which the paper does not
    say. By default on a laptop: without, it has twice the base's."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What there is to choose for every task."""

    variant: Variant = "krwd"
    """What is learned: nothing, with global kernels; kernels; resolutions; widths and depth.
    Or another network, to compare with: `fno` for fields, `s4d` for sequences. Or another way
    to a network of the base's complexity: `magnitude`, `l0`, `diffstride`."""
    base: str = ""
    """The base network, as DEPTHxWIDTH: by default 4x140, on a laptop 2x24; `fno` is 4x32 and
    `s4d` 4x64."""
    start: float = 1.0
    """What the sizes that are learned start at, over those of the base network."""
    preset: Literal["laptop", "paper"] = "laptop"
    """`paper` has the settings of Tables 4 and 5, `laptop` takes minutes on two cores."""
    data: Path | None = None
    """Where the official files lie. Without, data are made where they can be."""
    out: Path | None = None
    """Where to write. A run that is there is gone on with."""
    seed: int = 0
    policy: Literal["reproducible", "break-even"] = "reproducible"
    """When to compile for other sizes. `break-even` goes by measured times, and compiles in the
    background where that helps: faster, and no two runs are alike to the last bit."""
    workers: int = 0
    """How many processes make batches: for images in files, or what is generated on the way."""
    mask_rate: float | None = None
    """The learning rate of the masks over that of the weights. By default 1, on a laptop 0.3:
    in few steps sizes hardly settle otherwise."""
    overrides: Overrides = dataclasses.field(default_factory=Overrides)

    @property
    def laptop(self) -> bool:
        return self.preset == "laptop"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that a run depends on beside its data: what `config.json` has.

    - `task`, `variant`, `preset`, `data`, `seed`, `policy`: as on the command line.
    - `depth`, `width`: of the base network.
    - `start`: what learned sizes start at, over those of the base network.
    - `stream`: whether the residual stream's width is learned where the others are.
    - `steps`, `warmup`, `batch_size`, `learning_rate`, `mask_rate`, `weight_decay`: of the
        training.
    - `dropout`, `omega_0`, `sigma`, `budget_weight`, `temperatures`: of network and budget.
    - `hold`: how the complexity is held. `settle`: after how many steps the architecture is
        decided, where it is held exactly.
    - `headroom`: what the first plan has room for.
    - `compile_steps`: what a compilation is supposed to cost, in steps of the base network.
    - `segment`: after how many steps there is a checkpoint and an evaluation.
    - `log`: after how many there is a line of metrics and a point of the trajectory.
    """

    task: str
    variant: str
    preset: str
    data: str
    seed: int
    policy: str
    depth: int
    width: int
    start: float
    stream: bool
    steps: int
    warmup: int
    batch_size: int
    learning_rate: float
    mask_rate: float
    weight_decay: float
    dropout: float
    omega_0: float
    sigma: float
    hold: str
    settle: int
    budget_weight: float
    temperatures: tuple[float, float, float]
    headroom: float
    compile_steps: float
    segment: int
    log: int

    @property
    def base(self) -> nn.Base:
        return nn.Base(self.depth, self.width)

    @property
    def learn(self) -> str:
        others = (*_hyperparameters.RIVALS, *_pruning.NAMES, "base")
        return "" if self.variant in others else self.variant.upper()

    @property
    def rival(self) -> bool:
        """Whether the network is another than a CCNN."""
        return self.variant in _hyperparameters.RIVALS


def parse_base(text: str) -> nn.Base:
    """`4x140` as a base network. Raises a `ValueError` of anything else."""
    if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise ValueError(f"`base` must be DEPTHxWIDTH, as 4x140, got {text!r}.")
    return nn.Base(int(match[1]), int(match[2]))


def resolve(
    task: str,
    options: Options,
    examples: int,
    side: int,
    laptop: _hyperparameters.Laptop | None = None,
) -> Settings:
    """The settings of a run: of the paper's tables, or what a laptop takes, with the overrides.

    - `task`: a name in the tables.
    - `examples`: how many there are to train on.
    - `side`: how many positions the longest axis of the grid has. On a shorter grid than the
        paper's, `omega_0` is as much smaller: kernels then have the same frequencies, in
        cycles a position.
    - `laptop`: what a laptop takes, if not what is usual.

    Raises a `ValueError` for a base that is none, a task that no table has, fewer examples
    than a batch that is asked for, and numbers out of range.
    """
    laptop = (laptop or _hyperparameters.LAPTOP[task]) if options.laptop else None
    rival = _hyperparameters.RIVALS.get(options.variant)
    default = nn.CCNN_4_140 if laptop is None else laptop.base
    default = default if rival is None else rival.base
    base = parse_base(options.base) if options.base else default
    row, over = _hyperparameters.row(task, base), options.overrides

    # Some series of the UCR archive are fewer than a batch.
    usual = min(row.batch_size if laptop is None else laptop.batch_size, examples)
    batch_size = _given(over.batch_size, usual)
    if not 0 < batch_size <= examples:
        raise ValueError(
            f"`batch_size` must lie between 1 and the {examples} examples, got {batch_size}."
        )
    epoch = examples // batch_size
    steps = _given(over.steps, row.epochs * epoch if laptop is None else laptop.steps)
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    asked = over.steps is not None or laptop is not None
    rate = row.learning_rate if laptop is None else laptop.learning_rate
    decay, dropout = row.weight_decay, row.dropout
    if rival is not None:
        rate, decay, dropout = rival.learning_rate, rival.weight_decay, rival.dropout
    if not options.start > 0:
        raise ValueError(f"`start` must be positive, got {options.start}.")
    # The paper's λ of 0.1 pulls over tens of thousands of steps, hardly at all over hundreds.
    pull = row.budget_weight if laptop is None else max(row.budget_weight, 1.0)
    held = options.variant in ("krwd", "l0", "diffstride")
    if not held:
        pull = 0.0  # of kernels and resolutions the task alone decides (Section 4)
    usual_hold = "exact" if laptop is not None and over.budget_weight is None else "penalty"
    hold = usual_hold if over.hold is None else over.hold
    hold = hold if held else "penalty"
    mask_rate = 1.0 if laptop is None else 0.3
    if options.variant == "l0":
        mask_rate = 10.0  # of each gate, where others learn one number for an axis
    # Never the whole run: so many epochs of warm-up belong to the paper's number of epochs.
    warmup = steps // 10 if asked else row.warmup * epoch
    return Settings(
        task=task,
        variant=options.variant,
        preset=options.preset,
        data="" if options.data is None else str(options.data.resolve()),
        seed=options.seed,
        policy=options.policy,
        depth=base.depth,
        width=base.width,
        start=options.start,
        stream=_given(over.stream, laptop is not None),
        steps=steps,
        warmup=warmup,
        batch_size=batch_size,
        learning_rate=_given(over.learning_rate, rate),
        mask_rate=_given(options.mask_rate, mask_rate),
        weight_decay=_given(over.weight_decay, decay),
        dropout=_given(over.dropout, dropout),
        omega_0=_given(over.omega_0, row.omega_0 * side / row.side),
        sigma=_given(over.sigma, 0.5 if laptop is None else laptop.sigma),
        hold=hold,
        settle=_settles(options.variant, steps),
        budget_weight=_given(over.budget_weight, pull),
        temperatures=(row.resolution_temperature, row.width_temperature, row.depth_temperature),
        headroom=0.05 if laptop is None else 0.15,
        compile_steps=1000.0 if laptop is not None else 600.0,
        segment=-(-steps // 4) if asked else epoch,
        log=10 if laptop is not None else 100,
    )


def _settles(variant: str, steps: int) -> int:
    # Pruning takes its time. There is a step before, however few there are.
    return max(3 * steps // 4, 1) if variant in _pruning.NAMES else -(-steps // 4)


def _given(value: _Value | None, otherwise: _Value) -> _Value:
    return otherwise if value is None else value
