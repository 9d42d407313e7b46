"""Where does a GPU pay? Measure samples per second on the CPU and on every GPU, over batch sizes.

python examples/where_does_a_gpu_pay.py

`python -m benchmarks.throughput` measures larger networks as well, and more carefully.
"""

import statistics
import sys

import numpy as np

from gpumlp import MLP, SGD, Dataset, Trainer, available_devices

ENOUGH = 0.5  # of the training samples: by chance it would be 0.1
SIZES = [784, 128, 10]
BATCH_SIZES = [32, 128, 512, 2048, 8192]
REPEATS = 5  # epochs, whose median is shown, after one to warm up


def stripes(count):
    """Images of MNIST's size: noise with one brighter row, whose position is the class."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 128, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count)
    images[np.arange(count), 4 + 2 * labels] += 100
    return Dataset(images, labels, classes=10, name="stripes")


def measure(data, device, batch_size):
    """Samples per second, and the accuracy in training at the end."""
    trainer = Trainer(MLP(SIZES, seed=0, device=device), data, optimizer=SGD(0.1), batch_size=batch_size)
    history = trainer.run(1 + REPEATS)
    return statistics.median(history["samples_per_second"][1:]), history["train_accuracy"][-1]


def verdict(gpu, cpu_rates, gpu_rates):
    """From which batch size on a GPU is faster than the CPU, as a sentence."""
    first = None
    for batch_size in sorted(cpu_rates, reverse=True):
        if gpu_rates[batch_size] <= cpu_rates[batch_size]:
            break
        first = batch_size
    smallest, largest = min(cpu_rates), max(cpu_rates)
    if first is None:
        return f"{gpu} does not pay up to a batch size of {largest:,}"
    if first == smallest:
        return f"{gpu} pays at every batch size from {smallest:,} to {largest:,}"
    return f"{gpu} pays from a batch size of {first:,} on (up to {largest:,}, the largest measured)"


def main():
    data = stripes(16_384)
    devices = [device.name for device in available_devices()]
    rates = {device: {} for device in devices}
    print(f"{'-'.join(map(str, SIZES))}, {len(data):,} samples, samples/s, medians of {REPEATS} epochs")
    print(f"{'batch':>6}", *(f"{device:>13}" for device in devices))
    learned = 1.0
    for batch_size in BATCH_SIZES:
        for device in devices:
            rates[device][batch_size], accuracy = measure(data, device, batch_size)
            if batch_size == BATCH_SIZES[0]:  # with the most steps
                learned = min(learned, accuracy)
        print(f"{batch_size:>6,}", *(f"{rates[device][batch_size]:>13,.0f}" for device in devices), flush=True)
    gpus = [device for device in devices if device != "cpu"]
    for gpu in gpus:
        print(verdict(gpu, rates["cpu"], rates[gpu]))
    if not gpus:
        print("there is no usable GPU here, so only the CPU was measured; where a GPU would pay is not known")
    print(f"accuracy in training at a batch size of {BATCH_SIZES[0]}, at least: {learned:.4f}")
    return None if learned >= ENOUGH else f"expected an accuracy of {ENOUGH} or more: the network has not learned"


if __name__ == "__main__":
    sys.exit(main())
