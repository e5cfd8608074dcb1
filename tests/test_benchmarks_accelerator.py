import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dnarch_eqx as dn
from benchmarks import _lab, _measurements, _profile, _training, accelerator


MEASURED = ("peaks", "1d", "1d/masks", "run")
EVERY = ("2d", "1d/full", "torch", "1d/constant", "2d/masks", "torch/compiled", *MEASURED)


def called(file: Path, *arguments: str) -> dict:
    """What a call of the benchmark writes."""
    command = [sys.executable, "-m", "benchmarks", "accelerator", "--small", *arguments]
    done = subprocess.run(
        [*command, "--json", str(file)],
        capture_output=True,
        text=True,
        cwd=Path(accelerator.__file__).parent.parent,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"Written to {file}" in done.stdout
    return json.loads(file.read_text()) | {"printed": done.stdout}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("accelerator") / "found.json"
    return called(file, "--minutes", "30", "--only", *MEASURED)


def rows(found: dict, name: str) -> dict[str, float]:
    return {row["name"]: row["value"] for row in found["measurements"][name]["rows"]}


def positive(x: float) -> bool:
    return isinstance(x, (int, float)) and 0 < x < math.inf


def test_all_is_measured(found):
    assert found["errors"] == found["left_out"] == {}
    assert tuple(found["measurements"]) == MEASURED
    for name in MEASURED:
        measured = found["measurements"][name]
        assert positive(measured["took_seconds"])
        for row in measured["rows"]:
            assert set(row) == {"name", "value", "unit", "target"}
            assert math.isfinite(row["value"])
            assert row["name"].split("/")[0] == name.split("/")[0]
            assert row["name"] in found["printed"]


def test_where_it_was_measured(found):
    about = found["about"]
    assert about["device"] == jax.devices()[0].device_kind
    assert about["versions"]["jax"] == jax.__version__
    assert set(about["precision"]) == {
        "jax_default_matmul_precision",
        "jax_enable_x64",
        "XLA_FLAGS",
        "torch",
    }
    assert (about["small"], about["minutes"]) == (True, 30.0)
    assert about["date"].startswith("20")


def test_peaks(found):
    assert set(rows(found, "peaks")) == {
        "peaks/matmul",
        "peaks/matmul_bfloat16",
        "peaks/copy",
        "peaks/call",
    }
    assert all(map(positive, rows(found, "peaks").values()))


def test_step(found):
    measured, values = found["measurements"]["1d"], rows(found, "1d")
    assert all(map(positive, values.values()))
    seconds = {what: measured["seconds"][what] for what in ("step", "hand_written")}
    for what, times in seconds.items():
        assert 0 < times["low"] <= times["median"] <= times["high"] < times["first_call"]
        assert values[f"1d/{what}/milliseconds"] == 1e3 * times["median"]
        assert positive(measured["temporary_bytes"][what])
        # As many operations and bytes as XLA counts, a second, over what was reached.
        peak = 1e12 * rows(found, "peaks")["peaks/matmul"]
        flops = measured["counted"][what]["flops"] / times["median"]
        assert values[f"1d/{what}/flops"] == pytest.approx(flops / peak)
        peak = 1e9 * rows(found, "peaks")["peaks/copy"]
        moved = measured["counted"][what]["bytes accessed"] / times["median"]
        assert values[f"1d/{what}/bytes"] == pytest.approx(moved / peak)
    ratio = seconds["step"]["median"] / seconds["hand_written"]["median"]
    assert values["1d/step/hand_written"] == pytest.approx(ratio)


def test_masks(found):
    measured = found["measurements"]["1d/masks"]
    assert measured["how"] == "profile"
    ours, theirs = measured["profile"]["step"], measured["profile"]["hand_written"]
    for shares in (ours, theirs):
        assert positive(shares["device_seconds"])
        assert shares["attributed"] > 0.9
        assert 0 < shares["small"] <= shares["attributed"] <= 1
        assert shares["small_events"] <= shares["events"]
    assert 0 < ours["small_of_masks"] <= ours["small"]
    assert theirs["small_of_masks"] == theirs["large_with_masks"] == 0


def test_run(found):
    measured, values = found["measurements"]["run"], rows(found, "run")
    steps = _lab.setting("cpu", small=True).run.steps
    assert measured["run"]["steps"] == steps
    compilations = measured["compilations"]
    assert values["run/compilations"] == len(compilations) >= 1
    assert [c["step"] for c in compilations] == sorted(c["step"] for c in compilations)
    assert compilations[0]["step"] == 0
    for c in compilations:
        assert 0 <= c["overlapped"] <= c["seconds"] and c["tracing"] < c["seconds"]
    assert values["run/compiling"] == pytest.approx(sum(c["seconds"] for c in compilations))
    assert values["run/compiling"] < values["run/seconds"]
    assert values["run/crossings"] >= 10
    assert values["run/waste"] >= 1
    assert 0 < values["run/efficiency"] < values["run/efficiency/but_first"] < 1.5
    before, after = measured["losses"]
    assert after < before


def test_left_out(tmp_path):
    """Without time nothing is begun; all is named."""
    found = called(tmp_path / "found.json", "--minutes", "0")
    assert found["measurements"] == found["errors"] == {}
    assert set(found["left_out"]) == set(EVERY)
    for name, reason in found["left_out"].items():
        assert reason.endswith("and 0 s were left")
        assert f"{name} left out: {reason}" in found["printed"]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def report(tmp_path):
    return accelerator._Report(tmp_path / "found.json", {"device": "none"})


def test_what_fails_is_named(report):
    """And the rest is measured, and kept from the start."""

    def fail(lab):
        raise MemoryError("too large")

    def miss(lab):
        raise _measurements.Missing("it is not installed")

    lab = _lab.Lab(_lab.setting("cpu", small=True))
    good = lambda lab: ([accelerator.Row("good", 1.0, "x")], {"how": "well"})
    for name, measure in {"bad": fail, "missing": miss, "good": good}.items():
        measurement = accelerator.Measurement(name, measure, 1.0)
        accelerator._measure(measurement, lab, 2.0, report)
    found = json.loads(report.path.read_text())
    assert found["errors"] == {"bad": "MemoryError: too large"}
    assert found["left_out"] == {"missing": "it is not installed"}
    assert list(found["measurements"]) == ["good"]
    assert found["measurements"]["good"]["how"] == "well"
    assert "Failed: bad." in report.table() and "Left out: missing." in report.table()


def test_estimate():
    """By the compilations that were seen, of programs that are not compiled yet."""
    lab = _lab.Lab(_lab.setting("cpu", small=True))
    one = lab.setting.one
    programs = ((one, "step"), (one, "hand_written"))
    measurement = accelerator.Measurement("1d", lambda lab: ([], {}), 1.0, programs, 1)
    assert accelerator._estimate(measurement, lab) == 1 + 3 * accelerator._GUESS["cpu"]
    lab.first_calls[one, "step"] = 4.0
    assert accelerator._estimate(measurement, lab) == 1 + 2 * 4.0


@pytest.mark.parametrize("platform", ("cpu", "gpu"))
@pytest.mark.parametrize("small", (False, True))
def test_setting(platform, small):
    setting = _lab.setting(platform, small=small)
    names = [m.name for m in accelerator.measurements(setting)]
    assert len(set(names)) == len(names) and names[0] == "peaks"
    assert {name for name in names if "batch" not in name} == set(EVERY)
    assert ("1d/batch64" in names) == (platform == "gpu" and not small)
    if not small:
        assert (setting.one.width, setting.one.shape, setting.one.batch) == (140, (1024,), 16)
        assert (setting.two.width, setting.two.shape) == (140, (32, 32))
        assert setting.run.steps == 500


@pytest.mark.parametrize(
    "seconds, memory, batch", [(1.0, 1.0, 64), (0.0002, 1.0, 512), (1e-6, 1.0, 1024)]
)
def test_batch_of_the_run(seconds, memory, batch):
    lab = _lab.Lab(_lab.setting("gpu", small=False))
    lab.example = seconds, memory
    assert _training._batch_size(lab) == batch


def test_oscillations():
    (x, y), other = _training.oscillations(np.random.default_rng(0), 2, 256, 64)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((256, 1, 64), np.float32, (256,), np.int32)
    assert not np.array_equal(x, other[0])
    # The label is the strongest frequency, of most in spite of the noise.
    strongest = np.abs(np.fft.rfft(x[:, 0])).argmax(-1) - 1
    assert np.mean(strongest == y) > 0.9


@jax.jit
def _masked(masks, x):
    size = dn.sizes(masks)["width"]
    return size, (x @ x) * size.astype(x.dtype)


def test_operations_of_a_program():
    """Which are small, and which come from code on masks."""
    args = {"width": dn.Sigmoid(32, size=20)}, jnp.ones((128, 128))
    found = operations(_masked, *args)
    assert any(one.of_masks and one.small for one in found.values())
    products = {one for name, one in found.items() if name.startswith("dot")}
    assert products == {_profile.Operation(4 * 128 * 128, False)}
    assert not any(one.small for one in products)
    plain = operations(jax.jit(lambda x: jnp.sin(x) + 1), jnp.ones(4))
    assert plain and not any(one.of_masks for one in plain.values())


def operations(fn: Any, *args: Any) -> dict[str, _profile.Operation]:
    return _profile.operations(fn.lower(*args).compile().as_text())


def test_events_within_others():
    """Each second is counted once."""

    class Event:
        def __init__(self, name, start, duration):
            self.name, self.start_ns, self.duration_ns = name, start, duration
            self.stats = [("hlo_op", name), ("hlo_module", "jit_f")]

    class Line:
        name = "XLA Ops"
        events = [
            Event("while", 0, 100e9),
            Event("a", 0, 30e9),
            Event("b", 40e9, 50e9),
            Event("c", 110e9, 5e9),
        ]

    found = {event.name: event for event in _profile._events(Line())}
    assert {name: event.seconds for name, event in found.items()} == {
        "while": 20,
        "a": 30,
        "b": 50,
        "c": 5,
    }
    assert found["a"].program == "jit_f"
