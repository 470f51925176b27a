"""A verified bundle as ONNX Runtime sessions."""

import numpy as np
import onnxruntime as ort

from agent.core.manifest import Bundle
from agent.core.novelty import reconstruction_error
from agent.errors import InferenceError, ModelContractError
from agent.records import Float32Array, Float64Array, Int8Array, Scores

CODE_TOLERANCE = 1
LOGIT_TOLERANCE = 0.5
NOVELTY_TOLERANCE = 0.05
"""How far this board's results may be from the golden ones: one step of the code, half a logit (a few steps of its
int8 grid), 5 % of the novelty. Kernels may round a tie differently; anything beyond is a broken kernel."""


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


class OrtModel:
    """`ports.Model` on ONNX Runtime, CPU. Sessions are made in the constructor, which holds the GIL for a while."""

    def __init__(self, bundle: Bundle) -> None:
        """Open the bundle's graphs.

        Raises:
            ModelContractError: a graph cannot be opened, or its inputs and outputs are not the manifest's.
        """
        self.bundle = bundle
        self.id = bundle.id
        self.labels = bundle.manifest.labels
        manifest = bundle.manifest
        window = ("tensor(float)", (manifest.input.window, len(manifest.input.channels)))
        code = ("tensor(int8)", manifest.code.shape)
        logits = ("tensor(float)", (len(self.labels),))
        self.encoder = _open(bundle, "encoder.onnx", ("window", *window), ("code", *code))
        self.classifier = _open(bundle, "classifier.onnx", ("code", *code), ("logits", *logits))
        self.decoder = _open(bundle, "decoder.onnx", ("code", *code), ("reconstruction", *window))

    def infer(self, windows: Float32Array) -> Scores:
        """Score float32 (B, window, 6), normalised.

        Raises:
            InferenceError: ONNX Runtime refused the call.
        """
        try:
            (code,) = self.encoder.run(None, {"window": windows})
            (logits,) = self.classifier.run(None, {"code": code})
            (reconstruction,) = self.decoder.run(None, {"code": code})
        except Exception as e:  # ORT's exception classes share no base but Exception
            raise InferenceError(f"{self.id}: ONNX Runtime failed on a batch of {len(windows)}: {e}") from e
        return Scores(logits, code, reconstruction_error(windows, reconstruction))

    def verify(self, windows: Float32Array, code: Int8Array, logits: Float32Array, novelty: Float64Array) -> None:
        """Run the golden windows (physical units) on this board and compare.

        Raises:
            ModelContractError: this board does not compute what the bundle's builder did.
        """
        try:
            got = self.infer(self.bundle.manifest.normalisation.apply(windows))
        except InferenceError as e:
            raise ModelContractError(str(e)) from e
        off_code = int(np.abs(got.code.astype(np.int16) - code).max())
        off_logits = float(np.abs(got.logits - logits).max())
        off_novelty = float((np.abs(got.novelty - novelty) / np.maximum(novelty, 1e-6)).max())
        wrong = int((got.logits.argmax(1) != logits.argmax(1)).sum())
        if wrong or not (
            off_code <= CODE_TOLERANCE and off_logits <= LOGIT_TOLERANCE and off_novelty <= NOVELTY_TOLERANCE
        ):
            raise ModelContractError(
                f"{self.id} fails its golden vectors on this board: {wrong} of {len(windows)} labels differ, code off "
                f"by {off_code} steps, logits by {off_logits:.3g}, novelty by {off_novelty:.1%}"
            )


def _open(
    bundle: Bundle,
    name: str,
    takes: tuple[str, str, tuple[int, ...]],
    gives: tuple[str, str, tuple[int, ...]],
) -> ort.InferenceSession:
    try:
        session = ort.InferenceSession(bundle.contents[name], session_options(), providers=["CPUExecutionProvider"])
    except Exception as e:  # as above
        raise ModelContractError(f"{name} cannot be opened by ONNX Runtime: {e}") from e
    for side, nodes, (wanted, dtype, shape) in (
        ("input", session.get_inputs(), takes),
        ("output", session.get_outputs(), gives),
    ):
        found = [(n.name, n.type, tuple(n.shape[1:])) for n in nodes]
        if found != [(wanted, dtype, shape)] or isinstance(nodes[0].shape[0], int):
            raise ModelContractError(
                f"{name}: its {side} is {found}, where the manifest means one {wanted!r}, {dtype} (batch, {shape})"
            )
    return session
