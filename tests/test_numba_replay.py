"""Forward passes that the Numba backend runs again as one list of calls: they give the bits of a plain pass."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="backend numba needs the package numba")

import text_models
from backends_here import ops_of
from d2v_backends.numba_cpu import NumbaOps, replay
from d2v_backends.numba_cpu.compiling import KEPT, tracing
from d2v_backends.numba_cpu.replay import POISON, Program, Region, planned
from model_cases import cases, wide_case

from d2v_ref.auto import MODELS
from d2v_ref.nn import LayerNorm, Linear, Module
from d2v_ref.ops import get_ops

TEXT = "Data2VecTextModel"
WIDE = (TEXT, "Data2VecAudioForCTC", "Data2VecVisionForImageClassification")
MAIN = ("input_ids", "input_values", "pixel_values")
DTYPES = ("float32", "bfloat16")
random = np.random.default_rng(0)


def bits(out: Any) -> list[bytes]:
    """Of every array of an output, in order."""
    if isinstance(out, tuple | list):
        return [one for value in out for one in bits(value)]
    if isinstance(out, dict) or hasattr(out, "to_tuple"):
        return [one for _, value in out.items() for one in bits(value)]
    return [out.tobytes()] if isinstance(out, np.ndarray | np.generic) else []


def others(inputs: dict[str, Any]) -> dict[str, Any]:
    """Other numbers of the same shapes."""
    changed = {}
    for name in MAIN:
        if name in inputs:
            x = inputs[name]
            changed[name] = np.roll(x, 1, axis=-1) if name == "input_ids" else -x
    return inputs | changed


def programs(ops: NumbaOps) -> list[Program]:
    kept = [one for known in ops.replays.programs.values() for one in known.values()]
    return [one for one in kept if isinstance(one, Program)]


def poison(ops: NumbaOps) -> None:
    for arena in ops.replays.arenas:
        arena[:] = POISON


def plainly(model: Any, ops: NumbaOps, inputs: dict[str, Any]) -> list[bytes]:
    return bits(model.with_ops(NumbaOps("bfloat16" if ops.paired else ops.dtype.name))(**inputs))


def hold(model: Any, ops: NumbaOps, inputs: dict[str, Any]) -> None:
    """The first pass is plain, the second recorded, others are run again where they can be."""
    bound = model.with_ops(ops)
    with np.errstate(all="ignore"):
        want, want_others = plainly(model, ops, inputs), plainly(model, ops, others(inputs))
        for turn in range(5):
            poison(ops)
            one = turn in (1, 2, 4)
            assert bits(bound(**(inputs if one else others(inputs)))) == (want if one else want_others), turn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_that_is_run_again_gives_the_bits_of_a_plain_one(name: str, dtype: str) -> None:
    ops = ops_of("numba", dtype)

    @settings(max_examples=4, deadline=None)
    @given(case=cases(name, "float32"))
    def run(case: tuple[Any, dict[str, Any]]) -> None:
        hold(case[0], ops, case[1])

    run()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WIDE)
def test_it_is_run_again_and_not_computed(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = wide_case(name, "float32")
    ops = ops_of("numba", dtype)
    bound = model.with_ops(ops)
    before = set(programs(ops))
    first = [bits(bound(**inputs)) for _ in range(2)]
    assert len(set(programs(ops)) - before) == 1
    base = next(module for _, module in bound.named_modules() if hasattr(module, "_compute"))
    monkeypatch.setattr(type(base), "_compute", None)  # what is called no more
    base._compute = Named(base)
    assert bits(bound(**inputs)) == first[0] == first[1]


class Named:
    """What a bound method is for those who only ask for its name and its object."""

    __name__ = "_compute"

    def __init__(self, owner: Module) -> None:
        self.__self__ = owner


@pytest.mark.parametrize("name", WIDE)
def test_threads_run_it_at_the_same_time(name: str) -> None:
    model, inputs = wide_case(name, "float32")
    bound = model.with_ops(ops := ops_of("numba", "float32"))
    for _ in range(2):
        bound(**inputs)
    both = [inputs, others(inputs)]
    want = [plainly(model, ops, one) for one in both]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: bits(bound(**both[i % 2])), range(24)))
    assert all(got == want[i % 2] for i, got in enumerate(found))


def test_results_are_not_changed_by_a_later_run() -> None:
    model, inputs = wide_case(TEXT, "float32")
    bound = model.with_ops(ops_of("numba", "float32"))
    outs = [bound(**inputs, output_hidden_states=True) for _ in range(4)]
    kept = [bits(out) for out in outs]
    bound(**others(inputs), output_hidden_states=True)
    assert [bits(out) for out in outs] == kept
    assert all(np.shares_memory(out.last_hidden_state, out.hidden_states[-1]) for out in outs)


# ---- weights


def test_a_weight_that_is_replaced_counts() -> None:
    model, inputs = wide_case(TEXT, "float32")
    bound = model.with_ops(ops_of("numba", "float32"))
    first = [bits(bound(**inputs)) for _ in range(3)][-1]
    norm = bound.encoder.layer[0].output.LayerNorm
    norm.weight = norm.weight * np.float32(2)
    second = [bits(bound(**inputs)) for _ in range(4)]
    assert second[0] != first
    assert all(got == second[0] for got in second)
    norm.weight[:] /= 2  # in its place, which is read again
    assert bits(bound(**inputs)) == first


def test_a_setting_and_layers_that_are_replaced_count() -> None:
    model, inputs = wide_case(TEXT, "float32")
    bound = model.with_ops(ops_of("numba", "float32"))
    seen = [bits(bound(**inputs)) for _ in range(3)][-1:]
    for change in ("eps", "layer"):
        if change == "eps":
            bound.encoder.layer[0].output.LayerNorm.eps = 0.5
        else:
            bound.encoder.layer = bound.encoder.layer[:1]
        found = [bits(bound(**inputs)) for _ in range(4)]
        assert all(got == found[0] for got in found)
        assert found[0] not in seen
        seen.append(found[0])


def test_weights_are_freed_when_their_model_is() -> None:
    model, inputs = wide_case(TEXT, "float32")
    bound = model.with_ops(ops := ops_of("numba", "float32"))
    freed: list[bool] = []
    for _ in range(3):
        bound(**inputs)
    before = len(programs(ops))
    weakref.finalize(bound.encoder.layer[0].output.dense.weight.panels, freed.append, True)
    gc.collect()
    gc.disable()
    try:
        del bound
        assert freed == [True]
    finally:
        gc.enable()
    assert len(programs(ops)) == before - 1


# ---- what can't be run again


class Part(Module):
    """A part of a model that computes with NumPy, somewhere."""

    def __init__(self, kind: str) -> None:
        self.dense, self.norm, self.kind = Linear(24, 24), LayerNorm(24, 1e-5), kind
        weights = {name: random.standard_normal(p.shape, np.float32) for name, _, _, p in self.named_parameters()}
        self.bind(weights, NumbaOps())

    def compute(self, x: np.ndarray) -> Any:
        y = self.dense(x)
        if self.kind == "between":
            y = y + 1
        elif self.kind == "in place":
            y += 1
        elif self.kind == "a row":
            y[0] = 0
        elif self.kind == "its input":
            y = self.dense(x * 2)
        y = self.norm(y)
        if self.kind == "the result":
            return y * 2
        if self.kind == "of the input":
            return y, x
        if self.kind == "nothing":
            return y, y[:0]
        if self.kind == "a number":
            return y, y.max()
        return y, (y[:, :3], None)

    def __call__(self, x: np.ndarray) -> Any:
        return self.ops.replay(self.compute, x)


@pytest.mark.parametrize(
    "kind", ["between", "in place", "a row", "its input", "the result", "of the input", "nothing", "a number"]
)
def test_a_pass_that_numpy_has_a_part_in_is_computed_each_time(kind: str) -> None:
    part = Part(kind)
    for _ in range(4):
        x = random.standard_normal((5, 24), np.float32)
        assert bits(part(x)) == bits(part.compute(x))
    assert not programs(part.ops)
    assert tracing.now is None


@pytest.mark.parametrize("layout", ["whole", "rows apart", "transposed", "read only"])
def test_inputs_may_lie_anyhow(layout: str) -> None:
    part = Part("")
    for _ in range(4):
        wide = random.standard_normal((24, 48), np.float32)
        x = {"whole": wide[:5, :24].copy(), "rows apart": wide[:5, :24], "transposed": wide[:, :5].T}.get(layout)
        if x is None:
            x = wide[:5, :24].copy()
            x.flags.writeable = False
        assert bits(part(x)) == bits(part.compute(x))
    assert len(programs(part.ops)) == 1


def test_an_error_is_raised_each_time_and_leaves_nothing_behind() -> None:
    part = Part("")
    for _ in range(4):
        with pytest.raises(Exception, match="the last axis does not fit the weight"):
            part(np.ones((5, 23), np.float32))
        assert tracing.now is None
    assert not programs(part.ops)


def test_what_needs_a_large_arena_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST", 1 << 14)
    part = Part("")
    for rows, count in ((5, 1), (500, 1)):
        x = random.standard_normal((rows, 24), np.float32)
        assert all(bits(part(x)) == bits(part.compute(x)) for _ in range(4))
        assert len(programs(part.ops)) == count


def test_programs_do_not_grow_with_every_length() -> None:
    part = Part("")
    for rows in range(1, 2 * KEPT):
        x = random.standard_normal((rows, 24), np.float32)
        for _ in range(2):
            part(x)
    assert 0 < len(programs(part.ops)) <= KEPT
    assert len(part.ops.replays.arenas) == 1  # type: ignore[attr-defined]


# ---- an arena


@st.composite
def regions(draw: st.DrawFn) -> list[Region]:
    found = []
    for _ in range(draw(st.integers(0, 12))):
        first = draw(st.integers(0, 9))
        found.append(Region(0, draw(st.integers(1, 500)), first, draw(st.integers(first, 10))))
    return found


def overlapping(found: dict[Region, int]) -> Iterator[tuple[Region, Region]]:
    every = list(found)
    for i, one in enumerate(every):
        for other in every[i + 1 :]:
            apart = found[one] + one.size <= found[other] or found[other] + other.size <= found[one]
            if one.first <= other.last and other.first <= one.last and not apart:
                yield one, other


@given(found=regions())
def test_what_is_used_at_the_same_time_does_not_overlap(found: list[Region]) -> None:
    places, size = planned(found)
    assert set(places) == set(found)
    assert not list(overlapping(places))
    assert all(start % 64 == 0 and start + region.size <= size for region, start in places.items())
    rounded = [-(-region.size // 64) * 64 for region in found]
    at_once = [sum(region.size for region in found if region.first <= call <= region.last) for call in range(11)]
    assert max(at_once, default=0) <= size <= sum(rounded)


def test_layers_share_an_arena() -> None:
    """Twelve layers take the memory of one."""
    sizes = []
    for layers in (2, 12):
        changes: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": 60, "intermediate_size": 128}
        model = text_models.build(TEXT, dtype="float32", **changes).with_ops(ops := get_ops("numba", "float32"))
        ids = text_models.token_ids(TEXT, 0, 2, 8)
        for _ in range(2):
            model(ids)
        sizes.append(programs(ops)[-1].size)
    assert sizes[0] == sizes[1]
