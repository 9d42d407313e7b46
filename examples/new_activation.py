"""Write a new activation: Mish, h(s) = s tanh(log(1 + e^s)), one class with two methods for every device.

python examples/new_activation.py
"""

import sys

import numpy as np

from gpumlp import MLP, SGD, Activation, fit, load_digits

ENOUGH = 0.93  # of the test samples


class Mish(Activation):
    """h(s) = s t with t = tanh p, p = log(1 + e^s); h'(s) = t + s (1 - t^2) (1 - e^-p), computed from s."""

    name = "mish"
    derivative_from = "input"  # "output" if h' can be computed from h(s), so that s need not be kept
    initializer = "he"  # what "auto" means for its initial weights

    def forward(self, xp, s, out):  # xp is NumPy or CuPy; write into out
        xp.logaddexp(s, 0, out=out)
        xp.tanh(out, out=out)
        xp.multiply(out, s, out=out)

    def backward(self, xp, s, delta):  # delta <- delta * h'(s); s may be overwritten
        p = xp.logaddexp(s, 0)
        t = xp.tanh(p)
        xp.multiply(delta, t - s * (1 - t * t) * xp.expm1(-p), out=delta)


# Compare the derivative with central differences of the function.
s, step = np.linspace(-8, 8, 101), 1e-5
mish = Mish()
differences = (mish(s + step) - mish(s - step)) / (2 * step)
error = np.abs(mish.derivative(s) - differences).max()
print(f"the derivative differs from central differences by at most {error:.1e}")
if error > 1e-8:
    sys.exit("backward is not the derivative of forward")

train, test = load_digits()
for activation in ("relu", mish):
    model = MLP([64, 128, 10], activation=activation, seed=0)
    history = fit(model, train, optimizer=SGD(0.1, momentum=0.9), epochs=20, batch_size=32)
    accuracy = model.accuracy(test)
    print(f"{model.activation.name}: training loss {history['train_loss'][-1]:.4f}, test accuracy {accuracy:.4f}")
sys.exit(None if accuracy >= ENOUGH else f"expected an accuracy of {ENOUGH} or more")
