from har_export.datasets.records import Data
from har_export.lab import novelty
from har_export.train import Settings


def test_each_activity_is_left_out_once_and_scored_on_others(tiny: Data) -> None:
    said: list[str] = []
    quick = Settings(epochs=1, context_steps=5, batch=32)

    result = novelty.run(tiny, "har-export lab novelty", said.append, quick)

    assert said == [f"without {name}" for name in tiny.labels[:6]]
    (table,) = result.tables
    assert [row[0] for row in table.rows] == list(tiny.labels[:6])
    for label, found in result.data.items():
        assert 0 <= found["auroc"] <= 1, label
        assert set(found["unseen"]) < set(tiny.subjects)
    assert "1 epochs" in result.text[0]
