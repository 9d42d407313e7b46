"""A process of a group that times steps: ``mpiexec -n 2 python -m benchmarks.parallel_worker SETTINGS``.

SETTINGS is JSON: a list of networks with a global batch size and a number of steps. The first process prints, as
JSON, the milliseconds of a step of each, and those of it in which it exchanges gradients and waits for the others.
"""

from __future__ import annotations

import json
import sys

# NumPy is left to gpumlp to import first: what gpumlp sets up for it must be done before.
from gpumlp import MLP, SGD, MPIGroup, Trainer

from . import common


def main(settings: str) -> None:
    group = MPIGroup()
    answers = []
    for setting in json.loads(settings):
        steps, size = setting["steps"], setting["batch_size"]
        trainer = Trainer(
            MLP(common.layers(setting["network"]), seed=0, device="cpu"),
            common.generate(steps * size),
            optimizer=SGD(common.LEARNING_RATE, momentum=0.9),
            batch_size=size,
            diagnostics=False,
            group=group,
        )
        trainer.run(1)
        group.seconds = 0.0
        trainer.run(2)
        answers.append(
            {
                "milliseconds": 1e3 * trainer.history["seconds"][-1] / steps,
                "exchange_milliseconds": 1e3 * group.seconds / steps,
                "threads": trainer.execution.threads,
            }
        )
    if group.rank == 0:
        print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
