"""What the tests against a real broker share."""

from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from mosquitto import Mosquitto
from paho.mqtt.enums import CallbackAPIVersion


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """Return a broker of the test's own, which runs."""
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def publisher(broker: Mosquitto) -> Iterator[paho.Client]:
    """Return a client of that broker, connected."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect(broker.host, broker.port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()
