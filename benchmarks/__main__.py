"""python -m benchmarks NAME [--json FILE] [what else the benchmark takes]"""

import argparse
import importlib
import inspect
from pathlib import Path

import dnarch_eqx as dn


_NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", choices=_NAMES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    args, rest = parser.parse_known_args()
    # As the README advises those who train on CPUs.
    dn.runtime.keep_memory()
    run = importlib.import_module(f"benchmarks.{args.name}").run
    if "arguments" in inspect.signature(run).parameters:
        run(args.json, arguments=rest)
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        run(args.json)


if __name__ == "__main__":
    main()
