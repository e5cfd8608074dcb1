import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import dnarch_eqx


ROOT = pathlib.Path(dnarch_eqx.__file__).parent
# What a plan's network is; when it compiles; a customer.
ORDER = (
    "_custom_types",
    "_misc",
    "_made",
    "_masks",
    "_curve",
    "_gaussian",
    "_sigmoid",
    "_ramp",
    "_gates",
    "_extended",
    "_stacks",
    "_sizes",
    "_budget",
    "_hold",
    "ladders",
    "_plan",
    "_budgets",
    "_settle",
    "_pressing",
    "_axes",
    "_shared",
    "_nodes",
    "_stateful",
    "_blocks",
    "_layout",
    "_fit",
    "_counterpart",
    "_conv",
    "_norms",
    "_stock",
    "_materialize",
    "_embed",
    "_order",
    "_freeze",
    "_regrown",
    "_moments",
    "_pretrained",
    "_terms",
    "_count",
    "_cost",
    "_where",
    "_program",
    "_follow",
    "_control",
    "_positions",
    "_rules",
    "_flow",
    "_stale",
    "_law",
    "_operations",
    "_costs",
    "_latency",
    "_optim",
    "_state",
    "_carried",
    "_growth",
    "_reordered",
    "_absorbed",
    "_pruned",
    "_verify",
    "_train",
    "_report",
    "_found",
    "_numbers",
    "_depths",
    "_resized",
    "_groups",
    "runtime._memory",
    "runtime._guards",
    "runtime._processes",
    "runtime._overlap",
    "runtime._background",
    "runtime._signature",
    "runtime._program",
    "runtime._store",
    "runtime._nonfinite",
    "runtime._learner",
    "runtime._predict",
    "runtime._grid",
    "runtime._velocity",
    "runtime._forecast",
    "runtime._timing",
    "runtime._stopwatch",
    "runtime._trace",
    "runtime._policy",
    "runtime.policies._every_step",
    "runtime.policies._every",
    "runtime.policies._hysteresis",
    "runtime.policies._break_even",
    "runtime.policies._oracle",
    "runtime._planner_state",
    "runtime._replay",
    "runtime._report",
    "runtime._accepted",
    "runtime._run",
    "runtime._compiler",
    "runtime._engine",
    "runtime._planner",
    "nn._choices",
    "nn._transforms",
    "nn._fourier",
    "nn._layers",
    "nn._spatial",
    "nn._kernel",
    "nn._blocks",
    "nn._encoder",
    "nn._ccnn",
    "nn._dnarch",
    "nn._complexity",
)
FILES = sorted(ROOT.rglob("*.py"))
MODULES = [file for file in FILES if file.name != "__init__.py"]


def name_of(file: pathlib.Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imported(file: pathlib.Path) -> list[str]:
    """The modules of dnarch_eqx that a file imports, wherever in it, relative to ROOT."""
    package = ["dnarch_eqx", *name_of(file).split(".")[:-1]]
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import a` imports modules, `from .a import b` names of one.
            found += (
                [module] if node.module else [f"{module}.{alias.name}" for alias in node.names]
            )
    return [m.removeprefix("dnarch_eqx.") for m in found if m.split(".")[0] == "dnarch_eqx"]


def test_the_order_has_every_file():
    assert {name_of(file) for file in MODULES} == set(ORDER)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_point_down(file):
    """So the core never imports `nn`, and there are no cycles."""
    above = ORDER[: ORDER.index(name_of(file))]
    for module in imported(file):
        # Of a folder all that is in it.
        inside = [name for name in ORDER if name.startswith(f"{module}.")] or [module]
        assert set(inside) <= set(above), f"{name_of(file)} imports {module}"


def test_imports_are_found():
    """The test above would see them."""
    assert "_axes" in imported(ROOT / "_materialize.py")
    assert {"_axes", "nn._ccnn"} <= set(imported(ROOT / "nn" / "_dnarch.py"))
    assert "nn" in imported(ROOT / "__init__.py")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_public_names_come_from_init(file):
    """Modules are private, and what `__init__` exports says so itself (`a as a`)."""
    tree = ast.parse(file.read_text())
    assigned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert "__all__" not in assigned
    if file.name != "__init__.py":
        # A namespace that users have whole is a module of its own.
        assert file.stem.startswith("_") or name_of(file) == "ladders"
        return
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            for alias in node.names:
                assert alias.asname == alias.name and not alias.name.startswith("_")


def test_import_is_light():
    """Plots, data and flows are the recipes': nobody pays for them who does not ask."""
    heavy = (
        "matplotlib",
        "diffrax",
        "grain",
        "sklearn",
        "tqdm",
        "tyro",
        "torch",
        "scipy.stats",
    )
    code = f"import sys, dnarch_eqx; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


PACKAGES = ("dnarch_eqx", "dnarch_eqx.ladders", "dnarch_eqx.runtime", "dnarch_eqx.nn")


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_public_is_documented(package):
    """Public functions and classes, and the public methods of these, have a docstring. (Of a
    method that overrides one, that one's counts; `__call__` of a layer may be its class's.)
    """
    missing = []
    for name, value in vars(sys.modules[package]).items():
        if name.startswith("_") or not getattr(value, "__module__", "").startswith(
            "dnarch_eqx"
        ):
            continue
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not inspect.getdoc(value):
            missing.append(name)
        if inspect.isclass(value):
            missing += [
                f"{name}.{method}"
                for method, function in vars(value).items()
                if not method.startswith("_")
                and inspect.isfunction(function)
                and not inspect.getdoc(getattr(value, method))
            ]
    assert not missing
