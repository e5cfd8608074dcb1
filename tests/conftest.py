import random

import jax
import jax.random as jr
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
