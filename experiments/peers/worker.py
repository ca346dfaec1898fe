"""One contender in a process of its own: takes orders on standard input, answers with seconds on standard output.

    python worker.py CONTENDER PRECISION WAY PLATFORM

CONTENDER is a module with a class `Contender`, which is made from a hidden size and the other words: WAY is one of its
variants, or empty, and PLATFORM is cpu or cuda. An order is a JSON object with `task`, a method of the class,
`hidden_size`, `count` and whatever else the task takes. The answer holds the `seconds` for that many units, the peak
memory so far in `peak_bytes`, the number of `devices` that the work is split over, and their `kind`; or the `error`
that prevented it. What a task compiles or builds is kept, so that the second time is the one to measure.
"""

import functools
import importlib
import json
import os
import resource
import sys
import time


def main(module: str, precision: str, way: str, platform: str) -> None:
    """Serve orders until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    contender_class = importlib.import_module(module).Contender
    make = functools.cache(lambda hidden_size: contender_class(hidden_size, precision, way, platform))
    for line in sys.stdin:
        order = json.loads(line)
        started = time.perf_counter()
        try:
            contender, task = make(order.pop("hidden_size")), order.pop("task")
            getattr(contender, task)(**order)
            answer = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes(platform)}
            answer |= {"devices": getattr(contender, "devices", 1), "kind": getattr(contender, "kind", platform)}
        except Exception as error:  # from any library; the next order may still succeed
            answer = {"error": str(error).partition("\n")[0] or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


def peak_bytes(platform: str) -> int:
    """Return the peak memory so far: of a GPU, that of the library that works on it; on a CPU, that of the process."""
    if platform == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if jax := sys.modules.get("jax"):
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return sys.modules["torch"].cuda.max_memory_allocated()


if __name__ == "__main__":
    main(*sys.argv[1:])
