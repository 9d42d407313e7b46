"""Activations, initial weights, layers, losses, weight penalties, optimizers, schedules and networks."""

from .activations import ELU, GELU, Activation, Identity, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .committee import Committee
from .initializers import Glorot, He, Initializer, Normal, Orthogonal
from .layers import Cache, Dense, Dropout, Layer
from .losses import LogisticCrossEntropy, Loss, PoissonDeviance, SoftmaxCrossEntropy, SquaredError, softmax
from .metrics import Evaluation
from .model_file import ModelFileError
from .network import MLP
from .optimizers import SGD, Adam, AdamW, Optimizer, OptimizerState, Penalty, RMSprop
from .preprocessing import Preprocessing
from .registry import register
from .samples import Inputs
from .schedules import (
    Constant,
    Cosine,
    ExponentialDecay,
    InverseTimeDecay,
    Milestones,
    OneCycle,
    Schedule,
    StepDecay,
    Warmup,
)

__all__ = [
    "ELU",
    "GELU",
    "MLP",
    "SGD",
    "Activation",
    "Adam",
    "AdamW",
    "Cache",
    "Committee",
    "Constant",
    "Cosine",
    "Dense",
    "Dropout",
    "Evaluation",
    "ExponentialDecay",
    "Glorot",
    "He",
    "Identity",
    "Initializer",
    "Inputs",
    "InverseTimeDecay",
    "Layer",
    "LeakyReLU",
    "LogisticCrossEntropy",
    "Loss",
    "Milestones",
    "ModelFileError",
    "Normal",
    "OneCycle",
    "Optimizer",
    "OptimizerState",
    "Orthogonal",
    "Penalty",
    "PoissonDeviance",
    "Preprocessing",
    "RMSprop",
    "ReLU",
    "Schedule",
    "SiLU",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "Softplus",
    "SquaredError",
    "StepDecay",
    "Tanh",
    "Warmup",
    "register",
    "softmax",
]
