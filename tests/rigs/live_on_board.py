"""The daemon on another interpreter, such as an emulated board's: sensor on a pty here, broker and subscriber here.

    python tests/rigs/live_on_board.py COMMAND …     what starts the interpreter, with its environment

It labels, is killed, starts again and ends in order; nothing that it made may be missing at the subscriber.
"""

import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from live import Agent, Listener, Sensor, wait_until
from mosquitto import Mosquitto


def main(interpreter: list[str]) -> None:
    """Run the scenario; raises if anything is not as it must be."""
    with (
        tempfile.TemporaryDirectory() as name,
        Mosquitto(Path(name)) as broker,
        closing(Sensor(Path(name))) as sensor,
        closing(Listener(broker.port)) as listener,
    ):
        config = f'[broker.local]\nurl = "{broker.url}"\n[serial.imu]\nport = "{sensor.path}"\ntime = "ms"\n'
        agent = Agent(Path(name), config)
        with agent.log.open("wb") as log:
            for _ in range(2):
                before = listener.count()
                command = [*interpreter, "-m", "agent", "run", "--config", str(agent.config)]
                agent.process = subprocess.Popen(command, stdout=log, stderr=log)
                try:
                    wait_until(lambda before=before: listener.count() >= before + 3, 90, "predictions")
                except AssertionError:
                    sys.stderr.write(agent.tail())
                    raise
                finally:
                    agent.process.kill()
                    agent.process.wait()
            agent.process = subprocess.Popen(command, stdout=log, stderr=log)
            wait_until(lambda: agent.status().get("pid") == agent.process.pid, 90, "a status")
            status = agent.stop(60)
        assert status == 0, agent.tail()
        assert listener.holes() == []
        sys.stdout.write(f"live: {listener.count()} predictions in two lives, none missing; ended in order\n")


if __name__ == "__main__":
    main(sys.argv[1:])
