"""How well the times of networks that were never timed are predicted: random shapes, each from others of its kind.

    tools/export/.venv/bin/python tools/bench/predictor.py --networks 16 > predictor.json

The networks are untrained: weights do not change what a network costs. Progress goes to stderr.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from random import Random

import torch
from har_export.network import Network as Untrained
from har_export.network import Shape
from har_export.quantise import float_graphs, quantise

from agent.adapters.bundle import read_golden
from agent.adapters.clock import SystemClock
from agent.adapters.power import open_power_meter
from agent.app.compose import open_model
from agent.app.profile import Network, Profile, in_service, left_out, machine, measured
from agent.config import Config
from agent.core.onnx_wire import fuse
from agent.core.settings import TelemetrySettings
from agent.records import Float32Array

LABELS = 7


def shape(random: Random) -> Shape:
    """Return a shape from a quarter of the width of the one that ships to more than twice its width."""
    kernel = partial(random.choice, (3, 5, 8, 9))
    channels, units = partial(random.randint, 2, 14), partial(random.randint, 1, 8)
    return Shape(
        channels=(8 * channels(), 8 * channels(), 8 * channels()),
        kernels=(kernel(), kernel(), kernel()),
        reduced=4 * units(),
        code=16 * units(),
        hidden=16 * units(),
    )


def networks(shapes: Sequence[Shape], windows: Float32Array) -> dict[str, list[Network]]:
    """Build every shape in int8 and in float."""
    found: dict[str, list[Network]] = {"int8": [], "float": []}
    for i, of in enumerate(shapes):
        built = Untrained(windows.shape[1], LABELS, of)
        with torch.no_grad():
            built(torch.from_numpy(windows))  # batch normalisation learns what is normal
        built.eval()
        for kind, graphs in (("int8", quantise(built, windows)), ("float", float_graphs(built))):
            fused = fuse([graphs["encoder.onnx"], graphs["classifier.onnx"]])
            if fused is None:
                raise AssertionError("an encoder that its classifier does not fit")
            found[kind].append(Network(f"{kind}-{i}", fused, windows))
    return found


def errors(profiles: Sequence[Profile], others: int, random: Random) -> dict[str, float]:
    """Predict each network from so many others, drawn by chance; mean and worst relative error."""
    found = []
    for one in profiles:
        drawn = random.sample([other for other in profiles if other is not one], others)
        found.append(left_out([one, *drawn])[0])
    segments, wholes = ([getattr(e, what) for e in found] for what in ("segments", "whole"))
    return {
        "from": others,
        "segments": statistics.fmean(segments),
        "segments_worst": max(segments),
        "whole": statistics.fmean(wholes),
        "whole_worst": max(wholes),
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=16, help="random shapes, each in int8 and in float")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each network, in place and again hot")
    args = parser.parse_args()
    if args.networks < 6:
        parser.error("at least 6 networks, for each to be predicted from some")
    random = Random(0)
    torch.manual_seed(0)
    clock = SystemClock()
    meter = open_power_meter(clock, TelemetrySettings(power="none"))
    model = open_model("har-base")
    windows = model.bundle.manifest.normalisation.apply(read_golden(model.bundle).window)
    between = in_service(model, Config())
    kinds = networks([shape(random) for _ in range(args.networks)], windows)
    result: dict[str, object] = {
        "machine": machine() | {"load": f"{os.getloadavg()[0]:.1f}"},
        "networks": args.networks,
    }
    for kind, built in kinds.items():
        sys.stderr.write(f"{len(built)} networks in {kind} …\n")
        profiles = measured([(network, between) for network in built], args.seconds, meter, clock)
        times = [found.whole_us for found in profiles]
        result[kind] = {
            "us_min": min(times),
            "us_max": max(times),
            "predicted": [errors(profiles, n, random) for n in (2, 4, len(profiles) - 1)],
        }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
