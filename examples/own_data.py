"""Your own data: arrays in, class names out, and a callback of your own in five lines.

python examples/own_data.py
"""

import sys

import numpy as np

from gpumlp import MLP, Adam, Callback, Dataset, fit

ENOUGH = 0.95  # of the test samples


def measurements(count, seed):
    """Points on the three arms of a spiral, in metres and in millimetres, and the colours of their arms."""
    rng = np.random.default_rng(seed)
    arm, turn = rng.integers(0, 3, count), rng.uniform(0, 1, count)
    angle = 4 * turn + 2 * np.pi / 3 * arm + rng.normal(0, 0.25, count)
    points = np.column_stack([turn * np.cos(angle), 1000 * turn * np.sin(angle)])
    return points, np.array(["red", "green", "blue"])[arm]


x, colours = measurements(3_000, seed=0)
x_test, colours_test = measurements(1_000, seed=1)

# One thing is left to you: bring the features to about the same scale.
mean, std = x.mean(axis=0), x.std(axis=0)
train = Dataset((x - mean) / std, colours, name="spirals")
test = train.part((x_test - mean) / std, colours_test)
print(train)


class Report(Callback):
    def on_epoch_end(self, trainer):
        record = trainer.history.records[-1]
        if record.epoch % 10 == 0:
            print(f"epoch {record.epoch}: {record.validation_accuracy:.1%} of the held-out points are correct")


model = MLP([train.features, 32, 32, train.classes], activation="tanh", seed=0)
fit(model, train, optimizer=Adam(0.01), epochs=40, batch_size=64, validation=300, callbacks=[Report()])

point = np.array([[0.2, 300.0]])
for name, probability in zip(model.class_names, model.predict_proba((point - mean) / std)[0], strict=True):
    print(f"the point is {name} with probability {probability:.3f}")
accuracy = model.accuracy(test)
print(f"test accuracy: {accuracy:.4f}")
sys.exit(None if accuracy >= ENOUGH else f"expected an accuracy of {ENOUGH} or more")
