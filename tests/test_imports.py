import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import dnarch_eqx


ROOT = pathlib.Path(dnarch_eqx.__file__).parent
ORDER = (
    "_custom_types",
    "_memory",
    "_misc",
    "_masks",
    "_gaussian",
    "_sigmoid",
    "_sizes",
    "_plan",
    "_velocity",
    "_timing",
    "_policy",
    "_trace",
    "_axes",
    "_cost",
    "_stock",
    "_materialize",
    "_optim",
    "_programs",
    "_learner",
    "_predict",
    "_report",
    "_motion",
    "_clock",
    "_compiler",
    "_planner",
    "nn._choices",
    "nn._transforms",
    "nn._fourier",
    "nn._layers",
    "nn._spatial",
    "nn._kernel",
    "nn._blocks",
    "nn._ccnn",
    "nn._dnarch",
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
        assert module in above, f"{name_of(file)} imports {module}"


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
        assert file.stem.startswith("_")
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


@pytest.mark.parametrize("package", ("dnarch_eqx", "dnarch_eqx.nn"))
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
