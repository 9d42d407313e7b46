"""The equations: activations, initial weights, layers, losses, penalties, optimizers, schedules, networks."""

from .activations import Activation, Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from .evaluation import Evaluation
from .initializers import Glorot, He, Normal
from .layers import Dense
from .losses import LogisticCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError, softmax
from .model_file import Inputs, ModelFileError
from .network import MLP
from .optimizers import SGD, Adam, Optimizer, OptimizerState
from .penalties import Penalty
from .schedules import Constant, ExponentialDecay, InverseTimeDecay, Milestones, StepDecay

__all__ = [
    "MLP",
    "SGD",
    "Activation",
    "Adam",
    "Constant",
    "Dense",
    "Evaluation",
    "ExponentialDecay",
    "Glorot",
    "He",
    "Identity",
    "Inputs",
    "InverseTimeDecay",
    "LeakyReLU",
    "LogisticCrossEntropy",
    "Loss",
    "Milestones",
    "ModelFileError",
    "Normal",
    "Optimizer",
    "OptimizerState",
    "Penalty",
    "ReLU",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "StepDecay",
    "Tanh",
    "softmax",
]
