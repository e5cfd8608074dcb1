import random
from typing import Any

import jax
import jax.random as jr
import jaxtyping
import pytest


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_x64", False)


@pytest.fixture
def getkey(request):
    """Fresh keys, the same ones whenever this test is run."""
    generator = random.Random(request.node.nodeid)
    return lambda: jr.key(generator.randint(0, 2**31 - 1))


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard():
    """JAX's standard promotion, which Optax relies on."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def unchecked():
    """As users have it: types are not checked at run time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def quick(monkeypatch):
    """Compiled steps in a third of the time: they run slower, which is not looked at."""
    from helpers import FAST  # not before `dnarch_eqx` is imported with its types checked

    compile, options = jax.stages.Lowered.compile, dict[str, Any](FAST)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: compile(self, options))


# Files of few tests that take long: one begun last would keep a worker busy alone.
_FIRST = (
    "test_recipes",
    "test_processes",
    "test_nothing_lost",
    "test_complexity",
    "test_store",
)


def pytest_collection_modifyitems(items):
    """Puts them first; the order within files stays."""
    items.sort(key=lambda item: item.path.stem not in _FIRST)
