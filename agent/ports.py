"""The protocols that the pipeline and the runtime are written against. Each method says whether it may block."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from agent.records import (
    Ack,
    CloudReply,
    Decoded,
    Float32Array,
    Int8Array,
    LinkState,
    Outgoing,
    PowerReading,
    Scores,
    Stored,
    Turn,
)

if TYPE_CHECKING:
    from agent.core.manifest import Exit, Manifest
    from agent.core.slots import Slot, SlotState


class Model(Protocol):
    """A verified model bundle, ready to run."""

    @property
    def id(self) -> str:
        """Name and digest, `har-base@3f9c1a7e`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""

    @property
    def context_windows(self) -> int:
        """Windows whose codes `contextualise` takes, the one that it scores included; 0 where there is no context."""

    def infer(self, windows: Float32Array) -> Scores:
        """Run float32 (B, window, 6), normalised. CPU-bound, does not wait for anything.

        Raises:
            InferenceError: the runtime refused the call.
        """

    def contextualise(self, codes: Int8Array) -> Float32Array:
        """Score B windows by what came before them; float32 (B, classes), logits. CPU-bound, as `infer` is.

        `codes`: int8 (B, `context_windows`, *code), oldest first, the window's own last, zeros where there was
        none: at the start of a stream, and after a gap.

        Raises:
            InferenceError: the runtime refused the call.
        """


class Source(Protocol):
    """Where samples come from."""

    def poll(self, timeout_s: float) -> Sequence[Decoded] | None:
        """Return what has come, waiting at most `timeout_s` for it; None once the source has ended.

        Raises:
            SourceUnavailable: the source went away; it may come back.
            InputError: what it delivers cannot be used at all.
        """

    def close(self) -> None:
        """Stop and release everything. Does not block longer than the source's own deadline. Idempotent."""


class Sink(Protocol):
    """Where events go."""

    def write(self, turn: Turn) -> None:
        """Take one turn's events, in order. May block on the medium.

        Raises:
            OutputError: the medium refused for good.
            SinkUnavailable: it refused for now.
        """

    def close(self) -> None:
        """Flush and release. Idempotent."""


class Clock(Protocol):
    """The only way that anything above `adapters` learns the time."""

    def monotonic_ns(self) -> int:
        """Nanoseconds on the monotonic clock."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, which may be wrong: see `synced`."""

    def synced(self) -> bool:
        """Whether something keeps the wall clock right, as far as the system knows."""

    def sleep(self, seconds: float) -> None:
        """Block for `seconds`."""


class PowerMeter(Protocol):
    """Something that knows, or models, what the board draws."""

    def read(self) -> PowerReading:
        """Return the power drawn now. May block for the meter's own conversion time."""


class Log(Protocol):
    """Where the agent tells what happens, an event and its facts at a time; nothing per window."""

    def info(self, event: str, **facts: object) -> object:
        """Say what is as it should be, or is so again."""

    def warning(self, event: str, **facts: object) -> object:
        """Say what a person may have to look at."""


class Decoder(Protocol):
    """Bytes of one stream in; samples, and counted reasons for what could not be read, out. Does no I/O."""

    def feed(self, data: bytes, t_rx_ns: int) -> list[Decoded]:
        """Decode what is complete with `data`, which came at `t_rx_ns`; keep the rest."""

    def reset(self) -> list[Decoded]:
        """The connection broke: count what is incomplete, forget it, and interrupt the stream."""


class Outbox(Protocol):
    """Messages that must not be lost, in order, until they are removed. Used from one thread."""

    def append(self, messages: Sequence[Outgoing]) -> list[int]:
        """Store messages and return their keys; as durable as configured on return. May block on the disk.

        Never raises for a disk's sake: what cannot be written to disk is held in memory, and `problem` says so.
        """

    def remove(self, keys: Sequence[int]) -> None:
        """Forget messages; unknown keys are no error. May be written with the next `append`."""

    def oldest(self, n: int, after: int = 0) -> list[Stored]:
        """Return up to `n` messages with keys above `after`, in order."""

    @property
    def depth(self) -> int:
        """Messages held."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the messages held."""

    @property
    def dropped(self) -> int:
        """Messages let go, oldest first, because the byte cap was reached."""

    @property
    def problem(self) -> str | None:
        """What is wrong with the storage, for people; None if nothing is."""

    def tick(self) -> None:
        """Do what is due: write delayed removals, try the disk again. May block on the disk."""

    def close(self) -> None:
        """Write everything out and release. Idempotent."""


class Link(Protocol):
    """A connection to brokers that comes and goes by itself. Nothing here blocks on the network, or raises for it."""

    def state(self) -> LinkState:
        """Return where the link stands now."""

    def offer(self, message: Outgoing) -> int | None:
        """Hand over one message at QoS 1; None while the link is away or takes no more before acknowledgements."""

    def acknowledged(self) -> list[Ack]:
        """Return the broker's answers since the last call."""

    def disturb(self, problem: str) -> None:
        """Give the connection up, because of `problem`, and try the next broker."""

    def close(self) -> None:
        """Disconnect. Blocks no longer than its own deadline. Idempotent."""


class Cloud(Protocol):
    """Workers behind a broker, which may answer. Only `wait` blocks on the network, and nothing raises for it."""

    @property
    def connected(self) -> bool:
        """Whether a request can be sent now."""

    @property
    def problem(self) -> str | None:
        """Why none can, or what may get in the way of one, for people; None while nothing is known of that."""

    def ask(self, correlation: bytes, payload: bytes) -> bool:
        """Send a request once, at QoS 0; False if it cannot be sent now."""

    def answers(self) -> list[CloudReply]:
        """Return what came since the last call: any number for a request, and for requests that were never sent."""

    @property
    def dropped(self) -> int:
        """How many answers were thrown away because too many waited to be taken."""

    def wait(self, timeout_s: float) -> bool:
        """Block until there are `answers` to take, `timeout_s` at most; whether there are."""

    def close(self) -> None:
        """Disconnect. Blocks no longer than its own deadline. Idempotent."""


class Cut(Protocol):
    """A tensor at which a network can be cut in two; bytes and shape are those of one window."""

    @property
    def name(self) -> str:
        """As the graph calls it."""

    @property
    def bytes(self) -> int:
        """What goes over the link."""

    @property
    def dtype(self) -> str:
        """NumPy's name of its type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the axis of the batch."""


class Parts(Protocol):
    """A network that scores windows, or a part of one, which runs from any cut in it to any behind that."""

    @property
    def id(self) -> str:
        """Of the bundle that holds the whole network."""

    @property
    def network(self) -> bytes:
        """The first bytes of the SHA-256 of that bundle's manifest."""

    @property
    def manifest(self) -> "Manifest":
        """Of that bundle; of a segment's own, what it has of that."""

    @property
    def cuts(self) -> Sequence[Cut]:
        """Where it can begin, in order."""

    @property
    def until(self) -> str:
        """The tensor that it ends with; empty where that is the network's end."""

    @property
    def exits(self) -> "Sequence[Exit]":
        """Heads that can answer in place of the end."""

    def values(self, at: str, data: bytes, count: int) -> NDArray[Any]:
        """Return the tensor `at` of so many windows.

        Raises:
            ValueError: it cannot begin there, or `data` has another size.
        """

    def run(self, at: str, until: str, values: NDArray[Any], exit: str = "") -> NDArray[Any] | Scores:  # noqa: A002
        """Go on from `at` up to the tensor `until`; where that is empty, to the scores of an exit, or else of the end.

        CPU-bound, does not wait for anything.

        Raises:
            InferenceError: the runtime refused the call.
            ModelContractError: it refused the part.
            ValueError: there are no such tensors or exit, or not in this order.
        """


class SlotStore(Protocol):
    """Where installed bundles are kept. Every step is whole or has not happened, also if the power is cut in it.

    All methods may block on the disk; those that change something raise `OutputError`.
    """

    def load(self) -> "tuple[SlotState, str | None]":
        """Return the state, that of empty slots where it cannot be used, and why it cannot. Changes nothing."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from changing anything. What happens inside is theirs to see afterwards.

        Raises:
            OutputError: another process is changing something, or the store cannot be written.
        """

    def save(self, state: "SlotState") -> None:
        """Replace the state; a damaged one is kept aside."""

    def stage(self, files: Mapping[str, bytes]) -> None:
        """Write a bundle's files beside the slots."""

    def place(self, slot: "Slot") -> None:
        """Put what was staged in place of what is in `slot`, which no state may refer to at this moment."""

    def quarantine(self, slot: "Slot") -> None:
        """Put aside what is in `slot`, for people to look at."""

    def folder(self, slot: "Slot") -> str:
        """Return where the bundle of `slot` is."""
