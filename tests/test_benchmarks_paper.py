import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _runs, paper
from recipes import _settings


def write(
    folder: Path, task: str, variant: str, seed: int, value: float, **changes: Any
) -> None:
    """What a run came to, as the benchmark keeps it."""
    options = paper._options(variant)
    settings = _settings.resolve(_runs.KINDS[task].row, options, 2**31, 1)
    metric = "relative l2" if task == "darcy" else "accuracy"
    result = {
        "about": "made up",
        "seed": seed,
        "test": {metric: value},
        "relative": 0.5,
        "mean relative": 0.75,
        "deployed": 0.5,
        "milliseconds": 2.0 + seed,
        "seconds": 10.0,
        "parameters": 100,
        "operations": 1e6,
        "architecture": [["block", "kernel"], ["1", "7"]] if variant == "krwd" else [],
        "settings": _runs.comparable(settings),
    }
    result |= changes
    (folder / f"{task}-{variant}-seed{seed}.json").write_text(json.dumps(result))


def tables(folder: Path, *arguments: str) -> list[list[str]]:
    """The rows of what is written, their cells; nothing is run."""
    paper.run(None, ["--results", str(folder), "--minutes", "0", *arguments])
    lines = (folder / "tables.md").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_tables(tmp_path):
    write(tmp_path, "FordA", "base", 0, 0.5)
    write(tmp_path, "FordA", "base", 1, 0.7)
    # Seed 2 has no base: its time and its accuracy are in no ratio and no difference.
    for seed, value in enumerate((0.6, 0.9, 0.3)):
        write(tmp_path, "FordA", "krwd", seed, value, seconds=10.0 + 20 * seed, operations=3e6)
    rows = tables(tmp_path)
    assert rows[0] == ["task", "metric", "base", "k", "kr", "krwd"]
    mean, difference, time, last, operations = rows[2:7]
    assert mean[:2] == ["FordA", "accuracy"]
    assert mean[2] == "0.6000 ± 0.1414, n = 2 (0.50x, mean 0.75x)"
    assert mean[5] == "0.6000 ± 0.3000, n = 3 (0.50x, mean 0.75x)"
    # 0.1 and 0.2; (10 + 30) / (10 + 10).
    assert difference[2:] == ["", "", "", "+0.1500 ± 0.0707"]
    assert time[2:] == ["1.00", "", "", "2.00"]
    assert last[2:] == ["1.00", "", "", "1.00"]
    assert operations[2:] == ["1.00", "", "", "3.00"]
    assert rows[-1] == ["1", "7"]


def test_what_is_claimed(tmp_path, capsys):
    """Differences of 0.1 and 0.3 have a standard error of 0.1, those of -1 and 0.9 one of 0.95:
    by hand. Errors are better when they are less, and nothing is known of one seed.
    """
    for seed, (one, two) in enumerate([(0.6, -0.5), (0.8, 1.4)]):
        write(tmp_path, "FordA", "base", seed, 0.5)
        write(tmp_path, "FordA", "krwd", seed, one, deployed=1.01, seconds=12.0)
        write(tmp_path, "text", "base", seed, 0.5)
        write(tmp_path, "text", "krwd", seed, two, deployed=1.0, seconds=11.0)
        write(tmp_path, "darcy", "base", seed, 0.3)
        write(tmp_path, "darcy", "krwd", seed, 0.4 + seed / 100, deployed=0.98)
    write(tmp_path, "cosmic", "base", 0, 0.3)
    write(tmp_path, "cosmic", "krwd", 0, 0.9, deployed=1.0)
    tables(tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    claims = ("paper/tasks", "paper/krwd")
    found = {row[0]: float(row[1]) for row in rows if row and row[0].startswith(claims)}
    assert found["paper/tasks"] == 4
    assert (found["paper/krwd/better"], found["paper/krwd/worse"]) == (1, 1)
    assert found["paper/krwd/time"] == pytest.approx(1.2)
    assert found["paper/krwd/deployed"] == pytest.approx(0.02)


def test_all_that_is_done_is_in_the_tables(tmp_path):
    """Whatever this call was to run."""
    write(tmp_path, "FordA", "base", 4, 0.5)
    write(tmp_path, "darcy", "base", 0, 0.03)
    write(tmp_path, "darcy", "fno", 0, 0.02)
    rows = tables(tmp_path, "--tasks", "listops", "--seeds", "0")
    assert {row[0] for row in rows if row} >= {"FordA", "darcy"}
    assert any(row[:2] == ["darcy", "FNO"] and row[3].startswith("0.0200") for row in rows)


@pytest.mark.parametrize(
    "task, variant", [("FordA", "kr"), ("darcy", "fno"), ("cifar10", "half")]
)
def test_results_of_other_settings(tmp_path, task, variant):
    """Are not mixed in: neither those of before, nor some of each."""
    write(tmp_path, task, variant, 0, 0.5)
    tables(tmp_path)
    row = _runs.KINDS[task].row
    settings = _runs.comparable(_settings.resolve(row, paper._options(variant), 2**31, 1))
    steps = settings["steps"]
    for changes in ({"steps": 7}, {"omega_0": 1e9}):
        write(tmp_path, task, variant, 1, 0.5, settings=settings | changes)
        before = (tmp_path / "tables.md").read_text()
        with pytest.raises(SystemExit, match=f"has {task}, {variant}, of seed 1 with other"):
            tables(tmp_path)
        assert (tmp_path / "tables.md").read_text() == before
    with pytest.raises(SystemExit, match=rf"\(steps 7, not {steps}\)"):
        write(tmp_path, task, variant, 0, 0.5, settings=settings | {"steps": 7})
        tables(tmp_path)


def test_the_committed_results_are_of_the_present_settings(tmp_path):
    """And the tables are those of the results."""
    there = Path(paper.__file__).parent / "results"
    for file in there.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tables(tmp_path)
    assert (tmp_path / "tables.md").read_text() == (there / "tables.md").read_text()


def test_unknown_tasks():
    with pytest.raises(SystemExit, match=r"`tasks` must be among \['listops', .* got \['no'\]"):
        paper.run(None, ["--tasks", "no", "--minutes", "0"])
