"""The rules: which numbers show that something is wrong, what causes it, and what helps.

They follow the tables of symptoms that courses give. The limits are set so that training that goes well gives no
finding, with every activation and optimizer. A fault within a layer explains a bad curve, so a curve is a finding
of its own only where no layer has one, except a loss that steps have made explode, which is always reported.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..nn.activations import ACTIVATIONS
from ..training.divergence import LARGE_VALUE
from ..training.history import (
    Best,
    ClassCounts,
    EpochRecord,
    Finding,
    LayerStatistics,
    Setting,
    best_epoch,
)
from ..training.progress import percent
from ..words import counted, in_line
from .statistics import MOST_EPOCHS_BETWEEN

# Layers.
DEAD = 0.5  # of a layer's ReLU units; 28 % were seen in a deep network that trains well
BORN = 0.1  # of their norm: an epoch that moves the weights less kills no units
SATURATED = 0.8  # of a layer's outputs
LEAST_SAMPLES = 16  # for which units are 0: of a single one, half of the healthy units are
LEAST_UNITS = 8  # in a layer that is judged: with fewer, one is often dead or saturated while the others learn
FAINT_RATIO = 1e-3  # the first layer's gradient over the largest ...
FAINT = 0.01  # ... or its norm, where the loss is hardly better than that of guessing
EXPLODING = 20.0  # norm of a gradient; error terms are differences of probabilities, so healthy ones are about 1

# Curves.
EXPLODED = 3.0  # times the loss of ignorance
RETURNING = 0.7  # a loss above that is recovering if it has fallen to this part of itself in the last epochs
RISE = 1.05  # from one epoch to the next
RISE_LEAST = 0.04  # and by at least this part of the loss of ignorance: less is noise
RISE_LEAST_WHERE_HARDER = 0.1  # the masks of dropout, or distortions, add to the noise
RISES, RECENT = 2, 10  # this many rises in the last epochs; older ones no longer matter
OVERFIT_RISE = 1.15  # the validation loss over its lowest, and by more than noise
LASTING = 3  # epochs for which validation must have been that bad
OVERFIT_GAP = 0.1  # between the accuracies
STALLED, STALLED_PART = 5, 1 / 3  # epochs, and part of all epochs, without a new lowest validation loss ...
STILL_FITTING = 0.5  # ... in which the training loss has fallen to this part
EPOCHS_TO_FIT = 5  # before that, a high loss means nothing
# Parts of the loss of guessing: no fit; no fit if a cause is known; hardly better than guessing. In between, a
# loss that stays where it is may be all that the data allows.
HIGH, HIGH_WITH_A_CAUSE, NO_BETTER = 0.5, 0.2, 0.85
AS_BAD = 0.95  # with dropout or distortions, where the validation loss has to do
STANDING_STILL, RESTLESS = 0.01, 0.3  # the part of their norm that an epoch moves the weights
STILL_FALLING = 0.02  # an epoch, as a part of the loss
FEW_UNITS = 16  # however many classes there are

# Classes. In a class with few samples, none may be predicted by chance.
FEW_OF_A_CLASS = 5  # samples: a class with fewer is not judged
HARDLY_EVER = 0.1  # of the times that a class occurs
NO_GAIN = 0.05  # of the mistakes of guessing: avoiding fewer than these is no better than guessing
LEAST_MISTAKES = 10  # of guessing, below which that is not judged
INFORMED = 0.25  # mean recall, scaled so that guessing has 0: above it, something was learned at a low accuracy
RARE = 0.5  # of the mean size of a class
LISTED = 5  # classes

# Averages.
LAGGING = 0.3  # weight of the initial parameters in a moving average

CLASS_FINDINGS = NOT_PREDICTED, GUESSING = "classes not predicted", "no better than guessing"

# Causes.
MOVED = 0.5  # of their norm: an epoch that moves the weights further has made them what they are
GROWN = 10.0  # times the lowest loss before: initial weights do not cause that
SMALL_SCALE = 0.3  # of a layer's signal; Glorot's and He's weights keep it, times 1 to 1.4
STRONG_L2, STRONG_L1 = 0.03, 0.003


def find(records: Sequence[EpochRecord], setting: Setting, classes: ClassCounts | None = None) -> list[Finding]:
    """What is wrong with training; an empty list if nothing is.

    Args:
        records: of the epochs, in order; those without ``layers`` tell only about the curves.
        setting: how it is trained.
        classes: how often each class is predicted after training; None if unknown.
    """
    if not records:
        return []
    found = _find(records, setting)
    if not found and (share := _initial_share(records, setting)) > LAGGING:
        found = [_lagging(len(records), setting, share)]
    if classes is not None and setting.classes > 1 and not _exploded(records, setting):
        found += _classes(classes, setting, explained=bool(found))
    return found


def _find(records: Sequence[EpochRecord], setting: Setting) -> list[Finding]:
    """What layers and curves tell."""
    units = [*_dead(records, setting), *_saturated(records, setting)]
    if setting.classes < 2:
        return units
    exploded = _exploded(records, setting)
    if exploded and _moved_far(records):
        return [_exploding_loss(records, setting), *units]
    kind = trend(records, setting)
    if kind == "underfitting" and _strong_penalty(setting):
        return [_underfitting(records, setting)]
    found = ([] if exploded else _vanishing(records, setting)) or [*_exploding_gradients(records, setting), *units]
    if found:
        return found
    if exploded:
        return [_exploding_loss(records, setting)]
    rules = {"unstable": _unstable, "underfitting": _underfitting, "overfitting": _overfitting}
    rule = rules.get(kind or "")
    return [] if rule is None else [rule(records, setting)]


def trend(records: Sequence[EpochRecord], setting: Setting) -> str | None:
    """converging, overfitting, underfitting, unstable or diverging; None after one epoch or without classes.

    An average that still lags behind the parameters has a validation loss that says nothing of them.
    """
    if len(records) < 2 or setting.classes < 2:
        return None
    if _exploded(records, setting):
        return "diverging"
    if len(_rises(records, setting)) >= RISES:
        return "unstable"
    kept = _kept(records, setting)
    fits = kept[-1].train_loss < setting.guessing and _initial_share(records, setting) <= LAGGING
    if fits and (_overfits(kept, setting) or _stalled(kept)):
        return "overfitting"
    return "converging" if _why_underfitting(records, setting) is None else "underfitting"


# -- Layers ---------------------------------------------------------------------------------------------


def _dead(records: Sequence[EpochRecord], setting: Setting) -> list[Finding]:
    found = [
        (number, layer, layer.dead)
        for number, layer in _last_layers(records)
        if layer.dead is not None
        and layer.dead >= DEAD
        and (layer.dead == 1 or (setting.hidden[number - 1] >= LEAST_UNITS and layer.samples >= LEAST_SAMPLES))
    ]
    if not found:
        return []
    number, layer, _ = found[0]
    kind = "training" if records[-1].validation_loss is None else "validation"
    if (cure := _large_inputs(records)) is None:
        born = "they were so after the first epoch already, draw other weights (initializer he)"
        cure = (born if _born_dead(records[0], number) else f"lower {_rate(records)}") + " or use leaky_relu"
    evidence = f"of units are dead (output 0 for all {layer.samples:,} {kind} samples)"
    shares = [(number, share) for number, _, share in found]
    return [Finding("dead units", f"{_layers(shares)} {evidence}: {cure}", number)]


def _born_dead(first: EpochRecord, number: int) -> bool:
    """Were a layer's units dead before any step could have killed them?"""
    if first.layers is None or _moved_far([first]):
        return False
    layer = first.layers[number - 1]
    return (layer.dead or 0) >= DEAD and (layer.update_ratio or 0) < BORN


def _saturated(records: Sequence[EpochRecord], setting: Setting) -> list[Finding]:
    found = [
        (number, layer, layer.saturated)
        for number, layer in _last_layers(records)
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
            f"{_layers(shares)} of the outputs are saturated ({_saturating(setting)} has there less than 2 % of "
            f"its slope; {layer.gradient_samples:,} samples), and hardly any gradient gets through: "
            f"{_too_large(records, setting)}",
            number,
        )
    ]


def _saturating(setting: Setting) -> str:
    """The activations that can saturate."""
    return " or ".join(name for name in setting.activation.split(", ") if name in ("tanh", "sigmoid"))


def _exploding_gradients(records: Sequence[EpochRecord], setting: Setting) -> list[Finding]:
    norms = [(layer.gradient_norm, number) for number, layer in _last_layers(records) if layer.gradient_norm]
    norm, number = max(norms, default=(0.0, 0))
    if norm <= EXPLODING:
        return []
    return [
        Finding(
            "exploding gradients",
            f"layer {number}: the norm of the gradient is {norm:,.3g}, where about 1 is usual: "
            f"{_too_large(records, setting)}",
            number,
        )
    ]


def _vanishing(records: Sequence[EpochRecord], setting: Setting) -> list[Finding]:
    """A gradient that vanishes from the start on, and not because of dead units or large steps."""
    looks, high = [record.layers for record in records if record.layers], _how_high(records, setting)
    if not looks or len(looks[0]) < 2 or high is None or high <= HIGH:
        return []
    if _moved_far(records[:1], first_layer_only=True) or any((look[0].dead or 0) >= DEAD for look in looks):
        return []
    scale = None if _strong_penalty(setting) else _signal_scale(records[0], setting)
    small = scale is not None and scale < SMALL_SCALE
    if not looks[0][0].gradient_norm and not small:  # a layer above was born dead
        return []
    norm, ratio = _faintness(looks)
    if not (ratio < FAINT_RATIO or (norm < FAINT and high > NO_BETTER)):
        return []
    layers = len(setting.hidden)
    hidden = counted(layers, "hidden layer")
    if small:
        advice = (
            f"none of the {hidden} gives on more than {percent(scale, 0)} of its input's size: the initial "
            f"weights are too small, use initializer {_suited_initializer(setting)}"
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
            f"{counted(len(looks), 'epoch')}), while the training loss is still {records[-1].train_loss:.3g}: "
            f"{advice}",
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
    numbers = _listed([str(number) for number, _ in shares])
    percents = _listed([percent(share, 0) for _, share in shares])
    return f"layer{'s' if len(shares) > 1 else ''} {numbers}: {percents}"


# -- Curves ---------------------------------------------------------------------------------------------


def _exploding_loss(records: Sequence[EpochRecord], setting: Setting) -> Finding:
    loss, ignorance = records[-1].train_loss, setting.ignorance
    return Finding(
        "exploding loss",
        f"training diverged: the training loss is {loss:.3g}, {loss / ignorance:.3g} times log(classes) "
        f"({ignorance:.2f}): "
        f"{_too_large(records, setting)}",
    )


def _unstable(records: Sequence[EpochRecord], setting: Setting) -> Finding:
    rises = _rises(records, setting)
    worst = max(rises, key=lambda epoch: records[epoch].train_loss - records[epoch - 1].train_loss)
    before, after = records[worst - 1].train_loss, records[worst].train_loss
    schedule = ", or let it fall (schedule step)" if setting.constant_rate else ""
    steps = f"the steps are too large, lower {_rate(records)}{_or_momentum(setting)}{schedule}"
    return Finding(
        "unstable",
        f"the training loss rose by 5 % or more in {len(rises)} of the last "
        f"{counted(min(RECENT, len(records) - 1), 'epoch')} (from {before:.3g} to {after:.3g} in epoch "
        f"{worst + 1}): {_large_inputs(records) or steps}",
    )


def _why_underfitting(records: Sequence[EpochRecord], setting: Setting) -> str | None:
    """Why a network does not fit its own training samples, and what to try; None where it does.

    A high loss without a clear cause is not reported unless it still falls or is as bad as guessing: noise in the
    labels looks the same.
    """
    part = _how_high(records, setting)
    if len(records) < EPOCHS_TO_FIT or part is None or part <= HIGH_WITH_A_CAUSE:
        return None
    rate, inputs = _rate(records), _large_inputs(records)
    # A rate that falls is meant to end with small steps.
    moved = _largest_move(records[-MOST_EPOCHS_BETWEEN:] if setting.constant_rate else records)
    if _strong_penalty(setting):
        name, value = ("l2", setting.l2) if setting.l2 >= STRONG_L2 else ("l1", setting.l1)
        return f": the penalty keeps the weights too small, lower {name} (now {value:g})"
    if part > HIGH and inputs is not None:
        return f": {inputs}"
    if part > NO_BETTER and _moved_far(records):
        return (
            f": an epoch moved the weights by more than half of their norm to no avail, lower {rate}; or the "
            "inputs do not tell the classes"
        )
    if part > HIGH and moved is not None and moved < STANDING_STILL:
        return (
            f", and one epoch moves the weights of no layer by more than {100 * moved:.2g} % of their norm: "
            f"raise {rate}"
        )
    if _narrow(setting) and _falling(records, setting) <= STILL_FALLING:
        return f": use {_more_units(setting)}"
    return _why_high(records, setting, part) if part > HIGH else None


def _how_high(records: Sequence[EpochRecord], setting: Setting) -> float | None:
    """The loss on the training samples, as a part of that of guessing; None if unknown.

    Dropout and distortions raise the loss in training. Without them, that of the same samples is hardly above the
    lowest in validation, but may be far below, so that this says something only where it is as high as that of
    guessing.
    """
    loss, best = records[-1].train_loss, _best(records)
    if not setting.harder:
        return setting.above_floor(loss)
    high = 0.0 if best is None else setting.above_floor(min(loss, best.value))
    return high if high > AS_BAD else None


def _why_high(records: Sequence[EpochRecord], setting: Setting, part: float) -> str | None:
    """Why a loss above half of that of guessing is high, where nothing in the setting explains it."""
    rate, falling, layers = _rate(records), _falling(records, setting), len(setting.hidden)
    units, moved = _more_units(setting), _largest_move(records[-MOST_EPOCHS_BETWEEN:]) or 0.0
    if moved > RESTLESS and not setting.harder:  # whose noise moves them, too
        return f": one epoch moves the weights by {100 * moved:.2g} % of their norm, lower {rate}, or use {units}"
    if falling > STILL_FALLING:
        more = f", or use {units}" if _narrow(setting) else ""
        faster = f", or raise {rate}" if _falls_steadily(records) else ""
        return f", still falling by {100 * falling:.2g} % an epoch: train for more epochs{more}{faster}"
    if layers > 1 and setting.activation in ("tanh", "sigmoid"):
        return (
            f", and hardly falls in {layers} hidden layers of {setting.activation}: use relu or fewer layers, "
            f"train for more epochs, or raise {rate}"
        )
    if part > NO_BETTER:
        return f" and does not get better: use {units}, or another {rate}; or the inputs do not tell the classes"
    return None


def _narrow(setting: Setting) -> bool:
    """Does a layer have so few units that the classes may not be separable behind it?"""
    return bool(setting.hidden) and min(setting.hidden) < min(setting.classes - 1, FEW_UNITS)


def _more_units(setting: Setting) -> str:
    return f"more hidden units (now {' '.join(map(str, setting.hidden)) or 'none'})"


def _underfitting(records: Sequence[EpochRecord], setting: Setting) -> Finding:
    last = records[-1]
    least = f", and with label smoothing the lowest possible is {setting.floor:.2g}" if setting.floor else ""
    dropout = f"; or lower dropout (now {setting.dropout:g})" if setting.dropout else ""
    distortion = "; or distort the images less" if setting.augment else ""
    return Finding(
        "underfitting",
        f"after {counted(len(records), 'epoch')} the training loss is {last.train_loss:.3g} (guessing has "
        f"{setting.guessing:.3g}{least}) and the accuracy {percent(last.train_accuracy, 0)}"
        f"{_why_underfitting(records, setting)}{dropout}{distortion}",
    )


def _overfitting(records: Sequence[EpochRecord], setting: Setting) -> Finding:
    kept = _kept(records, setting)
    last, best = kept[-1], _best(kept)
    assert best is not None
    if not _overfits(kept, setting):
        then = kept[best.epoch - 1]
        return Finding(
            "overfitting",
            f"the validation loss has not fallen since epoch {best.epoch} ({best.value:.3g}, now "
            f"{last.validation_loss:.3g}), while the training loss fell from {then.train_loss:.2g} to "
            f"{last.train_loss:.2g} at an accuracy of {percent(last.train_accuracy, 0)}. The validation accuracy "
            f"is {percent(last.validation_accuracy, 1)} ({percent(then.validation_accuracy, 1)} in epoch "
            f"{best.epoch}): the network has become more certain, not better. Stop early (early_stopping "
            f"{STALLED}), train for about {counted(best.epoch, 'epoch')}, or raise l2 (now {setting.l2:g})",
        )
    stop = f", or stop after about {counted(best.epoch, 'epoch')}" if best.since else ""
    return Finding(
        "overfitting",
        f"the validation loss is {last.validation_loss:.3g} ({best.value:.3g} in epoch {best.epoch}) and the "
        f"accuracy {percent(last.validation_accuracy, 0)} in validation against {percent(last.train_accuracy, 0)} "
        f"in training: train on more data, raise l2 (now {setting.l2:g}), use fewer hidden units{stop}",
    )


def _exploded(records: Sequence[EpochRecord], setting: Setting) -> bool:
    """Is the loss far above that of ignorance, and not on its way down from a bad start?

    A training loss is the mean over an epoch. It says nothing where the network has become better than guessing
    by the end of the epoch, as the validation loss shows.
    """
    before, last = records[-LASTING - 1 :][0].train_loss, records[-1].train_loss
    after = records[-1].validation_loss
    if after is not None and setting.above_floor(after) < NO_BETTER:
        return False
    returning = _falls_steadily(records) and last < RETURNING * before and not _moved_far(records)
    return last > EXPLODED * setting.ignorance and not returning


def _rises(records: Sequence[EpochRecord], setting: Setting) -> list[int]:
    """Those of the recent epochs, counted from 1, after which the training loss rose by more than noise."""
    least = (RISE_LEAST_WHERE_HARDER if setting.harder else RISE_LEAST) * setting.ignorance
    first = max(0, len(records) - RECENT - 1)
    losses = [record.train_loss for record in records[first:]]
    return [
        epoch
        for epoch, (before, after) in enumerate(itertools.pairwise(losses), first + 1)
        if after > RISE * before and after - before > least
    ]


def _falls_steadily(records: Sequence[EpochRecord]) -> bool:
    """Did the training loss fall in each of the recent epochs?"""
    losses = [record.train_loss for record in records[-RECENT - 1 :]]
    return all(after < before for before, after in itertools.pairwise(losses))


def _best(records: Sequence[EpochRecord]) -> Best | None:
    """The epoch of the lowest validation loss; None without validation."""
    return best_epoch([record.validation_loss for record in records])


def _overfits(records: Sequence[EpochRecord], setting: Setting) -> bool:
    """Does the network do much worse on the validation samples than on its own, or than it did?"""
    last, best, latest = records[-1], _best(records), _best(records[-LASTING:])
    if best is None or latest is None:
        return False
    rise = latest.value - best.value
    high = latest.value - setting.floor > OVERFIT_RISE * (best.value - setting.floor)
    rose = high and rise > RISE_LEAST * setting.ignorance
    falls = last.train_loss < records[best.epoch - 1].train_loss
    accuracy = max(record.validation_accuracy or 0.0 for record in records[-LASTING:])
    return (rose and falls) or (last.train_accuracy or 0.0) - accuracy > OVERFIT_GAP


def _kept(records: Sequence[EpochRecord], setting: Setting) -> Sequence[EpochRecord]:
    """The epochs up to the network that training leaves: with early stopping, that of the best epoch."""
    best = _best(records) if setting.early_stopping else None
    return records if best is None else records[: best.epoch]


def _stalled(records: Sequence[EpochRecord]) -> bool:
    """Has the validation loss long ceased to fall, while the training loss went on falling?"""
    best = _best(records)
    if best is None or best.since < max(STALLED, STALLED_PART * len(records)):
        return False
    return records[-1].train_loss < STILL_FITTING * records[best.epoch - 1].train_loss


def _falling(records: Sequence[EpochRecord], setting: Setting) -> float:
    """Mean relative decrease of the training loss per epoch, over the last quarter of the epochs."""
    span = max(1, len(records) // 4)
    before, after = (records[place].train_loss - setting.floor for place in (-1 - span, -1))
    return (before - after) / span / before if before > 0 else 0.0


def _initial_share(records: Sequence[EpochRecord], setting: Setting) -> float:
    """The weight of the initial parameters in the moving average; 0 without one."""
    return setting.ema ** (setting.steps * len(records)) if setting.ema and setting.steps else 0.0


def _lagging(epochs: int, setting: Setting, share: float) -> Finding:
    return Finding(
        "lagging average",
        f"after {setting.steps * epochs:,} steps, {percent(share, 0)} of the moving average, which is the "
        f"network, are still the initial parameters: lower ema (now {setting.ema:g}) or train for more epochs",
    )


# -- Classes ------------------------------------------------------------------------------------------------


def _classes(counts: ClassCounts, setting: Setting, *, explained: bool) -> list[Finding]:
    """Classes that are never or hardly ever predicted, and an accuracy that is no better than guessing.

    Args:
        counts: of the predictions.
        setting: of the training.
        explained: is something else wrong, which may be the cause?
    """
    missed = [
        number
        for number, (samples, predicted) in enumerate(zip(counts.samples, counts.predicted, strict=True))
        if samples >= FEW_OF_A_CLASS and predicted <= HARDLY_EVER * samples
    ]
    total, most, hits = sum(counts.samples), max(counts.samples), sum(counts.correct)
    common = in_line(counts.names[counts.samples.index(most)])
    guessed = ""
    enough = total - most >= (1 if missed else LEAST_MISTAKES)
    if enough and hits - most <= NO_GAIN * (total - most):
        guessed = (
            f"the accuracy of {percent(hits / total, 1)} is no better than that of always answering class "
            f"{common} ({percent(most / total, 1)}), the commonest class"
        )
    if not missed and (not guessed or _informedness(counts) > INFORMED):
        return []
    rare = any(
        counts.samples[number] < RARE * total / len(counts.samples)
        for number in missed or range(len(counts.samples))
        if counts.samples[number]
    )
    if explained:
        advice = "the cause may be what is said above"
    elif rare:
        advice = (
            "judge the network by the recall of each class (report), and collect more samples of the rare "
            "classes, repeat those that there are"
        )
        advice += (
            " or give them larger weights" if setting.class_weight else ", or weight them (class_weight balanced)"
        )
    else:
        of_these = " of these classes" if missed else ""
        advice = f"check the labels and inputs{of_these}, then try more epochs or more hidden units"
    if not missed:
        return [Finding(GUESSING, f"{guessed}: {advice}")]
    return [
        Finding(NOT_PREDICTED, f"{_missed(counts, missed)}{guessed and '; '}{guessed}: {advice}"),
    ]


def _missed(counts: ClassCounts, missed: Sequence[int]) -> str:
    """``class 3 is never predicted, although 15 of the 500 validation samples are of it``."""
    total, predicted = sum(counts.samples), [number for number, times in enumerate(counts.predicted) if times]
    if len(predicted) == 1 and len(missed) > LISTED:
        return f"class {in_line(counts.names[predicted[0]])} is predicted for all {total:,} {counts.kind} samples"
    shown, several = missed[:LISTED], len(missed) > 1
    names = [in_line(counts.names[number]) for number in shown]
    if len(missed) > LISTED:
        names.append(f"{len(missed) - LISTED:,} more")
    times = sum(counts.predicted[number] for number in missed)
    how_often = f"hardly ever predicted ({counted(times, 'time')})" if times else "never predicted"
    samples = sum(counts.samples[number] for number in missed)
    return (
        f"class{'es' * several} {_listed(names)} {'are' if several else 'is'} {how_often}, although {samples:,} "
        f"of the {total:,} {counts.kind} samples are of {'them' if several else 'it'}"
    )


def _informedness(counts: ClassCounts) -> float:
    """The mean recall of the classes, scaled so that guessing has 0."""
    recalls = [hit / samples for hit, samples in zip(counts.correct, counts.samples, strict=True) if samples]
    chance = 1 / len(recalls)
    return (sum(recalls) / len(recalls) - chance) / (1 - chance)


# -- Causes and advice ----------------------------------------------------------------------------------


def _moved_far(records: Sequence[EpochRecord], *, first_layer_only: bool = False) -> bool:
    """Were the weights made by the steps of an epoch, rather than by their initialization?"""
    return any(
        layer.update_ratio is None or layer.update_ratio > MOVED
        for record in records
        for _, layer in _numbered(record)[: 1 if first_layer_only else None]
    )


def _strong_penalty(setting: Setting) -> bool:
    return setting.l2 >= STRONG_L2 or setting.l1 >= STRONG_L1


def _signal_scale(record: EpochRecord, setting: Setting) -> float | None:
    """Largest factor by which a hidden layer scales its signal; None if unknown.

    Weights of variance v turn n inputs of mean square 1 into sums of mean square n v, and their norm is the root
    of n v times the units.
    """
    layers = list(zip(record.layers or (), setting.hidden, strict=False))
    scales = [layer.weight_norm / math.sqrt(units) for layer, units in layers if layer.weight_norm is not None]
    return max(scales) if scales and len(scales) == len(layers) else None


def _large_inputs(records: Sequence[EpochRecord]) -> str | None:
    """What to do about inputs far above 1; None if they are not."""
    largest = next((layer.largest_input for _, layer in _last_layers(records)), None)
    if largest is None or largest <= LARGE_VALUE:
        return None
    rounded = float(f"{largest:.3g}")
    return f"the inputs are up to {rounded:,.9g} in absolute value, scale them to about 1"


def _too_large(records: Sequence[EpochRecord], setting: Setting) -> str:
    """What to do about weights or steps that are too large, depending on the cause."""
    inputs = _large_inputs(records)
    if inputs is not None:
        return inputs
    grown = records[-1].train_loss > GROWN * min(record.train_loss for record in records)
    if grown or _moved_far(records):
        return f"the steps are too large, lower {_rate(records)}{_or_momentum(setting)}"
    return f"start from smaller weights (initializer {_suited_initializer(setting)}), or lower {_rate(records)}"


def _suited_initializer(setting: Setting) -> str:
    """The initializer that suits the activation, or auto, which suits each of several."""
    kinds = [ACTIVATIONS[name] for name in setting.activation.split(", ") if name in ACTIVATIONS]
    suited = {kind.initializer for kind in kinds} or {"glorot"}
    return "auto" if len(suited) > 1 else suited.pop()


def _rate(records: Sequence[EpochRecord]) -> str:
    """The learning rate now, and at first, or where it was highest, if it was different."""
    rates = [record.learning_rate for record in records]
    now, first, highest = map(_number, (rates[-1], rates[0], max(rates)))
    if now == first:
        return f"learning_rate (now {now})"
    before = f"{first} at first" if highest in (now, first) else f"{highest} at its highest"
    return f"learning_rate (now {now}, {before})"


def _or_momentum(setting: Setting) -> str:
    return f" or momentum (now {setting.momentum:g})" if setting.momentum else ""


def _numbered(record: EpochRecord) -> list[tuple[int, LayerStatistics]]:
    return list(enumerate(record.layers or (), 1))


def _last_layers(records: Sequence[EpochRecord]) -> list[tuple[int, LayerStatistics]]:
    """The layers, numbered, after the last epoch with statistics; empty if there is none."""
    return next((_numbered(record) for record in reversed(records) if record.layers), [])


def _largest_move(records: Sequence[EpochRecord]) -> float | None:
    """Largest update ratio of a layer in some epochs; None without statistics."""
    moves = [layer.update_ratio or 0.0 for record in records for _, layer in _numbered(record)]
    return max(moves, default=None)


def _listed(words: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _number(value: float) -> str:
    return f"{value:.1f}" if value == round(value, 1) and value < 1000 else f"{value:.4g}"
