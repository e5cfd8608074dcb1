"""python -m benchmarks NAME [--json FILE]"""

import argparse
import importlib
from pathlib import Path


_NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", choices=_NAMES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    args = parser.parse_args()
    importlib.import_module(f"benchmarks.{args.name}").run(args.json)


if __name__ == "__main__":
    main()
