"""What `import dnarch_eqx` costs over importing jax, equinox and optax: whole processes, in
turn.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks._common import finish, medians, Row


def run(path: Path | None) -> None:
    def process(code: str):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    seconds = medians(
        {
            "dnarch_eqx": process("import dnarch_eqx"),
            "stack": process("import jax, equinox, optax"),
        },
        repeats=9,
    )
    rows = [
        Row("import/stack", seconds["dnarch_eqx"] / seconds["stack"], "x", "<= 1.15"),
        *(Row(f"import/{name}/seconds", value, "s") for name, value in seconds.items()),
    ]
    finish(rows, path)
