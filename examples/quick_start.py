"""Quick start: train a network on the built-in digits, stop when it no longer improves, and use it.

python examples/quick_start.py
"""

import sys

from gpumlp import MLP, SGD, EarlyStopping, Progress, fit, load_digits

ENOUGH = 0.93  # of the test samples

train, test = load_digits()
model = MLP([64, 128, 10], activation="relu", seed=0, device="auto")  # a usable GPU, otherwise the CPU
print(f"{model!r}")

fit(
    model,
    train,
    optimizer=SGD(learning_rate=0.1, momentum=0.9),
    epochs=50,
    batch_size=32,
    validation=143,  # held out of the training samples
    callbacks=[Progress(), EarlyStopping(patience=8)],
)

print("the first test images are:", model.predict(test.images[:8]), "and their labels:", test.labels[:8])
accuracy = model.accuracy(test)
print(f"test accuracy: {accuracy:.4f}")
sys.exit(None if accuracy >= ENOUGH else f"expected an accuracy of {ENOUGH} or more")
