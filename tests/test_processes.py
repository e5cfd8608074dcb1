"""Two processes, as two machines would be, on one."""

import json
import pathlib
import socket
import subprocess
import sys

import pytest


SCRIPT = pathlib.Path(__file__).parent / "process.py"


@pytest.mark.parametrize("background", [False, True])
def test_processes_agree(background):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), str(rank), str(background)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        (line,) = [line for line in out.splitlines() if line.startswith("RESULT ")]
        results.append(json.loads(line.removeprefix("RESULT ")))
    assert results[0] == results[1]
    plans, losses, steps, *_ = results[0]
    assert steps == len(plans) and all(x == x for x in losses)
    assert len(set(plans)) > 1, "it shrank"
