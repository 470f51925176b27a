"""What a rollout over many boards costs its controller: time, memory, forks; the boards do next to nothing.

    .venv/bin/python tools/bench/rollout.py --boards 1000 --forks 50 --tasks 20

It runs deploy/ansible/playbooks/rollout.yml as it is, over boards that are this machine (connection local), with the
role's stand-in of tests/deploy, which has its steps and `--tasks` more tasks a step. So it shows that choosing,
batching, judging and reporting scale, and what Ansible spends on a task of a board; ssh, copying and installing come
on top.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "deploy" / "ansible"


def inventory(boards: int, tasks: int, logs: Path, fails: int) -> dict[str, object]:
    """As inventories/fleet-1000, with boards that are this machine; the one numbered `fails` does not verify."""
    width = max(4, len(str(boards)))
    return {
        "all": {
            "vars": {
                "ansible_connection": "local",
                "ansible_become": False,
                "ansible_python_interpreter": sys.executable,
                "standin_logs": str(logs),
                "standin_tasks": tasks,
                "har_agent_batches": [10, 100],
            },
            "children": {
                "boards": {
                    "hosts": {
                        f"board{i:0{width}}": {"standin_fails": "verify"} if i == fails else {}
                        for i in range(1, boards + 1)
                    }
                },
                "canaries": {"hosts": {f"board{i:0{width}}": {} for i in (1, boards // 3, 2 * boards // 3) if i}},
            },
        }
    }


def peak_mib(pid: int) -> float:
    """The largest resident set of the process so far; 0 once it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0.0)


def measure(boards: int, forks: int, tasks: int, fails: int) -> dict[str, object]:
    """Run one rollout; return what came of it, and what it cost."""
    with tempfile.TemporaryDirectory() as folder:
        logs, hosts, report = Path(folder, "logs"), Path(folder, "hosts.json"), Path(folder, "report.json")
        logs.mkdir()
        hosts.write_text(json.dumps(inventory(boards, tasks, logs, fails)))
        env = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "tests" / "deploy" / "standin" / "roles"),
            "ANSIBLE_LOCAL_TEMP": folder,
            "HAR_ROLLOUT_REPORT": str(report),
        }
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(hosts), "--forks", str(forks)]
        started = time.monotonic()
        with Path(folder, "out").open("w+") as out:
            with subprocess.Popen([*command, "playbooks/rollout.yml"], cwd=ANSIBLE, env=env, stdout=out) as run:
                peak = 0.0
                while run.poll() is None:
                    peak = max(peak, peak_mib(run.pid))
                    time.sleep(0.5)
            seconds = time.monotonic() - started
            out.seek(0)
            text = out.read()
        told = text[text.rindex("ROLLOUT") :] if "ROLLOUT" in text else text[-2000:]
        sys.stderr.write(told)
        counts = json.loads(report.read_text())["counts"] if report.exists() else {}
        ran = sum(text.count(f"\n{state}: [") for state in ("ok", "changed", "skipping", "fatal", "included"))
        return {
            "boards": boards,
            "forks": forks,
            "exit": run.returncode,
            "counts": {name: count for name, count in counts.items() if count},
            "batches": text.count("PLAY [Canaries]") + text.count("PLAY [Batches]"),
            "seconds": round(seconds, 1),
            "board_tasks": ran,
            "tasks_per_s": round(ran / seconds, 1),
            "controller_peak_mib": round(peak),
        }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--boards", type=int, default=1000)
    parser.add_argument("--forks", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=0, help="more tasks in each of the four steps")
    parser.add_argument("--fails", type=int, default=0, help="number of the board that does not verify")
    asked = parser.parse_args()
    sys.stdout.write(json.dumps(measure(asked.boards, asked.forks, asked.tasks, asked.fails), indent=1) + "\n")


if __name__ == "__main__":
    main()
