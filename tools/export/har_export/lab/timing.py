"""Time of a call to a model, for several models in turn: a machine's speed drifts, their ratios do not."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PAUSE_S = 0.03
"""Before each call at cadence: long enough for caches and clocks to cool down."""

HOT_CALLS = 10


@dataclass(frozen=True)
class Timing:
    """Median microseconds of a call: back to back, in CPU time; and after a pause, by the wall clock."""

    hot_us: float
    cadence_us: float


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every call in each of `rounds`."""
    hot: dict[str, list[int]] = {name: [] for name in calls}
    cadence: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE_S)
            began = time.perf_counter_ns()
            call()
            cadence[name].append(time.perf_counter_ns() - began)
            for _ in range(HOT_CALLS):
                began = time.process_time_ns()
                call()
                hot[name].append(time.process_time_ns() - began)
    return {name: Timing(statistics.median(hot[name]) / 1e3, statistics.median(cadence[name]) / 1e3) for name in calls}
