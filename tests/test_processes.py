"""Two and four processes, as as many machines would be, on one: they take the same plans at the
same steps, whatever each of them measures, and whatever fails on one of them.
"""

import json
import pathlib
import socket
import subprocess
import sys

import pytest


SCRIPT = pathlib.Path(__file__).parent / "process.py"


def results_of(count: int, *scenarios: str) -> list[dict[str, dict]]:
    """Of each process, scenario to result."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), str(rank), str(count), *scenarios],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=400)
            assert process.returncode == 0, err[-3000:]
            lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
            results = [json.loads(line.removeprefix("RESULT ")) for line in lines]
            found.append({result["scenario"]: result for result in results})
    finally:
        for process in processes:
            process.kill()
    assert all(set(each) == set(scenarios) for each in found)
    return found


def agree(found: list[dict[str, dict]], scenario: str) -> dict:
    """What all processes say of a scenario: the same, and that of a plain loop."""
    first, *others = (each[scenario] for each in found)
    assert all(other["same"] == first["same"] for other in others), scenario
    assert first["steps"] == len(first["plans"])
    assert first["error"] < 1e-4, scenario
    return first


@pytest.fixture(scope="module")
def two():
    return results_of(
        2,
        "shrinks in the background",
        "grows in the background",
        "fails",
        "fails in the background",
        "slow",
        "first fails",
        "local",
    )


@pytest.mark.parametrize("scenario", ["shrinks in the background"])
def test_two_processes_shrink_together(scenario, two):
    assert min(agree(two, scenario)["plans"]) < agree(two, scenario)["plans"][0]


@pytest.mark.slow
def test_two_processes_shrink_while_training_waits():
    found = results_of(2, "shrinks")
    plans = agree(found, "shrinks")["plans"]
    assert min(plans) < plans[0]


@pytest.mark.parametrize("scenario", ["grows in the background", "slow"])
def test_two_processes_grow_together(scenario, two):
    plans = agree(two, scenario)["plans"]
    assert len(set(plans)) > 2 and max(plans) > plans[0] + 2


@pytest.mark.parametrize("scenario", ["fails", "fails in the background"])
def test_what_fails_on_one_fails_on_both(scenario, two):
    plans = agree(two, scenario)["plans"]
    first, second = (each[scenario]["said"] for each in two)
    assert len(first) == len(second) == 1
    assert "on another process" in first[0] and "RESOURCE_EXHAUSTED" in second[0]
    failed = first[0].split("Plan")[1].split(")")[0]
    assert second[0].split("Plan")[1].split(")")[0] == failed, "the same plan"
    assert len(set(plans)) > 1, "both went on, and shrank later"


def test_where_nothing_covers_both_raise(two):
    first, second = (each["first fails"]["error"] for each in two)
    assert "failed on another process" in first and second == "RESOURCE_EXHAUSTED"


def test_a_state_that_is_not_global_is_refused(two):
    for each in two:
        assert "lies on one process of 2" in each["local"]["error"]
        assert "make_array_from_process_local_data" in each["local"]["error"]


def test_four_processes_agree():
    found = results_of(4, "grows in the background", "fails", "slow")
    for scenario in found[0]:
        agree(found, scenario)
    assert [len(each["fails"]["said"]) for each in found] == [1, 1, 1, 1]
