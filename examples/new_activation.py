"""Write a new activation: softplus, h(s) = log(1 + e^s), one class with two methods for every device.

python examples/new_activation.py
"""

import sys

import numpy as np

from gpumlp import MLP, SGD, Activation, fit, load_digits

ENOUGH = 0.93  # of the test samples


class Softplus(Activation):
    """h(s) = log(1 + e^s); h'(s) = 1 / (1 + e^-s), which is 1 - e^-a from the output a."""

    name = "softplus"
    initializer = "he"  # what "auto" means for its initial weights

    def forward(self, xp, s, out):  # xp is NumPy or CuPy; write into out
        xp.logaddexp(s, 0, out=out)

    def backward(self, xp, a, delta):  # delta <- delta * h'(s); a may be overwritten
        xp.negative(a, out=a)
        xp.expm1(a, out=a)
        xp.multiply(delta, a, out=delta)
        xp.negative(delta, out=delta)


# Compare the derivative with central differences of the function.
s, step = np.linspace(-8, 8, 101), 1e-5
softplus = Softplus()
differences = (softplus(s + step) - softplus(s - step)) / (2 * step)
error = np.abs(softplus.derivative(s) - differences).max()
print(f"the derivative differs from central differences by at most {error:.1e}")
if error > 1e-8:
    sys.exit("backward is not the derivative of forward")

train, test = load_digits()
for activation in ("relu", softplus):
    model = MLP([64, 128, 10], activation=activation, seed=0)
    history = fit(model, train, optimizer=SGD(0.1, momentum=0.9), epochs=20, batch_size=32)
    accuracy = model.accuracy(test)
    print(f"{model.activation.name}: training loss {history['train_loss'][-1]:.4f}, test accuracy {accuracy:.4f}")
sys.exit(None if accuracy >= ENOUGH else f"expected an accuracy of {ENOUGH} or more")
