"""data2vec's objective: what masks, targets, averages and losses must be like, and inputs of every kind of wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import audio_models
import numpy as np
import pytest
import text_models
import vision_models
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from d2v_ref import Ops
from d2v_ref.errors import ConfigError, D2VError, InputError
from d2v_ref.pretraining import (
    AUDIO,
    EPS,
    TEXT,
    VISION,
    Objective,
    bert_mask,
    block_mask,
    ema_decay,
    ema_update,
    layer_results,
    pretraining_step,
    regression_head,
    regression_loss,
    span_mask,
    teacher_targets,
)

seeds = st.integers(0, 2**32 - 1)
betas = st.sampled_from([0.0, 1e-3, 1.0, 4.0]) | st.floats(1e-6, 10)
DTYPES = ("float32", "float64")
NAN = float("nan")
PLAIN = replace(TEXT, average_top_k_layers=1, layer_norm_target_layer=False, regression_head="linear")


# ---- what is masked


@settings(max_examples=200)
@given(data=st.data(), seed=seeds, prob=st.floats(0, 1))
def test_span_mask_has_as_many_frames_in_every_row_and_none_in_the_padding(
    data: st.DataObject, seed: int, prob: float
) -> None:
    batch, frames = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60))
    span = data.draw(st.integers(1, frames))
    lengths = np.array(data.draw(st.lists(st.integers(span, frames), min_size=batch, max_size=batch)))
    options: dict[str, Any] = {"mask_prob": prob, "mask_length": span, "lengths": lengths}
    mask = span_mask((batch, frames), np.random.default_rng(seed), **options)
    assert (mask.shape, mask.dtype) == ((batch, frames), np.bool_)
    counts = mask.sum(axis=1)
    assert (counts == counts[0]).all()
    assert counts[0] >= span  # one whole span at least
    assert not mask[np.arange(frames) >= lengths[:, None]].any()
    assert any(shortest_run(row) >= span for row in mask)  # the row with the fewest lost none
    np.testing.assert_array_equal(mask, span_mask([batch, frames], np.random.default_rng(seed), **options))  # type: ignore[arg-type]


def shortest_run(row: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False]))))
    return int((edges[1::2] - edges[::2]).min())


def test_half_of_an_utterance_is_masked_and_less_of_a_batch() -> None:
    """Sec. 4.2 of the paper: about 49 % of a typical sequence."""
    generator = np.random.default_rng(0)
    alone = np.mean([span_mask((1, 750), generator).mean() for _ in range(300)])
    assert alone == pytest.approx(0.49, abs=0.01)
    assert span_mask((300, 750), generator).mean() < alone - 0.03


@settings(max_examples=150)
@given(data=st.data(), seed=seeds, aspect=st.floats(0.3, 1))
def test_block_mask_is_of_rectangles_and_never_more_than_wanted(data: st.DataObject, seed: int, aspect: float) -> None:
    grid = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    wanted = data.draw(st.integers(1, grid[0] * grid[1]))
    least = data.draw(st.integers(1, wanted))
    options: dict[str, Any] = {"num_masking_patches": wanted, "min_num_patches": least, "min_aspect": aspect}
    mask = block_mask(grid, np.random.default_rng(seed), **options)
    assert (mask.shape, mask.dtype) == (grid, np.bool_)
    assert mask.sum() <= wanted
    if mask.any():  # the first rectangle is as large and as wide as it must be, up to its sides' rounding
        assert any(
            (h + 0.5) * (w + 0.5) >= least and (h + 0.5) / (w - 0.5) >= aspect and (w + 0.5) / (h - 0.5) >= aspect
            for h, w in whole_rectangles(mask)
        )
    np.testing.assert_array_equal(mask, block_mask(grid, np.random.default_rng(seed), **options))


def whole_rectangles(mask: np.ndarray) -> set[tuple[int, int]]:
    """(h, w) of every rectangle, smaller than the grid on both sides, that lies in the mask somewhere."""
    height, width = mask.shape
    sums = np.pad(mask.astype(int).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return {
        (h, w)
        for h in range(1, height)
        for w in range(1, width)
        if (sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w] == h * w).any()
    }


def test_block_mask_nearly_reaches_what_is_wanted() -> None:
    generator = np.random.default_rng(0)
    counts = [int(block_mask((14, 14), generator, num_masking_patches=120).sum()) for _ in range(200)]
    assert 118.5 < np.mean(counts) <= 120
    assert np.mean([block_mask((14, 14), generator).mean() for _ in range(200)]) == pytest.approx(0.6, abs=0.01)
    whole = np.mean([block_mask((14, 14), generator, num_masking_patches=40) for _ in range(800)], axis=0)
    np.testing.assert_allclose(whole, whole.T, atol=0.1)  # rows and columns alike, and either end of them
    np.testing.assert_allclose(whole, whole[::-1, ::-1], atol=0.1)
    assert not block_mask((1, 40), generator).any()  # a rectangle may not reach across


@settings(max_examples=150)
@given(data=st.data(), seed=seeds, prob=st.floats(0, 1))
def test_bert_mask_changes_what_it_selects_and_selects_nothing_special(
    data: st.DataObject, seed: int, prob: float
) -> None:
    vocabulary, shape = data.draw(st.integers(1, 30)), (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40)))
    ids = np.random.default_rng(seed + 1).integers(0, vocabulary, shape)
    special = data.draw(st.lists(st.integers(0, vocabulary + 3), max_size=4))
    options: dict[str, Any] = {
        "mask_token_id": data.draw(st.integers(0, vocabulary - 1)),
        "vocab_size": vocabulary,
        "special_token_ids": special,
    }
    before = ids.copy()
    seen, selected = bert_mask(ids, np.random.default_rng(seed), mlm_probability=prob, **options)
    assert (seen.shape, selected.shape, selected.dtype) == (shape, shape, np.bool_)
    np.testing.assert_array_equal(ids, before)
    np.testing.assert_array_equal(seen[~selected], ids[~selected])
    assert not np.isin(ids[selected], special).any()
    assert ((seen >= 0) & (seen < vocabulary)).all()
    again = bert_mask(ids.tolist(), np.random.default_rng(seed), mlm_probability=prob, **options)
    np.testing.assert_array_equal(again, (seen, selected))
    assert not bert_mask(ids, np.random.default_rng(seed), mlm_probability=0, **options)[1].any()
    everything = bert_mask(ids, np.random.default_rng(seed), mlm_probability=1, **options)[1]
    np.testing.assert_array_equal(everything, ~np.isin(ids, special))


def test_bert_mask_of_which_80_percent_are_hidden_10_drawn_and_10_left() -> None:
    ids = np.random.default_rng(1).integers(5, 1000, (100, 2000))
    seen, selected = bert_mask(ids, np.random.default_rng(2), mask_token_id=4, vocab_size=1000)
    assert selected.mean() == pytest.approx(0.15, abs=0.005)
    rates = [(seen[selected] == 4).mean(), (seen[selected] == ids[selected]).mean()]
    np.testing.assert_allclose(rates, [0.8, 0.1], atol=0.01)
    drawn = seen[selected & (seen != ids) & (seen != 4)]
    assert np.bincount(drawn, minlength=1000)[[0, 1, 2, 999]].min() >= 1  # any token, special ones too
    assert drawn.mean() == pytest.approx(499.5, abs=30)


@pytest.mark.parametrize(
    "draw",
    [
        lambda random: span_mask((3, 50), random),
        lambda random: block_mask((14, 14), random),
        lambda random: bert_mask(np.full((3, 50), 7), random, mask_token_id=4, vocab_size=9)[1],
    ],
)
def test_only_the_generator_decides(draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002 - the global one
    first, again, other = (draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]  # noqa: NPY002


# ---- the teacher's weights


@given(start=st.floats(0, 1), end=st.floats(0, 1), steps=st.integers(0, 10**6), data=st.data())
def test_the_decay_rises_from_its_first_to_its_last_value(
    start: float, end: float, steps: int, data: st.DataObject
) -> None:
    start, end = sorted((start, end))
    objective = replace(TEXT, ema_decay=start, ema_end_decay=end, ema_anneal_end_step=steps)
    assert ema_decay(0, objective) == (start if steps else end)
    assert ema_decay(steps, objective) == ema_decay(steps + data.draw(st.integers(0, 10**9)), objective) == end
    some = sorted(data.draw(st.lists(st.integers(0, max(steps, 1)), min_size=2, max_size=6)))
    decays = [ema_decay(step, objective) for step in some]
    assert start <= decays[0]
    assert decays == sorted(decays)
    assert decays[-1] <= end
    if steps:  # linearly
        both = ema_decay(steps // 3, objective) + ema_decay(steps - steps // 3, objective)
        assert both == pytest.approx(start + end, rel=1e-12)


@given(seed=seeds, tau=st.floats(0, 1), updates=st.integers(0, 5), dtype=st.sampled_from(DTYPES))
def test_an_update_lies_between_teacher_and_student(seed: int, tau: float, updates: int, dtype: str) -> None:
    random = np.random.default_rng(seed)
    objective = replace(TEXT, ema_decay=tau, ema_end_decay=tau, averaged=("encoder.", "head"))
    names = ("encoder.weight", "head.bias", "embeddings.weight", "my.encoder.weight")
    student, teacher = ({name: random.normal(size=(2, 3)).astype(dtype) for name in names} for _ in range(2))
    first = teacher
    for step in range(updates):
        before, teacher = teacher, ema_update(teacher, student, step, objective)
        for name in names[:2]:
            low, high = np.minimum(before[name], student[name]), np.maximum(before[name], student[name])
            slack = 4 * np.finfo(dtype).eps
            assert ((teacher[name] >= low - slack) & (teacher[name] <= high + slack)).all()
            assert teacher[name].dtype == dtype
    assert list(teacher) == list(first)
    for name in names[:2]:  # what is left of the first teacher decays geometrically
        want = student[name] + tau**updates * (first[name] - student[name])
        np.testing.assert_allclose(teacher[name], want, atol=20 * float(np.finfo(dtype).eps))
    if updates:
        assert all(teacher[name] is student[name] for name in names[2:])


SHARED = {
    "audio": ("feature_extractor.", "feature_projection.", "encoder.pos_conv_embed.", "masked_spec_embed"),
    "text": ("embeddings.", "pooler."),
    "vision": (),
}


@pytest.mark.parametrize("kind", SHARED)
def test_what_the_teacher_shares_with_the_student(kind: str) -> None:
    """Sec. 3.3: the feature encoder and the positions; in vision, as it was published, nothing."""
    objective, model = {
        "audio": (AUDIO, audio_models.build(audio_models.BARE, mask_time_prob=0.1)),
        "text": (TEXT, text_models.build("Data2VecTextModel")),
        "vision": (VISION, vision_models.build(vision_models.BARE)),
    }[kind]
    student = model.state_dict()
    teacher = ema_update({name: value + 1 for name, value in student.items()}, student, 7, objective)
    shared = {name for name in student if teacher[name] is student[name]}
    assert shared == {name for name in student if name.startswith(SHARED[kind])}
    moved = [np.abs(teacher[name] - student[name]).max() for name in student if name not in shared]
    np.testing.assert_allclose(moved, ema_decay(7, objective))


# ---- targets


NORMS: list[dict[str, Any]] = [{"instance_norm_target_layer": True}, {"layer_norm_target_layer": True}]


@st.composite
def results(draw: st.DrawFn, count: int, *, spread: float = 2.0) -> list[np.ndarray]:
    """Results of some layers, every channel and position of another size and place."""
    random = np.random.default_rng(draw(seeds))
    shape = draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    layers = []
    for _ in range(count):
        sizes = np.exp(random.uniform(-spread, spread, (shape[0], 1, shape[2])))
        layers.append(sizes * random.normal(size=shape) + random.normal(size=(shape[0], 1, shape[2])))
    return layers


@given(data=st.data(), axis=st.sampled_from([1, 2]), dtype=st.sampled_from(DTYPES))
def test_a_normalised_layer_has_mean_0_and_variance_1(data: st.DataObject, axis: int, dtype: str) -> None:
    """Over time for instance norm, over channels for layer norm; a little less than 1, for the epsilon in it."""
    x = data.draw(results(1))[0].astype(dtype)
    objective = replace(PLAIN, instance_norm_target_layer=axis == 1, layer_norm_target_layer=axis == 2)
    y = teacher_targets([x], objective)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    tolerance = 1e-10 if dtype == "float64" else 1e-3
    np.testing.assert_allclose(y.mean(axis), 0, atol=tolerance)
    variance = x.astype("f8").var(axis)
    np.testing.assert_allclose(y.var(axis), variance / (variance + EPS), rtol=tolerance)


@given(data=st.data(), count=st.integers(1, 4), seed=seeds)
def test_the_target_is_the_layers_mean(data: st.DataObject, count: int, seed: int) -> None:
    layers, random = data.draw(results(count)), np.random.default_rng(seed)
    plain = replace(PLAIN, average_top_k_layers=count)
    np.testing.assert_allclose(teacher_targets(layers, plain), np.mean(layers, axis=0), rtol=1e-12, atol=1e-12)
    for flags in (*NORMS, {}):
        one, many = replace(PLAIN, **flags), replace(plain, **flags)
        y = teacher_targets(layers, many)
        alone = [teacher_targets([x], one) for x in layers]
        np.testing.assert_allclose(y, np.mean(alone, axis=0), rtol=1e-12, atol=1e-12)
        last = teacher_targets(layers, replace(many, layer_norm_targets=True))
        np.testing.assert_allclose(last, teacher_targets([y], replace(PLAIN, layer_norm_target_layer=True)), atol=1e-12)
        order = random.permutation(count)
        np.testing.assert_allclose(teacher_targets([layers[i] for i in order], many), y, rtol=1e-12, atol=1e-12)
        row = [x[:1] for x in layers]  # an example has the target that it has in any batch
        np.testing.assert_allclose(teacher_targets(row, many), y[:1], rtol=1e-12, atol=1e-12)


@given(data=st.data(), seed=seeds)
def test_no_layer_dominates_by_its_size(data: st.DataObject, seed: int) -> None:
    """Sec. 3.3: instance norm knows no channel's scale and offset, layer norm no position's."""
    x, random = data.draw(results(1))[0], np.random.default_rng(seed)
    assume(x.std(1).min() > 0.05)
    assume(x.std(2).min() > 0.05)  # or the epsilon counts
    by_time, by_channel = (replace(PLAIN, **flag) for flag in NORMS)
    for objective, axis in ((by_time, 1), (by_channel, 2)):
        shape = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
        moved = random.uniform(1, 100, shape) * x + random.normal(size=shape)
        np.testing.assert_allclose(teacher_targets([moved], objective), teacher_targets([x], objective), atol=0.02)


# ---- the loss


@given(seed=seeds, count=st.integers(1, 6), width=st.integers(1, 6), beta=betas, dtype=st.sampled_from(DTYPES))
def test_the_loss_is_0_for_equals_and_above_it_for_others(
    seed: int, count: int, width: int, beta: float, dtype: str
) -> None:
    random, objective = np.random.default_rng(seed), replace(TEXT, loss_beta=beta)
    x, y = (random.normal(size=(count, width)).astype(dtype) for _ in range(2))
    loss = regression_loss(x, y, objective)
    assert (loss.shape, loss.dtype) == ((), dtype)
    assert loss > 0
    assert regression_loss(x, x, objective) == 0
    assert regression_loss(y, x, objective) == loss
    order = random.permutation(count)
    close = pytest.approx(float(loss), rel=1e-4 if dtype == "float32" else 1e-12)
    assert regression_loss(x[order], y[order], objective) == close
    assert regression_loss(np.repeat(x, 3, axis=0), np.repeat(y, 3, axis=0), objective) == close  # a mean, not a sum
    assert np.isnan(regression_loss(x[:0], y[:0], objective))
    assert regression_loss(x[:0], y[:0], objective).dtype == dtype


@given(seed=seeds, width=st.integers(1, 9), beta=betas)
def test_the_scales_of_the_loss(seed: int, width: int, beta: float) -> None:
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(2, 4, width))
    one = replace(TEXT, loss_beta=beta, loss_scale=1.0)
    loss = regression_loss(x, y, one)
    columns = [regression_loss(x[:, [d]], y[:, [d]], one) for d in range(width)]
    assert loss == pytest.approx(sum(map(float, columns)), rel=1e-12)  # a sum over channels
    assert regression_loss(x, y, replace(one, loss_scale=3)) == pytest.approx(3 * loss, rel=1e-12)
    assert regression_loss(x, y, replace(one, loss_scale="1/D")) * width == pytest.approx(loss, rel=1e-12)
    assert regression_loss(x, y, replace(one, loss_scale="1/sqrt(D)")) * math.sqrt(width) == pytest.approx(loss)


@given(seed=seeds, beta=st.floats(1e-6, 10), ratio=st.floats(0, 3))
def test_beta_is_where_l2_becomes_l1(seed: int, beta: float, ratio: float) -> None:
    """One element, so that the loss is l itself: smooth in the residual and in beta, parabola below, slope 1 above."""
    objective = replace(TEXT, loss_beta=beta)

    def l(r: float, objective: Objective = objective) -> float:  # noqa: E743 - the paper's name
        return float(regression_loss(np.array([[r]]), np.zeros((1, 1)), objective))

    r, step = ratio * beta, 1e-3 * beta
    if ratio < 0.99:
        assert l(r) * 2 * beta == pytest.approx(l(r, replace(objective, loss_beta=0)))
    elif ratio > 1.01:
        assert l(r + step) - l(r) == pytest.approx(step)
    slope = (l(r + step) - l(r)) / step
    assert slope == pytest.approx(min(ratio, 1), abs=2e-3)  # no jump at beta either
    assert l(r) <= r * (1 + 1e-12)
    larger = replace(objective, loss_beta=beta * (1 + 1e-6))
    assert l(r, larger) == pytest.approx(l(r), rel=1e-5, abs=1e-30)
    assert r - beta / 2 <= l(r) * (1 + 1e-12) + 1e-30  # as beta goes to 0, L1


def test_a_beta_of_any_size_takes_residuals_of_any_size() -> None:
    for beta in (1e-300, 1e300):
        loss = regression_loss(np.array([[1e200]]), np.zeros((1, 1)), replace(TEXT, loss_beta=beta))
        assert loss == pytest.approx(1e200 if beta < 1 else 5e99)
    assert np.isnan(regression_loss(np.array([[NAN]]), np.zeros((1, 1)), TEXT))


# ---- the head


@pytest.mark.parametrize("kind", ["linear", "mlp", "norm"])
def test_a_head_keeps_the_shape(kind: Any) -> None:
    head = bound(regression_head(6, replace(TEXT, regression_head=kind)))
    x = np.random.default_rng(0).normal(size=(4, 6))
    assert head(x).shape == (4, 6)
    assert head(x[:0]).shape == (0, 6)
    straight = np.allclose(head(2 * x) - head(x), head(x) - head(0 * x), atol=1e-6)
    assert straight == (kind == "linear")
    assert np.allclose(head(2 * x + 1), head(x), atol=1e-4) == (kind == "norm")  # it knows no scale


def bound(head: Any, seed: int = 3) -> Any:
    random = np.random.default_rng(seed)
    head.bind({name: random.normal(size=value.shape) for name, _, _, value in head.named_parameters()}, Ops("float64"))
    return head


def identity(width: int) -> Any:
    head = regression_head(width, PLAIN)
    head.bind({"0.weight": np.eye(width), "0.bias": np.zeros(width)}, Ops("float64"))
    return head


# ---- a step


class Modality:
    """A tiny student and a teacher of a modality, and inputs of both."""

    def __init__(self, kind: str, *, layers: int = 3, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.layers = layers
        build: Any
        options: dict[str, Any] = {}
        if kind == "audio":
            self.published, self.block = AUDIO, "encoder.layers.{}"
            build, name, options = audio_models.build, audio_models.BARE, {"mask_time_prob": 0.1}
            self.seen: dict[str, Any] = {"input_values": audio_models.samples(seed)}
            self.mask = span_mask((2, 11), random, mask_length=3)
            self.hidden = {**self.seen, "mask_time_indices": self.mask}
        elif kind == "text":
            self.published, self.block = TEXT, "encoder.layer.{}.output"
            build, name = text_models.build, "Data2VecTextModel"
            ids = text_models.token_ids(name, seed, length=12)
            hidden, self.mask = bert_mask(ids, random, mask_token_id=18, vocab_size=19, mlm_probability=0.5)
            self.seen, self.hidden = {"input_ids": ids}, {"input_ids": hidden}
        else:
            self.published, self.block = VISION, "encoder.layer.{}"
            build, name, options = vision_models.build, vision_models.BARE, {"pooler": False, "use_mean_pooling": True}
            self.seen = {"pixel_values": vision_models.pictures(seed)}
            self.mask = random.random((2, 9)) < 0.5
            self.hidden = {**self.seen, "bool_masked_pos": self.mask}
        self.student, self.teacher = (build(name, seed=seed + i, num_hidden_layers=layers, **options) for i in range(2))
        self.width = self.student.config.hidden_size
        self.objective = replace(self.published, average_top_k_layers=2)
        self.head = bound(regression_head(self.width, self.objective))

    def inputs(self) -> dict[str, dict[str, Any]]:
        return {"student_inputs": self.hidden, "teacher_inputs": self.seen}

    def step(self, **changes: Any) -> Any:
        arguments: dict[str, Any] = {
            "student": self.student,
            "teacher": self.teacher,
            "head": self.head,
            "objective": self.objective,
            "mask": self.mask,
        }
        return pretraining_step(**{**arguments, **self.inputs(), **changes})


KINDS = ("audio", "text", "vision")
modalities = {kind: Modality(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_results_lead_to_the_hidden_states(kind: str) -> None:
    """A block's result is its feed-forward output before the residual and the last norm, or, in vision, all of it."""
    m = modalities[kind]
    got = layer_results(m.teacher, replace(m.objective, average_top_k_layers=m.layers), **m.seen)
    out, taps = m.teacher.record(**m.seen, output_hidden_states=True)
    assert len(got) == m.layers
    for i, result in enumerate(got):
        after = out.hidden_states[i + 1]
        assert result.shape == (2, m.mask.shape[1], m.width)
        if kind == "vision":
            np.testing.assert_array_equal(result, after[:, 1:])
            continue
        if kind == "audio":
            layer = m.teacher.encoder.layers[i]
            residual, norm = taps[f"encoder.layers.{i}.layer_norm"], layer.final_layer_norm
        else:
            layer = m.teacher.encoder.layer[i]
            residual, norm = taps[f"encoder.layer.{i}.attention.output"], layer.output.LayerNorm
        np.testing.assert_allclose(norm(residual + result), after, atol=1e-12)
    top = layer_results(m.teacher, replace(m.objective, average_top_k_layers=1), **m.seen)
    np.testing.assert_array_equal(top, got[-1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_sees_all_and_is_its_teacher_has_nothing_to_learn(kind: str) -> None:
    """Its output is the teacher's last block; a head that changes nothing leaves no loss."""
    m = modalities[kind]
    objective = replace(PLAIN, layer_results=m.block)
    own: dict[str, Any] = {"teacher": m.student, "head": identity(m.width), "objective": objective}
    out = m.step(student_inputs=m.seen, **own)
    assert out.loss == 0
    np.testing.assert_array_equal(out.prediction, out.target)
    assert m.step(**own).loss > 0  # it does not see all
    assert m.step(student_inputs=m.seen, **{**own, "teacher": m.teacher}).loss > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_the_mean_over_its_masked_positions(kind: str) -> None:
    m = modalities[kind]
    whole = m.step()
    assert whole.prediction.shape == whole.target.shape == (m.mask.sum(), m.width)
    rows = []
    for i in range(2):
        one = {name: {key: value[i : i + 1] for key, value in given.items()} for name, given in m.inputs().items()}
        rows.append(m.step(mask=m.mask[i : i + 1], **one))
    counts = m.mask.sum(1)
    assert float(whole.loss) == pytest.approx(np.average([row.loss for row in rows], weights=counts), rel=1e-10)
    for name in ("prediction", "target"):
        np.testing.assert_allclose(whole[name], np.concatenate([row[name] for row in rows]), atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_does_not_know_what_the_student_sees(kind: str) -> None:
    m = modalities[kind]
    out, unmasked = m.step(), m.step(student_inputs=m.seen)
    np.testing.assert_array_equal(out.target, unmasked.target)
    assert (out.prediction != unmasked.prediction).any()
    everywhere = m.step(mask=np.ones_like(m.mask))
    np.testing.assert_array_equal(everywhere.target.reshape(*m.mask.shape, -1)[m.mask], out.target)
    nowhere = m.step(mask=np.zeros_like(m.mask))
    assert np.isnan(nowhere.loss)
    assert nowhere.target.shape == (0, m.width)
    assert m.step(objective=replace(m.objective, loss_scale=2.0)).loss > 0


def test_a_configuration_that_returns_tuples_makes_no_difference() -> None:
    m = Modality("text")
    before = m.step().loss
    m.student.config.return_dict = m.teacher.config.return_dict = False
    assert m.step().loss == before


# ---- everything that may be wrong


def refused(kind: type[D2VError], words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(D2VError, match=words) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    (r"^average_top_k_layers is too small .got 0; expected 1 or more", {"average_top_k_layers": 0}),
    (r"^average_top_k_layers has the wrong type .got 2.0; expected int", {"average_top_k_layers": 2.0}),
    (r"^average_top_k_layers has the wrong type .got True", {"average_top_k_layers": True}),
    (r"^layer_results has the wrong type .got None; expected str", {"layer_results": None}),
    (r"^layer_results is no path .*got encoder.layer.*expected one ..", {"layer_results": "encoder.layer"}),
    (r"^layer_results is no path", {"layer_results": "encoder.{}.{}"}),
    (r"^layer_results is no path", {"layer_results": "encoder.{}.{x}"}),
    (r"^layer_results is no path", {"layer_results": "encoder.{0}"}),
    (r"^loss_beta is no bound .got -1; expected 0 or more", {"loss_beta": -1}),
    (r"^loss_beta is no bound .got nan", {"loss_beta": NAN}),
    (r"^loss_beta is no bound .got inf", {"loss_beta": math.inf}),
    (r"^loss_beta has the wrong type .got '1'; expected float", {"loss_beta": "1"}),
    (r"^loss_scale is no factor .got '1/d'; expected a number above 0, 1/sqrt.D. or 1/D", {"loss_scale": "1/d"}),
    (r"^loss_scale is no factor .got None", {"loss_scale": None}),
    (r"^loss_scale is no factor .got 0", {"loss_scale": 0}),
    (r"^loss_scale is no factor .got nan", {"loss_scale": NAN}),
    (r"^loss_scale is no factor .got inf", {"loss_scale": math.inf}),
    (r"^loss_scale is no factor .got True", {"loss_scale": True}),
    (r"^the decay does not rise .got 0.9 ... 0.8; expected 0 <= ", {"ema_decay": 0.9, "ema_end_decay": 0.8}),
    (r"^the decay does not rise", {"ema_end_decay": 1.1}),
    (r"^the decay does not rise", {"ema_decay": -0.1}),
    (r"^the decay does not rise .got nan", {"ema_decay": NAN}),
    (r"^ema_decay has the wrong type .got None", {"ema_decay": None}),
    (r"^ema_anneal_end_step is negative .got -1; expected 0 or more", {"ema_anneal_end_step": -1}),
    (r"^ema_anneal_end_step has the wrong type .got 1000.0", {"ema_anneal_end_step": 1e3}),
    (r"^averaged has the wrong type .got 'encoder'; expected a tuple of str", {"averaged": "encoder"}),
    (r"^averaged has the wrong type .got ..encoder..; ", {"averaged": ["encoder"]}),
    (r"^averaged has the wrong type .got .1,.; ", {"averaged": (1,)}),
    (r"^unknown regression_head .got 'conv'; expected linear or mlp or norm", {"regression_head": "conv"}),
    (r"^unknown regression_head .got None", {"regression_head": None}),
    (r"^instance_norm_target_layer has the wrong type .got 1; expected bool", {"instance_norm_target_layer": 1}),
    (r"^layer_norm_targets has the wrong type .got 'no'", {"layer_norm_targets": "no"}),
    (
        r"^instance_norm_target_layer and layer_norm_target_layer exclude each other .expected one of them",
        {"instance_norm_target_layer": True, "layer_norm_target_layer": True},
    ),
]


@pytest.mark.parametrize(("words", "changes"), SETTINGS)
def test_a_setting_that_makes_no_objective(words: str, changes: dict[str, Any]) -> None:
    for objective in (AUDIO, TEXT, VISION):
        if len(changes) == 1 or "ema_decay" in changes or not objective.layer_norm_target_layer:
            refused(ConfigError, words, lambda objective=objective: replace(objective, **changes))  # type: ignore[misc]


RANDOM = np.random.default_rng(0)
IDS = np.arange(12).reshape(2, 6)
MASKS: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    (r"^shape has the wrong dtype .got float64", span_mask, {"shape": (2, 50.0)}),
    (r"^shape has the wrong shape .got .3,.; expected .2,.", span_mask, {"shape": (2, 50, 3)}),
    (r"^shape has the wrong dtype .got object", span_mask, {"shape": None}),
    (r"^shape is not an array", span_mask, {"shape": ((1, 2), 3)}),
    (r"^shape holds nothing .got .0, 50.; expected 1 or more", span_mask, {"shape": (0, 50)}),
    (r"^shape holds nothing .got .2, -50.", span_mask, {"shape": (2, -50)}),
    (r"^mask_length is out of range .got 51; expected 1 ... 50", span_mask, {"mask_length": 51}),
    (r"^mask_length is out of range .got 0; ", span_mask, {"mask_length": 0}),
    (r"^mask_length has the wrong dtype .got float64; expected integers", span_mask, {"mask_length": 2.5}),
    (r"^mask_prob is out of range .got 1.5; expected 0 ... 1", span_mask, {"mask_prob": 1.5}),
    (r"^mask_prob is out of range .got -0.1", span_mask, {"mask_prob": -0.1}),
    (r"^mask_prob is not finite .got nan", span_mask, {"mask_prob": NAN}),
    (r"^mask_prob has the wrong dtype .got <U4", span_mask, {"mask_prob": "half"}),
    (r"^mask_prob has the wrong shape .got .2,.", span_mask, {"mask_prob": [0.5, 0.5]}),
    (r"^lengths has the wrong shape .got .3,.; expected .2,.", span_mask, {"lengths": [50, 50, 50]}),
    (r"^lengths has the wrong dtype .got float64", span_mask, {"lengths": [50.0, 40.0]}),
    (r"^lengths has the wrong dtype .got bool", span_mask, {"lengths": [True, True]}),
    (r"^lengths don't fit .got .50, 9.; expected 10 ... 50 frames", span_mask, {"lengths": [50, 9]}),
    (r"^lengths don't fit .got .51, 50.", span_mask, {"lengths": [51, 50]}),
    (r"^generator can't draw .got int; expected numpy.random.Generator or numpy.random.RandomState.. numpy.random.def",
     span_mask, {"generator": 3}),
    (r"^generator can't draw .got NoneType", span_mask, {"generator": None}),
    (r"^grid has the wrong shape .got ..", block_mask, {"grid": 14}),
    (r"^grid has the wrong dtype .got <U", block_mask, {"grid": ("14", "14")}),
    (r"^grid holds nothing .got .14, 0.", block_mask, {"grid": (14, 0)}),
    (r"^num_masking_patches is out of range .got 197; expected 1 ... 196", block_mask, {"num_masking_patches": 197}),
    (r"^num_masking_patches is out of range .got 0", block_mask, {"num_masking_patches": 0}),
    (r"^num_masking_patches has the wrong dtype .got float64", block_mask, {"num_masking_patches": 0.6}),
    (r"^min_num_patches is out of range .got 16; expected 1 ... 10", block_mask, {"grid": (4, 4)}),
    (r"^min_num_patches is out of range .got 0; expected 1 ... 118", block_mask, {"min_num_patches": 0}),
    (r"^min_num_patches has the wrong dtype .got object", block_mask, {"min_num_patches": None}),
    (r"^min_aspect is out of range .got 0.0; expected 0.001 ... 1", block_mask, {"min_aspect": 0.0}),
    (r"^min_aspect is out of range .got 3", block_mask, {"min_aspect": 3}),
    (r"^min_aspect is not finite .got nan", block_mask, {"min_aspect": NAN}),
    (r"^generator can't draw .got RandomState; expected numpy.random.Generator",
     block_mask, {"generator": np.random.RandomState(0)}),
    (r"^input_ids is out of range .got 11 at .1, 5.; expected 0 ... 10", bert_mask, {"vocab_size": 11}),
    (r"^input_ids is out of range .got -1", bert_mask, {"input_ids": IDS - 1}),
    (r"^input_ids has the wrong dtype .got float64", bert_mask, {"input_ids": IDS * 1.0}),
    (r"^input_ids has the wrong shape .got .6,.; expected .batch, length.", bert_mask, {"input_ids": IDS[0]}),
    (r"^input_ids is empty", bert_mask, {"input_ids": IDS[:0]}),
    (r"^input_ids is not an array", bert_mask, {"input_ids": [[1, 2], [3]]}),
    (r"^vocab_size is out of range .got 0", bert_mask, {"vocab_size": 0}),
    (r"^vocab_size has the wrong dtype .got object", bert_mask, {"vocab_size": None}),
    (r"^mask_token_id is out of range .got 12; expected 0 ... 11", bert_mask, {"mask_token_id": 12}),
    (r"^mask_token_id has the wrong dtype .got <U6", bert_mask, {"mask_token_id": "<mask>"}),
    (r"^mlm_probability is out of range .got 15; expected 0 ... 1", bert_mask, {"mlm_probability": 15}),
    (r"^mlm_probability is not finite", bert_mask, {"mlm_probability": NAN}),
    (r"^special_token_ids has the wrong shape .got ..; expected .count,.", bert_mask, {"special_token_ids": 3}),
    (r"^special_token_ids has the wrong dtype .got object", bert_mask, {"special_token_ids": {1, 2}}),
    (r"^special_token_ids has the wrong dtype .got <U3", bert_mask, {"special_token_ids": ["<s>"]}),
    (r"^generator can't draw .got module", bert_mask, {"generator": np.random}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "function", "changes"), MASKS)
def test_a_mask_that_can_t_be_drawn(words: str, function: Callable[..., Any], changes: dict[str, Any]) -> None:
    arguments: dict[Any, dict[str, Any]] = {
        span_mask: {"shape": (2, 50)},
        block_mask: {"grid": (14, 14)},
        bert_mask: {"input_ids": IDS, "mask_token_id": 4, "vocab_size": 12},
    }
    refused(InputError, words, lambda: function(**{"generator": RANDOM, **arguments[function], **changes}))


X = np.random.default_rng(1).normal(size=(2, 3, 4))
Y = X[0]
WEIGHTS = {"encoder.layer.0.weight": Y, "embeddings.weight": Y}
NUMBERS: list[tuple[str, Callable[[], Any]]] = [
    (r"^results has the wrong shape .got .1, 2, 3, 4.; expected .2, batch, length, width.", lambda: targets([X])),
    (r"^results has the wrong shape .got .2, 3, 4.", lambda: targets([Y, Y])),
    (r"^results has the wrong shape .got .0,.", lambda: targets([])),
    (r"^results has the wrong shape .got .2, 0, 3, 4.|^results is empty", lambda: targets([X[:0], X[:0]])),
    (r"^results is not an array", lambda: targets([X, X[:1]])),
    (r"^results has the wrong dtype .got int64; expected floating", lambda: targets([X.astype(int)] * 2)),
    (r"^results has the wrong dtype .got float16; expected float32 or float64", lambda: targets([X.astype("f2")] * 2)),
    (r"^results has the wrong dtype .got object", lambda: targets([None, X[0, 0, 0]])),
    (r"^results is not finite .got inf at", lambda: targets([X, np.where(X > 0, np.inf, X)])),
    (r"^step is out of range .got -1; expected 0 ... inf", lambda: ema_decay(-1, TEXT)),
    (r"^step has the wrong dtype .got float64; expected integers", lambda: ema_decay(1.5, TEXT)),  # type: ignore[arg-type]
    (r"^step has the wrong dtype .got object", lambda: ema_decay(None, TEXT)),  # type: ignore[arg-type]
    (r"^step is out of range .got -1", lambda: ema_decay(-1, VISION)),
    (r"^step is out of range .got -1", lambda: ema_update(WEIGHTS, WEIGHTS, -1, TEXT)),
    (r"^teacher and student differ in their weights .got embeddings.weight; expected one class of model",
     lambda: ema_update(WEIGHTS, {"encoder.layer.0.weight": Y}, 0, TEXT)),
    (r"^encoder.layer.0.weight has the wrong shape .got .2, 4.; expected .3, 4.",
     lambda: ema_update(WEIGHTS, {**WEIGHTS, "encoder.layer.0.weight": Y[:2]}, 0, TEXT)),
    (r"^embeddings.weight has the wrong shape .got .1, 4.; expected .3, 4.", lambda: updated(student=Y[:1])),
    (r"^embeddings.weight has the wrong dtype .got <U", lambda: updated(student=Y.astype(str))),
    (r"^embeddings.weight has the wrong dtype .got int64", lambda: updated(teacher=Y.astype(int))),
    (r"^embeddings.weight is not finite .got inf", lambda: updated(student=np.where(Y > 0, np.inf, Y))),
    (r"^embeddings.weight is not finite .got nan", lambda: updated(teacher=Y * NAN)),
    (r"^width is out of range .got 0", lambda: regression_head(0, TEXT)),
    (r"^width has the wrong dtype .got float64", lambda: regression_head(7.0, TEXT)),  # type: ignore[arg-type]
    (r"^prediction and target differ in shape .got .3, 4.; expected .2, 4.", lambda: regression_loss(Y, Y[:2], TEXT)),
    (r"^prediction and target differ in shape .got .0, 4.; expected .3, 4.", lambda: regression_loss(Y[:0], Y, TEXT)),
    (r"^prediction is not of positions .got float64 .2, 3, 4.; expected floating-point numbers .N, D.",
     lambda: regression_loss(X, X, TEXT)),
    (r"^prediction is not of positions .got int64 .3, 4.", lambda: regression_loss(Y.astype(int), Y, TEXT)),
    (r"^target is not of positions .got object ..", lambda: regression_loss(Y, None, TEXT)),  # type: ignore[arg-type]
    (r"^target is not of positions .got float64 .3, 0.", lambda: regression_loss(Y, Y[:, :0], TEXT)),
    (r"^target is not an array", lambda: regression_loss(Y, [[1.0], [1.0, 2.0]], TEXT)),  # type: ignore[arg-type]
]  # fmt: skip


def updated(teacher: Any = Y, student: Any = Y) -> dict[str, np.ndarray]:
    """An update with these embeddings."""
    return ema_update({**WEIGHTS, "embeddings.weight": teacher}, {**WEIGHTS, "embeddings.weight": student}, 0, TEXT)


def targets(results: Any) -> np.ndarray:
    return teacher_targets(results, replace(TEXT, average_top_k_layers=2))


@pytest.mark.parametrize(("words", "call"), NUMBERS)
def test_numbers_that_nothing_can_be_computed_of(words: str, call: Callable[[], Any]) -> None:
    refused(InputError, words, call)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_can_t_be_taken(kind: str) -> None:
    m = modalities[kind]
    name, other = type(m.student).__name__, modalities["text" if kind == "vision" else "vision"]
    wrong_shape = rf"^mask has the wrong shape .got .*; expected .2, {m.mask.shape[1]}"
    refused(InputError, wrong_shape, lambda: m.step(mask=m.mask[:, 1:]))
    refused(InputError, wrong_shape, lambda: m.step(mask=m.mask[0]))
    refused(InputError, r"^mask has the wrong dtype .got int64; expected booleans", lambda: m.step(mask=1 * m.mask))
    refused(InputError, r"^mask has the wrong dtype .got object", lambda: m.step(mask=None))
    unbound = regression_head(m.width, m.objective)
    refused(InputError, r"^the head has no weights yet. head.bind", lambda: m.step(head=unbound))
    refused(
        InputError,
        r"does not fit the weight .got .*; expected .\.\.\., 13",
        lambda: m.step(head=bound(regression_head(13, m.objective))),
    )
    refused(ConfigError, r"^student and teacher are of different classes", lambda: m.step(student=other.student))
    words = rf"^the model has too few layers .got 3; expected average_top_k_layers={m.published.average_top_k_layers}"
    refused(ConfigError, words, lambda: m.step(objective=m.published))
    words = rf"^{name} has no module .*1.* Use the modality's objective and a base model"
    refused(ConfigError, words, lambda: m.step(objective=replace(m.objective, layer_results="decoder.{}")))
    words = rf"^{name} can't be called with these inputs: got an unexpected keyword argument 'input'"
    refused(InputError, words, lambda: m.step(teacher_inputs={**m.seen, "input": X}))
    refused(InputError, words, lambda: m.step(student_inputs={**m.hidden, "input": X}))
    refused(InputError, ".", lambda: m.step(teacher_inputs={}))
    refused(InputError, ".", lambda: m.step(student_inputs={}))
    half = {key: value[:1] for key, value in m.seen.items()}
    words = r"^student and teacher see different shapes .got .2, \d+.; expected .1, "
    refused(InputError, words, lambda: m.step(teacher_inputs=half))
    empty = type(m.student)(m.student.config)
    refused(InputError, rf"^{name} has no weights yet", lambda: m.step(student=empty))
    refused(InputError, rf"^{name} has no weights yet", lambda: m.step(teacher=empty))


def test_a_model_with_a_head_has_its_layers_under_other_names() -> None:
    model = text_models.build("Data2VecTextForMaskedLM", num_hidden_layers=2)
    words = r"^Data2VecTextForMaskedLM has no module encoder.layer.0.output.dense"
    objective = replace(TEXT, average_top_k_layers=2)
    refused(ConfigError, words, lambda: layer_results(model, objective, input_ids=IDS))
    inside = replace(objective, layer_results="data2vec_text.encoder.layer.{}.output.dense")
    assert [x.shape for x in layer_results(model, inside, input_ids=IDS)] == [(2, 6, 12)] * 2
