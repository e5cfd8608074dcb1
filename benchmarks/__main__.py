"""python -m benchmarks NAME [--json FILE]"""

import argparse
from pathlib import Path

from benchmarks import imports, resolution, step


_BENCHMARKS = {"imports": imports.run, "step": step.run, "resolution": resolution.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", choices=sorted(_BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    args = parser.parse_args()
    _BENCHMARKS[args.name](args.json)


if __name__ == "__main__":
    main()
