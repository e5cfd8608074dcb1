"""A minimal stand-in for the loader of ListOps: its vocabulary and its tokeniser."""

import numpy as np
from jaxtyping import Int


VOCABULARY = (
    *("<pad>", "<unk>", "<eos>"),
    *("[MIN", "[MAX", "[MED", "[SM", "X"),
    *(str(digit) for digit in range(10)),
)
"""Every token, at its id."""


def encode(text: str, length: int) -> Int[np.ndarray, " length"]:
    """Parentheses go, `]` becomes `X`, `<eos>` ends it, 0 fills it up."""
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    words = text.replace("(", "").replace(")", "").replace("]", "X").split()
    tokens = [ids.get(word, 1) for word in words[: length - 1]] + [2]
    return np.array(tokens + [0] * (length - len(tokens)), np.int32)
