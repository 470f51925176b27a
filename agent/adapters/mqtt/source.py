"""Samples of many devices from MQTT: one filter, one decoder a device, one queue for what they give.

Decoding runs in the connection's thread. It is bounded by `max_payload`, and handing bytes over to be decoded elsewhere
would cost more than it saves. A broken connection cuts no stream: the timelines see for themselves what is missing.
"""

from collections import Counter
from collections.abc import Callable, Collection

from agent.adapters.mqtt.connection import Connection
from agent.adapters.mqtt.session import Message
from agent.core.settings import MqttInSettings
from agent.ports import Decoder
from agent.records import Decoded, LinkState, Loss

LONGEST_NAME = 64
_SWEEP_NS = 1_000_000_000


class MqttSource:
    """Feeds `put` with what devices send, from `start` to `close`. `forget` and `state` are for any thread."""

    def __init__(
        self,
        connection: Connection,
        settings: MqttInSettings,
        decoder: Callable[[str], Decoder],
        put: Callable[[Decoded], object],
        *,
        tee: Callable[[str, bytes, int], object] | None = None,
        reserved: Collection[str] = (),
    ) -> None:
        """Prepare; `start` begins to connect.

        `connection`: the source's own, with a client id of its own. `decoder`: makes the decoder of a device. `put`:
        takes what was decoded, and must neither block nor raise, nor may `tee`, which is given device, payload and
        receive time of every message that goes to a decoder. `reserved`: names that no device may have.
        """
        self._connection = connection
        self._decoder = decoder
        self._put = put
        self._tee = tee
        self._reserved = reserved
        self._max_devices = settings.max_devices
        self._level = settings.filter.split("/").index("{device}")
        self._decoders: dict[str, Decoder] = {}
        self.messages = 0
        """Messages that came, of any kind."""
        self.refused: Counter[Loss] = Counter()
        """Messages that no decoder saw, by reason; retained ones among them: nobody knows how old their samples are."""
        self._heard_ns: dict[str, int] = {}
        self._idle_ns = round(settings.idle_s * 1e9)
        self._swept_ns = 0
        topic_filter = settings.filter.replace("{device}", "+")
        if settings.share:
            topic_filter = f"$share/{settings.share}/{topic_filter}"
        connection.subscribe(topic_filter, settings.qos, self._take)

    @property
    def devices(self) -> int:
        """Devices known now."""
        return len(self._decoders)

    def start(self) -> None:
        """Begin to connect. Does not wait for it."""
        self._connection.start()

    @property
    def failures(self) -> int:
        """Messages lost to an unexpected error, which `complain` was told."""
        return self._connection.failures

    def state(self) -> LinkState:
        """Return where the connection stands now."""
        return self._connection.now()[0]

    def forget(self, device: str) -> None:
        """Make room for another device; this one is new when it sends again."""
        self._decoders.pop(device, None)
        self._heard_ns.pop(device, None)

    def close(self) -> None:
        """Disconnect. Blocks no longer than `connection.CLOSE_S`. Idempotent."""
        self._connection.close()

    def _take(self, message: Message) -> None:
        self.messages += 1
        if message.retained:
            self.refused[Loss.RETAINED] += 1
            return
        device = message.topic.split("/")[self._level]
        decoder = self._decoders.get(device)
        if decoder is None and (decoder := self._admit(device, message.t_rx_ns)) is None:
            return
        self._heard_ns[device] = message.t_rx_ns
        if self._tee is not None:
            self._tee(device, message.payload, message.t_rx_ns)
        for item in decoder.feed(message.payload, message.t_rx_ns):
            self._put(item)

    def _admit(self, device: str, now_ns: int) -> Decoder | None:
        """Make a decoder for a device not heard before, or count why not."""
        if not device or len(device) > LONGEST_NAME or not device.isprintable() or device in self._reserved:
            self.refused[Loss.TOPIC] += 1
            return None
        if len(self._decoders) >= self._max_devices:
            self._sweep(now_ns)
        if len(self._decoders) >= self._max_devices:
            self.refused[Loss.TOO_MANY_DEVICES] += 1
            return None
        self._decoders[device] = decoder = self._decoder(device)
        return decoder

    def _sweep(self, now_ns: int) -> None:
        """Take back the places of devices that have long been silent, also of those whose every message was lost."""
        if now_ns - self._swept_ns < _SWEEP_NS:
            return
        self._swept_ns = now_ns
        for device, heard_ns in list(self._heard_ns.items()):
            if now_ns - heard_ns > self._idle_ns:
                self.forget(device)
