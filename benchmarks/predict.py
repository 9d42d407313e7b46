"""What a step of the persistent kernel should take on an H100: ``python -m benchmarks.predict``.

Two prototypes of the kernel (``gpumlp/backends/cuda/persistent.cu``) were measured, one with 8 and one with 16
multiprocessors for 784-128-10, at several batch sizes, with two and three bf16 parts, with bulk copies and
without. The work of one multiprocessor is counted from the kernel's plan (`Work`), and a step is the sum of it,
each kind at a price of its own (`Prices`):

    clocks = exchanges + passes + products + instructions + bytes + copies

The prices are those with the least squares of relative differences from the 25 times measured. The assumptions are
in `ASSUMPTIONS`. Prints the fit and the goals in Markdown.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpumlp import command
from gpumlp.backends.cuda.plan import DeviceProperties, Plan, Shape, make_plan
from gpumlp.nn.activations import ReLU

from .markdown import table, three_digits

ASSUMPTIONS = """\
- A clock is 1 / 1.85 GHz, on an H100 and an H200: the prototypes' own counts of clocks gave 1.77 to 1.89 GHz.
- The parts of a step do not overlap: in the prototypes the warps of a block meet at a barrier after each of them.
- Several multiprocessors of a network wait for each other twice in a step with one hidden layer, six times with
  two, ten times with three; the price of a wait includes the softmax. One alone passes a barrier instead.
- With four warps in a block an instruction costs twice as much as with eight.
- A hidden layer above the first is divided in two dimensions and splits its weights into bf16 parts anew for each
  32 samples. No prototype has such a layer: its instructions are counted, and priced as the others.
- Where all multiprocessors are busy, a step takes 8 % longer (prototypes: 1 to 12 %)."""

PROGRAM = "predict"
RESULTS = Path(__file__).parent / "results"
CLOCKS_PER_MICROSECOND = 1850
FULL_CARD = 1.08
CARD = DeviceProperties()  # an H100
CHUNK = 32  # samples that are read and multiplied at a time
# Instructions of a warp, counted in the wide prototype's source: for a hidden unit and 32 samples, for each output
# of it, to split 32 values into bf16 parts, to exchange 32 numbers, and to update 32 weights.
UNIT, OUTPUT, SPLIT, EXCHANGE = 50, 10, 6, 8
UPDATE = {"momentum": 6, "adam": 40}


class Work(NamedTuple):
    """What one multiprocessor does in a step."""

    exchanges: float  # waits for other multiprocessors
    passes: float  # over 32 samples, each with its barriers
    products: float  # mma.sync m16n8k16, of each of the four tensor cores
    instructions: float  # of warps, outside of the products
    bytes: float  # through the L2 cache: rows of samples, and numbers exchanged
    copies: float  # of 512 bytes of rows, by a warp; none where rows come by bulk copies

    def plus(self, other: Work) -> Work:
        """Both."""
        return Work(*map(sum, zip(self, other, strict=True)))


class Prices(NamedTuple):
    """Clocks of one of each."""

    exchange: float
    one_pass: float
    product: float
    instruction: float
    byte: float
    copy: float

    def parts(self, plan: Plan) -> list[float]:
        """Microseconds of a step that each kind of work takes."""
        return [price * count / CLOCKS_PER_MICROSECOND for price, count in zip(self, work(plan), strict=True)]

    def microseconds(self, plan: Plan) -> float:
        """Of a step."""
        return sum(self.parts(plan))


class Time(NamedTuple):
    """A step that was measured, in microseconds."""

    kernel: str
    plan: Plan
    measured: float


@dataclass(frozen=True)
class Options:
    """Predict a step of the persistent kernel on an H100, by a formula fitted to two prototypes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the fit and the predictions, and return the exit code."""

    def run() -> int:
        command.parse(Options, PROGRAM, arguments)
        times = prototypes()
        prices = fit(times)
        tables = (fitted(times, prices), [ASSUMPTIONS], goals(prices), parts(prices))
        print("\n\n".join("\n".join(lines) for lines in tables))
        return command.OK

    return command.run(PROGRAM, run)


# -- Work ------------------------------------------------------------------------------------------------


def work(plan: Plan) -> Work:
    """The work of one multiprocessor in a step of a full batch."""
    shape = plan.shape
    alone = plan.blocks == 1
    chunks = -(-shape.batch // CHUNK)
    loads = chunks if alone or chunks <= plan.slots else 2 * chunks - plan.slots
    row = 2 * 16 * -(-shape.inputs // 16) * (1 if shape.pixels else 3)
    outputs = 4 * -(-shape.outputs // 4)
    inputs, units = plan.tiles
    products = shape.parts if shape.pixels else _products(shape.parts)
    of_a_warp = inputs * (2 * units * products + 4 * -(-units * products // 2))
    weights = 128 * inputs * units * plan.warps
    elementwise = plan.units[0] * UNIT + plan.units[-1] * OUTPUT * outputs
    total = Work(
        exchanges=0 if alone else (2, 6, 10)[len(shape.hidden) - 1],
        passes=chunks * (4 if alone else 2),
        products=chunks * of_a_warp * plan.warps / 4,
        instructions=8 / plan.warps * (chunks * elementwise + UPDATE[shape.optimizer] * weights / 32),
        bytes=loads * CHUNK * row + (0 if alone else 3 * 8 * shape.batch * outputs),
        copies=0 if plan.bulk else loads * CHUNK * row / 512,
    )
    for index in range(len(shape.hidden) - 1):
        total = total.plus(_middle(plan, index))
    return total


def _middle(plan: Plan, index: int) -> Work:
    """The weights between two hidden layers: a block has some rows of some columns of them."""
    shape, by_rows = plan.shape, plan.rows[index]
    by_columns = plan.blocks // by_rows
    below, above = (16 * -(-width // (16 * by)) for width, by in
                    zip(shape.hidden[index : index + 2], (by_rows, by_columns), strict=True))  # fmt: skip
    own_below, own_above = plan.units[index : index + 2]
    chunks = -(-shape.batch // CHUNK)
    tiles_below, tiles_above = (-(-width // (8 * plan.warps)) for width in (below, above))  # of a warp
    fragments = below / 16 * (16 + 4 * tiles_above) + above / 16 * (16 + 4 * tiles_below)  # forward, backward
    fragments += 2 * (8 * below / 16 + 4 * tiles_above)  # gradient
    sent = own_below + above + own_above + below
    received = below + own_above * by_rows + above + own_below * by_columns
    return Work(
        exchanges=0,  # counted with the first layer's
        passes=2 * chunks,
        products=chunks * 3 * _products(shape.parts) * (2 * below * above / 128) / 4,
        instructions=chunks * (plan.warps * SPLIT * fragments + own_above * UNIT + EXCHANGE * (sent + received))
        + UPDATE[shape.optimizer] * below * above / 32,
        bytes=chunks * CHUNK * 8 * (sent + received),
        copies=0,
    )


def _products(parts: int) -> int:
    """Products of parts for one of two float32 numbers: those of the smallest parts are left out."""
    return parts * (parts + 1) // 2


# -- Prices ----------------------------------------------------------------------------------------------


def prototypes() -> list[Time]:
    """The times of both prototypes: on an H100, and of one of them on an H200."""
    portable = json.loads((RESULTS / "h100-0.2.0" / "prototypes.json").read_text())["portable"]
    runs = json.loads((RESULTS / "prototype-wide" / "results.json").read_text())["runs"]
    times = []

    def add(kernel: str, batch: int, parts: int, time: float, **of_plan: Any) -> None:
        plan = planned((784, 128, 10), batch)
        shape = plan.shape._replace(parts=parts)
        times.append(
            Time(
                kernel, plan._replace(**{"shape": shape, "warps": 8, "warps_k": 8, "bulk": False} | of_plan), time
            )
        )

    for key, parts in (("us_per_step", 3), ("us_per_step_two_parts", 2)):
        for batch, time in portable[key].items():
            add("portable.cu, H100", int(batch), parts, time, blocks=8, slots=3)
    for kernel, hardware in (
        ("wide", "H100"),
        ("wide (again on the other card)", "H200"),
        ("wide, -DBULK", "H200"),
    ):
        (run,) = (run for run in runs if run["kernel"] == kernel)
        bulk = {"bulk": True} if "BULK" in kernel else {}
        name = f"wide.cu{', bulk copies' if bulk else ''}, {hardware}"
        for words, time in run["us_per_step"].items():  # "batch 32, two parts"
            if "networks" not in words:
                batch = int(words.split()[1].rstrip(","))
                slots = 4 if batch <= 128 else 3
                add(name, batch, 2 if "two" in words else 3, time, blocks=16, slots=slots, **bulk)
    return times


def fit(times: Sequence[Time]) -> Prices:
    """The prices with the least squares of relative differences."""
    rows = np.array([work(time.plan) for time in times])
    clocks = CLOCKS_PER_MICROSECOND * np.array([time.measured for time in times])
    return Prices(*np.linalg.lstsq(rows / clocks[:, None], np.ones(len(times)), rcond=None)[0].tolist())


# -- Tables ----------------------------------------------------------------------------------------------


def fitted(times: Sequence[Time], prices: Prices) -> Iterator[str]:
    """The prototypes' times beside those of the formula, and the prices."""
    names = ["784-128-10, momentum", "multiprocessors", "batch", "bf16 parts", "measured, µs", "formula", "off by"]
    rows = []
    for kernel, plan, measured in times:
        time = prices.microseconds(plan)
        counts = map(str, (plan.blocks, plan.shape.batch, plan.shape.parts))
        rows.append([kernel, *counts, f"{measured:.2f}", f"{time:.2f}", f"{time / measured - 1:+.0%}"])
    yield from table(names, rows)
    yield (
        f"\nPrices in clocks: {prices.exchange:,.0f} for a wait for other multiprocessors, {prices.one_pass:,.0f} "
        f"for a pass over 32 samples, {prices.product:.1f} for a product (mma.sync m16n8k16) of a tensor core, "
        f"{prices.instruction:.2f} for an instruction of a warp, {prices.byte:.3f} for a byte through L2, "
        f"{prices.copy:.1f} for a warp's copy of 512 bytes, which bulk copies save."
    )


def goals(prices: Prices) -> Iterator[str]:
    """What is predicted for each goal, beside what was measured with other kernels."""
    compared = json.loads((RESULTS / "h100-0.2.0" / "compare.json").read_text())["results"]
    others = {(row["peer"], row["batch_size"]): row["microseconds_per_step"] for row in compared}
    wide: dict[int, str] = {}
    for kernel, plan, time in prototypes():
        if kernel.startswith("wide.cu") and plan.shape.parts == 3 and (plan.bulk or "H100" in kernel):
            wide[plan.shape.batch] = "; ".join(
                filter(None, (wide.get(plan.shape.batch), f"{kernel}: {time:.2f} µs"))
            )
    rows = []
    for batch, wanted in ((16, 5), (32, 5), (64, 5), (128, 5), (256, 5), (1024, 1.2)):
        ours, jax = prices.microseconds(planned((784, 128, 10), batch)), others.get(("jax", batch))
        goal, found = f"{wanted:g} times JAX", f"{three_digits(ours)} µs"
        if jax is not None:
            goal, found = f"{goal}: {three_digits(jax / wanted)} µs", f"{found}, {jax / ours:.1f} times JAX"
        by_graphs = f"graphs: {three_digits(others['gpumlp', batch])} µs" if batch == 1024 else ""
        rows.append([f"784-128-10, batch {batch:,}", goal, found, wide.get(batch, by_graphs)])
    refused = make_plan(shape_of((784, 128, 10), 8192), CARD)
    measured = f"graphs: {three_digits(others['gpumlp', 8192])} µs"
    rows.append(["784-128-10, batch 8,192", "1.5 times JAX", "not possible" * isinstance(refused, str), measured])

    deep = planned((784, 512, 512, 10), 128)
    name = f"784-512-512-10, batch 128, on {deep.blocks} multiprocessors"
    rows.append([name, "30 µs", f"{three_digits(prices.microseconds(deep))} µs", "graphs: 75.8 µs"])

    for count, each, found in (
        (14, 8, "portable.cu: 19.6 µs, 91 million"),
        (8, 16, "wide.cu: 13.7 µs, 75 million"),
    ):
        time = FULL_CARD * prices.microseconds(planned((784, 128, 10), 128, multiprocessors=each))
        rows.append(
            [
                f"{count} networks of 784-128-10, batch 128, on {each} multiprocessors each",
                "1.1 times the time of one; 10 times JAX vmap" if count == 14 else "",
                f"{three_digits(time)} µs, {FULL_CARD:g} times one's; {count * 128 / time:.0f} million samples/s",
                f"{found}; JAX vmap not measured" if count == 14 else found,
            ]
        )
    small = planned((30, 100, 2), 200, pixels=False, optimizer="adam")
    time = FULL_CARD * prices.microseconds(small)
    found = f"{three_digits(time)} µs, {FULL_CARD:g} times one's, for up to {CARD.multiprocessors} networks"
    name = f"100 networks of 30-100-2, Adam, batch 200, on {small.blocks} multiprocessor each"
    rows.append([name, "the time of one", found, ""])

    steps = 20 * math.ceil(60_000 / 128)
    total = f"{steps * prices.microseconds(planned((784, 128, 10), 128)) / 1000:.0f} ms in {steps:,} steps"
    rows.append(
        [
            "98 % on MNIST: 20 epochs of batch 128",
            "100 ms",
            total,
            "wide.cu, H100: 117 ms; bulk copies, H200: 109 ms",
        ]
    )
    yield from table(["what, H100", "goal", "predicted", "measured"], rows)


def parts(prices: Prices) -> Iterator[str]:
    """Where the time of a step is predicted to go."""
    plans = {
        "784-128-10, batch 32": planned((784, 128, 10), 32),
        "784-128-10, batch 128": planned((784, 128, 10), 128),
        "784-512-512-10, batch 128": planned((784, 512, 512, 10), 128),
        "30-100-2, Adam, batch 200": planned((30, 100, 2), 200, pixels=False, optimizer="adam"),
    }
    yield from table(
        ["µs a step", "multiprocessors", "waits", "passes", "products", "other instructions", "bytes"],
        (
            [name, str(plan.blocks), *(f"{time:.1f}" for time in prices.parts(plan)[:5])]
            for name, plan in plans.items()
        ),
    )


def planned(
    sizes: Sequence[int], batch: int, *, multiprocessors: int | None = None, pixels: bool = True,
    optimizer: str = "momentum",
) -> Plan:  # fmt: skip
    """The kernel's plan for a network that fits the card."""
    plan = make_plan(shape_of(sizes, batch, pixels, optimizer), CARD, multiprocessors=multiprocessors)
    assert isinstance(plan, Plan), plan
    return plan


def shape_of(sizes: Sequence[int], batch: int, pixels: bool = True, optimizer: str = "momentum") -> Shape:
    """The shape of a network with ReLU."""
    inputs, *hidden, outputs = sizes
    activations = (ReLU.cuda,) * len(hidden)
    return Shape(inputs, tuple(hidden), outputs, activations, batch, pixels=pixels, optimizer=optimizer)


if __name__ == "__main__":
    sys.exit(main())
