"""Generation: the cache, the seed, the batch and the limits change nothing that they should not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import TINY, build, trained

from d2v_ref.errors import ConfigError, D2VError, InputError
from d2v_ref.generation import GenerationSettings, filtered_log_probs, sample

CAUSAL = "Data2VecTextForCausalLM"
PAD, END = 1, 2
seeds = st.integers(0, 2**32 - 1)


def wild(**changes: Any) -> Any:
    """A model that does not fall into repeating one token: the decoder isn't tied to the embeddings."""
    return trained(build(CAUSAL, tie_word_embeddings=False, **changes), factor=1.0, seed=12)


model = wild()
models = {
    (kind, cross): wild(position_embedding_type=kind, add_cross_attention=cross)
    for kind in ("absolute", "relative_key_query")
    for cross in (False, True)
}
PROMPT = np.array([[5, 7, 9]])


@st.composite
def prompts(draw: st.DrawFn, longest: int = 4) -> np.ndarray:
    """(B, T) ids, padded on the left."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, longest))
    random = np.random.default_rng(draw(seeds))
    ids = random.integers(3, TINY["vocab_size"], (batch, length))
    for row in ids:
        row[: random.integers(0, length)] = PAD
    return ids


@st.composite
def ways(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of greedy search, sampling and beam search."""
    values: dict[str, Any] = {"max_new_tokens": draw(st.integers(1, 7))}
    kind = draw(st.sampled_from(["greedy", "sample", "beams"]))
    if kind == "sample":
        values |= {"do_sample": True, "seed": draw(st.integers(0, 2**70)), "temperature": draw(st.floats(0.1, 5))}
        values |= {"top_k": draw(st.integers(0, 25)), "top_p": draw(st.floats(0.05, 1))}
        values |= {"num_return_sequences": draw(st.integers(1, 3))}
    elif kind == "beams":
        beams = draw(st.integers(2, 4))
        values |= {"num_beams": beams, "num_return_sequences": draw(st.integers(1, beams))}
        values |= {"length_penalty": draw(st.floats(-2, 2))}
        values |= {"early_stopping": draw(st.sampled_from([True, False, "never"]))}
    return values


@settings(max_examples=60)
@given(
    ids=prompts(),
    way=ways(),
    which=st.sampled_from(sorted(models)),
    seed=seeds,
    ends=st.sampled_from([None, [], [2, 5]]),
)
def test_a_cache_changes_no_token(
    ids: np.ndarray, way: dict[str, Any], which: tuple[str, bool], seed: int, ends: list[int] | None
) -> None:
    random, arguments = np.random.default_rng(seed), {"eos_token_id": ends, **way}
    if which[1]:
        arguments["encoder_hidden_states"] = random.normal(size=(len(ids), 3, 12))
        arguments["encoder_attention_mask"] = np.arange(3) < random.integers(1, 4, (len(ids), 1))
    steps: list[int] = []
    cached = models[which].generate(ids, progress=steps.append, **arguments)
    np.testing.assert_array_equal(cached, models[which].generate(ids, use_cache=False, **arguments))
    np.testing.assert_array_equal(cached, models[which].generate(ids, **arguments))  # and the seed is all there is
    rows = way.get("num_return_sequences", 1)
    assert cached.dtype == np.int64
    assert cached.shape[0] == len(ids) * rows
    assert ids.shape[1] < cached.shape[1] <= ids.shape[1] + way["max_new_tokens"]
    assert set(steps) == {1}
    assert cached.shape[1] - ids.shape[1] <= len(steps) <= way["max_new_tokens"]
    np.testing.assert_array_equal(cached[:, : ids.shape[1]], np.repeat(ids, rows, axis=0))
    for row in cached[:, ids.shape[1] :]:  # after an end there is padding only
        ended = np.flatnonzero(np.isin(row, [2] if ends is None else ends))
        if ended.size:
            assert (row[ended[0] + 1 :] == PAD).all()


@settings(max_examples=25)
@given(ids=prompts(), which=st.sampled_from(sorted(models)), new=st.integers(1, 6))
def test_greedy_tokens_are_the_forward_passes_own(ids: np.ndarray, which: tuple[str, bool], new: int) -> None:
    """Each prompt alone, without padding, one forward pass of the whole sequence a token."""
    got = models[which].generate(ids, max_new_tokens=new, eos_token_id=[])
    for row, prompt in zip(got, ids, strict=True):
        tokens = prompt[prompt != PAD].tolist()
        for _ in range(new):
            positions = [list(range(PAD + 1, PAD + 1 + len(tokens)))]  # a generated <pad> is a token like any other
            tokens.append(int(models[which]([tokens], position_ids=positions).logits[0, -1].argmax()))
        assert row[(prompt == PAD).sum() :].tolist() == tokens


@settings(max_examples=25)
@given(ids=prompts(), beams=st.integers(1, 3), penalty=st.floats(-1, 2))
def test_a_batch_gives_each_prompt_what_it_gets_alone(ids: np.ndarray, beams: int, penalty: float) -> None:
    way: dict[str, Any] = {"max_new_tokens": 6, "num_beams": beams, "length_penalty": penalty if beams > 1 else 1.0}
    together = model.generate(ids, **way)
    for row, prompt in zip(together, ids, strict=True):
        alone = model.generate(prompt[None, prompt != PAD], **way)[0]
        new, mine = alone[(prompt != PAD).sum() :], row[len(prompt) :]
        np.testing.assert_array_equal(mine[: len(new)], new)
        assert (mine[len(new) :] == PAD).all()


def test_padding_is_read_from_the_ids_or_from_the_mask() -> None:
    ids = np.array([[PAD, 5, 7], [5, 7, 9]])
    want = model.generate(ids, max_new_tokens=5)
    np.testing.assert_array_equal(model.generate(ids, ids != PAD, max_new_tokens=5), want)
    other = ids.copy()
    other[0, 0] = 11  # a hidden token may be any
    np.testing.assert_array_equal(model.generate(other, ids != PAD, max_new_tokens=5)[:, 3:], want[:, 3:])


def test_a_sequence_ends_where_it_says_and_the_others_go_on() -> None:
    ids = np.array([[5], [7], [9], [11]])
    free = model.generate(ids, max_new_tokens=8, eos_token_id=[])
    assert free.shape == (4, 9)
    end = int(free[0, 3])  # the first to be the end is some token that the first text does contain
    cut = model.generate(ids, max_new_tokens=8, eos_token_id=end)
    ended = (cut == end).argmax(1)
    assert len(set(ended.tolist())) > 1  # or this test would see no padding
    for row, whole in zip(cut, free[:, : cut.shape[1]], strict=True):
        stop = np.flatnonzero(whole[1:] == end)
        length = stop[0] + 2 if stop.size else len(row)
        np.testing.assert_array_equal(row[:length], whole[:length])
        assert (row[length:] == PAD).all()
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=8, eos_token_id=[end, end]), cut)
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=8, eos_token_id=np.int64(end)), cut)
    configured = wild(eos_token_id=[end])
    np.testing.assert_array_equal(configured.generate(ids, max_new_tokens=8), cut)
    np.testing.assert_array_equal(wild(eos_token_id=None).generate(ids, max_new_tokens=8), free)


def test_all_ended_is_the_end() -> None:
    first = int(model.generate(PROMPT, max_new_tokens=1)[0, -1])
    steps: list[int] = []
    got = model.generate(np.repeat(PROMPT, 3, 0), max_new_tokens=9, eos_token_id=first, progress=steps.append)
    assert got.shape == (3, 4)
    assert steps == [1]


@settings(max_examples=20)
@given(ids=prompts(), seed=st.integers(0, 2**40))
def test_limits_of_sampling_are_greedy_search(ids: np.ndarray, seed: int) -> None:
    want = model.generate(ids, max_new_tokens=5)
    for limit in ({"temperature": 1e-6}, {"temperature": 1e-308}, {"top_k": 1}, {"top_p": 1e-9}):
        got = model.generate(ids, max_new_tokens=5, do_sample=True, seed=seed, **limit)
        np.testing.assert_array_equal(got, want)


def test_seeds_differ_and_return_sequences_too() -> None:
    way: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "temperature": 3.0, "eos_token_id": []}
    runs = [model.generate(PROMPT, seed=seed, **way).tobytes() for seed in range(6)]
    assert len(set(runs)) == 6
    several = model.generate(PROMPT, num_return_sequences=6, **way)
    assert len({row.tobytes() for row in several}) == 6


@settings(max_examples=20)
@given(ids=prompts(longest=3), beams=st.integers(2, 4))
def test_more_beams_of_all_tokens_find_the_best_continuation(ids: np.ndarray, beams: int) -> None:
    """Of two tokens and as many beams as there are tokens, nothing is cut: the best of all pairs is found."""
    got = model.generate(ids, max_new_tokens=2, num_beams=TINY["vocab_size"], eos_token_id=[])
    few = model.generate(ids, max_new_tokens=2, num_beams=beams, eos_token_id=[])
    for prompt, best, other in zip(ids, got, few, strict=True):
        prompt = prompt[prompt != PAD]
        score: dict[tuple[int, ...], float] = {}
        first = log_probs(prompt)
        for a in range(TINY["vocab_size"]):
            second = log_probs(np.append(prompt, a)) + first[a]
            score.update({(a, b): second[b] for b in range(TINY["vocab_size"])})
        assert max(score.values()) == pytest.approx(score[tuple(best[-2:].tolist())], abs=1e-9)
        assert score[tuple(other[-2:].tolist())] <= max(score.values()) + 1e-9


def log_probs(tokens: np.ndarray) -> np.ndarray:
    logits = model([tokens], position_ids=[np.arange(2, 2 + len(tokens))]).logits[0, -1]
    return np.log(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())


# ---- drawing


@given(
    seed=seeds,
    temperature=st.floats(0.05, 20),
    top_k=st.integers(0, 9),
    top_p=st.floats(0.01, 1),
)
def test_what_is_cut_is_the_unlikely(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = 3 * np.random.default_rng(seed).normal(size=(4, 7))
    chosen = GenerationSettings(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
    out = filtered_log_probs(logits, chosen)
    np.testing.assert_allclose(np.exp(out).sum(-1), 1, rtol=1e-12)
    p = np.exp(filtered_log_probs(logits, GenerationSettings(temperature=temperature)))
    for row, raw, full in zip(out, logits, p, strict=True):
        kept = np.isfinite(row)
        assert kept[raw.argmax()]
        if not kept.all():
            assert raw[kept].min() >= raw[~kept].max()
        if top_k:
            assert kept.sum() <= top_k
        # Ratios of what is kept are those of the softmax at this temperature.
        np.testing.assert_allclose(row[kept] - row[kept][0], (raw[kept] - raw[kept][0]) / temperature, atol=1e-9)
        if top_p < 1 and not top_k:  # the fewest that together have this probability
            assert full[kept].sum() >= top_p - 1e-9
            assert full[kept].sum() - full[kept].min() < top_p + 1e-9


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    random = np.random.default_rng(0)
    draws = sample(np.repeat(logits, 20000, 0), GenerationSettings(do_sample=True), random)
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 20000, [0.5, 0.3, 0.15, 0.05], atol=0.012)
    cut = sample(np.repeat(logits, 2000, 0), GenerationSettings(do_sample=True, top_k=2), random)
    assert set(cut.tolist()) == {0, 1}


class Draws:
    """A generator whose draws are given."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, count: int) -> np.ndarray:
        return np.full(count, self.value)


@given(seed=seeds, top_k=st.integers(1, 6))
def test_the_ends_of_a_draw_are_tokens_that_are_not_cut(seed: int, top_k: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(3, 6))
    chosen = GenerationSettings(do_sample=True, top_k=top_k)
    kept = np.isfinite(filtered_log_probs(logits, chosen))
    for value in (0.0, 1 - 2.0**-53):
        tokens = sample(logits, chosen, Draws(value))  # type: ignore[arg-type]
        assert kept[np.arange(3), tokens].all()


# ---- errors

BAD: list[tuple[str, dict[str, Any]]] = [
    ("max_new_tokens does not serve .got 0; expected 1 or more", {"max_new_tokens": 0}),
    ("max_new_tokens has the wrong type .got 2.5; expected int", {"max_new_tokens": 2.5}),
    ("max_new_tokens has the wrong type .got '5'", {"max_new_tokens": "5"}),
    ("max_new_tokens has the wrong type .got True", {"max_new_tokens": True}),
    ("max_new_tokens does not fit .got 16; expected at most 15 new tokens: the model takes 18", {"max_new_tokens": 16}),
    ("temperature does not serve .got 0", {"temperature": 0}),
    ("temperature does not serve .got -1", {"temperature": -1.0}),
    ("temperature does not serve .got nan", {"temperature": float("nan")}),
    ("temperature has the wrong type .got None", {"temperature": None}),
    ("top_k does not serve .got -1", {"top_k": -1}),
    ("top_k has the wrong type .got 1.5", {"top_k": 1.5}),
    ("top_p does not serve .got 0", {"top_p": 0}),
    ("top_p does not serve .got 1.1", {"top_p": 1.1}),
    ("top_p does not serve .got nan", {"top_p": float("nan")}),
    ("seed does not serve .got -1", {"seed": -1}),
    ("seed has the wrong type .got 0.5", {"seed": 0.5}),
    ("num_beams does not serve .got 0", {"num_beams": 0}),
    ("num_beams has the wrong type", {"num_beams": "2"}),
    ("do_sample has the wrong type .got 1", {"do_sample": 1}),
    ("do_sample does not serve .got True; expected False with beams", {"do_sample": True, "num_beams": 2}),
    ("early_stopping does not serve .got always", {"early_stopping": "always"}),
    ("early_stopping has the wrong type .got None", {"early_stopping": None}),
    ("length_penalty does not serve .got inf", {"length_penalty": float("inf"), "num_beams": 2}),
    ("length_penalty has the wrong type", {"length_penalty": "1"}),
    ("use_cache has the wrong type .got None", {"use_cache": None}),
    ("num_return_sequences does not serve .got 2; expected 1 to 1.. Greedy", {"num_return_sequences": 2}),
    ("num_return_sequences does not serve .got 3; expected 1 to 2", {"num_return_sequences": 3, "num_beams": 2}),
    ("num_return_sequences does not serve .got 0; expected 1 or more", {"num_return_sequences": 0, "do_sample": True}),
    (".*unexpected keyword argument 'max_length' .expected a field", {"max_length": 20}),
]


@pytest.mark.parametrize(("words", "way"), BAD)
def test_settings_that_do_not_serve(words: str, way: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^generate: {words}") as caught:
        model.generate(PROMPT, **way)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (r"generate: a prompt ends in padding\. Pad .* on the left", {"input_ids": [[5, 7, PAD]]}),
        (r"generate: a prompt ends in padding", {"input_ids": [[PAD]]}),
        (r"generate: a prompt ends in padding", {"input_ids": [[5, 7]], "attention_mask": [[1, 0]]}),
        (r"input_ids is out of range .got 19", {"input_ids": [[5, 19]]}),
        (r"input_ids has the wrong shape .got .2,.; expected .batch, tokens", {"input_ids": [5, 7]}),
        (r"input_ids has the wrong dtype", {"input_ids": "Once upon a time"}),
        (r"input_ids has the wrong dtype", {"input_ids": None}),
        (r"input_ids is empty", {"input_ids": np.zeros((1, 0), int)}),
        (r"attention_mask has the wrong shape .got .1, 3.", {"input_ids": [[5, 7]], "attention_mask": [[1, 1, 1]]}),
        (r"attention_mask is not an array", {"input_ids": PROMPT, "attention_mask": [[1], [1, 1]]}),
        (r"expected a prompt shorter than its 18 tokens: the model takes 18", {"input_ids": np.full((1, 18), 5)}),
        (r"eos_token_id is out of range .got 19", {"input_ids": PROMPT, "eos_token_id": 19}),
        (r"eos_token_id is out of range .got -1", {"input_ids": PROMPT, "eos_token_id": [2, -1]}),
        (r"eos_token_id has the wrong dtype", {"input_ids": PROMPT, "eos_token_id": "</s>"}),
        (r"eos_token_id has the wrong dtype", {"input_ids": PROMPT, "eos_token_id": 2.0}),
        (r"eos_token_id is not an array", {"input_ids": PROMPT, "eos_token_id": [[1], [1, 2]]}),
        (
            r"given to a model without cross attention",
            {"input_ids": PROMPT, "encoder_hidden_states": np.zeros((1, 2, 12))},
        ),
        (r"encoder_attention_mask without", {"input_ids": PROMPT, "encoder_attention_mask": np.ones((1, 2))}),
        (
            r"encoder_hidden_states has the wrong batch size .got .2, 2, 12.; expected .1, ",
            {"input_ids": PROMPT, "encoder_hidden_states": np.zeros((2, 2, 12))},
        ),
        (r"encoder_hidden_states is not an array", {"input_ids": PROMPT, "encoder_hidden_states": [[1], [1, 2]]}),
    ],
)
@pytest.mark.parametrize("beams", [1, 2])
def test_prompts_that_do_not_serve(words: str, arguments: dict[str, Any], beams: int) -> None:
    with pytest.raises(InputError, match=words) as caught:
        model.generate(**arguments, max_new_tokens=2, num_beams=beams)
    assert len(str(caught.value).splitlines()) == 1


def test_the_last_token_that_fits() -> None:
    assert model.generate(PROMPT, max_new_tokens=15, eos_token_id=[]).shape == (1, 18)
    assert model.generate(np.full((1, 17), 5), max_new_tokens=1).shape == (1, 18)


def test_a_model_that_is_no_decoder_does_not_generate() -> None:
    with pytest.raises(ConfigError, match=r"generate needs a decoder.*is_decoder=True"):
        build(CAUSAL, is_decoder=False).generate(PROMPT)


def test_a_model_of_no_layers_generates_too() -> None:
    empty = build(CAUSAL, num_hidden_layers=0)
    got = [empty.generate(PROMPT, max_new_tokens=5, use_cache=use_cache) for use_cache in (True, False)]
    np.testing.assert_array_equal(*got)


@settings(max_examples=80)
@given(data=st.data())
def test_any_setting_is_taken_or_refused(data: st.DataObject) -> None:
    values = st.one_of(st.integers(-2, 12), st.floats(), st.booleans(), st.none(), st.text(max_size=2), st.just([1]))
    way = data.draw(st.dictionaries(st.sampled_from(sorted(GenerationSettings.__annotations__)), values, max_size=3))
    error = None
    try:
        out = model.generate(PROMPT, **{"max_new_tokens": 3} | way)
    except D2VError as caught:
        error = str(caught)
    assert (error is not None and len(error.splitlines()) == 1) or out.shape[1] > 3
