"""Decoding against the enumeration of all paths, n-gram models against the definition of back-off, and wrong input."""

from __future__ import annotations

import gzip
import itertools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_ref.ctc import ctc_loss
from d2v_ref.errors import InputError
from d2v_ref.processing.ctc_decoding import NGram, beam_search, greedy

seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.3, 2.0, 10.0])
ALL: dict[str, Any] = {"beam_width": 10**6, "top": 10**6}  # no prefix is dropped, no hypothesis left out

TOKENS = ["<pad>", "|", "A", "B", "AB"]
WORDS: dict[str, Any] = {"tokens": TOKENS, "word_delimiter": 1}


def draw_log_probs(seed: int, frames: int, vocabulary: int, scale: float = 2.0) -> np.ndarray:
    return scipy.special.log_softmax(scale * np.random.default_rng(seed).normal(size=(frames, vocabulary)), axis=-1)


def paths(log_probs: np.ndarray, blank: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """Every path, the ids that it stands for, and its log probability."""
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        ids = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        yield path, ids, float(sum(frame[token] for frame, token in zip(log_probs, path, strict=True)))


def enumerated(log_probs: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """The log probability of all ids that some path stands for."""
    sums: dict[tuple[int, ...], list[float]] = {}
    for _, ids, log_prob in paths(log_probs, blank):
        sums.setdefault(ids, []).append(log_prob)
    logs = {ids: float(scipy.special.logsumexp(parts)) for ids, parts in sums.items()}
    return {ids: log_prob for ids, log_prob in logs.items() if log_prob > -np.inf}


# ---- the search ------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=seeds, frames=st.integers(1, 5), vocabulary=st.integers(1, 4), scale=scales)
def test_a_beam_that_drops_nothing_finds_all_there_is(seed: int, frames: int, vocabulary: int, scale: float) -> None:
    log_probs = draw_log_probs(seed, frames, vocabulary, scale)
    blank = seed % vocabulary
    found = beam_search(log_probs, blank=blank, **ALL)
    got = {tuple(h.ids.tolist()): h.log_prob for h in found}
    want = enumerated(log_probs, blank)
    assert len(found) == len(got)
    assert got.keys() == want.keys()
    np.testing.assert_allclose([got[ids] for ids in want], list(want.values()), rtol=1e-11, atol=1e-12)
    assert [h.score for h in found] == sorted((h.log_prob for h in found), reverse=True)
    for h in found:
        loss = ctc_loss(log_probs[None], h.ids[None], [frames], blank=blank)
        np.testing.assert_allclose(-loss, h.log_prob, rtol=1e-11, atol=1e-12)


@settings(max_examples=60)
@given(seed=seeds, frames=st.integers(1, 5), vocabulary=st.integers(2, 4), scale=scales)
def test_a_hypothesis_comes_with_its_most_probable_path(seed: int, frames: int, vocabulary: int, scale: float) -> None:
    log_probs = draw_log_probs(seed, frames, vocabulary, scale)
    best: dict[tuple[int, ...], float] = {}
    where = {}
    for path, ids, log_prob in paths(log_probs, 0):
        best[ids] = max(best.get(ids, -np.inf), log_prob)
        where[path] = ids, log_prob
    for h in beam_search(log_probs, blank=0, **ALL):
        ids, log_prob = where[tuple(h.path.tolist())]
        assert ids == tuple(h.ids.tolist())
        assert log_prob == pytest.approx(best[ids], rel=1e-12)
        # The frames of the tokens are those of the path that are not blank.
        assert h.frames.shape == (len(ids), 2)
        spelled = np.zeros(frames, int)
        for token, (start, end) in zip(ids, h.frames, strict=True):
            assert start < end
            spelled[start:end] = token
        assert spelled.tolist() == h.path.tolist()


def test_of_equal_paths_the_one_that_is_ahead() -> None:
    log_probs = np.full((5, 2), math.log(0.5))
    alone, twice = (
        next(h for h in beam_search(log_probs, blank=0, **ALL) if h.ids.tolist() == ids) for ids in ([1], [1, 1])
    )
    assert alone.frames.tolist() == [[0, 1]]
    assert twice.frames.tolist() == [[0, 1], [2, 3]]


@settings(max_examples=60)
@given(seed=seeds, vocabulary=st.integers(2, 4), scale=scales, width=st.integers(1, 20))
def test_a_narrow_beam_loses_paths_and_never_invents_any(seed: int, vocabulary: int, scale: float, width: int) -> None:
    log_probs = draw_log_probs(seed, 6, vocabulary, scale)
    want = enumerated(log_probs, 0)
    found = beam_search(log_probs, blank=0, beam_width=width, top=width)
    assert 1 <= len(found) <= width
    assert len({tuple(h.ids.tolist()) for h in found}) == len(found)
    for h in found:
        assert h.log_prob <= want[tuple(h.ids.tolist())] + 1e-12
    assert [h.ids.tolist() for h in beam_search(log_probs, blank=0, beam_width=width)] == [found[0].ids.tolist()]


@pytest.mark.parametrize(("seed", "frames", "width"), [(411, 5, 3), (411, 5, 4), (217, 7, 5), (444, 7, 5), (690, 7, 5)])
def test_a_prefix_that_was_dropped_and_comes_back_is_the_same_prefix(seed: int, frames: int, width: int) -> None:
    """In these draws one comes back while longer ones that begin with it are in the beam: they must still meet."""
    found = beam_search(draw_log_probs(seed, frames, 3), blank=0, beam_width=width, top=width)
    assert len({tuple(h.ids.tolist()) for h in found}) == len(found)


@settings(max_examples=60)
@given(seed=seeds, scale=scales, threshold=st.floats(-6, 0))
def test_tokens_below_the_threshold_are_ignored(seed: int, scale: float, threshold: float) -> None:
    log_probs = draw_log_probs(seed, 5, 4, scale)
    kept = (log_probs >= threshold) | (log_probs == log_probs.max(1, keepdims=True))
    want = enumerated(np.where(kept, log_probs, -np.inf), 0)
    found = beam_search(log_probs, blank=0, token_threshold=threshold, **ALL)
    got = {tuple(h.ids.tolist()): h.log_prob for h in found}
    assert got == pytest.approx(want, rel=1e-11)


@settings(max_examples=60)
@given(seed=seeds, scale=scales, threshold=st.floats(0, 10))
def test_prefixes_too_far_below_the_best_are_dropped(seed: int, scale: float, threshold: float) -> None:
    log_probs = draw_log_probs(seed, 1, 6, scale)  # one frame: what is dropped is seen in the end
    whole = beam_search(log_probs, blank=0, **ALL)
    found = beam_search(log_probs, blank=0, beam_threshold=threshold, **ALL)
    assert [h.score for h in found] == [h.score for h in whole if h.score >= whole[0].score - threshold]


@settings(max_examples=60)
@given(seed=seeds, frames=st.integers(1, 40), vocabulary=st.integers(2, 8), scale=scales)
def test_the_beam_is_no_worse_than_the_best_path(seed: int, frames: int, vocabulary: int, scale: float) -> None:
    log_probs = draw_log_probs(seed, frames, vocabulary, scale)
    path = greedy(log_probs[None])[0]
    assert path.tolist() == log_probs.argmax(1).tolist()
    ids = [token for token, _ in itertools.groupby(path.tolist()) if token != 0]
    labels = np.array([ids], int).reshape(1, -1)
    of_greedy = -float(ctc_loss(log_probs[None], labels, [frames], blank=0))
    best = beam_search(log_probs, blank=0)[0]
    of_beam = -float(ctc_loss(log_probs[None], best.ids[None], [frames], blank=0))
    assert of_beam >= of_greedy - 1e-9
    assert of_beam >= best.log_prob - 1e-9


def test_greedy_takes_valid_frames_only() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    rows = greedy(logits, [5, 0, 2])
    assert [row.tolist() for row in rows] == [logits[0].argmax(1).tolist(), [], logits[2, :2].argmax(1).tolist()]
    assert [len(row) for row in greedy(logits)] == [5, 5, 5]


# ---- language models and hot words -----------------------------------------------------------------------------------


class Drawn:
    """A scorer whose numbers are drawn for each pair of words, and that counts what it is asked."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.asked: list[tuple[Any, str]] = []

    def number(self, before: str, word: str) -> float:
        return -(zlib.crc32(f"{self.seed} {before} {word}".encode()) % 1000) / 200

    def start(self) -> str:
        return "<s>"

    def score(self, state: str, word: str) -> tuple[float, str]:
        self.asked.append((state, word))
        return self.number(state, word), word

    def end(self, state: str) -> float:
        return self.number(state, "</s>")


def words_of(ids: tuple[int, ...]) -> list[str]:
    return "".join(" " if i == WORDS["word_delimiter"] else TOKENS[i] for i in ids).split()


@settings(max_examples=60)
@given(
    seed=seeds,
    alpha=st.floats(0, 3),
    beta=st.floats(-2, 2),
    weight=st.floats(-3, 5),
    hot=st.sets(st.sampled_from(["A", "B", "AB", "ABA", "BB", "AAAAAA"])),
    with_scorer=st.booleans(),
)
def test_scores_are_what_the_formula_says(
    seed: int, alpha: float, beta: float, weight: float, hot: set[str], with_scorer: bool
) -> None:
    log_probs = draw_log_probs(seed, 4, 5)
    scorer = Drawn(seed) if with_scorer else None
    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "hot_words": sorted(hot), "hot_word_weight": weight}
    want = {}
    for ids, log_prob in enumerated(log_probs, 0).items():
        words = words_of(ids)
        want[ids] = log_prob + weight * sum(word in hot for word in words)
        if scorer is not None:
            pairs = zip(["<s>", *words], [*words, "</s>"], strict=True)
            want[ids] += alpha * sum(scorer.number(*pair) for pair in pairs) + beta * len(words)
    found = beam_search(log_probs, blank=0, scorer=scorer, **options, **WORDS, **ALL)
    got = {tuple(h.ids.tolist()): h.score for h in found}
    assert got == pytest.approx(want, rel=1e-10, abs=1e-10)
    assert list(got.values()) == sorted(got.values(), reverse=True)
    assert {tuple(h.ids.tolist()): h.log_prob for h in found} == pytest.approx(enumerated(log_probs, 0), rel=1e-10)
    if scorer is not None:
        assert all(word and "|" not in word for _, word in scorer.asked)


@settings(max_examples=30)
@given(seed=seeds, width=st.integers(2, 30))
def test_scores_of_a_narrow_beam_are_those_of_its_hypotheses(seed: int, width: int) -> None:
    """Whatever was dropped on the way: the score is log_prob and what the words get."""
    log_probs, scorer = draw_log_probs(seed, 12, 5), Drawn(seed)
    for h in beam_search(log_probs, blank=0, scorer=scorer, hot_words=["AB"], beam_width=width, top=width, **WORDS):
        words = words_of(tuple(h.ids.tolist()))
        said = sum(scorer.number(*pair) for pair in zip(["<s>", *words], [*words, "</s>"], strict=True))
        want = h.log_prob + 0.5 * said + 1.5 * len(words) + 10.0 * words.count("AB")
        assert h.score == pytest.approx(want, rel=1e-10)


def frames_of(spelling: list[dict[str, float]], tokens: list[str]) -> np.ndarray:
    """Log probabilities of frames that name the probability of some tokens; the others share the rest."""
    rows = []
    for frame in spelling:
        rest = (1 - sum(frame.values())) / (len(tokens) - len(frame))
        rows.append([frame.get(token, rest) for token in tokens])
    return np.log(rows)


def test_the_beginning_of_a_hot_word_keeps_it_in_the_beam() -> None:
    """The first letter alone would drop out of a beam of one: the hot word's share of its weight keeps it there."""
    tokens = ["<pad>", "|", *"CAT", "K"]
    heard = [{"K": 0.6, "C": 0.3}, {"A": 0.9}, {"T": 0.9}]
    log_probs = frames_of(heard, tokens)
    options: dict[str, Any] = {"blank": 0, "tokens": tokens, "word_delimiter": 1, "beam_width": 1}

    def text(**hot: Any) -> str:
        return "".join(tokens[i] for i in beam_search(log_probs, **options, **hot)[0].ids)

    assert text() == "KAT"
    assert text(hot_words=["CAT"], hot_word_weight=3) == "CAT"  # a third of 3 is more than ln 2
    assert text(hot_words=["CAT"], hot_word_weight=2) == "KAT"  # a third of 2 is less
    assert text(hot_words=["CATTTT", "CAT"], hot_word_weight=3) == "CAT"  # the shortest word counts
    assert text(hot_words=["KAT"], hot_word_weight=-9) == "CAT"
    # A beginning that did not become the word has gained nothing.
    best = beam_search(log_probs, **options, hot_words=["KATAA"], hot_word_weight=5)[0]
    assert best.score == best.log_prob


def test_the_beginning_of_a_hot_word_stays_in_the_beam_while_nothing_is_said() -> None:
    tokens = ["<pad>", "|", *"CATK"]
    heard = [{"K": 0.6, "C": 0.02}, {"<pad>": 0.8}, {"A": 0.9}, {"T": 0.9}]
    options: dict[str, Any] = {"blank": 0, "tokens": tokens, "word_delimiter": 1, "hot_words": ["CAT"]}
    best = beam_search(frames_of(heard, tokens), beam_width=2, **options)[0]
    assert "".join(tokens[i] for i in best.ids) == "CAT"


def test_a_language_model_decides_between_words_that_sound_alike() -> None:
    tokens = ["<pad>", "|", *"THEIR", "Y"]
    heard = [{letter: 0.9} for letter in "THE"] + [{"I": 0.5, "Y": 0.4}, {"R": 0.9}, {"|": 0.9}, {"H": 0.9}, {"E": 0.9}]
    log_probs = frames_of(heard, tokens)
    low = -3.0
    model = NGram(
        {("<s>",): (-99, 0), ("</s>",): (-1, 0), ("THEYR",): (-0.5, 0), ("THEIR",): (low, 0), ("HE",): (-1, 0)}
    )
    options: dict[str, Any] = {"blank": 0, "tokens": tokens, "word_delimiter": 1}

    def text(**language: Any) -> str:
        return "".join(tokens[i] for i in beam_search(log_probs, **options, **language)[0].ids)

    assert text() == text(scorer=model, alpha=0) == "THEIR|HE"
    assert text(scorer=model, alpha=1) == "THEYR|HE"
    assert text(scorer=model, alpha=1, hot_words=["THEIR"], hot_word_weight=9) == "THEIR|HE"


# ---- n-gram models ---------------------------------------------------------------------------------------------------

VOCABULARY = ["</s>", "<unk>", "a", "b", "c"]
Entries = dict[tuple[str, ...], tuple[float, float]]


def draw_model(seed: int, order: int) -> Entries:
    """A back-off model whose probabilities add up to 1 after every history (Katz 1987, eq. 13-15)."""
    random = np.random.default_rng(seed)
    unigrams = random.dirichlet(np.ones(len(VOCABULARY)))
    probability: dict[tuple[str, ...], float] = {(w,): float(p) for w, p in zip(VOCABULARY, unigrams, strict=True)}
    weight: dict[tuple[str, ...], float] = {}
    histories: list[tuple[str, ...]] = [("<s>",), ("a",), ("b",), ("c",), ("<unk>",)]

    def full(history: tuple[str, ...], word: str) -> float:
        if (*history, word) in probability:
            return probability[(*history, word)]
        return weight.get(history, 1.0) * full(history[1:], word)

    for length in range(2, order + 1):
        for history in histories:
            seen = [word for word in VOCABULARY if random.random() < 0.5][: len(VOCABULARY) - 1]
            mass = random.uniform(0.3, 0.9) if seen else 0.0
            shares = random.dirichlet(np.ones(len(seen))) if seen else np.zeros(0)
            rest = 1 - sum(full(history[1:], word) for word in seen)
            for word, share in zip(seen, shares, strict=True):
                probability[(*history, word)] = mass * float(share)
            weight[history] = (1 - mass) / rest
        histories = [
            (*h, w) for h in histories for w in VOCABULARY[1:] if (*h, w) in probability and len(h) == length - 1
        ]
    entries: Entries = {words: (math.log10(p), math.log10(weight.get(words, 1.0))) for words, p in probability.items()}
    entries[("<s>",)] = (-99.0, math.log10(weight.get(("<s>",), 1.0)))
    return entries


def log10_by_definition(entries: Entries, history: tuple[str, ...], word: str) -> float:
    if (*history, word) in entries:
        return entries[(*history, word)][0]
    return (entries[history][1] if history in entries else 0.0) + log10_by_definition(entries, history[1:], word)


def write_arpa(path: Path, entries: Entries) -> None:
    order = max(map(len, entries))
    lines = [
        "written by a test",
        "",
        "\\data\\",
        *(f"ngram {n}={sum(len(w) == n for w in entries)}" for n in range(1, order + 1)),
    ]
    for n in range(1, order + 1):
        lines += ["", f"\\{n}-grams:"]
        for words, (log10, weight) in entries.items():
            if len(words) == n:
                lines.append(f"{log10!r}\t{' '.join(words)}" + (f"\t{weight!r}" if weight or n % 2 else ""))
    text = "\n".join([*lines, "", "\\end\\", ""])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@settings(max_examples=40)
@given(
    seed=seeds, order=st.integers(1, 4), sentence=st.lists(st.sampled_from(["a", "b", "c", "d", "<unk>"]), max_size=6)
)
def test_a_sentence_has_the_probability_that_back_off_says(seed: int, order: int, sentence: list[str]) -> None:
    entries = draw_model(seed, order)
    model = NGram(entries)
    known = [word if word in VOCABULARY else "<unk>" for word in sentence]
    state = model.start()
    for i, word in enumerate([*sentence, None]):
        history = ("<s>", *known[:i])[max(0, i + 1 - (model.order - 1)) :]
        here = {w: log10_by_definition(entries, history, w) for w in VOCABULARY}
        assert sum(10**p for p in here.values()) == pytest.approx(1)
        if word is None:
            assert model.end(state) == pytest.approx(math.log(10) * here["</s>"])
        else:
            got, state = model.score(state, word)
            assert got == pytest.approx(math.log(10) * here[known[i]])


@settings(max_examples=20)
@given(seed=seeds, order=st.integers(1, 4))
def test_an_arpa_file_there_and_back(tmp_path_factory: pytest.TempPathFactory, seed: int, order: int) -> None:
    entries, folder = draw_model(seed, order), tmp_path_factory.getbasetemp()
    for name in ("model.arpa", "model.arpa.gz", "model"):
        write_arpa(folder / name, entries)
        assert NGram.from_arpa(folder / name).entries == entries


def test_words_that_a_model_does_not_have() -> None:
    without = NGram({("<s>",): (-99, -0.5), ("a",): (-0.3, 0.0), ("<s>", "a"): (-0.1, 0.0)})
    assert without.score(without.start(), "b")[0] == pytest.approx(math.log(10) * (-100 - 0.5))
    assert without.end(()) == pytest.approx(math.log(10) * -100)
    assert without.score(without.score(without.start(), "b")[1], "a")[0] == pytest.approx(math.log(10) * -0.3)


ARPA = """\\data\\
ngram 1=3
ngram 2=1

\\1-grams:
-1 <s> -0.5
-1 a 0
-0.5\t</s>

\\2-grams:
-0.2\t<s> a

\\end\\
"""


def test_the_layouts_of_an_arpa_file(tmp_path: Path) -> None:
    path = tmp_path / "model.arpa"
    want = {("<s>",): (-1, -0.5), ("a",): (-1, 0), ("</s>",): (-0.5, 0), ("<s>", "a"): (-0.2, 0)}
    for text in (
        ARPA,
        ARPA.replace("\n", "\r\n"),
        f"a comment\n{ARPA}after the end",
        ARPA.replace("ngram 1=3", "ngram 1 = 3"),
    ):
        path.write_bytes(text.encode())
        assert NGram.from_arpa(path).entries == want
    # Words may hold what is white space elsewhere.
    path.write_bytes(ARPA.replace(" a", " a\u00a0b\u2028").encode())
    assert ("<s>", "a\u00a0b\u2028") in NGram.from_arpa(path).entries


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", "is no ARPA file"),
        (ARPA, "", "is no ARPA file"),
        ("ngram 1=3\n", "", "line 2 .*expected ngram 1="),
        ("ngram 1=3\nngram 2=1\n", "", "expected ngram 1="),
        ("ngram 1=3", "ngram 1=4", "line 10 .*log10 p, 1 words"),
        ("ngram 1=3", "ngram 1=2", r"line 8 .*expected \\2-grams"),
        ("ngram 2=1", "ngram 2=x", r"line 3 .*expected \\1-grams"),
        ("-1 a 0", "-1 a", None),
        ("-1 a 0", "-1", "line 7"),
        ("-1 a 0", "x a 0", "line 7"),
        ("-1 a 0", "-1 a x", "line 7"),
        ("-1 a 0", "-1 a 0 0", "line 7"),
        ("-1 a 0", "nan a 0", "line 7"),
        ("-1 a 0", "-inf a 0", "line 7"),
        ("-1 a 0", "-1 a inf", "line 7"),
        ("-1 a 0", "0.5 a 0", "line 7"),
        ("-1 a 0", "-1 <s> 0", "line 7"),
        ("-0.2\t<s> a", "-0.2\t<s>", "line 11"),
        ("\\2-grams:", "\\3-grams:", r"expected \\2-grams"),
        ("\\end\\", "", "is cut off"),
        ("\n\\2-grams:\n-0.2\t<s> a\n\n\\end\\\n", "", "is cut off"),
        ("\\end\\", "\\3-grams:", r"expected \\end"),
    ],
)
def test_damaged_arpa_files(old: str, new: str, message: str | None, tmp_path: Path) -> None:
    assert old in ARPA
    path = tmp_path / "model.arpa"
    path.write_bytes(ARPA.replace(old, new, 1).encode())
    if message is None:
        NGram.from_arpa(path)
        return
    with pytest.raises(InputError, match=message) as raised:
        NGram.from_arpa(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_arpa_files_that_can_not_be_read(tmp_path: Path) -> None:
    packed, whole = tmp_path / "model.gz", gzip.compress(ARPA.encode())
    for data in (whole[:-9], whole[:15], whole[:-4] + b"abcd", whole[:20] + b"\x00\xff" + whole[22:], b"\x1f\x8b"):
        packed.write_bytes(data)
        with pytest.raises(InputError, match="can't be read"):
            NGram.from_arpa(packed)
    packed.write_bytes(ARPA.replace("a", "\udcff").encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="is not UTF-8"):
        NGram.from_arpa(packed)
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="can't be read"):
            NGram.from_arpa(path)


# ---- wrong input -----------------------------------------------------------------------------------------------------

EVEN = np.full((3, 5), math.log(0.2))


class Answer:
    """A scorer that gives what it is told to."""

    def __init__(self, score: Any, end: Any = 0.0) -> None:
        self.given, self.last = score, end

    def start(self) -> None:
        return None

    def score(self, state: Any, word: str) -> Any:
        return self.given

    def end(self, state: Any) -> Any:
        return self.last


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_probs": np.full((3, 5), np.nan)}, "not finite"),
        ({"log_probs": np.full((3, 5), np.inf)}, "not finite"),
        ({"log_probs": np.full((3, 5), -np.inf)}, "no log probabilities"),
        ({"log_probs": np.zeros((3, 5))}, "frame 0, whose .* log_softmax"),
        ({"log_probs": np.full((3, 5), 1e300)}, "no log probabilities"),
        ({"log_probs": EVEN[None]}, "wrong shape"),
        ({"log_probs": EVEN[:0]}, "wrong shape"),
        ({"log_probs": EVEN.astype(int)}, "wrong dtype"),
        ({"log_probs": [[0.0], [0.0, 1.0]]}, "is not an array"),
        ({"log_probs": None}, "wrong dtype"),
        ({"blank": 5}, "blank is out of range"),
        ({"blank": -1}, "blank is out of range"),
        ({"blank": None}, "blank has the wrong dtype"),
        ({"beam_width": 0}, "beam_width is no count"),
        ({"beam_width": -3}, "beam_width is no count"),
        ({"beam_width": 2.0}, "beam_width is no count"),
        ({"beam_width": None}, "beam_width is no count"),
        ({"top": 0}, "top is no count"),
        ({"top": True}, "top is no count"),
        ({"token_threshold": math.nan}, "token_threshold is not finite"),
        ({"token_threshold": "low"}, "token_threshold has the wrong dtype"),
        ({"beam_threshold": -1}, "beam_threshold is negative"),
        ({"alpha": None}, "alpha has the wrong dtype"),
        ({"alpha": math.inf}, "alpha is not finite"),
        ({"beta": 10**400}, "beta has the wrong dtype"),
        ({"hot_word_weight": [1, 2]}, "hot_word_weight has the wrong shape"),
        ({"tokens": TOKENS[:4]}, "tokens do not fit log_probs"),
        ({"tokens": "<|ABC"}, "tokens are no texts"),
        ({"tokens": [*TOKENS[:4], None]}, "tokens are no texts"),
        ({"word_delimiter": 5}, "word_delimiter is out of range"),
        ({"word_delimiter": "|"}, "word_delimiter has the wrong dtype"),
        ({"scorer": Drawn(0), "tokens": None}, "need tokens and word_delimiter"),
        ({"scorer": Drawn(0), "word_delimiter": None}, "need tokens and word_delimiter"),
        ({"scorer": Drawn(0), "word_delimiter": 0}, "need tokens and word_delimiter"),
        ({"hot_words": ["A"], "tokens": None}, "need tokens and word_delimiter"),
        ({"scorer": "model.arpa"}, "the scorer is none"),
        ({"scorer": Answer(None)}, "the scorer gave no score"),
        ({"scorer": Answer(-1.0)}, "the scorer gave no score"),
        ({"scorer": Answer((math.nan, None))}, "the score of a word is not finite"),
        ({"scorer": Answer((-math.inf, None))}, "the score of a word is not finite"),
        ({"scorer": Answer(("low", None))}, "the score of a word has the wrong dtype"),
        ({"scorer": Answer((-1.0, None), None)}, "the score of the end has the wrong dtype"),
        ({"hot_words": ["AC"]}, r"can't spell the hot word 'AC' \(got 'C' at 1"),
        ({"hot_words": ["pad"]}, r"can't spell the hot word 'pad' \(got 'p' at 0"),
        ({"hot_words": ["A B"]}, "can't spell the hot word 'A B'"),
        ({"hot_words": ["A|B"]}, "can't spell the hot word"),
        ({"hot_words": [""]}, "hot_words are no words"),
        ({"hot_words": "AB"}, "hot_words are no words"),
        ({"hot_words": [3]}, "hot_words are no words"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"log_probs": EVEN, "blank": 0, **WORDS, **change}
    with pytest.raises(InputError, match=message) as raised:
        beam_search(arguments.pop("log_probs"), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("logits", "lengths", "message"),
    [
        (np.full((1, 2, 3), np.nan), None, "not finite"),
        (np.zeros((2, 3)), None, "wrong shape"),
        (np.zeros((1, 0, 3)), None, "wrong shape"),
        (np.zeros((1, 2, 3), int), None, "wrong dtype"),
        (np.zeros((1, 2, 3)), [3], "input_lengths is out of range"),
        (np.zeros((1, 2, 3)), [-1], "input_lengths is out of range"),
        (np.zeros((1, 2, 3)), [2, 2], "input_lengths has the wrong shape"),
    ],
)
def test_wrong_logits(logits: Any, lengths: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        greedy(logits, lengths)
