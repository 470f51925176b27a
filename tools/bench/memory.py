"""Peak memory of a replay against the length of its input: it must not grow.

    .venv/bin/python tools/bench/memory.py --hours 1,10,100 > docs/results/memory.json

The rows are made on the fly and piped in, so that a hundred hours need no disk. Progress goes to stderr.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

RATE_HZ = 50
HEADER = "# device: memory\n# acc_unit: g\n# gyro_unit: rad/s\n"


def rows(hours: float) -> Iterator[bytes]:
    """A simulated minute, over and over, a block at a time: new times, the same values, labels included."""
    minute = subprocess.run(
        [sys.executable, "-m", "agent", "simulate", "--duration", "60"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    columns = next(i for i, line in enumerate(minute) if line.startswith("t,"))
    values = [line.partition(",")[2] for line in minute[columns + 1 :]]
    yield (HEADER + minute[columns] + "\n").encode()
    endless, total = cycle(values), round(hours * 3600 * RATE_HZ)
    for start in range(0, total, 3000):
        block = (f"{i / RATE_HZ:.2f},{next(endless)}\n" for i in range(start, min(start + 3000, total)))
        yield "".join(block).encode()


def peak_mib(pid: int) -> float:
    """The process's peak resident set so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def measure(hours: float) -> dict[str, float]:
    """Replay so many hours and return the peak."""
    agent = subprocess.Popen(
        [sys.executable, "-m", "agent", "replay", "-", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert agent.stdin is not None
    peak = 0.0
    with agent.stdin as pipe:
        for n, block in enumerate(rows(hours)):
            pipe.write(block)
            if n % 20 == 0:
                peak = max(peak, peak_mib(agent.pid))
        pipe.flush()
        peak = max(peak, peak_mib(agent.pid))
    if agent.wait():
        raise SystemExit(f"the replay of {hours:g} h ended with {agent.returncode}")
    return {"hours": hours, "samples": round(hours * 3600 * RATE_HZ), "peak_rss_mib": round(peak, 1)}


def main() -> None:
    """Measure each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", default="1,10,100", help="lengths of input, separated by commas")
    figures = []
    for text in parser.parse_args().hours.split(","):
        print(f"replaying {text} h …", file=sys.stderr)  # noqa: T201  a script's progress
        figures.append(measure(float(text)))
    print(json.dumps({"v": 1, "replay": figures}, indent=1))  # noqa: T201  its result


if __name__ == "__main__":
    main()
