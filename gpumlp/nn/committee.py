"""Several networks whose predictions are averaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backends import Array, Backend, HostArray, get_backend
from ..words import listed, shown
from .losses import Loss, output_function
from .metrics import Evaluation, accuracy_of, evaluation, metric_totals, new_scores
from .model_file import ModelFileError, class_names, load_members, plain_inputs, save_committee
from .network import MLP, Batches, forward_batches
from .samples import Inputs, same_shape, training_targets, with_targets


class Vote(NamedTuple):
    """What a committee says of samples.

    Attributes:
        values: ``(samples, outputs)``, the mean of its members' probabilities, or of the numbers they predict.
        disputed: ``(samples,)`` bool, whether not all members predict the same class or labels; None for numbers.
    """

    values: HostArray
    disputed: HostArray | None


class Comparison(NamedTuple):
    """A committee beside its members, on a data set.

    Attributes:
        committee: the results of the averaged predictions.
        members: those of each member alone, in their order.
        disagreement: the share of samples on which not all members predict the same class or labels; None for
            numbers.
        predictions: of the committee, as `Committee.predict` gives them.
    """

    committee: Evaluation
    members: list[Evaluation]
    disagreement: float | None
    predictions: HostArray


class Committee:
    """Networks that predict together: the mean of their probabilities, or of the numbers that they predict.

    D. Ciresan, U. Meier and J. Schmidhuber, "Multi-column deep neural networks for image classification", CVPR
    2012. What a member was trained on (scale, preparation of images) is its own, as ``member.inputs``.

    Args:
        members: trained networks of any layers, dtypes and devices, with one loss, the same classes in the same
            order (or as many outputs), and samples of one shape.

    Attributes:
        members: the networks; the first stands for what all share.

    Raises:
        ValueError: there is no member, a member does not fit the first one, or the loss has predictions of its
            own.
        TypeError: a member is not an `MLP`.

    >>> from gpumlp import MLP, SGD, fit_many, load_digits
    >>> train, test = load_digits()
    >>> members = [MLP([64, 16, 10], seed=seed, device="cpu") for seed in range(3)]
    >>> histories = fit_many(members, train, optimizer=SGD(0.3), epochs=10, batch_size=32, n_jobs=1)
    >>> committee = Committee(members)
    >>> committee.accuracy(test) > min(member.accuracy(test) for member in members)
    True
    """

    def __init__(self, members: Sequence[MLP]) -> None:
        if isinstance(members, MLP):
            raise TypeError(f"members are expected to be a list of networks, got {shown(members)}")
        self.members = list(members)
        if not self.members:
            raise ValueError("members are expected to be one network or more, got none")
        for member in self.members:
            if not isinstance(member, MLP):
                raise TypeError(f"members are expected to be networks (MLP), got {shown(member)}")
        first = self.members[0]
        self._function = output_function(first.loss) if len(self.members) > 1 else ""
        for number, member in enumerate(self.members[1:], 2):
            _check_fits(first, member, number)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the predictions: the widest of the members'."""
        return np.result_type(*(member.dtype for member in self.members))

    def vote(self, images: Array, *, pixels: bool | None = None) -> Vote:
        """The averaged predictions, and where the members disagree; arguments and errors as for `MLP.logits`."""
        each, loss = self._each(images, pixels), self.members[0].loss
        values = self._own(loss.predictions if loss.task == "numbers" else loss.probabilities, each)
        return Vote(values, _disputed(loss, each))

    def predict_proba(self, images: Array, *, pixels: bool | None = None) -> HostArray:
        """The mean of the members' probabilities, ``(samples, classes)`` on the host; waits for the devices.

        The form is that of `MLP.predict_proba`.

        Args:
            images: ``(samples, ...)``, as for `MLP.logits`; every member checks them and prepares them as its own
                `inputs` say.
            pixels: what uint8 values are, as for `MLP.logits`.

        Raises:
            ValueError: the members predict numbers; also as for `MLP.logits`.
            TypeError: a `Dataset` is given in place of its images.
        """
        return self._own(self.members[0].loss.probabilities, self._each(images, pixels))

    def predict(self, images: Array, *, pixels: bool | None = None) -> HostArray:
        """The most probable class, the labels above 1/2, or the mean of the numbers, on the host.

        The form is that of `MLP.predict`. Arguments and errors are as for `MLP.logits`.
        """
        return self._own(self.members[0].loss.predictions, self._each(images, pixels))

    def disagreement(self, images: Array, *, pixels: bool | None = None) -> float:
        """The share of samples on which not all members predict the same class, or the same labels.

        Raises:
            ValueError: the members predict numbers; also as for `MLP.logits`.
        """
        disputed = self.vote(images, pixels=pixels).disputed
        if disputed is None:
            raise ValueError(f"{self} predicts numbers, on which members do not agree or disagree")
        return float(disputed.mean()) if disputed.size else 0.0

    def compare(self, dataset: Any, targets: Any = None, *, pixels: bool | None = None) -> Comparison:
        """The committee's results on a data set beside those of each member, from one pass of each.

        The outputs of all members for all samples are in memory at the same time. Arguments and errors are as for
        `MLP.evaluate`. The loss is that of the averaged predictions.
        """
        first = self.members[0]
        dataset = with_targets(dataset, targets, first.loss.task)
        batches = first.batches(dataset, pixels=pixels)
        each = [_outputs(first, batches)]
        each += [_outputs(member, member.batches(dataset, pixels=pixels)) for member in self.members[1:]]
        expected = training_targets(first, dataset, first.class_names)
        weights = batches.sample_weights

        def result(outputs: HostArray) -> Evaluation:
            backend, (samples, count) = get_backend("cpu"), outputs.shape
            losses = np.empty(samples)
            scores = new_scores(np, first.loss.task, samples, count, np.float64)
            first.loss.output_error(backend, outputs.astype(np.float64), expected, losses, scores)
            if weights is not None:
                losses *= first.backend.to_numpy(weights)
            sums = backend.sums([metric_totals(backend, first.loss.task, losses, scores)]).tolist()
            return evaluation(first.loss.task, sums, samples, count, batches.spread)

        disputed = _disputed(first.loss, each)
        disagreement = None if disputed is None else float(disputed.mean())
        predictions = self._own(first.loss.predictions, each)
        with get_backend("cpu").activate():
            members = [result(outputs) for outputs in each]
            return Comparison(result(self._mean(each)), members, disagreement, predictions)

    def evaluate(self, dataset: Any, targets: Any = None, *, pixels: bool | None = None) -> Evaluation:
        """Loss and metrics of the averaged predictions on a data set, see `compare`."""
        return self.compare(dataset, targets, pixels=pixels).committee

    def accuracy(self, dataset: Any, targets: Any = None, *, pixels: bool | None = None) -> float:
        """The fraction of samples that are predicted correctly, as `MLP.accuracy`.

        Raises:
            ValueError: the targets are numbers, or the loss is not finite; also as for `MLP.evaluate`.
        """
        return accuracy_of(self, self.evaluate(dataset, targets, pixels=pixels))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all members atomically to one file, for `load` on any device.

        Args:
            path: as for `MLP.save`.

        Returns:
            The path of the file.

        Raises:
            PathError, ModelFileError, OSError: as for `MLP.save`.
        """
        return save_committee(self.members, path)

    @classmethod
    def load(cls, *paths: str | os.PathLike[str], device: str | Backend = "auto") -> Committee:
        """The committee of the networks in these files or folders.

        Args:
            paths: each as for `MLP.load`, or what `save` has written, which adds all its members.
            device: of all members.

        Raises:
            ModelFileError: as for `MLP.load`.
            ValueError: the networks do not fit together.
            DeviceError: the device cannot be used.
        """
        return cls([member for path in paths for member in load_members(MLP, path, device)])

    def _each(self, images: Array, pixels: bool | None) -> list[HostArray]:
        """The outputs of each member, ``(samples, outputs)``."""
        found = [member.logits(images, pixels=pixels) for member in self.members]
        pairs = [(member.backend, outputs) for member, outputs in zip(self.members, found, strict=True)]
        return [backend.to_numpy(outputs) if backend.owns(outputs) else outputs for backend, outputs in pairs]

    def _own(self, function: Callable[[Array], Array], each: Sequence[HostArray]) -> HostArray:
        """A function of the outputs for the mean of the members' outputs, floats in the committee's dtype."""
        with get_backend("cpu").activate():
            found: HostArray = function(self._mean(each))
        return found.astype(self.dtype) if found.dtype.kind == "f" else found

    def _mean(self, each: Sequence[HostArray]) -> HostArray:
        """The outputs ``(samples, outputs)`` that stand for the mean of what those of the members stand for.

        In float64, and from logarithms, so that the loss is exact also where a probability is close to 0.
        """
        if len(each) == 1:
            return each[0]
        s = np.stack(each).astype(np.float64)
        if self._function == "identity":
            mean: HostArray = s.mean(axis=0)
            return mean
        if self._function == "exp":
            return _log_mean(s)
        if self._function == "sigmoid":
            return _log_mean(-np.logaddexp(0, -s)) - _log_mean(-np.logaddexp(0, s))
        return _log_mean(s - np.logaddexp.reduce(s, axis=2, keepdims=True))

    def __len__(self) -> int:
        return len(self.members)

    def __str__(self) -> str:
        sizes = [str(member) for member in self.members]
        if len(set(sizes)) == 1:
            return sizes[0] if len(sizes) == 1 else f"committee of {len(sizes)} networks {sizes[0]}"
        return f"committee of {listed(sizes)}"

    def __repr__(self) -> str:
        return f"Committee([{', '.join(map(str, self.members))}])"


def members_of(model: MLP | Committee) -> list[MLP]:
    """The members of a committee; a network alone."""
    return model.members if isinstance(model, Committee) else [model]


def one_input(model: MLP | Committee) -> Inputs:
    """The description of the samples, for programs in which all members of a committee have one input.

    Raises:
        ModelFileError: the members take samples of different scales, or compute in different dtypes.
    """
    inputs, *others = map(plain_inputs, members_of(model))
    scales = [one.dtype if one.pixels else "numbers" for one in (inputs, *others)]
    for what, found in (("take", scales), ("compute in", [each.dtype.name for each in members_of(model)])):
        if len(set(found)) > 1:
            raise ModelFileError(
                f"the members of the committee {what} {' and '.join(dict.fromkeys(found))}, but the file has one "
                "input for all; export it as safetensors or npz"
            )
    return inputs


def _log_mean(logarithms: HostArray) -> HostArray:
    """The logarithm of the mean over the members ``(members, ...)``."""
    result: HostArray = np.logaddexp.reduce(logarithms, axis=0) - np.log(len(logarithms))
    return result


def _disputed(loss: Loss, each: Sequence[HostArray]) -> HostArray | None:
    """Where the predictions for the outputs of the members are not all the same, ``(samples,)``."""
    if loss.task == "numbers":
        return None
    first, *others = (loss.predictions(outputs) for outputs in each)  # one class a sample, or several labels
    result = np.zeros(len(first), dtype=bool)
    for other in others:
        result |= (other != first).any(axis=tuple(range(1, first.ndim)))
    return result


def _outputs(model: MLP, batches: Batches) -> HostArray:
    """The outputs of a network for all batches, ``(samples, outputs)`` on the host."""
    with model.backend.activate():
        outputs = model.backend.xp.empty((batches.samples, model.sizes[-1]), dtype=model.dtype)
        for batch, workspace, _ in forward_batches(model, batches):
            outputs[batch] = workspace.logits
        return model.backend.to_numpy(outputs)


def _check_fits(first: MLP, member: MLP, number: int) -> None:
    """Raise ValueError if a member does not predict what the first one does, for the same samples."""

    facts: list[tuple[str, Any, Any]] = [
        ("number of inputs", first.sizes[0], member.sizes[0]),
        ("number of outputs", first.sizes[-1], member.sizes[-1]),
        ("loss", first.loss.name, member.loss.name),
        ("classes", list(map(str, class_names(first))), list(map(str, class_names(member)))),
    ]
    if first.inputs is not None and member.inputs is not None:
        one, other = first.inputs.shape, member.inputs.shape
        facts += [] if same_shape(one, other) else [("shape of samples", one, other)]
    for what, expected, found in facts:
        if expected != found:
            words = [listed(each) if isinstance(each, list) else shown(each) for each in (expected, found)]
            raise ValueError(
                f"the members of a committee are expected to have the same {what}, but the first has {words[0]} "
                f"and number {number} has {words[1]}; leave one of them out"
            )
