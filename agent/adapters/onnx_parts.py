"""Any part of the network of a verified bundle, as ONNX Runtime sessions: what another machine began goes on here.

The network is what scores a window: encoder, classifier and novelty as one graph. Its parts lie between its bridges
(`core.cuts`), and are cut out of the graph as the bundle has it, so that any machine can run them.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from agent.adapters.onnx_model import check_golden, check_signatures, open_session, scoring_graphs
from agent.core.cuts import bridges, described
from agent.core.manifest import CODE, NOVELTY, SEGMENT, WINDOW, Bundle, Exit, Golden, Segment, SegmentGolden
from agent.core.onnx_wire import TYPES, Value, extract, fuse, signature
from agent.errors import InferenceError, ModelContractError
from agent.records import Scores

Array = npt.NDArray[Any]

MOST_SESSIONS = 16
"""Sessions that are kept open. A board and its workers use one or two each, unless plans change."""

STEPS, SHARE = 1, 1e-3
"""How far from its golden vectors what a segment gives may be: steps of integers, shares of the largest of floats. As
with the scores of a whole bundle, another processor may round a tie otherwise."""

_END = ("logits", "novelty")


class Cut(NamedTuple):
    """A tensor that everything passes through. `bytes`, `shape`: of one window, without the axis of the batch."""

    name: str
    bytes: int
    dtype: str
    shape: tuple[int, ...]


class Parts:
    """Runs any part of the network that a bundle holds: all of it, or a segment.

    `network`: the first 8 bytes of the SHA-256 of the whole's manifest, by which machines know that they mean the same
    one. `id`, `manifest`: of the whole; of a segment's own manifest, what it has of the whole's. `cuts`: where a part
    can begin, in order. `until`: the tensor that the bundle reaches, empty at the end. `exits`: those that it has.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Find the cuts, which takes a run for one window and one for two. Sessions are opened as they are needed.

        Raises:
            ModelContractError: the network cannot be split, or a graph is not what the manifest means.
        """
        self.manifest = bundle.manifest
        segment = self.manifest.segment or Segment(bundle.id, bundle.digest, WINDOW, "")
        self.id, self.until = segment.of, segment.until
        self.network = bytes.fromhex(segment.network)[:8]
        self._bundle = bundle
        self._graph = _network(bundle)
        self._heads = {one.name: bundle.contents[one.file] for one in self.manifest.exits}
        self._sessions: OrderedDict[tuple[str, str, str], ort.InferenceSession] = OrderedDict()
        self._tensors = {value.name: value for value in self._found()}
        self.cuts = tuple(_cut(value) for name, value in self._tensors.items() if name != self.until)
        self.exits = tuple(one for one in self.manifest.exits if self._fits(one))

    def values(self, at: str, data: bytes, count: int) -> Array:
        """Return the bytes of the tensor `at` of `count` windows as an array, little-endian, C order.

        Raises:
            ValueError: no part begins there, or they are not as many bytes as that takes.
        """
        cut = self._begins(at)
        if len(data) != count * cut.bytes:
            raise ValueError(f"{len(data)} bytes are not {count} times the {cut.bytes} of {at}")
        return np.frombuffer(data, np.dtype(cut.dtype).newbyteorder("<")).reshape(count, *cut.shape)

    def run(self, at: str, until: str, values: Array, exit: str = "") -> Array | Scores:  # noqa: A002
        """Run the part from the tensor `at` to the tensor `until`, and return that for each of B windows.

        With no `until`, run to the end, or to the head of an `exit`, and return scores. Their code is what was taken
        where that was the code, and zeros where an exit gave them. `values`: (B, …) as `cuts` says of `at`.

        Raises:
            ValueError: there is no such part, or `values` does not fit it.
            InferenceError: ONNX Runtime refused the call.
            ModelContractError: it refused the part.
        """
        cut = self._begins(at)
        head = next((one for one in self.exits if one.name == exit), None)
        target = head.at if head else until
        if exit and (until or not head):
            raise ValueError(f"{self.id} has no exit {exit!r}" if not head else "an exit ends the network")
        if not head and not until and self.until:
            raise ValueError(f"{self.id}: this bundle reaches {self.until}, not the end")
        names = list(self._tensors)
        if target and (target not in names or names.index(target) + bool(head) <= names.index(at)):
            raise ValueError(f"{self.id} has no part from {at} to {target}")
        if values.dtype != cut.dtype or values.shape[1:] != cut.shape:
            raise ValueError(f"{at} is {cut.dtype} {cut.shape} a window, not {values.dtype} {values.shape[1:]}")
        wanted = [until] if until else [*_END] if head or at == CODE else [CODE, *_END]
        session = self._session(at, until, exit)
        try:
            given = session.run(wanted, {at: values})
        except Exception as e:  # ORT's exception classes share no base but Exception
            where = exit or until or "the end"
            raise InferenceError(f"{self.id}: ONNX Runtime failed from {at} to {where} on {len(values)}: {e}") from e
        if until:
            return np.asarray(given[0])
        *code, logits, novelty = given
        if not code:
            code = [values if at == CODE else np.zeros((len(values), *self.manifest.code.shape), np.int8)]
        by_exit = np.ones(len(values), np.bool_) if head else None
        return Scores(logits, code[0], novelty.astype(np.float64), by_exit)

    def verify(self, golden: Golden | SegmentGolden) -> None:
        """Run the golden vectors through the whole and through its parts, and compare; drop what is not the same.

        A cut stays if what comes before it and what comes after it give together, bit by bit, what the whole gives,
        and so with the cut before it. One inside of what ONNX Runtime computes in one go may not, such as between a
        convolution in integers and its rounding. An exit goes with its cut.

        Raises:
            ModelContractError: this machine does not compute what the bundle's builder did.
        """
        if isinstance(golden, Golden):
            takes: Array = self.manifest.normalisation.apply(golden.window)
            gives: Array | Scores = Scores(golden.logits, golden.code, golden.novelty)
        else:
            takes, gives = golden
        first, *others = self.cuts
        try:
            whole = self.run(first.name, self.until, takes)
        except InferenceError as e:
            raise ModelContractError(str(e)) from e
        self._check(whole, gives)
        kept = [(first, takes)]
        for cut in others:
            value = self._tried(first, takes, cut.name)
            if not isinstance(value, np.ndarray) or not _same(self._tried(cut, value, self.until), whole):
                continue
            # Of two that do not go together, that with more bytes is the one that nobody would send.
            while not (goes := _same(self._tried(*kept[-1], cut.name), value)) and kept[-1][0].bytes > cut.bytes:
                kept.pop()
            if goes:
                kept.append((cut, value))
        self.cuts = tuple(cut for cut, _ in kept)
        names = [*(cut.name for cut in self.cuts), *([self.until] if self.until else [])]
        self._tensors = {name: self._tensors[name] for name in names}
        self.exits = tuple(
            one
            for one in self.exits
            if one.at in names
            and all(
                _same(self._tried(*begun, "", one.name), self._tried(first, takes, "", one.name))
                for begun in kept[: names.index(one.at) + 1]
            )
        )
        self._sessions.clear()

    def _check(self, whole: Array | Scores, gives: Array | Scores) -> None:
        """Hold what the whole gives against the golden vectors."""
        if isinstance(whole, Scores) and isinstance(gives, Scores):
            check_golden(self._bundle, whole, gives)
            return
        ours, theirs = np.asarray(whole), np.asarray(gives)
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise ModelContractError(f"{self._bundle.id}: its graph does not give the shapes that it declares")
        off = float(np.abs(ours.astype(np.float64) - theirs).max())
        allowed = STEPS if ours.dtype.kind in "iu" else SHARE * float(np.abs(theirs).max())
        if not off <= allowed:
            raise ModelContractError(
                f"{self._bundle.id} fails its golden vectors on this machine: {self.until} is off by {off:.3g}, "
                f"{allowed:.3g} at most is rounding"
            )

    def _tried(self, cut: Cut, values: Array, until: str, exit: str = "") -> Array | Scores | None:  # noqa: A002
        """What a part gives, None where ONNX Runtime refuses it."""
        try:
            return self.run(cut.name, until, values, exit)
        except (InferenceError, ModelContractError):
            return None

    def _begins(self, at: str) -> Cut:
        """The cut of that name."""
        cut = next((cut for cut in self.cuts if cut.name == at), None)
        if cut is None:
            raise ValueError(f"{self.id} has no part here that begins at {at}")
        return cut

    def _session(self, at: str, until: str, exit: str) -> ort.InferenceSession:  # noqa: A002
        """The session of a part, opened if it is not."""
        key = (at, until, exit)
        if key not in self._sessions:
            where = f"the exit {exit}" if exit else until or "the end"
            self._sessions[key] = open_session(f"{self.id} from {at} to {where}", self.part(at, until, exit))
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(key)
        return self._sessions[key]

    def part(self, at: str, until: str, exit: str = "") -> bytes:  # noqa: A002
        """Return the graph of a part, as of `run`, which checks that there is one."""
        takes = [self._tensors[at]]
        if exit:
            one = next(one for one in self.exits if one.name == exit)
            return self._heads[exit] if one.at == at else self._with_head(takes, one)
        if until:
            return extract(self._graph, takes, [self._tensors[until]])
        _, outputs = signature(self._graph)
        return extract(self._graph, takes, [value for value in outputs if value.name != CODE or at != CODE])

    def _found(self) -> Iterator[Value]:
        """What the network takes, its bridges that can be sent, and what it gives if that is no score, in order."""
        (first,), outputs = signature(self._graph)
        path = extract(self._graph, [first], [value for value in outputs if value.name in (*_END, self.until)])
        yield first
        if names := bridges(path):
            yield from self._described(first, extract(path, [first], [Value(name, 0, ()) for name in names]), names)
        if self.until:
            yield outputs[0]

    def _described(self, first: Value, graph: bytes, names: list[str]) -> Iterator[Value]:
        """What those of the tensors that a graph gives are that have a row a window."""
        session = open_session(self._bundle.id, graph)
        shape, dtype = [n or 0 for n in first.shape[1:]], TYPES[first.dtype]
        try:
            one, two = (session.run(None, {first.name: np.zeros((n, *shape), dtype)}) for n in (1, 2))
        except Exception as e:  # as above
            raise ModelContractError(f"{self._bundle.id}: ONNX Runtime failed on two windows: {e}") from e
        for name, alone, both in zip(names, one, two, strict=True):
            # Without a row a window, nobody could tell what of it is whose.
            if alone.shape[:1] == (1,) and both.shape == (2, *alone.shape[1:]):
                yield described(name, alone, both)

    def _fits(self, one: Exit) -> bool:
        """Whether an exit's cut can be sent.

        Raises:
            ModelContractError: its head takes something else, or cannot be run as one with what comes before it.
        """
        if one.at not in self._tensors:
            return False
        (takes,), _ = signature(self._heads[one.name])
        if takes != self._tensors[one.at]:
            raise ModelContractError(f"{one.file}: it declares {one.at} otherwise than the network computes it")
        self._with_head([next(iter(self._tensors.values()))], one)
        return True

    def _with_head(self, takes: list[Value], one: Exit) -> bytes:
        """The part up to an exit's cut and its head as one graph.

        It still gives the tensor that the head reads: so that is computed as it is for the end.
        """
        joined = fuse([extract(self._graph, takes, [self._tensors[one.at]]), self._heads[one.name]])
        if joined is None:
            raise ModelContractError(
                f"{one.file} cannot be run as one graph with the network: their names collide or their opsets differ"
            )
        return joined


def _network(bundle: Bundle) -> bytes:
    """The graph that is cut."""
    if bundle.manifest.segment:
        return bundle.contents[SEGMENT]
    check_signatures(bundle)
    if NOVELTY not in bundle.contents:
        raise ModelContractError(
            f"{bundle.id} cannot be split: it has no {NOVELTY}, and the decoder's error needs the window at the end"
        )
    graph, *others = scoring_graphs(bundle).values()
    if others:
        raise ModelContractError(
            f"{bundle.id} cannot be split: its encoder, classifier and novelty cannot be run as one graph, because "
            "their names collide or their opsets differ"
        )
    return graph


def _cut(value: Value) -> Cut:
    shape, dtype = tuple(n or 0 for n in value.shape[1:]), TYPES[value.dtype]
    return Cut(value.name, int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype, shape)


def _same(one: Array | Scores | None, other: Array | Scores | None) -> bool:
    """Whether two results are the same, bit by bit."""
    if one is None or other is None:
        return False
    pairs = zip(one, other, strict=True) if isinstance(one, Scores) and isinstance(other, Scores) else [(one, other)]
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
