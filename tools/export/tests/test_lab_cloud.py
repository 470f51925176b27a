from dataclasses import replace

import pytest

from agent.adapters.onnx_model import OrtModel
from har_export import bundle as bundles
from har_export import evaluate
from har_export.datasets.records import Data, no_windows
from har_export.lab import cloud
from har_export.train import Settings

QUICK = Settings(epochs=1, epochs_with_everyone=1, context_steps=10, batch=32)


def test_the_more_is_asked_the_more_the_label_is_that_of_the_larger_model(tiny: Data) -> None:
    data = replace(tiny, windows=no_windows())
    small, large = (
        OrtModel(bundles.build(tiny, seed, QUICK, "har-x", {}, members=n)[0]) for seed, n in ((0, 1), (1, 2))
    )

    found = cloud.run([[(small, data)]], [[(large, data)]], "c", lambda _: None).data

    def single(model: OrtModel) -> tuple[float, float]:
        rows = evaluate.score(model, data).streaming
        rows = rows.of(data.is_activity(rows.truth))
        return float((rows.truth == rows.predicted).mean()), float((rows.truth == rows.decided).mean())

    def shares(name: str) -> tuple[float, float, float]:
        (s,) = found[name]
        return s["asked"] / s["windows"], s["label"] / s["windows"], s["decided"] / s["windows"]

    assert shares("the board alone") == pytest.approx((0, *single(small)))
    assert shares("the larger model alone") == pytest.approx((0, *single(large)))
    asked = [shares(f"below {c:g}, 4 sent")[0] for c in cloud.CONFIDENCES]
    assert asked == sorted(asked)
    assert 0 < asked[-1] <= shares("always, 4 sent")[0] == 1
    # One window is scored by itself, and what is always asked has the larger model's labels.
    assert shares("always, 1 sent")[1] == pytest.approx(single(large)[0])


def test_folds_of_other_people_are_not_compared(tiny: Data) -> None:
    model = OrtModel(bundles.build(tiny, 0, QUICK, "har-x", {})[0])
    first, *others = tiny.subjects

    with pytest.raises(ValueError, match="other people"):
        cloud.run([[(model, tiny.of([first]))]], [[(model, tiny.of(others))]], "c", lambda _: None)
