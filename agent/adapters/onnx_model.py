"""A verified bundle as ONNX Runtime sessions.

What scores a window is one session wherever the bundle's graphs can be fused. On a board every call comes after a
pause: most of its time goes into cold caches, once a session.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from agent.core import onnx_wire
from agent.core.manifest import CONTEXT, NOVELTY, Bundle, Golden, Manifest
from agent.core.novelty import reconstruction_error
from agent.core.onnx_wire import FLOAT, INT8, TYPES, Value
from agent.errors import InferenceError, ModelContractError
from agent.records import Float32Array, Int8Array, Scores

CODE_TOLERANCE = 1
LOGIT_TOLERANCE = 0.5
NOVELTY_TOLERANCE = 0.1
"""How far this board's results may be from the golden ones: one step of the code, half a logit (a few steps of its
int8 grid), a tenth of the novelty. Where that is less than a quarter of its threshold, a tenth of this quarter: down
there it decides nothing, and one step is much of it. Kernels may round a tie differently; anything beyond is a broken
kernel."""


def session_options() -> ort.SessionOptions:
    """Return the settings of every session: one thread, no spinning, no arena.

    The defaults spin for milliseconds after each call, which at one call every 1.28 s is nearly all of the CPU used.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(name: str, graph: bytes) -> ort.InferenceSession:
    """Open a graph that has been verified; `name` is for people.

    Raises:
        ModelContractError: ONNX Runtime refuses it.
    """
    try:
        return ort.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
    except Exception as e:  # ORT's exception classes share no base but Exception
        raise ModelContractError(f"{name} cannot be opened by ONNX Runtime: {e}") from e


def optimised(name: str, graph: bytes) -> bytes:
    """Return what ONNX Runtime makes of a graph on this machine before it runs it; `name` is for people.

    Raises:
        ModelContractError: ONNX Runtime refuses it.
    """
    options = session_options()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            return path.read_bytes()
        except Exception as e:  # as above
            raise ModelContractError(f"{name} cannot be optimised by ONNX Runtime: {e}") from e


def scoring_graphs(bundle: Bundle) -> dict[str, bytes]:
    """Return the graphs that a window is scored with, in order, by what to call them: one if they can be fused."""
    names = ("encoder.onnx", "classifier.onnx", NOVELTY if NOVELTY in bundle.contents else "decoder.onnx")
    graphs = {name: bundle.contents[name] for name in names}
    fused = onnx_wire.fuse(list(graphs.values()))
    return graphs if fused is None else {f"{', '.join(names)} as one": fused}


class OrtModel:
    """`ports.Model` on ONNX Runtime, CPU. Sessions are made in the constructor, which holds the GIL for a while."""

    def __init__(self, bundle: Bundle) -> None:
        """Open the graphs that score a window, and the context if there is one.

        Raises:
            ModelContractError: a graph cannot be opened, or its inputs and outputs are not the manifest's.
        """
        if bundle.manifest.segment is not None:
            raise ModelContractError(
                f"{bundle.id} holds a part of {bundle.manifest.segment.of}, which labels nothing by itself: a worker "
                "serves it (har-agent cloud-worker); here, name the bundle of the whole"
            )
        self.bundle = bundle
        self.id = bundle.id
        self.labels = bundle.manifest.labels
        self.context_windows = bundle.manifest.context.windows if bundle.manifest.context else 0
        self._novel = NOVELTY in bundle.contents
        self._sessions: dict[str, ort.InferenceSession] = {}
        check_signatures(bundle)
        self.scoring = [self._opened(name, graph) for name, graph in scoring_graphs(bundle).items()]
        """What a window is scored with: the first takes `window`, others `code`."""
        self.context = self._opened(CONTEXT, bundle.contents[CONTEXT]) if self.context_windows else None

    @property
    def encoder(self) -> ort.InferenceSession:
        """The encoder by itself. Opened when it is first asked for, as are those below."""
        return self._alone("encoder.onnx")

    @property
    def classifier(self) -> ort.InferenceSession:
        """The classifier by itself."""
        return self._alone("classifier.onnx")

    @property
    def decoder(self) -> ort.InferenceSession:
        """The decoder by itself."""
        return self._alone("decoder.onnx")

    @property
    def novelty(self) -> ort.InferenceSession | None:
        """The graph that gives a code's novelty by itself; None where that is the decoder's error."""
        return self._alone(NOVELTY) if self._novel else None

    def infer(self, windows: Float32Array) -> Scores:
        """Score float32 (B, window, 6), normalised.

        Raises:
            InferenceError: ONNX Runtime refused the call.
        """
        first, *others = self.scoring
        try:
            code, *rest = first.run(None, {"window": windows})
            for session in others:
                rest += session.run(None, {"code": code})
            logits, last = rest
            novel = last.astype(np.float64) if self._novel else reconstruction_error(windows, last)
        except Exception as e:  # as above
            raise InferenceError(f"{self.id}: ONNX Runtime failed on a batch of {len(windows)}: {e}") from e
        return Scores(logits, code, novel)

    def contextualise(self, codes: Int8Array) -> Float32Array:
        """Return the context's logits, float32 (B, classes), of int8 (B, context_windows, code), the latest code last.

        Raises:
            InferenceError: ONNX Runtime refused the call, or the bundle has no context.
        """
        if self.context is None:
            raise InferenceError(f"{self.id} has no {CONTEXT}")
        try:
            (logits,) = self.context.run(None, {"codes": codes})
        except Exception as e:  # as above
            raise InferenceError(f"{self.id}: ONNX Runtime failed on the context of {len(codes)} windows: {e}") from e
        scores: Float32Array = logits
        return scores

    def classify(self, codes: Int8Array) -> Scores:
        """Score int8 (B, *code), the codes of windows that were encoded elsewhere, as `infer` scores the windows.

        Raises:
            InferenceError: ONNX Runtime refused the call, or the bundle's novelty cannot be told from a code.
        """
        if self.novelty is None:
            raise InferenceError(f"{self.id} has no {NOVELTY}: what is new to it cannot be told from codes alone")
        try:
            (logits,) = self.classifier.run(None, {"code": codes})
            (novel,) = self.novelty.run(None, {"code": codes})
        except Exception as e:  # as above
            raise InferenceError(f"{self.id}: ONNX Runtime failed on {len(codes)} codes: {e}") from e
        return Scores(logits, codes, novel.astype(np.float64))

    def verify(self, golden: Golden) -> None:
        """Run the golden windows on this board, and the golden codes if there are any, and compare.

        Raises:
            ModelContractError: this board does not compute what the bundle's builder did.
        """
        in_context = []
        try:
            got = self.infer(self.bundle.manifest.normalisation.apply(golden.window))
            if golden.codes is not None and golden.context_logits is not None:
                in_context = [(self.contextualise(golden.codes), golden.context_logits)]
        except InferenceError as e:
            raise ModelContractError(str(e)) from e
        check_golden(self.bundle, got, Scores(golden.logits, golden.code, golden.novelty), in_context)

    def _alone(self, name: str) -> ort.InferenceSession:
        return self._opened(name, self.bundle.contents[name])

    def _opened(self, name: str, graph: bytes) -> ort.InferenceSession:
        if name not in self._sessions:
            self._sessions[name] = open_session(name, graph)
        return self._sessions[name]


def check_golden(
    bundle: Bundle, got: Scores, golden: Scores, others: Sequence[tuple[Float32Array, Float32Array]] = ()
) -> None:
    """Hold scores of golden windows against what they must be; `others`: more logits that were got, and must be.

    Raises:
        ModelContractError: this board does not compute what the bundle's builder did.
    """
    graded = [(got.logits, golden.logits), *others]
    shapes = [(a.shape, b.shape) for a, b in graded]
    shapes += [(got.code.shape, golden.code.shape), (got.novelty.shape, golden.novelty.shape)]
    if any(ours != theirs for ours, theirs in shapes):
        raise ModelContractError(f"{bundle.id}: its graphs do not give the shapes that they declare")
    ours, theirs = (np.concatenate(side) for side in zip(*graded, strict=True))
    off_code = int(np.abs(got.code.astype(np.int16) - golden.code).max())
    off_logits = float(np.abs(ours - theirs).max())
    least = bundle.manifest.calibration.novelty_threshold / 4
    off_novelty = float((np.abs(got.novelty - golden.novelty) / np.maximum(golden.novelty, least)).max())
    wrong = int((ours.argmax(1) != theirs.argmax(1)).sum())
    if wrong or not (off_code <= CODE_TOLERANCE and off_logits <= LOGIT_TOLERANCE and off_novelty <= NOVELTY_TOLERANCE):
        raise ModelContractError(
            f"{bundle.id} fails its golden vectors on this board: {wrong} of {len(ours)} labels differ, code off "
            f"by {off_code} steps, logits by {off_logits:.3g}, novelty by {off_novelty:.1%}"
        )


def check_signatures(bundle: Bundle) -> None:
    """Hold what the graphs of a bundle declare against its manifest: a fused session does not show what is inside.

    Raises:
        ModelContractError: they declare something else.
    """
    for name, takes, gives in _signatures(bundle.manifest):
        if name in bundle.contents:
            _check(name, bundle.contents[name], takes, gives)


def _signatures(manifest: Manifest) -> Iterator[tuple[str, Value, Value]]:
    """What each graph takes and gives."""
    window = (None, manifest.input.window, len(manifest.input.channels))
    code = Value("code", INT8, (None, *manifest.code.shape))
    logits = Value("logits", FLOAT, (None, len(manifest.labels)))
    yield "encoder.onnx", Value("window", FLOAT, window), code
    yield "classifier.onnx", code, logits
    yield "decoder.onnx", code, Value("reconstruction", FLOAT, window)
    yield NOVELTY, code, Value("novelty", FLOAT, (None,))
    if manifest.context:
        yield CONTEXT, Value("codes", INT8, (None, manifest.context.windows, *manifest.code.shape)), logits


def _check(name: str, graph: bytes, takes: Value, gives: Value) -> None:
    inputs, outputs = onnx_wire.signature(graph)
    for side, found, wanted in (("input", inputs, takes), ("output", outputs, gives)):
        if found != [wanted]:
            raise ModelContractError(
                f"{name}: its {side} is {', '.join(map(_described, found)) or 'missing'}, where the manifest means one "
                f"{_described(wanted)}"
            )


def _described(value: Value) -> str:
    shape = ", ".join("any" if n is None else str(n) for n in value.shape)
    return f"{value.name!r}, {TYPES.get(value.dtype, f'type {value.dtype}')} ({shape})"
