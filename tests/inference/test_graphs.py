"""When and for which shapes forwards are recorded and replayed; on a card: test_on_a_card."""

import warnings
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from stereo_pairs import textured_pair

from ea_psmnet import PSMNetConfig, StereoMatcher, build_model
from ea_psmnet.inference.graphs import GraphedForward, GraphRecorder
from ea_psmnet.inference.memory_plan import MemoryPlan
from ea_psmnet.inference.tiles import spans

A, B, C = (16, 32), (32, 32), (16, 48)


def images(size, value=1.0):
    return torch.full((1, 3, *size), value)


def difference(left, right):
    return [left - right, left + right]


class Replay:
    """What a recorder returns, without a card: it may be run, and be looked for."""

    def __init__(self, forward, log):
        self._forward, self._log = forward, log

    def __call__(self, left, right):
        self._log.append(("replay", tuple(left.shape[2:])))
        return self._forward(left, right)


class Stage:
    """A graphed forward whose recorder only notes what it is asked for."""

    def __init__(self, most=4, fails_at=None):
        self.log, self.replays, self._fails_at = [], weakref.WeakSet(), fails_at
        self.graphed = GraphedForward(self._forward, self._record, most=most)

    def _forward(self, left, right):
        self.log.append(("run", tuple(left.shape[2:])))
        return difference(left, right)

    def _record(self, forward, left, right):
        assert forward == self._forward
        size = tuple(left.shape[2:])
        self.log.append(("record", size))
        if size == self._fails_at:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        replay = Replay(difference, self.log)
        self.replays.add(replay)
        return replay

    def see(self, *sizes):
        """Call with each size in turn; what happened then."""
        self.log.clear()
        for size in sizes:
            less, more = self.graphed(images(size, 3.0), images(size, 2.0))
            assert torch.equal(less, images(size))
            assert torch.equal(more, images(size, 5.0))
        return list(self.log)


def test_a_shape_runs_then_is_recorded_then_is_replayed():
    stage = Stage()
    assert stage.see(A) == [("run", A)]
    assert stage.see(B, A) == [("run", B), ("record", A), ("replay", A)]
    assert stage.see(A, A) == [("replay", A), ("replay", A)]
    assert stage.see(B, A, B) == [("record", B), ("replay", B), ("replay", A), ("replay", B)]


def test_batches_of_one_size_and_shapes_of_the_right_image_are_told_apart():
    stage = Stage()
    stage.see(A, A)
    two = torch.cat([images(A), images(A)])
    for pair in ((two, two), (images(A), two)):
        stage.log.clear()
        stage.graphed(*pair)
        assert stage.log == [("run", A)]


def test_the_shape_used_longest_ago_is_forgotten_and_its_graph_with_it():
    stage = Stage(most=2)
    stage.see(A, A, B, B, A)
    assert len(stage.replays) == 2
    stage.see(C)
    assert len(stage.replays) == 1
    assert stage.see(A, B) == [("replay", A), ("run", B)]


def test_more_shapes_in_turn_than_are_remembered_are_never_recorded():
    assert {what for what, _ in Stage(most=2).see(*(A, B, C) * 3)} == {"run"}


def test_where_recording_fails_one_warning_and_no_further_attempt():
    stage = Stage(fails_at=B)
    stage.see(A, A, B)
    with pytest.warns(UserWarning, match="going on without: operation not permitted$") as told:
        assert stage.see(B) == [("record", B), ("run", B)]
    assert len(told) == 1
    assert not stage.replays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {what for what, _ in stage.see(A, B, C, A, B, C)} == {"run"}


def test_an_error_of_the_forwards_own_is_no_failed_recording():
    def refuse(*_):
        raise ValueError("no pair")

    graphed = GraphedForward(difference, refuse)
    graphed(images(A), images(A))
    with pytest.raises(ValueError, match="no pair"):
        graphed(images(A), images(A))


class StandInGraph:
    """Repeats what was put on its tape."""

    def __init__(self):
        self.tape, self._pool = [], None

    def begin(self, pool):
        self._pool = pool or object()

    def pool(self):
        assert self._pool is not None  # torch refuses before it has recorded
        return self._pool

    def replay(self):
        for step in self.tape:
            step()


class StandInCard:
    """Stands in for `torch.cuda`, and notes what is asked of it."""

    def __init__(self, monkeypatch):
        self.said, self.graphs, self._recording = [], [], None
        for name in ("Stream", "CUDAGraph", "graph", "stream", "current_stream", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self):  # noqa: N802
        return SimpleNamespace(wait_stream=lambda other: self.said.append(f"waits for {other}"))

    def CUDAGraph(self):  # noqa: N802
        made = StandInGraph()
        self.graphs.append(weakref.ref(made))
        return made

    def current_stream(self):
        return "ours"

    def empty_cache(self):
        self.said.append("emptied")

    @contextmanager
    def stream(self, _):
        self.said.append("aside")
        yield
        self.said.append("back")

    @contextmanager
    def graph(self, graph, pool, _, *, capture_error_mode):
        self.said.append(f"records {capture_error_mode}")
        graph.begin(pool)
        self._recording = graph
        yield
        self._recording = None

    def forward(self, left, right):
        """As if launched on this card."""
        self.said.append("run")
        result = left - right
        if self._recording is not None:
            self._recording.tape.append(lambda: torch.sub(left, right, out=result))
        return [result]


def test_a_recorder_warms_up_aside_and_replays_on_copies(monkeypatch):
    card = StandInCard(monkeypatch)
    graphed = GraphedForward(card.forward, GraphRecorder())
    given = [images(A, float(value)) for value in range(4)]
    results = [graphed(left, images(A))[0] for left in given]
    for value, (left, result) in enumerate(zip(given, results, strict=True)):
        assert torch.equal(left, images(A, float(value)))
        assert torch.equal(result, images(A, float(value - 1)))
    recorded = ["emptied", "waits for ours", "aside", "run", "records thread_local", "run", "back"]
    assert card.said == ["run", *recorded]


def test_graphs_share_the_pool_of_those_that_live(monkeypatch):
    card = StandInCard(monkeypatch)
    graphed = GraphedForward(card.forward, GraphRecorder(), most=2)
    for size in (A, A, B, B):
        graphed(images(size), images(size))
    shared, other = (graph().pool() for graph in card.graphs)
    assert shared is other
    one, two = (8, 16), (8, 32)
    for size in (one, two, C, C):  # at C's second time all graphs are gone
        graphed(images(size), images(size))
    assert [graph() is None for graph in card.graphs] == [True, True, False]
    assert card.graphs[-1]().pool() is not shared


TINY = PSMNetConfig(max_disparity=32, width=0.25)


def test_the_matcher_gives_whole_pairs_alone_to_the_graphs(monkeypatch):
    matcher = StereoMatcher(build_model(TINY), device="cpu", precision="exact")
    sample, sizes = textured_pair(200, 64), []

    def note(left, right):
        sizes.append(tuple(left.shape[2:]))
        return matcher.model(left, right).disparities

    monkeypatch.setattr(matcher, "_forward", note)
    matcher(sample.left, sample.right)
    assert sizes == [(208, 64)]
    monkeypatch.setattr(matcher, "plan", lambda *_: MemoryPlan(spans(52, 2), spans(16, 1), 0))
    matcher(sample.left, sample.right)
    assert len(sizes) == 1


def test_graphs_on_the_cpu_are_refused():
    with pytest.raises(ValueError, match="CUDA graphs were asked for on the CPU: leave them out"):
        StereoMatcher(build_model(TINY), device="cpu", cuda_graphs=True)
