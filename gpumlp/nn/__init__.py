"""Activations, initial weights, layers, losses, weight penalties, optimizers, schedules and networks."""

from .activations import Activation, Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from .initializers import Glorot, He, Normal
from .layers import Dense
from .losses import LogisticCrossEntropy, Loss, PoissonDeviance, SoftmaxCrossEntropy, SquaredError, softmax
from .model_file import ModelFileError
from .network import MLP, Evaluation, Inputs
from .optimizers import SGD, Adam, Optimizer, OptimizerState, Penalty
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
    "PoissonDeviance",
    "ReLU",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "StepDecay",
    "Tanh",
    "softmax",
]
