"""The tokenizer of CTC models: texts there and back, frames and their offsets, its files, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v_ref.errors import CheckpointError, D2VError, InputError, UnavailableError
from d2v_ref.processing.ctc_tokenizer import (
    PUBLISHED,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2CTCTokenizerOutput,
    character_vocabulary,
    frames_to_seconds,
    time_stamps,
)

LETTERS = "".join(PUBLISHED[5:])
PLAIN = Wav2Vec2CTCTokenizer(character_vocabulary(32))

words = st.text(LETTERS, min_size=1, max_size=6)
sentences = st.lists(words, max_size=5).map(" ".join)
# A token, the frames that it lasts, and the blank frames after it.
spoken = st.tuples(st.integers(1, 3), st.integers(0, 3))


@given(text=sentences)
def test_a_text_there_and_back(text: str) -> None:
    ids = PLAIN.encode(text)
    assert ids.dtype == np.int64
    assert len(ids) == len(text)
    assert PLAIN.decode(ids, group_tokens=False) == text
    lower = Wav2Vec2CTCTokenizer(character_vocabulary(32), do_lower_case=True)
    assert lower.encode(text.lower()).tolist() == ids.tolist()
    assert lower.decode(ids, group_tokens=False) == text.lower()


@given(data=st.data(), text=sentences.filter(bool))
def test_frames_become_the_text_and_where_it_was_said(data: Any, text: str) -> None:
    """Frames made from a text and durations: the offsets must be those durations."""
    path: list[int] = []
    spans = []
    for i, index in enumerate(PLAIN.encode(text)):
        length, rest = data.draw(spoken)
        rest += i + 1 < len(text) and text[i + 1] == text[i]  # equal neighbours need a blank between them
        spans.append((len(path), len(path) + length))
        path += [int(index)] * length + [0] * rest
    out = PLAIN.decode(path, output_char_offsets=True, output_word_offsets=True)
    assert out.text == PLAIN.decode(path) == text
    assert [entry["char"] for entry in out.char_offsets] == list(text)
    assert [(entry["start_offset"], entry["end_offset"]) for entry in out.char_offsets] == spans
    assert [entry["word"] for entry in out.word_offsets] == text.split(" ")
    ends = [i for i in range(len(text)) if i + 1 == len(text) or text[i + 1] == " "]
    starts = [i for i in range(len(text)) if i == 0 or text[i - 1] == " "]
    want = [(spans[a][0], spans[b][1]) for a, b in zip(starts, ends, strict=True)]
    assert [(entry["start_offset"], entry["end_offset"]) for entry in out.word_offsets] == want


@given(ids=st.lists(st.integers(0, 31), max_size=30), group=st.booleans())
def test_offsets_name_the_frames_of_their_token(ids: list[int], group: bool) -> None:
    out = PLAIN.decode(ids, group_tokens=group, output_char_offsets=True)
    covered = {i for entry in out.char_offsets for i in range(entry["start_offset"], entry["end_offset"])}
    assert covered == {i for i, index in enumerate(ids) if index != 0}
    for entry in out.char_offsets:
        token = "|" if entry["char"] == " " else entry["char"]
        assert {PLAIN.tokens[i] for i in ids[entry["start_offset"] : entry["end_offset"]]} == {token}
    assert "".join(entry["char"] for entry in out.char_offsets).strip() == out.text


@given(batch=st.lists(sentences, min_size=1, max_size=4))
def test_a_batch_is_its_texts_with_padding(batch: list[str]) -> None:
    encoding = PLAIN(batch)
    assert encoding.input_ids.shape == encoding.attention_mask.shape == (len(batch), max(map(len, batch)))
    for text, ids, mask, labels in zip(
        batch, encoding.input_ids, encoding.attention_mask, encoding.labels, strict=True
    ):
        assert ids[mask == 1].tolist() == PLAIN.encode(text).tolist()
        assert (ids[mask == 0] == 0).all()
        assert labels.tolist() == [*PLAIN.encode(text).tolist(), *[-100] * (mask == 0).sum()]
    one_by_one = [PLAIN.decode(ids) for ids in encoding.input_ids]
    assert PLAIN.batch_decode(encoding.input_ids) == one_by_one
    out = PLAIN.batch_decode(encoding.input_ids, output_word_offsets=True)
    assert (out.text, out.char_offsets) == (one_by_one, None)
    assert out.word_offsets == [PLAIN.decode(ids, output_word_offsets=True).word_offsets for ids in encoding.input_ids]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_lower_case": True, "clean_up_tokenization_spaces": True, "replace_word_delimiter_char": "_"},
    {"word_delimiter_token": "'", "extra_special_tokens": ["<noise>", "A"]},
    {"word_delimiter_token": None, "bos_token": None, "eos_token": None},
    {"pad_token": "Q", "unk_token": "[UNK]"},
    {"added_tokens": {32: {"content": " <tag>", "lstrip": True}}},
]


@pytest.mark.parametrize("arguments", SETTINGS)
def test_what_is_saved_is_what_is_read(arguments: dict[str, Any], tmp_path: Path) -> None:
    saved = Wav2Vec2CTCTokenizer(character_vocabulary(32), **arguments)
    saved.save_pretrained(tmp_path / "a" / "b")
    read = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "a" / "b")
    unsaved = {"_origin", "_splits"}
    for name, value in vars(saved).items():
        if name not in unsaved:
            assert getattr(read, name) == value, name
    text = "A <s>  'Q <noise>  <tag> b'"
    assert read.tokenize(text) == saved.tokenize(text)


def test_added_tokens_are_found_as_a_whole_the_longest_first() -> None:
    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", "|", *"SCHE", "CH", "SCH", "SC"])}
    tokenizer = Wav2Vec2CTCTokenizer(vocab, bos_token=None, eos_token=None, extra_special_tokens=["<x>"])
    assert tokenizer.tokenize("ESCHECHCSCE") == ["E", "SCH", "E", "CH", "C", "SC", "E"]
    # Tokens of the vocabulary take the white space beside them; special tokens behind it do not.
    assert tokenizer.tokenize("E  SCH E") == ["E", "SCH", "E"]
    assert tokenizer.tokenize("E <x> E") == ["E", "|", "<x>", "|", "E"]
    assert tokenizer.decode([8, 8, 0, 8, 2, 7], output_word_offsets=True) == Wav2Vec2CTCTokenizerOutput(
        "SCHSCH CH",
        None,
        [
            {"word": "SCHSCH", "start_offset": 0, "end_offset": 4},
            {"word": "CH", "start_offset": 5, "end_offset": 6},
        ],
    )
    assert (len(tokenizer), tokenizer.vocab_size, tokenizer.pad_token_id) == (11, 10, 0)


def test_special_tokens_are_left_out_but_for_the_delimiter() -> None:
    ids = [*PLAIN.encode("<s>AA|B</s>"), 0, 7, 7, 0, 7]
    assert PLAIN.decode(ids) == "<s>A B</s>AA"
    assert PLAIN.decode(ids, skip_special_tokens=True) == "A BA"  # no blank is left to keep equal tokens apart
    assert PLAIN.decode([0, 1], skip_special_tokens=True, output_char_offsets=True).char_offsets == []
    assert PLAIN.decode([5, 4, 5], spaces_between_special_tokens=True) == "E   E"


def test_spaces_are_cleaned_up_if_asked() -> None:
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *".,?!'abcdefghijklmnorstuv"])}
    ids = Wav2Vec2CTCTokenizer(vocab).encode("is n't it , he 's in ! i ' m")
    cleaning = Wav2Vec2CTCTokenizer(vocab, clean_up_tokenization_spaces=True)
    for tokenizer, clean in ((PLAIN.__class__(vocab), True), (cleaning, None)):
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=clean, group_tokens=False) == "isn't it, he's in! i'm"
    assert (
        cleaning.decode(ids, clean_up_tokenization_spaces=False, group_tokens=False) == "is n't it , he 's in ! i ' m"
    )


def test_a_nested_vocabulary_has_a_language(tmp_path: Path) -> None:
    nested = {"a": {"<pad>": 0, "<unk>": 1, "|": 2, "x": 3}, "b": character_vocabulary(32)}
    Wav2Vec2CTCTokenizer(nested, target_lang="a").save_pretrained(tmp_path)
    a, b = (Wav2Vec2CTCTokenizer.from_pretrained(tmp_path, target_lang=lang) for lang in (None, "b"))
    assert a.vocab == {**nested["a"], "<s>": 4, "</s>": 5}
    assert (b.vocab, b.target_lang) == (nested["b"], "b")
    for language in ("c", None):
        with pytest.raises(InputError, match="target_lang"):
            Wav2Vec2CTCTokenizer(nested, target_lang=language)
    with pytest.raises(InputError, match="of one language"):
        Wav2Vec2CTCTokenizer(nested["a"], target_lang="a")


@given(
    frames=st.lists(st.integers(0, 10**6), max_size=5), ratio=st.integers(1, 1000), rate=st.sampled_from([8000, 16000])
)
def test_time_stamps(frames: list[int], ratio: int, rate: int) -> None:
    rates = {"samples_per_frame": ratio, "sampling_rate": rate}
    seconds = frames_to_seconds(frames, **rates)
    assert seconds.dtype == np.float64
    assert np.rint(seconds * rate).tolist() == [frame * ratio for frame in frames]
    offsets = [{"char": "x", "start_offset": frame, "end_offset": frame + 1} for frame in frames]
    assert time_stamps(offsets, **rates) == [
        {"char": "x", "start_time": start, "end_time": frames_to_seconds(frame + 1, **rates)}
        for start, frame in zip(seconds.tolist(), frames, strict=True)
    ]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "320", None])
def test_rates_that_are_none(wrong: Any) -> None:
    for change in ({"samples_per_frame": wrong}, {"sampling_rate": wrong}):
        with pytest.raises(InputError, match="is no rate"):
            frames_to_seconds(3, **{"samples_per_frame": 320, "sampling_rate": 16000, **change})
    with pytest.raises(InputError, match="frames have the wrong dtype"):
        frames_to_seconds("three", samples_per_frame=320, sampling_rate=16000)


def test_character_vocabularies() -> None:
    assert list(character_vocabulary(32)) == list(PUBLISHED)
    largest = 32 + (0x7F - 0x21 - 28) + (0xA000 - 0x4E00) + (0xD7A4 - 0xAC00)
    for size in (5, 6, 31, 33, 100, 5000, largest):
        vocab = character_vocabulary(size)
        assert list(vocab.values()) == list(range(size))
        assert list(vocab)[:32] == list(PUBLISHED)[:size]
        assert len(Wav2Vec2CTCTokenizer(vocab)) == size  # nothing is missing that would have to be added
        assert all(len(symbol) == 1 and symbol.isprintable() and not symbol.isspace() for symbol in list(vocab)[4:])
    for size in (4, 0, -1, largest + 1):
        with pytest.raises(InputError, match="no character vocabulary"):
            character_vocabulary(size)


# ---- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([32], "out of range"),
        ([-1], "out of range"),
        ([-100, 5], "-100, which fills up labels"),
        ([[1, 2]], "wrong shape"),
        (5, "wrong shape"),
        ([1.0], "wrong dtype"),
        ("AB", "wrong dtype"),
        ([True], "wrong dtype"),
        (None, "wrong dtype"),
        ([[1], [2, 3]], "is not an array"),
        ([[]], "wrong"),
    ],
)
def test_wrong_ids(ids: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PLAIN.decode(ids)


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "no text"), (5, "no text"), (None, "no text"), (["A", None], "no text"), (["A", ["B"]], "no text")],
)
def test_wrong_texts(texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PLAIN(texts)


def test_unknown_characters() -> None:
    assert PLAIN.encode("aß\ud800\n").tolist() == [3] * 4
    without = Wav2Vec2CTCTokenizer(character_vocabulary(32), unk_token=None)
    with pytest.raises(InputError, match=r"not in the vocabulary \(got 'a'\)"):
        without.encode("BanAna")


def test_texts_of_several_lengths_need_a_pad_token() -> None:
    without = Wav2Vec2CTCTokenizer({"A": 0, "B": 1}, pad_token=None, bos_token=None, eos_token=None, unk_token=None)
    assert without.pad_token_id is None
    assert without(["AB", "BA"]).input_ids.tolist() == [[0, 1], [1, 0]]
    assert without(["", ""]).input_ids.shape == (2, 0)
    with pytest.raises(InputError, match="need a pad token"):
        without(["AB", "A"])


VOCABULARY = {"<pad>": 0, "<unk>": 1, "A": 2}
CONFIG: Any = {"vocab": VOCABULARY}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer for CTC"),
        ({"vocab": "{"}, "is not JSON"),
        ({"vocab": "[1]"}, "is not a JSON object"),
        ({"vocab": "\udcff"}, "is not UTF-8"),
        ({"vocab": {}}, "is no vocabulary"),
        ({"vocab": {"a": {}}, "config": {"target_lang": "a"}}, "is no vocabulary"),
        ({"vocab": {"a": "0"}}, "is no vocabulary"),
        ({"vocab": {"a": 0.0}}, "is no vocabulary"),
        ({"vocab": {"a": True, "b": False}}, "is no vocabulary"),
        ({"vocab": {"a": {"b": 0}, "c": 1}}, "is no vocabulary"),
        ({"vocab": {"a": 0, "b": 2}}, r"ids are not 0, 1, 2 .* \(got none with id 1"),
        ({"vocab": {"a": 0, "b": 1, "c": 1}}, "none with id 2"),
        ({"vocab": {"a": -1, "b": 0}}, "none with id 1"),
        ({"vocab": '{"a": 0, "b": 1, "a": 2}'}, "none with id 0"),
        ({**CONFIG, "config": "{"}, "is not JSON"),
        ({**CONFIG, "config": {"pad_token": 3}}, "pad_token is no token"),
        ({**CONFIG, "config": {"pad_token": {"text": "x"}}}, "pad_token is no token"),
        ({**CONFIG, "config": {"word_delimiter_token": 3}}, "word_delimiter_token is no string"),
        ({**CONFIG, "config": {"word_delimiter_token": {"text": "x"}}}, "word_delimiter_token is no string"),
        ({**CONFIG, "config": {"word_delimiter_token": ""}}, "word_delimiter_token is empty"),
        ({**CONFIG, "config": {"replace_word_delimiter_char": None}}, "replace_word_delimiter_char has the wrong type"),
        ({**CONFIG, "config": {"do_lower_case": "yes"}}, "do_lower_case has the wrong type"),
        ({**CONFIG, "config": {"target_lang": ["a"]}}, "target_lang is no string"),
        ({**CONFIG, "config": {"target_lang": "a"}}, "of one language"),
        ({**CONFIG, "config": {"extra_special_tokens": [3]}}, "extra_special_tokens are no tokens"),
        ({**CONFIG, "config": {"extra_special_tokens": "abc"}}, "extra_special_tokens is no list"),
        ({**CONFIG, "config": {"added_tokens_decoder": []}}, "added tokens are damaged"),
        ({**CONFIG, "config": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "added tokens are damaged"),
        ({**CONFIG, "config": {"added_tokens_decoder": {"3": "y"}}}, "added tokens are damaged"),
        ({**CONFIG, "config": {"added_tokens_decoder": {"3": {}}}}, "added tokens are damaged"),
        ({**CONFIG, "config": {"added_tokens_decoder": {"3": {"content": ""}}}}, "added tokens are damaged"),
        ({**CONFIG, "config": {"added_tokens_decoder": {"3": {"content": "y", "lstrip": 1}}}}, "tokens are damaged"),
        ({**CONFIG, "config": {"added_tokens_decoder": {"3": {"content": "y", "single_word": True}}}}, "single word"),
        ({**CONFIG, "config": {"added_tokens_decoder": {"4": {"content": "y"}}}}, "does not fit the vocabulary"),
        ({**CONFIG, "config": {"added_tokens_decoder": {"2": {"content": "B"}}}}, "does not fit the vocabulary"),
        ({**CONFIG, "added_tokens": {"A": 3}}, "does not fit the vocabulary"),
        ({**CONFIG, "added_tokens": {"B": 3, "C": 3}}, "no two the same"),
        ({**CONFIG, "added_tokens": {"B": None}}, "added tokens are damaged"),
        ({**CONFIG, "added_tokens": {"B": [3]}}, "added tokens are damaged"),
        ({**CONFIG, "added_tokens": {"B": 3.0}}, "added tokens are damaged"),
        ({**CONFIG, "added_tokens": "5"}, "is not a JSON object"),
        ({**CONFIG, "special_tokens_map": {"bos_token": []}}, "bos_token is no token"),
    ],
)
def test_damaged_files(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    names = {"config": "tokenizer_config"}
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / f"{names.get(name, name)}.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises((CheckpointError, InputError), match=message) as raised:
        Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("vocab", [None, [], "vocab.json", {}, {1: 0}, {"a": np.int64(0)}])
def test_what_is_no_vocabulary(vocab: Any) -> None:
    with pytest.raises(CheckpointError, match="is no vocabulary"):
        Wav2Vec2CTCTokenizer(vocab)


def test_places_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match="can't be made a folder"):
        PLAIN.save_pretrained(tmp_path / "file")
    with pytest.raises(D2VError) as raised:
        Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "nowhere", local_files_only=True)
    assert isinstance(raised.value, CheckpointError | UnavailableError)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "vocab.json").mkdir()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "odd")
