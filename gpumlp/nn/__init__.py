"""Activations, initial weights, layers, losses, weight penalties, optimizers, schedules and networks."""

from .activations import ELU, GELU, Activation, Identity, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .initializers import Glorot, He, Initializer, Normal, Orthogonal
from .layers import Dense
from .losses import LogisticCrossEntropy, Loss, PoissonDeviance, SoftmaxCrossEntropy, SquaredError, softmax
from .model_file import ModelFileError
from .network import MLP, Evaluation
from .optimizers import SGD, Adam, Optimizer, OptimizerState, Penalty
from .registry import register
from .samples import Inputs
from .schedules import Constant, ExponentialDecay, InverseTimeDecay, Milestones, Schedule, StepDecay

__all__ = [
    "ELU",
    "GELU",
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
    "Initializer",
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
    "Orthogonal",
    "Penalty",
    "PoissonDeviance",
    "ReLU",
    "Schedule",
    "SiLU",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "Softplus",
    "SquaredError",
    "StepDecay",
    "Tanh",
    "register",
    "softmax",
]
