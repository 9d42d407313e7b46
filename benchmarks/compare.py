"""gpumlp beside other libraries, in one run on one machine: ``python -m benchmarks.compare``.

Every peer trains the same network on the same data with the same arithmetic: same dtype, batch size and learning
rate, plain SGD or SGD with momentum, a new random order every epoch, the short last batch included. Each is
written as its own users would write it at its best (``benchmarks/peers``), holds the data on its device before any
clock starts, and is left out with a reason where it cannot be had. Equivalent ways to run a peer (threads, form of
the optimizer) are tried first, and the fastest is taken; gpumlp is run as it is.

First the losses of all over 20 steps, from the same weights on the same batches, are held against a textbook
network in float64, and so is the mean loss of these steps as an epoch, by the code that is timed; that at the
smallest batch size, and over 3 steps at the largest. Who disagrees is not timed. Then, setting by setting, the
peers take turns: an epoch of warm-up each, then the timed runs, one of each peer and again. The clock is read on
an idle device, before the shuffling and when the mean loss of the last epoch is on the host.

A run is whole epochs of the same samples for all peers of a setting: of all samples where gpumlp trains on them in
``--seconds`` or less, otherwise of fewer. That changes what an epoch costs once (shuffling, reading the loss) only
where a step is short, and a small part of the samples may stay in a cache; the JSON states the samples of a run.

Writes ``compare-DEVICE.json``, and ``.png`` where matplotlib is installed. Not yet measured on a GPU.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import tyro
from rich.progress import Progress

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
from gpumlp import Dataset, command
from gpumlp.backends import Device

from . import comparing, comparison_table, reporting
from .agreement import FEW_STEPS, STEPS, Agreement, check_agreement
from .comparing import Measured, set_threads
from .comparison_options import NETWORKS, QUICK_BATCH_SIZES, Options, check, check_fits, layer_sizes, or_quick
from .counts import bytes_per_step, flops_per_sample
from .limits import CPU_ORDER, cpu_limits, gpu_limits
from .measuring import chosen_devices, load_data
from .peers import ALL, Peer, Setting
from .peers.base import NotMeantForError, first_line
from .timing import Run, measure, plan

PROGRAM = "compare"
LEARNING_RATE = 0.01  # low, so that nothing diverges; speed does not depend on it
QUICK_SECONDS, QUICK_ORDER = 0.01, 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, report, and return the exit code: 1 if a peer disagrees, or if there was none to measure."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = tyro.cli(Options, prog=PROGRAM, args=words, config=(tyro.conf.FlagCreatePairsOff,))

    def work() -> int:
        check(options)
        devices = chosen_devices(options.devices)
        set_threads(options.threads)
        train, notice = load_data(options)
        networks = [layer_sizes(network) for network in or_quick(options, "networks", NETWORKS[:1])]
        check_fits(options, networks, train)
        folder = Path() if options.check else output_folder(options)
        agreed, found = True, False
        for device in devices:
            measured = compare(options, device, networks, train)
            agreed = agreed and measured.all_agree
            if not (measured.agreement if options.check else measured.results):
                what = "checked" if options.check else "measured"
                print(f"{PROGRAM}: no peer could be {what} on {device.name}; nothing is written", file=sys.stderr)
                continue
            found = True
            if options.check:
                continue
            report = comparing.report(measured, options, device, words, train, [notice] if notice else [])
            comparison_table.print_tables(report)
            for path in comparing.write(report, folder / f"{PROGRAM}-{device.name.replace(':', '')}"):
                print(f"wrote {path}")
        return command.OK if agreed and found else command.FAILED

    return command.run(PROGRAM, work)


def output_folder(options: Options) -> Path:
    """The folder for the results, made before anything is measured.

    A part of the comparison goes elsewhere by default, so that it does not replace the whole.
    """
    whole = dataclasses.replace(
        Options(),
        data_dir=options.data_dir,
        devices=options.devices,
        seconds=options.seconds,
        repeats=options.repeats,
    )
    trial = options.out == Options.out and options != whole
    return reporting.output_folder(options.out, trial=trial)


def compare(options: Options, device: Device, networks: Sequence[tuple[int, ...]], train: Dataset) -> Measured:
    """Check the agreement on one device, then time setting by setting."""
    measured = Measured()
    peers = able_peers(options, device.name, measured)
    if not peers:
        return measured
    sizes_of_batches = or_quick(options, "batch_sizes", QUICK_BATCH_SIZES)
    agreeing = {(sizes, momentum): peers for sizes in networks for momentum in options.momenta}
    checks = {max(sizes_of_batches): FEW_STEPS, min(sizes_of_batches): STEPS}  # the latter where both are one
    for sizes in networks:
        for batch, steps in sorted(checks.items()):
            for momentum in options.momenta:
                setting = Setting(sizes, batch, momentum, LEARNING_RATE, options.dtype, device.name)
                agreeing[sizes, momentum] = agreeing_peers(
                    agreeing[sizes, momentum], setting, train, options.threads, measured, steps
                )
    if options.check or not any(agreeing.values()):
        return measured

    if device.name == "cpu":
        measured.limits = cpu_limits(options.dtype, QUICK_ORDER if options.quick else CPU_ORDER)
    else:
        measured.limits = gpu_limits(device.name, options.dtype)
    # Momentum comes last, so that torch.compile is asked once for both.
    settings = [
        Setting(sizes, batch, momentum, LEARNING_RATE, options.dtype, device.name)
        for sizes in networks
        for batch in sizes_of_batches
        for momentum in options.momenta
    ]
    ticks = sum(len(agreeing[setting.sizes, setting.momentum]) for setting in settings) * (options.repeats + 1)
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=ticks)
        for setting in settings:
            progress.update(task, description=f"{setting.network}, batch {setting.batch_size:,}")
            takers = agreeing[setting.sizes, setting.momentum]
            if not takers:
                continue
            run = run_of(options, setting, train, takers)
            timings = measure(
                setting, train, run, takers, options.repeats, options.threads, lambda: progress.advance(task)
            )
            measured.add(setting, run, timings, flops_per_sample(setting.sizes), _bytes_of(setting))
    return measured


def able_peers(options: Options, device: str, measured: Measured) -> list[type[Peer]]:
    """The peers asked for that can run on this device; the others are noted with their reason."""
    able = []
    for peer in ALL:
        reason = None
        if options.peers and peer.name not in options.peers:
            reason = "not asked for with --peers"
        elif options.quick and not options.peers and peer.name == "torch-compiled":
            reason = "compiling takes long for a quick trial; --peers torch-compiled asks for it"
        reason = reason or peer.why_not(device, options.dtype)
        if reason is None:
            able.append(peer)
        else:
            measured.leave_out(peer, reason)
    return able


def agreeing_peers(
    peers: Sequence[type[Peer]],
    setting: Setting,
    train: Dataset,
    threads: int | None,
    measured: Measured,
    steps: int = STEPS,
) -> list[type[Peer]]:
    """Those whose losses agree; each verdict is printed."""
    agreeing = []
    where = f"{setting.network}, momentum {setting.momentum:g}, batch {setting.batch_size}"
    print(f"agreement in {where}, on {setting.device}")
    for peer, result in zip(peers, check_agreement(peers, setting, train, threads, steps), strict=True):
        if isinstance(result, Agreement):
            print(f"  {result}")
            measured.agree(setting, result)
            if result.agrees:
                agreeing.append(peer)
            else:
                measured.leave_out(peer, f"disagrees in {where}")
        elif isinstance(result, NotMeantForError):
            measured.leave_out(peer, f"{result} (in {where})")
            if steps < STEPS:  # it has agreed at the smallest batch size, and may be meant for those between
                agreeing.append(peer)
        else:
            measured.leave_out(
                peer, f"failed: {type(result).__name__}: {first_line(result)} (in {where})", failed=True
            )
    return agreeing


def run_of(options: Options, setting: Setting, train: Dataset, peers: Sequence[type[Peer]]) -> Run:
    """The samples of a timed run."""
    if options.samples is not None:
        return Run(options.samples, 1)
    seconds = QUICK_SECONDS if options.quick and options.seconds == Options.seconds else options.seconds
    yardstick = peers[0] if peers else ALL[0]  # gpumlp, which comes first, unless it was left out
    return plan(setting, train, yardstick, seconds, options.threads)


def _bytes_of(setting: Setting) -> Callable[[float], float]:
    itemsize = 4 if setting.dtype == "float32" else 8
    return partial(bytes_per_step, setting.sizes, momentum=setting.momentum > 0, itemsize=itemsize)


if __name__ == "__main__":
    sys.exit(main())
