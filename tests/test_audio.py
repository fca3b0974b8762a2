"""The audio models: what padding may change and what not, what is refused and how, and what the heads compute."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.special
from audio_models import (
    BARE,
    CLASSES,
    CTC,
    FRAMES,
    NO_ADAPTER,
    SEQUENCE,
    TINY,
    WEIGHTED,
    XVECTOR,
    audio_configs,
    bare,
    build,
    config_of,
    main_output,
    mask_of,
    samples,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from d2v_ref.auto import model_class
from d2v_ref.ctc import ctc_loss
from d2v_ref.errors import ConfigError, D2VError, InputError
from d2v_ref.ops import Ops
from d2v_ref.spec_augment import compute_mask_indices

NAN, INF = float("nan"), float("inf")
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
seeds = st.integers(0, 2**32 - 1)
models = {name: build(name) for name in CLASSES}
exact_models = {name: build(name, padding="exact") for name in CLASSES}

X = samples()  # (2, 150), 11 frames
ONES = np.ones(X.shape, np.int64)


def refused(model: Any, words: str, /, **arguments: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        model(**arguments)
    assert len(str(caught.value).splitlines()) == 1


def own(model: Any, out: Any, row: int, count: int) -> dict[str, np.ndarray]:
    """What an output says of one utterance of so many samples: its own frames, and what is pooled of them."""
    frames, after = model.frame_lengths(count, add_adapter=False), model.frame_lengths(count)
    found = {}
    for name, value in out.items():
        if name == "hidden_states":
            found.update({f"{name}.{i}": state[row, :frames] for i, state in enumerate(value)})
        elif name == "attentions":
            found.update({f"{name}.{i}": p[row, :, :frames, :frames] for i, p in enumerate(value)})
        elif name == "extract_features":
            found[name] = value[row, :frames]
        else:
            found[name] = value[row, :after] if value.ndim == 3 else value[row]
    return found


def difference(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """The largest relative difference of any array; an infinite loss equals another, and NaN is infinitely far."""
    assert got.keys() == want.keys()
    worst = 0.0
    for name, value in want.items():
        assert got[name].shape == value.shape
        if value.size and not np.array_equal(got[name], value):
            error = float(np.abs(got[name] - value).max() / np.abs(value).max())
            worst = max(worst, INF if np.isnan(error) else error)
    return worst


def drawn_batch(
    data: st.DataObject, model: Any, seed: int, utterances: int = 3, longest: int = 60
) -> tuple[list[np.ndarray], dict[str, list[Any]]]:
    """Utterances of several lengths, and what else belongs to each: labels for CTC, and sometimes masked frames."""
    random = np.random.default_rng(seed)
    counts = model.least_samples + random.integers(0, longest, data.draw(st.integers(1, utterances)))
    rows = [random.normal(size=count) for count in counts]
    others: dict[str, list[Any]] = {}
    if type(model).__name__ == CTC:
        labels = random.integers(0, model.config.vocab_size, (len(rows), data.draw(st.integers(1, 4))))
        others["labels"] = list(np.where(random.random(labels.shape) < 0.2, -100, labels))
    if data.draw(st.booleans()):
        others["mask_time_indices"] = [random.random(model.frame_lengths(n, add_adapter=False)) < 0.3 for n in counts]
    return rows, others


def run_padded(
    model: Any, rows: list[np.ndarray], others: dict[str, list[Any]], padding: int, garbage: float = 0.0
) -> Any:
    """A batch of the utterances, with so many samples of padding behind the longest, of about this size."""
    random = np.random.default_rng(7)
    counts = [len(row) for row in rows]
    batch = garbage * random.uniform(-1, 1, (len(rows), max(counts) + padding))
    hidden = random.random((len(rows), model.frame_lengths(batch.shape[1], add_adapter=False))) < 0.5
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
        if "mask_time_indices" in others:
            hidden[i, : len(others["mask_time_indices"][i])] = others["mask_time_indices"][i]
    given_: dict[str, Any] = {"mask_time_indices": hidden} if "mask_time_indices" in others else {}
    if "labels" in others:
        given_["labels"] = np.stack(others["labels"])
    with np.errstate(all="ignore"):  # of what is garbage
        return model(batch, mask_of(counts, batch.shape[1]), **given_, **EVERYTHING)


def run_alone(model: Any, row: np.ndarray, others: dict[str, list[Any]], index: int) -> Any:
    return model(row[None], **{name: values[index][None] for name, values in others.items()}, **EVERYTHING)


# ---- padding


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=50)
@given(data=st.data(), seed=seeds, padding=st.integers(0, 40))
def test_with_exact_padding_an_utterance_gives_in_a_batch_what_it_gives_alone(
    name: str, data: st.DataObject, seed: int, padding: int
) -> None:
    config = data.draw(audio_configs(name, padding="exact", ctc_loss_reduction="none"))
    model = build(name, seed=seed, config=config)
    rows, others = drawn_batch(data, model, seed)
    out = run_padded(model, rows, others, padding)
    for i, row in enumerate(rows):
        alone = own(model, run_alone(model, row, others, i), 0, len(row))
        assert difference(own(model, out, i, len(row)), alone) < 1e-12


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=20)
@given(data=st.data(), seed=seeds, more=st.integers(1, 60), garbage=st.sampled_from([1.0, 1e6, 1e308]))
def test_with_exact_padding_neither_its_length_nor_what_it_holds_counts(
    name: str, data: st.DataObject, seed: int, more: int, garbage: float
) -> None:
    config = data.draw(audio_configs(name, padding="exact", ctc_loss_reduction="none"))
    model = build(name, seed=seed, config=config)
    rows, others = drawn_batch(data, model, seed)
    want, got = run_padded(model, rows, others, 0), run_padded(model, rows, others, more, garbage)
    for i, row in enumerate(rows):
        assert difference(own(model, got, i, len(row)), own(model, want, i, len(row))) < 1e-12


@pytest.mark.parametrize("name", CLASSES)
def test_hugging_faces_padding_leaks(name: str) -> None:
    """With two positional convolutions and more; transformers issue 25621."""
    for padding, leaks in (("hf", True), ("exact", False)):
        model = build(name, padding=padding, num_conv_pos_embeddings=3)
        out, alone = model(X, mask_of([150, 90], 150)), model(X[1:, :90])
        assert (difference(own(model, out, 1, 90), own(model, alone, 0, 90)) > 0.01) == leaks
        longer = model(np.pad(X, ((0, 0), (0, 100))), mask_of([150, 90], 250))
        assert (difference(own(model, longer, 0, 150), own(model, out, 0, 150)) > 0.01) == leaks


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=20)
@given(data=st.data(), seed=seeds, convolutions=st.sampled_from([(0, 4), (1, 4), (1, 5), (3, 1)]))
def test_one_positional_convolution_leaks_nothing(
    name: str, data: st.DataObject, seed: int, convolutions: tuple[int, int]
) -> None:
    """Nor do those that see one frame; then, without adapter and dilation, both kinds of padding are one."""
    changes: dict[str, Any] = {"num_conv_pos_embeddings": convolutions[0], "conv_pos_kernel_size": convolutions[1]}
    config = data.draw(audio_configs(name, **changes, add_adapter=False, tdnn_dilation=[1], tdnn_dim=[3],
                                     tdnn_kernel=[2], ctc_loss_reduction="none"))  # fmt: skip
    model = build(name, seed=seed, config=config)
    exact = build(name, seed=seed, config=type(config)(**{**config.to_dict(), "padding": "exact"}))
    rows, others = drawn_batch(data, model, seed)
    got, want = (run_padded(one, rows, others, 20) for one in (model, exact))
    for i, row in enumerate(rows):
        assert difference(own(model, got, i, len(row)), own(model, want, i, len(row))) < 1e-12


@pytest.mark.parametrize("name", CLASSES)
def test_what_padding_holds_counts_in_neither_mode(name: str) -> None:
    """In Hugging Face's mode the padded frames are emptied once, so that even their own numbers are the same."""
    mask = mask_of([150, 90], 150)
    loud = np.where(mask, X, 1e5 * X)
    with_head, changed = models[name](X, mask, **EVERYTHING), models[name](loud, mask, **EVERYTHING)
    for key, value in with_head.items():
        if key != "extract_features":
            np.testing.assert_allclose(changed[key], value, atol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_what_overflows_in_the_padding_stays_there(name: str) -> None:
    """The largest numbers there are make NaN of the padded frames, and of no other."""
    for padding in ("hf", "exact"):
        made = build(name, padding=padding)
        first = f"{bare(name)}feature_extractor.conv_layers.0.conv.weight"
        weights = made.state_dict()
        model = type(made)(made.config, {**weights, first: np.abs(weights[first])}, dtype="float64")
        mask = mask_of([150, 90], 150)
        with np.errstate(all="ignore"):
            out, taps = model.record(np.where(mask, X, np.finfo(np.float64).max), mask)
        assert np.isnan(taps[f"{bare(name)}feature_extractor"]).any()
        want = model(np.where(mask, X, 0), mask)
        assert difference(own(model, out, 1, 90), own(model, want, 1, 90)) < 1e-12


@pytest.mark.parametrize("name", CLASSES)
def test_without_padding_the_modes_are_one(name: str) -> None:
    want = models[name](X, **EVERYTHING)
    for got in (models[name](X, ONES, **EVERYTHING), exact_models[name](X, **EVERYTHING),
                exact_models[name](X, ONES, **EVERYTHING)):  # fmt: skip
        for key, value in want.items():
            np.testing.assert_allclose(got[key], value, atol=1e-13)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_mask_of_any_numbers_is_the_same_mask(name: str, dtype: str) -> None:
    mask = mask_of([150, 77], 150)
    for model in (models[name], exact_models[name]):
        np.testing.assert_array_equal(main_output(model(X, mask.astype(dtype))), main_output(model(X, mask)))
        np.testing.assert_array_equal(main_output(model(X.tolist(), mask.tolist())), main_output(model(X, mask)))


@pytest.mark.parametrize("name", CLASSES)
def test_hugging_faces_mode_counts_ones_wherever_they_stand(name: str) -> None:
    mask = mask_of([150, 90], 150)
    scattered = np.random.default_rng(0).permuted(mask, axis=1)
    assert (scattered != mask).any()
    want = models[name](X, mask)
    np.testing.assert_array_equal(main_output(models[name](X, scattered)), main_output(want))
    for wrong in (scattered, mask[:, ::-1]):
        refused(exact_models[name], "^attention_mask: padding before samples .expected ones, then zeros.*padding='hf'",
                input_values=X, attention_mask=wrong)  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 4, 19])
@pytest.mark.parametrize("name", CLASSES)
def test_an_utterance_of_no_frame(name: str, count: int) -> None:
    """19 samples make no frame, which as an index from the end means all frames; 0 to 4 make -1: all but the last."""
    mask = mask_of([150, count], 150)
    hf, frames = models[name], models[name].frame_lengths(150)
    seen = frames if count == 19 else frames - 1
    np.testing.assert_array_equal(hf.frame_mask(frames, mask).sum(1), [frames, seen])
    if name != XVECTOR:  # which goes by lengths, not by the mask
        like = mask_of([150, 20 + 12 * (seen - 1)], 150)
        np.testing.assert_allclose(main_output(hf(X, mask)), main_output(hf(X, like)), atol=1e-12)
    words = rf"too short for a frame .got {count} samples in row 1; expected at least 20"
    refused(exact_models[name], f"^attention_mask: an utterance is {words}", input_values=X, attention_mask=mask)
    # Where there are too few frames to count back from the end, it is an error in transformers too.
    short, mask = X[:, :20], mask_of([20, count], 20)
    if count < 19 and name != XVECTOR:
        refused(hf, f"^attention_mask: an utterance is {words}", input_values=short, attention_mask=mask)


def test_an_utterance_that_the_rest_of_the_model_leaves_no_frame() -> None:
    """With exact padding an utterance is refused in a batch where it is refused alone."""
    adapter = build(BARE, padding="exact", add_adapter=True, adapter_kernel_size=4, adapter_stride=1)
    assert adapter.least_samples == 20 + 12 * 3
    alone = r"^input_values: too short for a frame .got 55 samples; expected at least 56"
    refused(adapter, alone, input_values=X[:1, :55])
    batch = r"^attention_mask: an utterance is too short for a frame .got 55 samples in row 1; expected at least 56"
    refused(adapter, batch, input_values=X, attention_mask=mask_of([150, 55], 150))
    adapter(X, mask_of([150, 56], 150))

    speaker = exact_models[XVECTOR]  # its TDNN sees 5 frames at a time
    words = r"^input_values: too short for the TDNN .got 56 samples; expected at least 80"
    refused(speaker, words, input_values=X[:1, : 20 + 12 * 3])
    words = r"^attention_mask: an utterance is too short for a frame .got 56 samples in row 1; expected at least 80"
    refused(speaker, words, input_values=X, attention_mask=mask_of([150, 56], 150))
    one = speaker(X, mask_of([150, 68], 150)).logits  # one frame has no deviation, in a batch and alone
    np.testing.assert_array_equal(np.isnan(one).all(1), [False, True])
    assert np.isnan(speaker(X[1:, :68]).logits).all()
    assert np.isfinite(speaker(X, mask_of([150, 80], 150)).logits).all()


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=15)
@given(seed=seeds, batch=st.integers(1, 4))
def test_utterances_of_a_batch_do_not_see_each_other(name: str, seed: int, batch: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(batch, 150))
    mask = mask_of(random.integers(80, 151, batch), 150)
    order = random.permutation(batch)
    want = main_output(models[name](x, mask))
    np.testing.assert_allclose(main_output(models[name](x[order], mask[order])), want[order], atol=1e-12)
    np.testing.assert_allclose(main_output(models[name](x[:1], mask[:1])), want[:1], atol=1e-12)


# ---- lengths


def windows(length: int, kernel: int, stride: int) -> int:
    """How often a window fits, by placing it."""
    return len(range(0, length - kernel + 1, stride))


def real_frames(config: Any, length: int, adapter: bool) -> int:
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = windows(length, kernel, stride)
    for _ in range(config.num_adapter_layers if adapter and length else 0):
        length = windows(length + 2, config.adapter_kernel_size, config.adapter_stride) if length else 0
    return length


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=40)
@given(data=st.data(), more=st.integers(0, 50))
def test_least_samples_is_the_smallest_number_that_serves(name: str, data: st.DataObject, more: int) -> None:
    config = data.draw(audio_configs(name, padding="exact"))
    model: Any = model_class(name)(config)  # lengths need no weights
    least = model.least_samples
    summed = name == XVECTOR and config.use_weighted_layer_sum  # of states that have not passed the adapter

    def serves(count: int) -> bool:
        seen = real_frames(config, count, config.add_adapter and not summed)
        return seen >= model.least_frames and real_frames(config, count, config.add_adapter) >= 1

    assert serves(least)
    assert not any(serves(count) for count in range(least))
    adapter = config.add_adapter
    assert model.frame_lengths(least + more) == real_frames(config, least + more, adapter)
    assert model.frame_lengths(least + more, add_adapter=False) == real_frames(config, least + more, False)
    many = np.arange(least, least + 9)
    np.testing.assert_array_equal(model.frame_lengths(many), [model.frame_lengths(int(n)) for n in many])


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=25)
@given(data=st.data(), more=st.integers(0, 50))
def test_frame_lengths_are_those_of_the_outputs(name: str, data: st.DataObject, more: int) -> None:
    config = data.draw(audio_configs(name, padding="exact"))
    model = build(name, config=config)
    count = model.least_samples + more
    out = model(samples(0, 1, count), output_hidden_states=True)
    assert out.hidden_states[0].shape[1] == model.frame_lengths(count, add_adapter=False)
    if main_output(out).ndim == 3:
        assert main_output(out).shape[1] == model.frame_lengths(count)
    assert np.isfinite(main_output(out)).all()
    if name == BARE:
        refused(model, "too short for a frame|is empty", input_values=samples(0, 1, model.least_samples - 1))


def test_lengths_in_hugging_faces_mode_are_those_of_an_adapter_of_kernel_3() -> None:
    for kernel in (1, 2, 3, 4):
        hf = build(BARE, add_adapter=True, adapter_kernel_size=kernel)
        exact = build(BARE, add_adapter=True, adapter_kernel_size=kernel, padding="exact")
        real = hf(X).last_hidden_state.shape[1]
        assert exact.frame_lengths(150) == real
        assert hf.frame_lengths(150) == 2  # 11, 6, 3, 2
        assert (kernel != 3) or real == 2
    assert models[BARE].frame_lengths(0) <= 0
    assert models[BARE].config.inputs_to_logits_ratio == 12


@settings(max_examples=30)
@given(data=st.data(), seed=seeds, count=st.integers(0, 60))
def test_a_frame_is_an_utterances_own_if_no_padding_is_in_it(data: st.DataObject, seed: int, count: int) -> None:
    """Change the padding and look which frames of the convolutions change."""
    drawn = data.draw(audio_configs(BARE, feat_extract_activation="linear", conv_bias=True))
    config = type(drawn)(**{**drawn.to_dict(), "conv_dim": [5] * len(drawn.conv_dim)})  # no number is lost
    model = build(BARE, seed=seed, config=config)
    random = np.random.default_rng(seed)
    count = model.least_samples + count
    x = random.normal(size=(1, count + 30))
    other = np.where(np.arange(x.shape[1]) < count, x, random.normal(size=x.shape))
    a, b = (model(one).extract_features for one in (x, other))
    same = (a == b).all(-1)
    np.testing.assert_array_equal(model.frame_mask(a.shape[1], mask_of([count], x.shape[1])), same)


# ---- wrong inputs


def spoilt(array: np.ndarray, value: float) -> np.ndarray:
    array = array.astype(float)
    array[(0,) * array.ndim] = value
    return array


HIDDEN = np.zeros((2, 11), bool)
MALFORMED: list[tuple[str, dict[str, Any]]] = [
    (r"^input_values has the wrong shape .got .150,.; expected .batch, samples", {"input_values": X[0]}),
    (r"^input_values has the wrong shape .got .2, 150, 1.", {"input_values": X[..., None]}),
    (r"^input_values has the wrong shape .got ..;", {"input_values": 0.5}),
    (r"^input_values has the wrong dtype .got int64; expected floating", {"input_values": np.zeros((2, 150), int)}),
    (r"^input_values has the wrong dtype .got int16", {"input_values": np.zeros((2, 150), "i2")}),
    (r"^input_values has the wrong dtype .got bool", {"input_values": X > 0}),
    (r"^input_values has the wrong dtype .got complex128", {"input_values": X + 0j}),
    (r"^input_values has the wrong dtype .got <U", {"input_values": "speech.wav"}),
    (r"^input_values has the wrong dtype .got object", {"input_values": None}),
    (r"^input_values has the wrong dtype .got object", {"input_values": [[None] * 150]}),
    (r"^input_values is not an array: .*expected rows of one length", {"input_values": [X[0], X[1, :100]]}),
    (r"^input_values is empty .got .0, 150.", {"input_values": X[:0]}),
    (r"^input_values is empty .got .2, 0.", {"input_values": X[:, :0]}),
    (r"^input_values: too short for a frame .got 1 samples; expected at least 20", {"input_values": X[:, :1]}),
    (r"^input_values: too short for a frame .got 19 samples; expected at least 20", {"input_values": X[:, :19]}),
    (r"^input_values is not finite .got nan at .0, 0.", {"input_values": spoilt(X, NAN)}),
    (r"^input_values is not finite .got -inf at .0, 0.", {"input_values": spoilt(X, -INF)}),
    (r"^attention_mask has the wrong shape .got .2, 149.; expected .2, 150", {"attention_mask": ONES[:, 1:]}),
    (r"^attention_mask has the wrong shape .got .1, 150.; expected .2, 150", {"attention_mask": ONES[:1]}),
    (r"^attention_mask has the wrong shape .got .150,.; expected .2, 150", {"attention_mask": ONES[0]}),
    (r"^attention_mask has the wrong shape .got .2, 11.; expected .2, 150", {"attention_mask": ONES[:, :11]}),
    (r"^attention_mask has the wrong shape .got .2, 1, 150.", {"attention_mask": ONES[:, None]}),
    (r"^attention_mask has the wrong shape .got ..", {"attention_mask": 1}),
    (r"^attention_mask has the wrong dtype .got <U", {"attention_mask": ONES.astype(str)}),
    (r"^attention_mask has the wrong dtype .got object", {"attention_mask": np.full((2, 150), None)}),
    (r"^attention_mask has the wrong dtype .got complex128", {"attention_mask": ONES + 0j}),
    (r"^attention_mask is not an array", {"attention_mask": [[1] * 150, [1]]}),
    (r"^attention_mask is not finite .got nan", {"attention_mask": spoilt(ONES, NAN)}),
    (r"^attention_mask holds other numbers .got 2; expected 0 and 1", {"attention_mask": 2 * ONES}),
    (r"^attention_mask holds other numbers .got -1; ", {"attention_mask": np.where(X > 0, 1, -1)}),
    (r"^attention_mask holds other numbers .got 0.5; ", {"attention_mask": spoilt(ONES, 0.5)}),
    (r"^mask_time_indices has the wrong shape .got .2, 150.; expected .2, 11", {"mask_time_indices": ONES > 0}),
    (r"^mask_time_indices has the wrong shape .got .1, 11.; expected .2, 11", {"mask_time_indices": HIDDEN[:1]}),
    (r"^mask_time_indices has the wrong shape .got .11,.", {"mask_time_indices": HIDDEN[0]}),
    (r"^mask_time_indices has the wrong dtype .got int64; expected booleans", {"mask_time_indices": 1 * HIDDEN}),
    (r"^mask_time_indices has the wrong dtype .got float64", {"mask_time_indices": 1.0 * HIDDEN}),
    (r"^mask_time_indices has the wrong dtype .got <U4", {"mask_time_indices": "True"}),
    (r"^mask_time_indices is not an array", {"mask_time_indices": [[True], [True, False]]}),
    (r"^generator can't draw .got int; expected numpy.random.Generator or RandomState", {"generator": 3}),
    (r"^generator can't draw .got module", {"generator": np.random}),
]  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("words", "arguments"), MALFORMED)
def test_a_malformed_input_is_one_line_that_names_it(name: str, words: str, arguments: dict[str, Any]) -> None:
    for model in (models[name], exact_models[name]):
        refused(model, words, **{"input_values": X, **arguments})


def test_a_number_too_large_for_the_dtype_is_refused_in_that_dtype_only() -> None:
    words = r"^input_values is not finite .got 1e.300 at .0, 0.; expected finite numbers in float32"
    refused(build(BARE, dtype="float32"), words, input_values=spoilt(X, 1e300))
    with np.errstate(over="ignore"):
        assert models[BARE](spoilt(X, 1e300)).last_hidden_state.shape == (2, 11, 12)


@pytest.mark.parametrize("name", CLASSES)
def test_frames_to_mask_need_the_vector_that_they_become(name: str) -> None:
    model = build(name, mask_time_prob=0.0)
    assert model.config.mask_feature_prob == 0
    words = "^mask_time_indices: the model has no masked_spec_embed.*mask_time_prob or mask_feature_prob is above 0"
    refused(model, words, input_values=X, mask_time_indices=HIDDEN)
    assert f"{bare(name)}masked_spec_embed" not in model.state_dict()
    for prob in ("mask_time_prob", "mask_feature_prob"):
        changes: dict[str, Any] = {"mask_time_prob": 0.0, prob: 0.1}
        enough = build(name, **changes)
        assert f"{bare(name)}masked_spec_embed" in enough.state_dict()
        enough(X, mask_time_indices=HIDDEN)


LABELS: dict[str, list[tuple[str, Any]]] = {
    CTC: [
        (r"labels is out of range .got 7 at .0, 1.; expected 0 ... 6.*-100 marks", [[1, 7], [1, 2]]),
        (r"labels is out of range .got -1 at .1, 0.", [[1, 2], [-1, 2]]),
        (r"labels has the wrong shape .got .2,.; expected .2, U", [1, 2]),
        (r"labels has the wrong shape .got .3, 2.", np.ones((3, 2), int)),
        (r"labels has the wrong dtype .got float64; expected integers", [[1.0], [2.0]]),
        (r"labels has the wrong dtype .got <U", [["a"], ["b"]]),
        (r"labels is not an array", [[1], [1, 2]]),
    ],
    SEQUENCE: [
        (r"labels is out of range .got 3 at .1,.; expected 0 ... 2", [0, 3]),
        (r"labels has the wrong shape .got .3,.; expected .2,.", [0, 1, 2]),
        (r"labels has the wrong shape .got .1,.; expected .2,.", 1),
        (r"labels has the wrong dtype .got float64", [0.0, 1.0]),
        (r"labels has the wrong dtype .got <U", ["yes", "no"]),
        (r"labels is not an array", [[1], [1, 2]]),
    ],
    FRAMES: [
        (r"labels has the wrong shape .got .2, 11.; expected .2, 11, 3", np.zeros((2, 11), int)),
        (r"labels has the wrong shape .got .2, 10, 3.; expected .2, 11, 3", np.zeros((2, 10, 3))),
        (r"labels has the wrong shape .got .2,.", [0, 1]),
        (r"labels has the wrong dtype .got <U1", np.full((2, 11, 3), "a")),
        (r"labels is not finite .got nan", np.full((2, 11, 3), NAN)),
        (r"labels is not an array", [[1], [1, 2]]),
    ],
    XVECTOR: [
        (r"labels is out of range .got 3 at .0,.; expected 0 ... 2", [3, 0]),
        (r"labels is out of range .got -100 at .0,.", [-100, 0]),
        (r"labels has the wrong shape .got .4,.; expected .2,.", [[0, 1], [1, 2]]),
        (r"labels has the wrong dtype .got float64", [0.0, 1.0]),
        (r"labels has the wrong dtype .got bool", [True, False]),
        (r"labels is not an array", [[1], [1, 2]]),
    ],
}


@pytest.mark.parametrize(("name", "words", "labels"), [(name, *case) for name in LABELS for case in LABELS[name]])
def test_labels_that_do_not_serve(name: str, words: str, labels: Any) -> None:
    for model in (models[name], exact_models[name]):
        refused(model, f"^{words}", input_values=X, labels=labels)


@pytest.mark.parametrize("name", NO_ADAPTER)
def test_heads_that_take_no_adapter(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} takes no adapter .got add_adapter=True; expected False"):
        build(name, add_adapter=True)


def test_configurations_that_a_head_can_not_be_built_from() -> None:
    with pytest.raises(ConfigError, match=r"output_hidden_size does not fit the projector .got 5; expected .*=12"):
        build(XVECTOR, add_adapter=True, output_hidden_size=5)
    build(XVECTOR, add_adapter=True, output_hidden_size=12)
    build(XVECTOR, output_hidden_size=5)  # of an adapter that is not there
    for pad in (None, -1, 7):
        with pytest.raises(ConfigError, match=r"pad_token_id does not serve .*expected 0 ... 6: the blank"):
            build(CTC, pad_token_id=pad)
        build(BARE, pad_token_id=pad)


# ---- whatever is thrown at it

strange: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([X, X[0], X[:, :20], X[:, :19], X > 0, X.astype("f2"), X[..., None], ONES, ONES[:, :90], HIDDEN]),
    hnp.arrays(
        st.sampled_from(["i8", "u1", "u8", "?", "f2", "f4", "f8", "g", "c16", "U2", "S2", "M8[s]", "m8[s]", "O"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=25),
    ),
    hnp.arrays(np.int64, st.sampled_from([(2, 150), (2, 11), (2, 11, 3), (2,), (2, 3)]), elements=st.integers(-1, 3)),
    hnp.arrays(np.bool_, st.sampled_from([(2, 150), (2, 11)])),
    hnp.arrays(np.float64, st.sampled_from([(2, 150), (2, 11, 3), (1, 30)]), elements=st.floats(-9, 9)),
    st.sampled_from([None, True, 0, 1, -1, 2.5, NAN, "text", b"bytes", (), [], {}, [[]], [[1, 2], [3]], object(), ...]),
    st.recursive(
        st.integers(-2, 30) | st.none() | st.text(max_size=2), lambda x: st.lists(x, max_size=3), max_leaves=9
    ),
)
FLAGS = {"output_attentions", "output_hidden_states", "options"}  # asked for their truth only
ADAPTER: dict[str, Any] = {"add_adapter": True, "adapter_kernel_size": 4, "adapter_stride": 1, "num_adapter_layers": 2}
fuzzed = {name: [models[name], exact_models[name]] for name in CLASSES}
for name in set(CLASSES) - set(NO_ADAPTER):
    fuzzed[name] += [build(name, **ADAPTER), build(name, **ADAPTER, padding="exact", use_weighted_layer_sum=True)]


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=80)
@given(data=st.data())
def test_outputs_come_back_or_one_error_of_ours(name: str, data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(fuzzed[name]))
    known = {*inspect.signature(type(model).forward).parameters, *inspect.signature(models[BARE].forward).parameters}
    keys = data.draw(st.sets(st.sampled_from(sorted(known - FLAGS - {"self"})), min_size=1, max_size=3))
    arguments: dict[str, Any] = {"input_values": X}
    for key in sorted(keys):
        arguments[key] = data.draw(strange, label=key)
    error = out = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # finite numbers of 1e300 do overflow on the way, as in torch
        try:
            out = model(**arguments)
        except D2VError as caught:
            error = str(caught)
    if error is None:
        assert isinstance(main_output(out), np.ndarray)
    else:
        assert len(error.splitlines()) == 1
        assert len(error) < 700
        assert re.match(r"\w+", error)


# ---- masked frames and features


def test_masked_frames_become_the_vector() -> None:
    """What was there does not count; a mask of nothing changes nothing."""
    model, hidden = models[BARE], np.random.default_rng(0).random((2, 11)) < 0.4
    plain = model.record(X)[1]["feature_projection"]
    want = np.where(hidden[:, :, None], model.state_dict()["masked_spec_embed"], plain)
    one = build(BARE, num_conv_pos_embeddings=0, num_hidden_layers=0)
    weight, bias = (one.state_dict()[f"encoder.layer_norm.{kind}"] for kind in ("weight", "bias"))
    got = one(X, mask_time_indices=hidden).last_hidden_state
    # Without positional convolutions what they would convolve stands for their output, here as in transformers.
    np.testing.assert_allclose(got, Ops("float64").layer_norm(2 * want, weight, bias, 1e-5), atol=1e-12)
    # Features are masked after the frames, and become 0.
    masking = build(BARE, num_conv_pos_embeddings=0, num_hidden_layers=0, mask_feature_prob=0.5)
    got = masking(X, mask_time_indices=hidden, generator=np.random.default_rng(3)).last_hidden_state
    features = compute_mask_indices((2, 12), 0.5, 2, np.random.default_rng(3))
    want = np.where(features[:, None, :], 0, want)
    assert features.any(axis=1).all()
    np.testing.assert_allclose(got, Ops("float64").layer_norm(2 * want, weight, bias, 1e-5), atol=1e-12)
    for name in CLASSES:
        want = main_output(models[name](X))
        np.testing.assert_array_equal(main_output(models[name](X, mask_time_indices=HIDDEN)), want)
        assert np.abs(main_output(models[name](X, mask_time_indices=hidden)) - want).max() > 1e-3
        off = build(name, apply_spec_augment=False)
        for arguments in ({"mask_time_indices": hidden}, {"generator": np.random.default_rng(0)}):
            np.testing.assert_array_equal(main_output(off(X, **arguments)), want)
        refused(off, "^mask_time_indices has the wrong shape", input_values=X, mask_time_indices=HIDDEN[:1])


@pytest.mark.parametrize("name", CLASSES)
def test_a_generator_draws_the_same_masks_of_the_same_seed(name: str) -> None:
    model = build(name, mask_time_prob=0.4, mask_feature_prob=0.4)
    first, again, other = (main_output(model(X, generator=np.random.default_rng(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - main_output(model(X))).max() > 1e-3
    # It draws nothing where nothing is to be drawn: the masks are given, and no features are masked.
    generator = np.random.default_rng(1)
    build(name, mask_time_prob=0.4)(X, mask_time_indices=HIDDEN, generator=generator)
    assert generator.random() == np.random.default_rng(1).random()


def test_a_span_longer_than_the_signal_is_named() -> None:
    generator = np.random.default_rng(0)
    words = r"^a span to mask does not fit .got 12 of 11; expected 1 ... 11.*mask_time_length"
    refused(build(BARE, mask_time_length=12), words, input_values=X, generator=generator)
    wide = build(BARE, mask_feature_prob=0.1, mask_feature_length=13)
    refused(wide, r"^a span to mask does not fit .got 13 of 12", input_values=X, generator=generator)


# ---- heads


def test_ctc_counts_the_frames_of_each_utterance() -> None:
    labels = np.array([[1, 2, 2], [3, -100, 0]])
    mask = mask_of([150, 90], 150)
    for reduction in ("sum", "mean", "none"):
        model = build(CTC, ctc_loss_reduction=reduction)
        out = model(X, mask, labels)
        want = ctc_loss(out.logits, labels, [11, 6], blank=0, reduction=reduction)
        np.testing.assert_array_equal(out.loss, want)
        assert np.shape(out.loss) == ((2,) if reduction == "none" else ())
        whole = model(X, labels=labels)
        np.testing.assert_array_equal(
            whole.loss, ctc_loss(whole.logits, labels, [11, 11], blank=0, reduction=reduction)
        )
    v4 = build(CTC, ctc_loss_reduction="none", ctc_target_rule="v4")  # a blank is a label there
    assert v4(X, mask, labels).loss[1] != build(CTC, ctc_loss_reduction="none")(X, mask, labels).loss[1]
    assert build(CTC, pad_token_id=6)(X, mask, labels).loss != build(CTC)(X, mask, labels).loss


@pytest.mark.parametrize("padding", ["hf", "exact"])
def test_labels_that_do_not_fit_the_frames_have_an_infinite_loss(padding: str) -> None:
    labels = np.array([[1, 1, 1, 1], [1, 2, 3, 4]])  # 7 frames at least, as blanks keep equal ones apart; and 4
    mask = mask_of([90, 90], 150)  # 6 frames each
    for reduction, infinite in (("none", [True, False]), ("sum", True), ("mean", True)):
        model = build(CTC, ctc_loss_reduction=reduction, padding=padding)
        np.testing.assert_array_equal(np.isposinf(model(X, mask, labels).loss), infinite)
        zeroed = build(CTC, ctc_loss_reduction=reduction, ctc_zero_infinity=True, padding=padding)
        assert np.isfinite(zeroed(X, mask, labels).loss).all()
        if reduction == "none":
            assert zeroed(X, mask, labels).loss[0] == 0


def test_an_adapter_makes_fewer_frames_of_a_width_of_its_own() -> None:
    model = build(BARE, add_adapter=True, output_hidden_size=5, num_adapter_layers=2)
    assert model(X).last_hidden_state.shape == (2, 3, 5)  # 11, 6, 3
    assert model(X, output_hidden_states=True).hidden_states[-1].shape == (2, 11, 12)
    assert build(CTC, add_adapter=True, output_hidden_size=5)(X, labels=[[1], [2]]).logits.shape == (2, 2, 7)
    none = build(BARE, add_adapter=True, num_adapter_layers=0, output_hidden_size=0)  # 0 is hidden_size, as in HF
    np.testing.assert_array_equal(none(X).last_hidden_state, models[BARE](X).last_hidden_state)
    # In Hugging Face's mode the lengths are those of kernel 3: torch refuses them where there are not so many frames.
    words = r"^input_lengths is out of range .*They count frames"
    refused(build(CTC, add_adapter=True, adapter_kernel_size=4), words, input_values=X, labels=[[1], [2]])
    build(CTC, add_adapter=True, adapter_kernel_size=4, padding="exact")(samples(0, 2, 300), labels=[[1], [2]])


@pytest.mark.parametrize("padding", ["hf", "exact"])
def test_a_sequence_is_classified_by_the_mean_of_its_own_frames(padding: str) -> None:
    model = build(SEQUENCE, padding=padding)
    mask = mask_of([150, 90], 150)
    states = model(X, mask, output_hidden_states=True).hidden_states[-1]
    w = model.state_dict()
    pooled = np.stack([states[0].mean(0), states[1, :6].mean(0)]) @ w["projector.weight"].T + w["projector.bias"]
    logits = pooled @ w["classifier.weight"].T + w["classifier.bias"]
    out = model(X, mask, [1, 2])
    np.testing.assert_allclose(out.logits, logits, atol=1e-13)
    p = scipy.special.log_softmax(logits, -1)
    assert out.loss == pytest.approx(-(p[0, 1] + p[1, 2]) / 2, rel=1e-12)
    np.testing.assert_allclose(model(X, labels=[[1], [-100]]).loss, model(X[:1], labels=[1]).loss, rtol=1e-12)


def test_frames_are_classified_one_by_one() -> None:
    model = models[FRAMES]
    out = model(X, output_hidden_states=True)
    w = model.state_dict()
    np.testing.assert_allclose(out.logits, out.hidden_states[-1] @ w["classifier.weight"].T + w["classifier.bias"])
    classes = np.random.default_rng(0).integers(0, 3, (2, 11))
    p = scipy.special.log_softmax(out.logits, -1)
    want = -np.take_along_axis(p, classes[..., None], -1).mean()
    for labels in (np.eye(3)[classes], np.eye(3, dtype=int)[classes], np.eye(3, dtype=bool)[classes].tolist()):
        assert model(X, labels=labels).loss == pytest.approx(want, rel=1e-12)


def test_an_x_vector_in_slow_loops() -> None:
    """Frame by frame and tap by tap; mean and deviation by NumPy's own; the loss by cosines."""
    model, mask = exact_models[XVECTOR], mask_of([150, 110], 150)
    w, config = model.state_dict(), model.config
    out = model(X, mask, [2, 0], output_hidden_states=True)
    for row, frames in ((0, 11), (1, 8)):
        x = out.hidden_states[-1][row, :frames] @ w["projector.weight"].T + w["projector.bias"]
        for i, (taps, dilation) in enumerate(zip(config.tdnn_kernel, config.tdnn_dilation, strict=True)):
            span = dilation * (taps - 1)
            seen = [np.concatenate([x[t + j * dilation] for j in range(taps)]) for t in range(len(x) - span)]
            x = np.maximum(np.stack(seen) @ w[f"tdnn.{i}.kernel.weight"].T + w[f"tdnn.{i}.kernel.bias"], 0)
        pooled = np.concatenate((x.mean(0), x.std(0, ddof=1)))
        embedding = w["feature_extractor.weight"] @ pooled + w["feature_extractor.bias"]
        np.testing.assert_allclose(out.embeddings[row], embedding, atol=1e-12)
        np.testing.assert_allclose(out.logits[row], w["classifier.weight"] @ embedding + w["classifier.bias"])
    terms = []
    for row, label in ((0, 2), (1, 0)):
        logits, centres = out.logits[row], w["objective.weight"].T
        cosines = [logits @ c / np.linalg.norm(logits) / np.linalg.norm(c) for c in centres]
        scores = 30 * (np.array(cosines) - 0.4 * (np.arange(3) == label))
        terms.append(scipy.special.logsumexp(scores) - scores[label])
    assert out.loss == pytest.approx(np.mean(terms), rel=1e-11)


def test_lengths_of_x_vectors_in_hugging_faces_mode_take_no_account_of_dilation() -> None:
    """8 frames are 5 after a kernel of 3 and one of 2; with dilation they are 4, and the fifth is of the padding."""
    model, mask = models[XVECTOR], mask_of([150, 110], 150)
    out, taps = model.record(X, mask)
    pooled = np.concatenate((taps["tdnn.1"][1, :5].mean(0), taps["tdnn.1"][1, :5].std(0, ddof=1)))
    w = model.state_dict()
    np.testing.assert_allclose(out.embeddings[1], w["feature_extractor.weight"] @ pooled + w["feature_extractor.bias"])
    assert taps["tdnn.1"].shape == (2, 7, 5)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weighted_sum_is_of_all_states(name: str) -> None:
    model = build(name, use_weighted_layer_sum=True)
    weights = model.state_dict()
    assert weights["layer_weights"].shape == (3,)
    for chosen in range(3):  # one weight far above the others chooses a layer
        scores = np.where(np.arange(3) == chosen, 50.0, -50.0)
        one = type(model)(model.config, {**weights, "layer_weights": scores}, dtype="float64")
        fewer = config_of(name, num_hidden_layers=chosen)
        names = {key for key, *_ in model_class(name)(fewer).named_parameters()}
        last = type(model)(fewer, {key: value for key, value in weights.items() if key in names}, dtype="float64")
        np.testing.assert_allclose(main_output(one(X)), main_output(last(X)), atol=1e-12)
    even = type(model)(model.config, {**weights, "layer_weights": np.full(3, 7.0)}, dtype="float64")
    states = even(X, output_hidden_states=True).hidden_states
    if name == FRAMES:
        want = np.mean(states, axis=0) @ weights["classifier.weight"].T + weights["classifier.bias"]
        np.testing.assert_allclose(even(X).logits, want, atol=1e-12)
    assert "hidden_states" not in even(X)  # they were needed, not asked for
    assert "hidden_states" not in even(X, output_hidden_states=False)
    assert "hidden_states" in build(name, use_weighted_layer_sum=True, output_hidden_states=True)(X)


# ---- what is computed


@settings(max_examples=20)
@given(seed=seeds, shift=st.integers(1, 4))
def test_features_move_with_the_signal(seed: int, shift: int) -> None:
    """A frame stands for 12 samples: 12 samples later the same features are a frame later."""
    x = samples(seed, 1, 200)
    features = models[BARE](x).extract_features
    moved = models[BARE](x[:, 12 * shift :]).extract_features
    np.testing.assert_allclose(moved, features[:, shift:], atol=1e-12)


def test_positions_are_relative() -> None:
    """Far from the ends a signal with a period gives states with that period, whatever the positional kernel."""
    for kernel in (4, 5):
        model = build(BARE, conv_pos_kernel_size=kernel)
        out = model(np.tile(samples(3, 1, 24), (1, 30))).last_hidden_state
        middle = out[:, 15:-15]
        np.testing.assert_allclose(middle[:, 2:], middle[:, :-2], atol=1e-12)  # 24 samples are two frames
        assert np.abs(middle[:, 1:] - middle[:, :-1]).max() > 1e-3
        assert np.abs(out[:, 0] - out[:, 16]).max() > 1e-3  # the ends see what is not there


@pytest.mark.parametrize("name", CLASSES)
def test_the_feature_encoder_does_not_mind_a_scale(name: str) -> None:
    """Without biases a LayerNorm takes it away, but for its eps."""
    quiet, loud = (main_output(models[name](factor * X)) for factor in (1e3, 1e5))
    np.testing.assert_allclose(quiet, loud, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_silence_and_constants_have_finite_outputs(name: str) -> None:
    for x in (np.zeros((1, 150)), np.full((1, 150), 0.5), np.full((1, 150), -1e-30)):
        for dtype in Ops.dtypes:
            assert np.isfinite(main_output(build(name, dtype=dtype)(x))).all()


ABSURD: list[dict[str, Any]] = [
    {"num_hidden_layers": 0},
    {"num_conv_pos_embeddings": 0},
    {"num_hidden_layers": 0, "num_conv_pos_embeddings": 0},
    {"conv_dim": [1], "conv_kernel": [1], "conv_stride": [1]},
    {"conv_dim": [2], "conv_kernel": [3], "conv_stride": [7]},  # samples between the frames that nobody sees
    {"conv_dim": (4, 6), "conv_kernel": (5, 3), "conv_stride": (3, 2)},
    {"hidden_size": 1, "num_attention_heads": 1, "num_conv_pos_embedding_groups": 1},
    {"num_conv_pos_embedding_groups": 12, "num_attention_heads": 12},
    {"conv_pos_kernel_size": 1},
    {"conv_pos_kernel_size": 200},  # longer than the signal, and even
    {"conv_bias": True, "feat_extract_activation": "relu", "hidden_act": "quick_gelu"},
    {"layer_norm_eps": 1},
    {"tdnn_dim": [1], "tdnn_kernel": [1], "tdnn_dilation": [3]},
    {"num_labels": 1},
    {"vocab_size": 1},
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("changes", ABSURD)
def test_absurd_but_legal_configurations(name: str, changes: dict[str, Any]) -> None:
    for padding in ("hf", "exact"):
        model = build(name, padding=padding, **changes)
        out = model(X, mask_of([150, 130], 150), **EVERYTHING)
        assert np.isfinite(main_output(out)).all()
        assert len(out.hidden_states) == model.config.num_hidden_layers + 1
        assert len(out.attentions) == model.config.num_hidden_layers
        assert np.isfinite(main_output(model.record(X)[0])).all()


# ---- outputs


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_are_a_tuple_without_return_dict(name: str) -> None:
    out = models[name](X, **EVERYTHING)
    for got in (models[name](X, return_dict=False, **EVERYTHING), build(name, return_dict=False)(X, **EVERYTHING)):
        assert type(got) is tuple
        assert len(got) == len(out)
        np.testing.assert_array_equal(got[0], out[0])
    asked = build(name, output_attentions=True, output_hidden_states=True)
    assert asked(X).keys() == out.keys()
    assert asked(X, output_attentions=False, output_hidden_states=False).keys() == models[name](X).keys()


@pytest.mark.parametrize("name", CLASSES)
def test_states_and_probabilities_have_the_shapes_of_their_frames(name: str) -> None:
    assert not {"hidden_states", "attentions"} & set(models[name](X))
    out = models[name](X, mask_of([150, 90], 150), **EVERYTHING)
    assert [state.shape for state in out.hidden_states] == [(2, 11, 12)] * 3
    assert [p.shape for p in out.attentions] == [(2, 3, 11, 11)] * 2
    for p in out.attentions:
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-12)
        assert (p[1, :, :, 6:] == 0).all()  # nobody looks at the padding
    if name == BARE:
        np.testing.assert_array_equal(out.last_hidden_state, out.hidden_states[-1])
        assert out.extract_features.shape == (2, 11, 5)
    assert all(type(array) is np.ndarray for array in (*out.hidden_states, *out.attentions, main_output(out)))


@pytest.mark.parametrize("name", CLASSES)
def test_no_input_is_changed(name: str) -> None:
    arguments: dict[str, Any] = {"input_values": X.copy(), "attention_mask": mask_of([150, 90], 150)}
    arguments["mask_time_indices"] = HIDDEN.copy()
    for array in arguments.values():
        array.flags.writeable = False
    for model in (models[name], exact_models[name], build(name, mask_feature_prob=0.5)):
        model(**arguments, generator=np.random.default_rng(0))


@pytest.mark.parametrize("name", CLASSES)
def test_float64_samples_and_strided_ones_are_taken_by_a_float32_model(name: str) -> None:
    model = build(name, dtype="float32")
    want = main_output(model(X.astype("f4")))
    assert want.dtype == np.float32
    for x in (X.astype("f4").astype("f8"), np.asfortranarray(X.astype("f4")), np.repeat(X.astype("f4"), 2, 1)[:, ::2]):
        np.testing.assert_array_equal(main_output(model(x)), want)
    assert TINY["conv_dim"] == [4, 6, 5]  # which the other tests rely on
