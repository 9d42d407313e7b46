"""Multilayer perceptrons in plain array code, trained with NumPy on a CPU or CuPy on an NVIDIA GPU.

>>> from gpumlp import MLP, SGD, fit, load_digits
>>> train, test = load_digits()
>>> model = MLP([64, 64, 10], activation="relu", seed=0, device="cpu")
>>> history = fit(model, train, optimizer=SGD(learning_rate=0.1, momentum=0.9), epochs=10, batch_size=32)
>>> model.accuracy(test) > 0.95
True
"""

from . import interrupts  # isort: skip  # noqa: F401  # before everything else
from .backends import Backend, CudaActivation, DeviceError, available_devices, get_backend
from .data import DataError, Dataset, load_dataset, load_digits, load_mnist, load_npz
from .interop import ImportedModelError
from .nn import (
    MLP,
    SGD,
    Activation,
    Adam,
    Constant,
    Dense,
    ExponentialDecay,
    Glorot,
    He,
    Identity,
    Initializer,
    Inputs,
    InverseTimeDecay,
    LeakyReLU,
    LogisticCrossEntropy,
    Loss,
    Milestones,
    ModelFileError,
    Normal,
    Optimizer,
    OptimizerState,
    Penalty,
    PoissonDeviance,
    ReLU,
    Schedule,
    Sigmoid,
    SoftmaxCrossEntropy,
    SquaredError,
    StepDecay,
    Tanh,
    register,
    softmax,
)
from .training import (
    BestCheckpoint,
    Callback,
    DivergenceError,
    EarlyStopping,
    History,
    LayerStatistics,
    Progress,
    TensorBoard,
    Trainer,
    fit,
)

__version__ = "0.2.0"

__all__ = [
    "MLP",
    "SGD",
    "Activation",
    "Adam",
    "Backend",
    "BestCheckpoint",
    "Callback",
    "Constant",
    "CudaActivation",
    "DataError",
    "Dataset",
    "Dense",
    "DeviceError",
    "DivergenceError",
    "EarlyStopping",
    "ExponentialDecay",
    "Glorot",
    "He",
    "History",
    "Identity",
    "ImportedModelError",
    "Initializer",
    "Inputs",
    "InverseTimeDecay",
    "LayerStatistics",
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
    "Progress",
    "ReLU",
    "Schedule",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "StepDecay",
    "Tanh",
    "TensorBoard",
    "Trainer",
    "available_devices",
    "fit",
    "get_backend",
    "load_dataset",
    "load_digits",
    "load_mnist",
    "load_npz",
    "register",
    "softmax",
]
