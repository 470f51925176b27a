"""What holds for any input, whatever way it is cut: found by hypothesis, kept by the seed it prints."""

from itertools import cycle, pairwise
from unittest.mock import patch

import numpy as np
from fakes import FakeModel, cut, even_times, manifest, signal
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import framing
from agent.core.decoders.recording import RecordingDecoder
from agent.core.framing import LineFramer
from agent.core.timeline import Grid, Timeline
from agent.errors import InputError
from agent.pipeline import Pipeline
from agent.records import BadFrame, Dropped, Gap, Loss, Prediction, SampleBatch

SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5)


@st.composite
def streams(draw):
    """Samples of a source with everything that goes wrong: jitter, holes, gaps, repeated and reversed time."""
    rate_hz = draw(st.sampled_from([10.0, 25.0, 49.7, 50.0, 52.0, 60.0, 75.0, 76.0, 100.0, 208.0, 400.0]))
    n = draw(st.integers(40, 900))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = np.full(n, 1e9 / rate_hz)
    if draw(st.booleans()):
        steps *= rng.uniform(0.7, 1.3, n)
    for event_ns in draw(st.lists(st.sampled_from([0, -50e6, -3e9, 100e6, 240e6, 300e6, 5e9, 36e12]), max_size=6)):
        steps[rng.integers(1, n)] = event_ns
    t = np.cumsum(np.rint(steps)).astype(np.int64)
    return t, signal(n, draw(st.integers(0, 99)))


def play(t, v, sizes, hop=64, dropped=(), context=0):
    """Feed samples cut to sizes; `dropped`: numbers of samples before which others were let go."""
    pipeline = Pipeline(FakeModel(), manifest(hop=hop, context=context), max_batch=16)
    events = []
    edges = [0, *sorted(d for d in dropped if 0 < d < len(t)), len(t)]
    for a, b in pairwise(edges):
        if a:
            events += pipeline.feed([Dropped("s", 3)])
        for batch in cut(t[a:b], v[a:b], sizes):
            events += pipeline.feed([batch._replace(seq0=batch.seq0 + a)])
    return events, pipeline.finish("s")


DROPS = st.sets(st.integers(1, 400), max_size=2)


CONTEXTS = st.sampled_from([0, 1, 2, 5, 23])


@given(streams(), SIZES, SIZES, st.sampled_from([1, 16, 64, 100, 128]), DROPS, CONTEXTS)
@settings(deadline=None, max_examples=150)
def test_what_comes_out_does_not_depend_on_how_samples_are_cut(stream, one, other, hop, dropped, context):
    assert play(*stream, one, hop, dropped, context) == play(*stream, other, hop, dropped, context)


@given(streams(), SIZES, st.sampled_from([1, 20, 256]), st.booleans(), CONTEXTS)
@settings(deadline=None, max_examples=25)
def test_nor_on_what_other_streams_do(stream, sizes, others, first, context):
    t, v = stream
    pipeline = Pipeline(FakeModel(), manifest(context=context))
    t_other, v_other = even_times(400), signal(400, 7)
    events = []
    for i, batch in enumerate(cut(t, v, sizes)):
        # They come and go, a window or two and now and then a gap at a time.
        at = i * 150 % 400
        beside = [SampleBatch(f"o{n}", t_other[at : at + 150], v_other[at : at + 150], at) for n in range(others)]
        events += pipeline.feed([*beside, batch] if first else [batch, *beside])

    alone, counts = play(t, v, sizes, context=context)
    assert [e for e in events if e.stream == "s"] == alone
    assert pipeline.finish("s") == counts


@given(streams(), SIZES)
@settings(deadline=None, max_examples=150)
def test_no_window_spans_a_gap_and_windows_follow_each_other(stream, sizes):
    events, counts = play(*stream, sizes)

    before: Gap | None = None
    last: Prediction | None = None
    for event in events:
        if isinstance(event, Gap):
            # The window's last sample stands one period before its end.
            assert last is None or last.t1_ns - 20_000_000 <= event.t0_ns
            before, last = event, None
        elif isinstance(event, Prediction):
            assert before is None or event.t0_ns >= before.t1_ns
            assert last is None or event.t0_ns - last.t0_ns == 64 * 20_000_000
            last = event
    assert counts.gaps == sum(isinstance(e, Gap) for e in events)


@given(streams(), SIZES, DROPS)
@settings(deadline=None, max_examples=100)
def test_every_grid_point_is_in_a_window_or_counted(stream, sizes, dropped):
    t, v = stream
    made = 0

    class Counting(Timeline):
        def push(self, *args):
            nonlocal made
            pieces = super().push(*args)
            # A batch that was held comes back through push: its pieces are counted there.
            if not self.held and pieces is not counted.get("last"):
                made += sum(len(p.values) for p in pieces if isinstance(p, Grid))
                counted["last"] = pieces
            return pieces

    counted = {}
    with patch("agent.pipeline.Timeline", Counting):
        events, counts = play(t, v, sizes, dropped=dropped)

    segments, windows = [], 0
    for event in events:
        if isinstance(event, Gap):
            segments.append((windows, event.discarded))
            windows = 0
        windows += isinstance(event, Prediction)
    covered = sum(128 + 64 * (w - 1) for w, _ in [*segments, (windows, 0)] if w)
    held = counts.losses[Loss.PARTIAL_WINDOW] - (made - covered)
    assert counts.windows == sum(isinstance(e, Prediction) for e in events)
    # What is counted beyond the grid's points are samples that were held when the stream was cut or ended.
    assert 0 <= held < 33 * (1 + len(dropped))


HEADER = b"# device: x\n# acc_unit: g\n# gyro_unit: rad/s\nt,ax,ay,az,gx,gy,gz,label\n"
FIELDS = st.sampled_from(
    [
        b"0",
        b"1.5",
        b"-0.25",
        b"1e3",
        b"nan",
        b"inf",
        b"1e400",
        b"1_0",
        b"",
        b" 2 ",
        b"x",
        b"0x10",
        b"\xff",
        b'"1"',
        b"1;2",
        b"\xd9\xa1",
    ]
)
ROWS = st.lists(FIELDS, min_size=7, max_size=9).map(b",".join)
GOOD_ROWS = st.tuples(st.integers(0, 10**6), st.sampled_from([b"", b"walking", b"a_b", b"\xc3\xa9"])).map(
    lambda r: b"%d.5,0.1,0.2,0.9,0,0,0.25,%s" % r
)
LINES = st.lists(st.one_of(GOOD_ROWS, GOOD_ROWS, ROWS, st.binary(max_size=30), st.just(b"# note")), max_size=40)


def cut_bytes(data, sizes):
    """Cut bytes into pieces of the given sizes, over and over, to the end."""
    at = 0
    for size in cycle(sizes):
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size


def decode(data, sizes):
    decoder, out = RecordingDecoder("n"), []
    for piece in cut_bytes(data, sizes):
        out += decoder.feed(piece)
    out += decoder.finish()
    batches = [b for b in out if isinstance(b, SampleBatch)]
    rows = [(t, *v) for b in batches for t, v in zip(b.t_ns.tolist(), b.values.tolist(), strict=True)]
    truth = [c for b in batches for c in b.truth]
    bad = sorted((b.where, b.reason) for b in out if isinstance(b, BadFrame))
    return rows, truth, bad


@given(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans(), SIZES, SIZES)
@settings(deadline=None, max_examples=300)
def test_decoding_does_not_depend_on_how_bytes_are_cut(lines, end, ended, one, other):
    data = HEADER + end.join(lines) + (end if ended else b"")

    assert decode(data, one) == decode(data, other)


@given(st.lists(st.one_of(GOOD_ROWS, ROWS), max_size=40), SIZES)
@settings(deadline=None, max_examples=200)
def test_every_row_becomes_a_sample_or_is_counted(lines, sizes):
    rows, _, bad = decode(HEADER + b"".join(line + b"\n" for line in lines), sizes)

    filled = [line for line in lines if line.strip()]
    assert len(rows) + len(bad) == len(filled)
    assert np.isfinite([r[1:] for r in rows]).all()


@given(st.binary(max_size=600), st.booleans(), SIZES)
@settings(deadline=None, max_examples=300)
def test_no_bytes_raise_anything_but_an_input_error(data, with_header, sizes):
    try:
        rows, _, bad = decode((HEADER if with_header else b"") + data, sizes)
    except InputError as e:
        says = str(e)
    else:
        says = f"{len(rows)} rows, {len(bad)} bad"
    assert says


@given(st.binary(max_size=400), SIZES, SIZES)
@settings(deadline=None, max_examples=300)
def test_lines_do_not_depend_on_how_bytes_are_cut(data, one, other):
    def lines(sizes):
        framer = LineFramer()
        out = b"".join(framer.feed(piece) for piece in cut_bytes(data, sizes))
        whole, torn = framer.finish()
        return out + whole, torn

    assert lines(one) == lines(other)
    whole, torn = lines(one)
    assert whole + torn == data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


@given(st.lists(st.integers(0, 30), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]), SIZES, SIZES)
@settings(deadline=None, max_examples=300)
def test_lines_that_are_too_long_do_not_depend_on_how_bytes_are_cut(lengths, end, one, other):
    data = b"".join(b"x" * n + end for n in lengths)

    def read(sizes):
        framer = LineFramer()
        out = b"".join(framer.feed(piece) for piece in cut_bytes(data, sizes))
        return out + framer.finish()[0], framer.too_long

    with patch.object(framing, "MAX_LINE", 10):
        assert read(one) == read(other)
        text, too_long = read(one)
    assert text == b"".join((b"x" * n if n <= 10 else b"") + b"\n" for n in lengths)
    assert too_long == [i for i, n in enumerate(lengths, 1) if n > 10]
