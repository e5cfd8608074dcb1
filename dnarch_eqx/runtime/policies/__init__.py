"""When to give up a plan, and for which: one policy a file."""

from ._break_even import BreakEven as BreakEven
from ._every import Every as Every
from ._every_step import EveryStep as EveryStep
from ._hysteresis import Hysteresis as Hysteresis
from ._oracle import Oracle as Oracle
