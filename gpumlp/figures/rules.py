"""Figures of the rules themselves: activations with their derivatives, and learning-rate schedules."""

from __future__ import annotations

import numpy as np

from ..nn import ExponentialDecay, InverseTimeDecay, LeakyReLU, Milestones, ReLU, Sigmoid, StepDecay, Tanh
from ..nn.schedules import Schedule
from .style import (
    BLUE,
    DASH_DOT,
    DASHED,
    DOTTED,
    GREEN,
    PURPLE,
    SOLID,
    VERMILION,
    FigureResult,
    Sheet,
    end_labels,
    in_house_style,
    note,
)

_REACH = 4.0  # of the pre-activation, to both sides


@in_house_style
def activations(*, negative_slope: float = 0.1, points: int = 401) -> FigureResult:
    """Each activation h(s) with its derivative h'(s).

    Args:
        negative_slope: of the leaky ReLU; larger than the usual 0.01, so that it can be seen.
        points: values of s.

    Returns:
        The figure; ``numbers["s"]`` and, in ``numbers["curves"]``, ``value`` and ``derivative`` by activation.
    """
    s = np.linspace(-_REACH, _REACH, points)
    rules = {"ReLU": ReLU(), f"leaky ReLU, slope {negative_slope:g}": LeakyReLU(negative_slope)}
    rules |= {"tanh": Tanh(), "sigmoid": Sigmoid()}
    curves = {name: {"value": rule(s), "derivative": rule.derivative(s)} for name, rule in rules.items()}
    sheet = Sheet(
        "Activation functions and their derivatives",
        "What the package computes for h(s) and, from the output of h, for h'(s), the factor that each hidden "
        "layer puts on the error terms flowing back: at most 1 for the first three, at most 1/4 for the sigmoid.",
        1,
        4,
        height=2.7,
        sharey=True,
    )
    for axes, (name, curve) in zip(sheet.panels, curves.items(), strict=True):
        slope = curve["derivative"].copy()
        slope[np.flatnonzero(np.abs(np.diff(slope)) > 0.5)] = np.nan  # a jump is no line
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.plot(s, curve["value"], color=BLUE, linestyle=SOLID, label="h(s)")
        axes.plot(s, slope, color=VERMILION, linestyle=DASHED, label="h'(s)")
        axes.set(title=name, xlabel="pre-activation s", ylim=(-1.15, 2.15), xlim=(-_REACH, _REACH))
        note(axes, f"largest h' = {curve['derivative'].max():.2g}", x=0.97, y=0.05)
    sheet.panels[0].set_ylabel("h(s) and h'(s)")
    sheet.panels[0].legend(loc="upper left", handlelength=2.4)
    return sheet.result({"s": s, "curves": curves})


@in_house_style
def schedules(*, learning_rate: float = 0.1, epochs: int = 60) -> FigureResult:
    """The learning rate by epoch of each schedule, from the same start.

    Args:
        learning_rate: eta_0.
        epochs: how many.

    Returns:
        The figure; ``numbers["epochs"]`` (counted from 0) and ``numbers["learning_rates"]`` by schedule, in the
        order of ``numbers["schedules"]``.
    """
    rules: dict[str, Schedule] = {
        "step": StepDecay(gamma=0.5, step_size=max(1, epochs // 6)),
        "exponential": ExponentialDecay(decay_rate=0.05),
        "1/t": InverseTimeDecay(decay_rate=0.05),
        "milestones": Milestones((epochs // 3, 2 * epochs // 3), gamma=0.2),
    }
    looks = zip((BLUE, VERMILION, GREEN, PURPLE), (SOLID, DASHED, DOTTED, DASH_DOT), strict=True)
    rates = {name: [rule(learning_rate, epoch) for epoch in range(epochs)] for name, rule in rules.items()}
    sheet = Sheet(
        "Learning-rate schedules",
        f"The learning rate of each of {epochs} epochs from {learning_rate:g}, as the package's schedules give "
        "it. On the logarithmic axis, exponential decay is a straight line.",
        1,
        2,
        height=3.1,
    )
    plain, logarithmic = sheet.panels
    logarithmic.set_yscale("log")
    for (name, values), (colour, line) in zip(rates.items(), looks, strict=True):
        steps = "steps-post" if name in ("step", "milestones") else "default"
        for axes in sheet.panels:
            axes.plot(range(epochs), values, color=colour, linestyle=line, drawstyle=steps, label=name)
    for axes in sheet.panels:
        axes.set(xlabel="epoch t", xlim=(0, epochs - 1))
    plain.set(ylabel="learning rate", ylim=(0, None), title="linear axis")
    logarithmic.set_title("logarithmic axis")
    colours = {name: str(line.get_color()) for name, line in zip(rates, logarithmic.get_lines(), strict=True)}
    end_labels(logarithmic, [(epochs - 1, values[-1], name, colours[name]) for name, values in rates.items()])
    plain.legend(loc="upper right", handlelength=3.2)
    descriptions = {name: repr(rule) for name, rule in rules.items()}
    return sheet.result({"epochs": list(range(epochs)), "learning_rates": rates, "schedules": descriptions})
