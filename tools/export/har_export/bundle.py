"""From a seed and data to a model bundle: train, quantise, calibrate, prove, write."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import har_export
from agent.adapters.bundle import SIGNATURE, load_bundle
from agent.adapters.onnx_model import OrtModel
from agent.core.decision import calibrated
from agent.core.manifest import Bundle, Calibration, Code, Context, Exit, FileEntry, Input, Manifest, dump, sha256
from agent.core.normalise import Normalisation
from agent.errors import InputError
from agent.records import Float32Array, Int8Array
from har_export import card, context, ensemble, exits, novelty
from har_export.calibrate import UNCALIBRATED, accuracy, all_windows, calibrate, hold_out, people, score
from har_export.context import Codes, Encoder, encode_for_training, encode_recordings, histories
from har_export.datasets.records import UNLABELLED, Data, no_windows
from har_export.ensemble import Ensemble
from har_export.exits import Leaving
from har_export.golden import golden_windows
from har_export.network import BASE, Network, Shape
from har_export.quantise import float_graphs, quantise_branches
from har_export.train import Progress, Settings, idle, label_counts, train

RANGE_WINDOWS = 4096
"""Windows that activation ranges are observed on."""

SEEDS_APART = 1000
"""Between the seeds of networks that work together, so that no other seed's networks are among them."""

IDLE_WINDOWS = 4096

EXEMPLARS = 24
"""Histories of codes a class that a bundle carries, for whoever teaches it new activities: see `finetune`."""


@dataclass(frozen=True)
class Parts:
    """Trained networks, their graphs by file name, and exemplars of what they were trained on.

    A bundle for a board has one network. `exits`: the same of each exit of it, the earliest first.
    """

    networks: tuple[Network, ...]
    graphs: dict[str, bytes]
    normalisation: Normalisation
    exemplars: bytes | None
    exits: tuple["Parts", ...] = ()


def build(
    data: Data,
    seed: int,
    settings: Settings,
    name: str,
    metrics: Mapping[str, Any],
    report: Callable[[str, Progress], None] | None = None,
    members: int = 1,
    shape: Shape = BASE,
) -> tuple[Bundle, tuple[Network, ...]]:
    """Train on all of `data` and return the finished bundle, its golden vectors made, and the float networks.

    Calibration must not see the subjects that a model was trained on, and the model should be trained on all
    there are. So a model is trained without a fifth of the subjects, who then calibrate it, and goes on from there
    with everyone. It keeps the calibration, which errs on the careful side.
    `metrics` are put in the manifest and the card beside what is measured here. `members`: how many networks are
    trained to work together, see `ensemble`. `shape`: how large each is; one with exits works alone.

    Raises:
        InputError: fewer than two subjects, or several members with exits.
    """
    if shape.exits and members > 1:
        raise InputError("networks that work together have no exits: train one member")
    if len(data.subjects) < 2:
        raise InputError("training needs at least two subjects: one of them is held out for calibration")

    def reporter(stage: str) -> Callable[[Progress], None] | None:
        return None if report is None else lambda progress: report(stage, progress)

    held_out = hold_out(data.subjects, seed)
    others = [s for s in data.subjects if s not in held_out]
    probe = fit(data.of(others), seed, settings, members, report=reporter("calibration"), shape=shape)
    model = OrtModel(assemble(probe, data.labels, settings, UNCALIBRATED, None, name, {}, {}))
    unseen = data.of(held_out)
    encoder = Encoder(probe.graphs["encoder.onnx"], probe.normalisation)
    codes = encode_recordings(encoder, unseen.recordings, settings.window)
    calibration, history, measured = calibrate(model, unseen, codes)
    measured["float_accuracy"] = accuracy(Ensemble(probe.networks), probe.normalisation, unseen, settings.window)
    leaving = _leaving(probe, model, unseen, settings)
    longer = replace(settings, epochs=settings.epochs_with_everyone)
    parts = fit(data, seed, longer, members, probe, reporter("model"), shape)
    training = describe_training(data, seed, settings, members, shape)
    metrics = {**metrics, "held_out": measured}
    built = assemble(parts, data.labels, settings, calibration, history, name, training, metrics, leaving)
    return built, parts.networks


def _leaving(probe: Parts, model: OrtModel, unseen: Data, settings: Settings) -> list[Leaving]:
    """Calibrate the exits of a network, which is `model` without them, with people whom it has not seen."""
    values, label = all_windows(unseen, settings.window)
    labelled = label != UNLABELLED
    values, label, whose = values[labelled], label[labelled], people(unseen, settings.window)[labelled]
    right_at_end = score(model, probe.normalisation, values)[0].argmax(axis=1) == label
    found = []
    for parts in probe.exits:
        name, at = exits.name_of(parts.networks[0].shape), exits.trunk_end(parts.graphs["encoder.onnx"])
        own = OrtModel(assemble(parts, unseen.labels, settings, UNCALIBRATED, None, name, {}, {}))
        how, _, measured = calibrate(own, unseen, [])
        logits, _ = score(own, probe.normalisation, values)
        sure, right = calibrated(logits, how.temperature).max(axis=1), logits.argmax(axis=1) == label
        enough = exits.confidence(whose, sure, right, right_at_end)
        found.append(Leaving(Exit(name, at, measured["accuracy"], enough), how))
    return found


def fit(
    data: Data,
    seed: int,
    settings: Settings,
    members: int = 1,
    start: Parts | None = None,
    report: Callable[[Progress], None] | None = None,
    shape: Shape = BASE,
) -> Parts:
    """Train on all of `data`: networks, their int8 graphs and what reads their codes; nothing is calibrated.

    `start`: whose networks to go on from. A network with exits gets no context: a window that stops at an exit has no
    code that a context could look back on.
    """
    networks, quantised, branches = [], [], list[dict[str, bytes]]()
    for member in range(members):
        begun = None if start is None else (start.networks[member], start.normalisation)
        network, normalisation = train(data, seed + SEEDS_APART * member, settings, report, shape, begun)
        networks.append(network)
        whole, *branches = quantise_branches(network, range_windows(data, normalisation, settings.window, seed))
        quantised.append(whole)
    graphs = quantised[0] if members == 1 else ensemble.join(quantised, networks[0].shape.code)
    encoder = Encoder(graphs["encoder.onnx"], normalisation)
    codes = encode_for_training(encoder, data.recordings, settings, seed)
    rng, exemplars = np.random.default_rng([seed, 5]), None
    windows = context.look_back(settings.rate_hz, settings.hop)
    size = networks[0].shape.code
    shares = [slice(first, first + size) for first in range(0, size * members, size)]
    if codes and windows and not branches:
        drawn, _ = context.draw(codes, RANGE_WINDOWS, rng, windows)
        contexts = []
        for member, share in enumerate(shares):
            own = [replace(c, code=c.code[:, share]) for c in codes]
            layer = context.fit(own, data, seed + SEEDS_APART * member, settings.context_steps, windows)
            contexts.append(context.export(layer, drawn[:, :, share]))
        graphs["context.onnx"] = _joined(contexts, (windows, size * members), "codes")
    if codes and not branches:
        exemplars = context.exemplars(codes, EXEMPLARS, rng, max(1, windows))
    novelties = _novelties(encoder, codes, data, settings, seed, shares)
    graphs["novelty.onnx"] = _joined(novelties, (size * members,), "code")
    ends = []
    for branch, of_exit in zip(networks[0].branches()[1:], branches, strict=True):
        encoder = Encoder(of_exit["encoder.onnx"], normalisation)
        codes = encode_for_training(encoder, data.recordings, settings, seed)
        (of_exit["novelty.onnx"],) = _novelties(encoder, codes, data, settings, seed, shares)
        ends.append(Parts((branch,), of_exit, normalisation, None))
    return Parts(tuple(networks), graphs, normalisation, exemplars, tuple(ends))


def _novelties(
    encoder: Encoder, codes: list[Codes], data: Data, settings: Settings, seed: int, shares: Sequence[slice]
) -> list[bytes]:
    """Return what gives the novelty of each member's share of a code. `codes`: those of the recordings of `data`."""
    # Windows that a publisher cut have no order, and so no context.
    codes = codes or [Codes("", encoder.encode(data.windows.values), data.windows.label)]
    code, label = np.concatenate([c.code for c in codes]), np.concatenate([c.label for c in codes])
    lying = idle_codes(encoder, settings.window, seed)
    return [novelty.export(code[:, share], label, lying[:, share]) for share in shares]


def _joined(readers: Sequence[bytes], shape: Sequence[int], name: str) -> bytes:
    return readers[0] if len(readers) == 1 else ensemble.join_readers(readers, shape, name)


def idle_codes(encoder: Encoder, window: int, seed: int) -> Int8Array:
    """Return the codes (n, C) of a sensor that nobody wears, from which novelty knows it."""
    generator = torch.Generator().manual_seed(seed)
    return encoder.encode(idle(IDLE_WINDOWS, window, generator).numpy())


def range_windows(data: Data, normalisation: Normalisation, window: int, seed: int) -> Float32Array:
    """Return up to `RANGE_WINDOWS` normalised windows of `data`, float32 (n, window, 6), drawn at random."""
    values, _ = all_windows(data, window)
    chosen = np.random.default_rng([seed, 2]).permutation(len(values))[:RANGE_WINDOWS]
    return normalisation.apply(values[chosen])


def describe_training(data: Data, seed: int, settings: Settings, members: int, shape: Shape = BASE) -> dict[str, Any]:
    """Return the manifest's `training` entry: data, citations, settings and versions, as JSON has them."""
    found: list[dict[str, Any]] = []
    for origin in dict.fromkeys(r.origin for r in data.recordings):
        recordings = tuple(r for r in data.recordings if r.origin == origin)
        _, label = all_windows(replace(data, recordings=recordings, windows=no_windows()), settings.window)
        found.append(
            {**origin._asdict(), "recordings": len(recordings), "windows": label_counts(label, data.labels),
             "unlabelled": int((label == UNLABELLED).sum())}
        )  # fmt: skip
    if len(data.windows.label):
        found.append({**data.windows.origin._asdict(), "windows": label_counts(data.windows.label, data.labels)})
    return {
        "data": found,
        "subjects": list(data.subjects),
        "calibration_subjects": list(hold_out(data.subjects, seed)),
        "seed": seed,
        "members": members,
        "settings": asdict(settings),
        **describe_shape(shape),
        "har_export": har_export.__version__,
        "torch": torch.__version__,
    }


def describe_shape(shape: Shape) -> dict[str, Any]:
    """Return what figures and manifests say of the size of a network, as JSON has it: nothing, if it is a board's."""
    return {} if shape == BASE else {"shape": json.loads(json.dumps(asdict(shape)))}


def assemble(
    parts: Parts,
    labels: tuple[str, ...],
    settings: Settings,
    calibration: Calibration,
    history: Context | None,
    name: str,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    leaving: Sequence[Leaving] = (),
) -> Bundle:
    """Put a bundle together in memory. The golden outputs are what its own graphs give on this machine.

    `history`: the calibrated context; where there is none yet, it is read as it is. `leaving`: the calibrated exits, of
    `parts.exits`; without them the bundle has none.
    """
    contents = dict(parts.graphs)
    for own, at in zip(parts.exits, leaving, strict=False):
        contents[at.exit.file] = exits.head(own.graphs, at, calibration)
    if parts.exemplars is not None:
        contents["exemplars.npz"] = parts.exemplars
    if "context.onnx" in contents:
        history = history or Context(context.look_back(settings.rate_hz, settings.hop), 1.0)
    size = sum(network.shape.code for network in parts.networks)

    def seal(files: Mapping[str, bytes]) -> Bundle:
        manifest = Manifest(
            name=name,
            version=har_export.__version__,
            created=created(),
            labels=labels,
            input=Input(rate_hz=settings.rate_hz, window=settings.window, hop=settings.hop),
            normalisation=parts.normalisation,
            code=Code((size,), "int8", size),
            calibration=calibration,
            context=history,
            files={file: FileEntry(sha256(data), len(data)) for file, data in files.items()},
            training=training,
            metrics=metrics,
            exits=tuple(at.exit for at in leaving),
        )
        return Bundle(manifest, sha256(dump(manifest)), files)

    contents["golden.npz"] = golden(OrtModel(seal(contents)))
    contents["CARD.md"] = card.render(seal(contents).manifest).encode()
    return seal(contents)


def golden(model: OrtModel) -> bytes:
    """Return golden.npz: synthetic windows (g, rad/s), and the code, logits and novelty that `model` gives.

    Where it has a context, also histories of these codes, and its logits of them.
    """
    manifest = model.bundle.manifest
    window = golden_windows(manifest.input.window, manifest.input.rate_hz)
    scores = model.infer(manifest.normalisation.apply(window))
    arrays: dict[str, Any] = {"window": window, "code": scores.code, "logits": scores.logits, "novelty": scores.novelty}
    if manifest.context is not None:
        arrays["codes"] = np.ascontiguousarray(histories(scores.code, manifest.context.windows))
        arrays["context_logits"] = model.contextualise(arrays["codes"])
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue()


def float_variant(bundle: Bundle, network: Network) -> Bundle:
    """Return the same model with encoder, classifier and decoder in float, for boards that are quicker with them.

    Its codes are those of the int8 model but for rounding; what reads codes, and the calibration, are the same.
    """
    manifest = bundle.manifest
    graphs = {name: data for name, data in bundle.contents.items() if name.endswith(".onnx")}
    parts = Parts(
        (network,), {**graphs, **float_graphs(network)}, manifest.normalisation, bundle.contents.get("exemplars.npz")
    )
    settings = Settings(rate_hz=manifest.input.rate_hz, window=manifest.input.window)
    return assemble(
        parts, manifest.labels, settings, manifest.calibration, manifest.context, f"{manifest.name}-float",
        manifest.training, manifest.metrics,
    )  # fmt: skip


def created() -> str:
    """Return the time of building, ISO 8601 UTC. SOURCE_DATE_EPOCH sets it, so that a build can be repeated."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return moment.isoformat(timespec="seconds")


def write(bundle: Bundle, folder: Path) -> None:
    """Write a bundle's folder, the manifest last, and read it back through the agent's own loader.

    Raises:
        ModelContractError: the agent would refuse it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A signature that lies there is that of another manifest.
    (folder / SIGNATURE).unlink(missing_ok=True)
    for name, data in bundle.contents.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(dump(bundle.manifest))
    load_bundle(folder)
