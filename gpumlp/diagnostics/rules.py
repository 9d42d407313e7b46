"""The rules: which numbers are an illness, what it comes from, and what helps.

They follow the tables of symptoms that courses give. The limits are set so that trainings which do well, of every
activation and optimizer, are left in peace. A fault within a layer explains a bad curve, so a curve is a finding
of its own only where no layer has one; save a loss that steps have made explode, which is never left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import causes, curves
from .curve_rules import HIGH, NO_BETTER, exploding_loss, overfitting, trend, underfitting, unstable
from .findings import Finding, Record, Setting
from .statistics import LayerStatistics

DEAD = 0.5  # of a layer's ReLU units; 28 % were seen in a deep network that does well
BORN = 0.1  # of their norm: an epoch that moves the weights less has killed no units
SATURATED = 0.8  # of a layer's outputs
LEAST_UNITS = 8  # of a layer that is judged: of a few, one often is dead or saturated, and the others learn
FAINT_RATIO = 1e-3  # the first layer's gradient over the largest ...
FAINT = 0.01  # ... or its norm, where the loss is hardly better than that of guessing
EXPLODING = 20.0  # norm of a gradient; error terms are differences of probabilities, so healthy ones are about 1


def find(records: Sequence[Record], setting: Setting) -> list[Finding]:
    """What is wrong with a training, in words; an empty list if nothing is.

    Args:
        records: of its epochs, in order; those without ``layers`` tell only about the curves.
        setting: how it is trained.
    """
    if not records:
        return []
    units = [*_dead(records, setting), *_saturated(records, setting)]
    if setting.classes < 2:
        return units
    exploded = curves.exploded(records, setting)
    if exploded and causes.moved_far(records):
        return [*units, exploding_loss(records, setting)]
    kind = trend(records, setting)
    if kind == "underfitting" and causes.strong_penalty(setting):
        return [underfitting(records, setting)]
    found = ([] if exploded else _vanishing(records, setting)) or [*_exploding_gradients(records, setting), *units]
    if found:
        return found
    if exploded:
        return [exploding_loss(records, setting)]
    rules = {"unstable": unstable, "underfitting": underfitting, "overfitting": overfitting}
    rule = rules.get(kind or "")
    return [] if rule is None else [rule(records, setting)]


def _dead(records: Sequence[Record], setting: Setting) -> list[Finding]:
    found = [
        (number, layer, layer.dead)
        for number, layer in causes.last_look(records)
        if layer.dead is not None
        and layer.dead >= DEAD
        and (layer.dead == 1 or setting.hidden[number - 1] >= LEAST_UNITS)
    ]
    if not found:
        return []
    number, layer, _ = found[0]
    kind = "training" if records[-1].validation_loss is None else "validation"
    if (cure := causes.large_inputs(records)) is None:
        born = "they were so after the first epoch already, draw other weights (initializer he)"
        cure = (born if _born_dead(records[0], number) else f"lower {causes.rate(records)}") + " or use leaky_relu"
    evidence = f"of units are dead (output 0 for all {layer.samples:,} {kind} samples)"
    shares = [(number, share) for number, _, share in found]
    return [Finding("dead units", f"{_layers(shares)} {evidence}: {cure}", number)]


def _born_dead(first: Record, number: int) -> bool:
    """Were a layer's units dead before any step could have killed them?"""
    if first.layers is None or causes.moved_far([first]):
        return False
    layer = first.layers[number - 1]
    return (layer.dead or 0) >= DEAD and (layer.update_ratio or 0) < BORN


def _saturated(records: Sequence[Record], setting: Setting) -> list[Finding]:
    found = [
        (number, layer, layer.saturated)
        for number, layer in causes.last_look(records)
        if layer.saturated is not None
        and layer.saturated >= SATURATED
        and setting.hidden[number - 1] >= LEAST_UNITS
    ]
    if not found:
        return []
    number, layer, _ = found[0]
    shares = [(number, share) for number, _, share in found]
    return [
        Finding(
            "saturated units",
            f"{_layers(shares)} of the outputs are saturated ({setting.activation} has there less than 2 % of its "
            f"slope; {layer.gradient_samples:,} samples), and hardly any gradient gets through: "
            f"{causes.too_large(records, setting)}",
            number,
        )
    ]


def _exploding_gradients(records: Sequence[Record], setting: Setting) -> list[Finding]:
    norms = [(layer.gradient_norm, number) for number, layer in causes.last_look(records) if layer.gradient_norm]
    norm, number = max(norms, default=(0.0, 0))
    if norm <= EXPLODING:
        return []
    return [
        Finding(
            "exploding gradients",
            f"layer {number}: the norm of the gradient is {norm:,.3g}, where about 1 is usual: "
            f"{causes.too_large(records, setting)}",
            number,
        )
    ]


def _vanishing(records: Sequence[Record], setting: Setting) -> list[Finding]:
    """The gradient gets lost on its way down, from the start: not because units died or large steps spoiled it."""
    guess, loss = setting.guessing, records[-1].train_loss
    looks = [record.layers for record in records if record.layers]
    if not looks or len(looks[0]) < 2 or loss <= HIGH * guess:
        return []
    if causes.moved_far(records[:1], first_layer_only=True) or any((look[0].dead or 0) >= DEAD for look in looks):
        return []
    scale = None if causes.strong_penalty(setting) else causes.scale(records[0], setting)
    small = scale is not None and scale < causes.SMALL_SCALE
    if not looks[0][0].gradient_norm and not small:  # a layer above was born dead
        return []
    norm, ratio = _faintness(looks)
    if not (ratio < FAINT_RATIO or (norm < FAINT and loss > NO_BETTER * guess)):
        return []
    layers = len(setting.hidden)
    hidden = f"{layers} hidden layer{'s' if layers > 1 else ''}"
    if small:
        advice = (
            f"none of the {hidden} gives on more than {causes.percent(scale)} of its input's size: the initial "
            f"weights are too small, use initializer {causes.suited(setting)}"
        )
    else:
        advice = f"in {hidden} of {setting.activation}" + {
            "sigmoid": ", whose slope is at most 1/4, use relu with initializer he",
            "tanh": " use initializer glorot, or relu with initializer he",
        }.get(setting.activation, " use initializer he")
        advice += ", or fewer layers" if layers > 1 else ""
    return [
        Finding(
            "vanishing gradients",
            f"layer 1: the norm of its gradient is {norm:.2g}, {ratio:.2g} times the largest layer's (medians of "
            f"{causes.epochs(len(looks))}), while the training loss is still {loss:.3g}: {advice}",
            1,
        )
    ]


def _faintness(looks: Sequence[Sequence[LayerStatistics]]) -> tuple[float, float]:
    """The norm of the first layer's gradient, and its part of the largest layer's: medians over the epochs."""
    measured = [[layer.gradient_norm or 0.0 for layer in look] for look in looks]
    middle = len(measured) // 2
    norm = sorted(norms[0] for norms in measured)[middle]
    return norm, sorted(norms[0] / max(norms) if max(norms) else 0.0 for norms in measured)[middle]


def _layers(shares: Sequence[tuple[int, float]]) -> str:
    """``layer 2: 61 %``, or ``layers 1 and 2: 98 % and 100 %``."""
    numbers = causes.listed([str(number) for number, _ in shares])
    percents = causes.listed([causes.percent(share) for _, share in shares])
    return f"layer{'s' if len(shares) > 1 else ''} {numbers}: {percents}"
