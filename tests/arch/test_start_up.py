"""What a command imports is what a board waits for and keeps in memory: each loads only what it uses."""

import subprocess
import sys
from pathlib import Path

import pytest

CSV = "# acc_unit: g\n# gyro_unit: rad/s\nt,ax,ay,az,gx,gy,gz\n" + "".join(
    f"{n / 50:.2f},0,0,1,0,0,0\n" for n in range(200)
)

NOT_FOR_REPLAY = {"serial", "paho", "amqtt", "psutil", "rich", "pydantic", "nacl", "backports", "asyncio"}

RUN = """
import sys
from agent.cli import main
sys.argv[1:] = {arguments!r}
try:
    main()
except SystemExit as e:
    assert not e.code, e.code
"""


def imported_by(code: str) -> set[str]:
    """Return the top-level packages that a fresh Python has imported after `code`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.splitlines()[-1].split())


@pytest.fixture
def recording(tmp_path: Path) -> str:
    path = tmp_path / "still.csv"
    path.write_text(CSV)
    return str(path)


def test_the_command_line_itself_loads_nothing_heavy() -> None:
    assert imported_by("import agent.cli") & {"numpy", "onnxruntime", "structlog", *NOT_FOR_REPLAY} == set()


def test_replay_loads_no_live_source_and_no_broker(recording: str) -> None:
    loaded = imported_by(RUN.format(arguments=["replay", recording]))

    assert "onnxruntime" in loaded
    assert loaded & NOT_FOR_REPLAY == set()


def test_the_daemon_loads_what_asks_a_cloud_only_where_one_is_asked() -> None:
    code = "import agent.app.run, sys; print(*(name for name in sys.modules if name.startswith('agent')))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    asking = {"agent.runtime.fallback", "agent.core.offload", "agent.core.link", "agent.core.cloud_wire"}
    asking |= {"agent.runtime.split", "agent.core.split_wire", "agent.core.planner", "agent.adapters.onnx_parts"}
    assert set(ran.stdout.split()) & {*asking, "agent.adapters.mqtt.requester"} == set()
