"""The bookkeeping of graphs: an arena's room, what makes two calls one graph, which graphs are kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cupy", reason="the CUDA packages are not installed: pip install 'd2v-ref[cuda-test]'")

from d2v_backends.cupy.graphs import ALIGNED, CudaRecorder, Graph, Graphs, Piece, Room, signature, slots_for
from standin import Array, Namespace, Recorder, StandIn, allocating

from d2v_ref.errors import BackendError
from d2v_ref.nn import Linear

DEVICE = StandIn("float32")
sizes = st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=40)


# ---- an arena


@given(steps=sizes)
def test_pieces_never_overlap_and_a_second_run_lies_as_the_first(steps: list[tuple[int, bool]]) -> None:
    def run(room: Room) -> list[int]:
        held: list[tuple[int, int]] = []
        starts = []
        for count, frees in steps:
            if frees and held:
                room.give(*held.pop(count % len(held)))
            start = room.take(count)
            assert start % ALIGNED == 0
            assert all(start + count <= a or a + n <= start for a, n in held)
            held.append((start, count))
            starts.append(start)
        return starts

    measured = Room()
    starts = run(measured)
    assert measured.top >= max([0, *(start + count for start, (count, _) in zip(starts, steps, strict=True))])
    again = Room(measured.top)  # exactly as large as it was measured
    assert run(again) == starts
    assert again.top == measured.top


def test_what_is_given_back_is_given_out_again() -> None:
    room = Room()
    pieces = [Piece(room, 300) for _ in range(4)]
    assert [piece.start for piece in pieces] == [0, 512, 1024, 1536]
    del pieces[1:3]
    assert Piece(room, 1024).start == 512  # two gaps that have become one
    assert room.top == 2048


def test_an_arena_that_is_too_small_says_so() -> None:
    room = Room(1000)
    room.take(500)
    with pytest.raises(
        BackendError, match=r"more memory than its first run .got 1024 bytes; expected 1000.*graphs=False"
    ):
        room.take(400)


# ---- what makes two calls one graph


def test_a_signature_is_of_shapes_dtypes_and_constants() -> None:
    x, weight, other = np.zeros((2, 3), np.float32), DEVICE.empty((3,)), DEVICE.empty((3,))
    one = signature((x, {"weights": (weight,), "causal": True, "bias": None}))
    assert one == signature((x + 1, {"weights": (weight,), "causal": True, "bias": None}))
    different: list[Any] = [
        (x[:1], {"weights": (weight,), "causal": True, "bias": None}),
        (x.astype("f8"), {"weights": (weight,), "causal": True, "bias": None}),
        (x, {"weights": (other,), "causal": True, "bias": None}),
        (x, {"weights": [weight], "causal": True, "bias": None}),
        (x, {"weights": (weight,), "causal": False, "bias": None}),
        (x, {"weights": (weight,), "causal": 1, "bias": None}),
        (x, {"weights": (weight,), "causal": True, "bias": x}),
        (x, {"weights": (weight,), "causal": True, "mask": None}),
    ]
    assert one not in [signature(args) for args in different]
    assert len({signature(args) for args in different}) == len(different)


@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=5))
def test_inputs_lie_apart(shapes: list[tuple[int, ...]]) -> None:
    slots = slots_for(iter([np.zeros(shape, dtype) for shape, dtype in zip(shapes, "?fdl?", strict=False)]))
    ends = [0, *(slot.stop for slot in slots)]
    assert all(slot.start % ALIGNED == 0 and slot.start >= end for slot, end in zip(slots, ends, strict=False))


# ---- graphs


class Model:
    """Something like a part of a model: temporaries of several sizes, a constant, outputs that nest."""

    def __init__(self) -> None:
        self.calls = 0
        self.weight = DEVICE.upload(np.arange(4, dtype=np.float32))

    def compute(self, x: Any, shared: dict[str, Any]) -> Any:
        self.calls += 1
        x = x if isinstance(x, Array) else DEVICE.upload(x)
        y = x * self.weight
        z = y + y + shared["add"]
        return z, (None, y), {"sum": z.sum(-1)}

    def expected(self, x: np.ndarray, add: float) -> list[np.ndarray]:
        y = x * np.arange(4, dtype=np.float32)
        return [2 * y + add, y, (2 * y + add).sum(-1)]


def numbers(out: Any) -> list[np.ndarray]:
    return [DEVICE.download(x) for x in (out[0], out[1][1], out[2]["sum"])]


def check(out: Any, want: list[np.ndarray]) -> None:
    for got, expected in zip(numbers(out), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def inputs(seed: int, rows: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)


def test_the_first_call_is_plain_the_second_captured_and_others_are_replayed() -> None:
    model, recorder = Model(), Recorder()
    graphs = Graphs(recorder)
    outs = []
    for turn, launches in enumerate([0, 0, 1, 2, 3]):
        outs.append(graphs(model.compute, inputs(turn), {"add": 1.0}))
        assert recorder.launches == launches
    assert len(graphs.graphs) == 1
    for turn, out in enumerate(outs):  # none is changed by a later one
        check(out, model.expected(inputs(turn), 1.0))
    check(graphs(model.compute, inputs(0, rows=2), {"add": 1.0}), model.expected(inputs(0, rows=2), 1.0))
    check(graphs(model.compute, inputs(0), {"add": 3.0}), model.expected(inputs(0), 3.0))
    assert len(graphs.graphs) == 1  # each of these came once


def test_what_is_captured_is_computed_in_the_arena_alone() -> None:
    model, recorder = Model(), Recorder()
    graph = Graph(recorder, (inputs(0), {"add": 1.0}))
    check(graph.measure(model.compute), model.expected(inputs(0), 1.0))
    graph.capture(model.compute)
    check(graph.out, model.expected(inputs(0), 1.0))
    low, high = graph.arena.ptr, graph.arena.ptr + graph.room.top
    assert all(low <= x.data.ptr < high for x in (graph.out[0], graph.out[1][1], graph.out[2]["sum"]))
    assert graph.bytes >= graph.room.top > 3 * 48  # y, z and what is between them


def test_graphs_that_were_not_used_go_first() -> None:
    model, recorder = Model(), Recorder()
    rows = (1, 100, 200)
    for n in rows:
        one = Graphs(recorder)
        [one(model.compute, inputs(0, n), {"add": 1.0}) for _ in range(2)]
    largest = one.bytes()
    graphs = Graphs(recorder, most=largest)
    for n in rows:
        for turn in range(3):
            check(graphs(model.compute, inputs(turn, n), {"add": 1.0}), model.expected(inputs(turn, n), 1.0))
        assert graphs.bytes() <= largest
    assert [graph.slots[0].shape[0] for graph in graphs.graphs.values()] == [200]
    too_large = Graphs(recorder, most=largest - 1)
    launches = recorder.launches
    for turn in range(4):
        check(too_large(model.compute, inputs(turn, 200), {"add": 1.0}), model.expected(inputs(turn, 200), 1.0))
    assert not too_large.graphs
    assert recorder.launches == launches


def test_what_belongs_to_a_model_goes_with_it() -> None:
    model, graphs = Model(), Graphs(Recorder())
    for _ in range(2):
        graphs(model.compute, inputs(0), {"add": 1.0})
    assert graphs.graphs
    del model
    gc.collect()
    assert not graphs.graphs
    assert not graphs.seen
    assert graphs.bytes() == 0


def test_a_weight_that_is_replaced_counts() -> None:
    """A graph reads the memory of the weights that were there, so that a new one is captured."""
    model, graphs = Model(), Graphs(Recorder())
    for _ in range(3):
        graphs(model.compute, inputs(0), {"add": 1.0})
    layer = Linear(4, 4)
    assert layer.parameters() == ("weight", "bias")
    layer.weight = np.ones((4, 4), np.float32)  # anybody's
    model.weight = DEVICE.upload(np.ones(4, np.float32))
    for _ in range(3):
        out = graphs(model.compute, inputs(0), {"add": 1.0})
        np.testing.assert_allclose(numbers(out)[1], inputs(0))


def test_a_constant_lives_as_long_as_the_graph_that_reads_it() -> None:
    graphs, model = Graphs(Recorder()), Model()

    def compute(x: Any, weight: Any) -> Any:
        return (x if isinstance(x, Array) else DEVICE.upload(x)) * weight

    for turn in range(4):
        weight = DEVICE.upload(np.full(4, turn, np.float32))
        for _ in range(3):
            got = graphs(compute, inputs(turn), weight)
            np.testing.assert_array_equal(DEVICE.download(got), inputs(turn) * np.float32(turn))
        del weight
    assert len(graphs.graphs) == 4
    assert model.calls == 0


def test_nothing_is_brought_in_while_a_graph_is_captured() -> None:
    graphs = Graphs(Recorder())

    def compute(x: Any) -> Any:
        x = x if isinstance(x, Array) else DEVICE.upload(x)
        return x + DEVICE.upload(np.ones(4, np.float32))

    np.testing.assert_array_equal(DEVICE.download(graphs(compute, inputs(0))), inputs(0) + 1)
    with pytest.raises(BackendError, match=r"NumPy array is brought in while a graph is captured.*graphs=False"):
        graphs(compute, inputs(0))


def test_a_run_that_takes_more_than_the_first_is_an_error() -> None:
    graphs, more = Graphs(Recorder()), iter([0, 0, 1])

    def compute(x: Any) -> Array:
        x = x if isinstance(x, Array) else DEVICE.upload(x)
        kept = [x + 1.0 for _ in range(next(more))]
        return kept[0] + 2.0 if kept else x + 3.0

    graphs(compute, inputs(0))
    with pytest.raises(BackendError, match=r"a graph needs more memory than its first run"):
        graphs(compute, inputs(0))
    assert not graphs.graphs


@settings(max_examples=20, deadline=None)
@given(calls=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=15))
def test_any_order_of_shapes_gives_what_plain_execution_gives(calls: list[tuple[int, int]]) -> None:
    model, graphs = Model(), Graphs(Recorder(), most=6000)
    for rows, add in calls:
        x = inputs(add, rows)
        check(graphs(model.compute, x, {"add": float(add % 2)}), model.expected(x, float(add % 2)))
        assert graphs.bytes() <= 6000


def test_threads_take_turns() -> None:
    model, graphs = Model(), Graphs(Recorder())

    def run(turn: int) -> bool:
        x = inputs(turn, 1 + turn % 3)
        check(graphs(model.compute, x, {"add": 1.0}), model.expected(x, 1.0))
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(60)))
    assert len(graphs.graphs) == 3


# ---- what CuPy is asked for


class Card:
    """CuPy's part of a capture: streams, hooks and errors."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.hooks: list[Any] = []
        card = self

        class CUDARuntimeError(RuntimeError):
            pass

        class Stream:
            def __init__(self, non_blocking: bool) -> None:
                self.capturing = False
                card.log.append("stream")

            def begin_capture(self, mode: int) -> None:
                self.capturing = True
                card.log.append(f"begin {mode}")

            def is_capturing(self) -> bool:
                return self.capturing

            def end_capture(self) -> Any:
                self.capturing = False
                card.log.append("end")
                return SimpleNamespace(launch=lambda stream: card.log.append(f"launch on {stream}"))

        class MemoryHook:
            def __enter__(self) -> None:
                card.hooks.append(self)

            def __exit__(self, *error: Any) -> None:
                card.hooks.remove(self)

        runtime = SimpleNamespace(CUDARuntimeError=CUDARuntimeError, streamCaptureModeThreadLocal=1)
        driver = SimpleNamespace(CUDADriverError=CUDARuntimeError)
        cuda = SimpleNamespace(Stream=Stream, MemoryHook=MemoryHook, runtime=runtime, driver=driver)
        self.xp, self.stream = SimpleNamespace(cuda=cuda), "main"
        self.products = SimpleNamespace(workspace=lambda stream: self.log.append("workspace"))

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.log.append("on")
        yield
        self.log.append("off")

    def allocate(self, count: int) -> None:
        """As CuPy's pool does."""
        for hook in self.hooks:
            hook.malloc_preprocess(device_id=0, size=count, mem_size=512)


def test_a_capture_is_on_a_stream_of_its_own_and_launched_on_the_devices() -> None:
    card: Any = Card()
    recorder = CudaRecorder(card)
    launch, out = recorder.capture(lambda x: 2 * x, (4,))
    assert out == 8
    launch()
    assert card.log == ["stream", "workspace", "on", "begin 1", "end", "off", "launch on main"]
    recorder.capture(lambda: None, ())
    assert card.log.count("stream") == 1


def test_a_capture_that_fails_is_ended() -> None:
    card: Any = Card()
    recorder = CudaRecorder(card)
    with pytest.raises(
        BackendError, match=r"memory is allocated while a graph is captured .got 300 bytes.*graphs=False"
    ):
        recorder.capture(card.allocate, (300,))
    assert card.log[-1] == "end"
    assert not card.hooks

    def fail() -> None:
        raise card.xp.cuda.runtime.CUDARuntimeError("cudaErrorStreamCaptureUnsupported")

    with pytest.raises(BackendError, match=r"a graph can't be captured .got cudaErrorStreamCaptureUnsupported"):
        recorder.capture(fail, ())
    assert recorder.capture(lambda: 3, ())[1] == 3
    assert card.log.count("stream") == 3  # one that failed is not used again


def test_the_stand_ins_arena_is_memory_that_arrays_share() -> None:
    """What the tests above rely on: an array that is let go of is another one's memory."""
    room, memory = Room(), Recorder.memory(4096)

    def allocate(count: int) -> Any:
        piece = Piece(room, count)
        return Recorder().pointer(memory.ptr + piece.start, count, piece)

    with allocating(allocate):
        first = Namespace.full((4,), 1.0, np.float32)
        view, at = first[1:], first.data.ptr
        del first
        second = Namespace.empty((4,), np.float32)
        assert second.data.ptr != at  # a view keeps it
        del view
        assert Namespace.empty((4,), np.float32).data.ptr == at
