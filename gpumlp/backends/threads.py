"""How many threads of the BLAS the steps of a training take: as many as are quicker at the moment.

Which number that is depends on network, batch, processor, and on what else that does: beside a busy neighbour two
threads were measured to be up to twenty times slower than one, because they wait for each other, and without it up
to 1.5 times faster. So it is measured while the steps run. Only where the number of threads does not change a bit
of the results may that be done; `NumpyBackend` makes sure of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from .rules import StepRule

BLOCK = 16  # steps that are timed together; before the first trial, too
TRIAL, ENOUGH = 16, 3  # steps with another number of threads, to compare; of so many a slower number is given up
FIRST, LAST = 64, 2048  # steps between two trials: after a change, and when there was none for long
BETTER, SLOW = 0.95, 2.0  # of the time of a sample: what is worth a change, and what calls for a trial at once


class Pace:
    """Runs the steps of one training, and now and then tries half or twice as many threads for a few of them.

    Trials cost little: they are given up early, and the time between them doubles while they change nothing.

    Args:
        threads: a context in which at most so many threads are used.
        most: threads.
        start: with how many to begin.
        clock: seconds.

    Attributes:
        count: threads in use.
    """

    def __init__(
        self,
        threads: Callable[[int], AbstractContextManager[None]],
        most: int,
        start: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._threads, self._clock, self._counts = threads, clock, counts_up_to(most)
        self.count = max(count for count in self._counts if count <= start)
        self._more_next = True
        self._seconds = 0.0  # a sample, in the last block
        self._usual = math.inf  # a sample, with this number of threads
        self._interval, self._left = FIRST, BLOCK

    def run(self, step: StepRule, batches: Sequence[slice]) -> None:
        """Run a step for each batch, in order."""
        done = 0
        while done < len(batches):
            if self._left <= 0 and len(batches) - done >= ENOUGH:
                done += self._try_another(step, batches[done : done + TRIAL])
                continue
            block = batches[done : done + max(1, min(BLOCK, self._left))]
            steps, seconds = self._timed(self.count, step, block)
            done += steps
            self._left -= steps
            self._seconds = seconds
            self._usual = min(self._usual, seconds)
            if seconds > SLOW * self._usual and self._interval - self._left >= FIRST:
                self._left, self._interval = 0, FIRST

    def _try_another(self, step: StepRule, batches: Sequence[slice]) -> int:
        """Run some steps with another number of threads, keep it if it is better, and return how many steps."""
        other = self._another()
        steps, seconds = self._timed(other, step, batches, BETTER * self._seconds)
        if seconds < BETTER * self._seconds:
            self.count, self._interval, self._usual = other, FIRST, seconds
        else:
            self._interval = min(2 * self._interval, LAST)
            self._usual = self._seconds  # whatever slows the steps, it is not the threads
        self._left = self._interval
        return steps

    def _another(self) -> int:
        """The next larger number and the next smaller one, in turns, as far as there are."""
        place = self._counts.index(self.count)
        near = [self._counts[i] for i in (place - 1, place + 1) if 0 <= i < len(self._counts)]
        self._more_next = not self._more_next
        return near[0 if self._more_next else -1] if near else self.count

    def _timed(
        self, count: int, step: StepRule, batches: Sequence[slice], goal: float = math.inf
    ) -> tuple[int, float]:
        """How many steps were run, and the seconds a sample: all, unless those are more than `goal`."""
        samples = 0
        with self._threads(count):
            start = self._clock()
            for done, batch in enumerate(batches, 1):
                step(batch)
                samples += batch.stop - batch.start
                seconds = (self._clock() - start) / samples
                if done >= ENOUGH and seconds > goal:
                    break
        return done, seconds


def counts_up_to(most: int) -> list[int]:
    """1, 2, 4, ... threads, and `most`."""
    return sorted({*(1 << power for power in range(most.bit_length())), most})
