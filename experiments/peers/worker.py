"""One contender in a process of its own: takes orders on standard input, answers with seconds on standard output.

    python worker.py CONTENDER

An order is a JSON object with `task`, `hidden_size`, `count` and whatever else the task takes; the answer holds the
`seconds` of that many units, the `peak_bytes` of the process so far, and the `devices` that the work is split over. A
contender's module has a class `Contender` whose methods are the tasks; what a task compiles or builds is kept, so that
the second time is the one to measure.
"""

import functools
import importlib
import json
import os
import resource
import sys
import time

WINDOW, BATCH_SIZE, VOCABULARY = 60, 128, 57  # the published notebooks' job
PRODUCT_SIDE = 512  # of the square matrices whose product is the yardstick


def main() -> None:
    """Serve orders until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    make = functools.cache(importlib.import_module(sys.argv[1]).Contender)
    for line in sys.stdin:
        order = json.loads(line)
        contender, task = make(order.pop("hidden_size")), order.pop("task")
        started = time.perf_counter()
        getattr(contender, task)(**order)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        answer = {"seconds": seconds, "peak_bytes": peak, "devices": getattr(contender, "devices", 1)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
