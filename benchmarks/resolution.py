"""What a switch of a resolution's bucket changes in a trained network: on the digits of
scikit-learn, the loss and accuracy on test images under the plan it was trained at and with
every resolution one, two, ... buckets larger, up to the capacity.
"""

from pathlib import Path

import jax.numpy as jnp
import optax

import dnarch_eqx as dn
from benchmarks._common import finish, Row
from recipes import quickstart


def run(path: Path | None) -> None:
    config = quickstart.Config()
    digits = quickstart.Digits.load(config.seed)
    trained = quickstart.train(config, digits, "DNArch_KRWD", "KRWD")
    masks, plan = trained.state.masks, trained.plan
    # Two samples a rung, so that every possible resolution of the 8 x 8 images is seen.
    ladders = {axis: (2, 4, 6, 8) for axis in masks if ".resolution" in axis}
    tight = dn.exact(masks)

    def at_least(extra: int) -> dn.Plan:
        sizes = {}
        for axis, ladder in ladders.items():
            fitting = [size for size in ladder if size >= tight[axis]]
            sizes[axis] = fitting[min(extra, len(fitting) - 1)]
        return plan | sizes

    def measure(plan: dn.Plan) -> tuple[jnp.ndarray, float, float]:
        net = trained.learner.network(trained.state, plan)
        logits = quickstart.predict(config, net, digits.x_test)
        labels = jnp.asarray(digits.y_test)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return logits, float(loss), float((logits.argmax(-1) == labels).mean())

    reference, loss, accuracy = measure(at_least(0))
    rows = [
        Row("resolution/mean_size", sum(map(float, sizes_of(masks))) / len(ladders), "samples"),
        Row("resolution/tight/loss", loss, "nats"),
        Row("resolution/tight/accuracy", accuracy, ""),
    ]
    for extra in (1, 2, 3):
        logits, loss, accuracy = measure(at_least(extra))
        change = jnp.sqrt(jnp.mean((logits - reference) ** 2) / jnp.mean(reference**2))
        rows += [
            Row(f"resolution/+{extra}/loss", loss, "nats"),
            Row(f"resolution/+{extra}/accuracy", accuracy, ""),
            Row(f"resolution/+{extra}/logits", float(change), "relative rms"),
        ]
    finish(rows, path)


def sizes_of(masks: dn.Masks) -> list:
    return [size for axis, size in dn.sizes(masks).items() if ".resolution" in axis]
