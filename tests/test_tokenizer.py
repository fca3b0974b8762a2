"""Texts to tokens and back: the synthetic tokenizer, a checkpoint's files, and all that can be wrong with either."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v_ref.errors import CheckpointError, InputError
from d2v_ref.processing import Encoding, TextTokenizer
from d2v_ref.processing.tokenizer import byte_alphabet, byte_level_tokenizer, pad

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def save(folder: Path, vocab_size: int = 300, **files: Any) -> Path:
    """A folder with a synthetic tokenizer.json, and other JSON files."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(byte_level_tokenizer(vocab_size), encoding="utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def save_vocabulary(folder: Path, words: tuple[str, ...] = (), merges: str = "", **files: Any) -> Path:
    """A folder with vocab.json and merges.txt: RoBERTa's four special tokens, the bytes, ``words`` and <mask>."""
    folder.mkdir(exist_ok=True)
    tokens = [*SPECIAL[:4], *byte_alphabet(), *words, "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.from_pretrained(save(tmp_path_factory.mktemp("tokenizer") / "plain"))


# ---- the synthetic tokenizer -----------------------------------------------------------------------------------------


def test_byte_alphabet() -> None:
    symbols = byte_alphabet()
    assert len(set(symbols)) == 256
    assert symbols[:3] == ["!", '"', "#"]
    assert symbols[188:190] == ["Ā", "ā"]  # bytes 0 and 1
    assert symbols[188 + 32] == "Ġ"  # the space
    assert symbols[188 + 10] == "Ċ"  # the newline


@pytest.mark.parametrize("size", [261, 262, 1000])
def test_ids_of_the_synthetic_tokenizer(size: int) -> None:
    model = json.loads(byte_level_tokenizer(size))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    assert [model["vocab"][token] for token in tokens] == list(range(size))
    assert tokens[:4] == SPECIAL[:4]
    assert tokens[4:260] == byte_alphabet()
    assert tokens[-1] == "<mask>"
    symbols = byte_alphabet()
    assert tokens[260:-1] == [symbols[i // 256] + symbols[i % 256] for i in range(size - 261)]
    assert ["".join(merge) for merge in model["merges"]] == tokens[260:-1]


@pytest.mark.parametrize("size", [260, 0, 261 + 65536 + 1])
def test_sizes_that_no_synthetic_tokenizer_has(size: int) -> None:
    with pytest.raises(InputError, match=r"261 \.\.\. 65797"):
        byte_level_tokenizer(size)


def test_pairs_of_bytes_are_merged(tokenizer: TextTokenizer) -> None:
    assert tokenizer('!"#').input_ids.tolist() == [[0, 261, 6, 2]]  # '!"' is pair 1, '#' is byte symbol 2
    assert tokenizer.token(261) == '!"'


texts = st.text(min_size=1).filter(lambda text: text.strip() and not any(token in text for token in SPECIAL))


@given(texts)
def test_every_text_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids[0]) == text


@given(texts, texts)
def test_offsets_are_characters_of_the_text(tokenizer: TextTokenizer, first: str, second: str) -> None:
    encoding = tokenizer(first, second)
    for index, text in enumerate((first, second)):
        spans = encoding.offsets[0][encoding.sequence_ids[0] == index]
        assert (np.diff(spans[:, 1]) >= 0).all()
        assert spans[:, 0].min() >= 0
        assert spans[:, 1].max() <= len(text)
    assert (encoding.special_tokens_mask == (encoding.sequence_ids == -1)).all()
    assert encoding.input_ids[0][encoding.sequence_ids[0] == -1].tolist() == [0, 2, 2, 2]


@given(st.lists(st.integers(0, 299), min_size=1))
def test_every_id_decodes(tokenizer: TextTokenizer, ids: list[int]) -> None:
    assert isinstance(tokenizer.decode(ids, skip_special_tokens=False), str)
    assert all(tokenizer.token(index) for index in ids)


# ---- calling ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_padded(tokenizer: TextTokenizer) -> None:
    right, left = tokenizer(["ab", "a"]), tokenizer(["ab", "a"], padding_side="left")
    a, b = 4 + byte_alphabet().index("a"), 4 + byte_alphabet().index("b")
    assert right.input_ids.tolist() == [[0, a, b, 2], [0, a, 2, 1]]
    assert right.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert right.special_tokens_mask.tolist() == [[1, 0, 0, 1], [1, 0, 1, 1]]
    assert left.input_ids.tolist() == [[0, a, b, 2], [1, 0, a, 2]]
    assert left.offsets[1].tolist() == [[0, 0], [0, 0], [0, 1], [0, 0]]
    assert all(getattr(right, name).dtype == np.int64 for name in Encoding.__dataclass_fields__)
    assert [row.tolist() for row in left.rows()] == [[0, a, b, 2], [0, a, 2]]


def test_special_tokens_that_a_text_spells_out(tokenizer: TextTokenizer) -> None:
    encoding = tokenizer("a <mask></s>")
    assert encoding.input_ids[0, 2:].tolist() == [299, 2, 2]  # the space before <mask> is part of it
    assert encoding.special_tokens_mask.tolist() == [[1, 0, 0, 0, 1]]
    assert tokenizer.decode(encoding.input_ids[0]) == "a"
    assert tokenizer.decode(encoding.input_ids[0], skip_special_tokens=False) == "<s>a<mask></s></s>"
    assert (tokenizer.mask_token, tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id) == (
        "<mask>",
        299,
        1,
        0,
    )
    assert tokenizer.vocab_size == 300


def test_truncation(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode(tokenizer("abcdefgh", max_length=5, truncation=True).input_ids[0]) == "abc"
    pair = tokenizer("abcdefgh", "xy", max_length=9, truncation=True)  # the longer one is cut
    assert tokenizer.decode(pair.input_ids[0]) == "abcxy"
    assert tokenizer("abc", max_length=5).input_ids.shape == (1, 5)  # and a call leaves nothing behind
    with pytest.raises(InputError, match=r"text is too long \(got 10 tokens; expected at most 5\).*truncation=True"):
        tokenizer("abcdefgh", max_length=5)
    with pytest.raises(InputError, match="text 1 is too long"):
        tokenizer(["a", "abcdefgh"], max_length=5)
    for length in (None, 2):
        with pytest.raises(InputError, match="max_length does not serve"):
            tokenizer("abc", max_length=length, truncation=True)


def test_windows(tokenizer: TextTokenizer) -> None:
    windows = tokenizer.windows("q", "abcdefgh", max_length=9, stride=2)
    rows = [tokenizer.decode(ids) for ids in windows.rows()]
    assert rows == ["qabcd", "qcdef", "qefgh"]
    assert windows.offsets[1, 4:8].tolist() == [[2, 3], [3, 4], [4, 5], [5, 6]]
    with pytest.raises(InputError, match="leaves too little room"):
        tokenizer.windows("question", "abc", max_length=14, stride=2)
    with pytest.raises(InputError, match="the pair is empty"):
        tokenizer.windows("q", " ", max_length=9, stride=2)


def test_threads_do_not_truncate_each_other(tokenizer: TextTokenizer) -> None:
    def call(i: int) -> int:
        return tokenizer("abcdefgh" * 20, max_length=9 if i % 2 else None, truncation=bool(i % 2)).input_ids.shape[1]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(400))) == [162, 9] * 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "the text is empty"),
        ((" \n\t\u3000",), "the text is empty"),
        ((["a", ""],), "text 1 is empty"),
        (("a", ""), "the pair is empty"),
        ((None,), r"the text is no text \(got NoneType"),
        ((b"bytes",), "got bytes"),
        ((["a", 3],), r"text 1 is no text \(got int"),
        (("ab\ud800c",), "a lone surrogate at character 2"),
        (([],), "there is no text"),
        ((["a", "b"], ["c"]), "not as many pairs"),
    ],
)
def test_texts_that_are_none(tokenizer: TextTokenizer, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer(*arguments)


def test_other_arguments_that_do_not_serve(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="padding_side"):
        tokenizer("a", padding_side="middle")  # type: ignore[arg-type]
    for index in (-1, 300):
        with pytest.raises(InputError, match=r"no token has this id.*0 \.\.\. 299"):
            tokenizer.token(index)
    with pytest.raises(InputError, match="out of range"):
        tokenizer.decode([5, -1])
    assert tokenizer.decode([5, 10**6]) == '"'  # a model's vocabulary may be larger than its tokenizer's


def test_pad() -> None:
    assert pad([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert pad([[1, 2], []], 9, "left").tolist() == [[1, 2], [9, 9]]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_vocabulary_and_merges(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_pretrained(save_vocabulary(tmp_path, ("Ġt", "he", "Ġthe"), "Ġ t\nh e\nĠt he\n"))
    assert [tokenizer.token(index) for index in tokenizer(" the a<mask>").input_ids[0]] == [
        "<s>",
        "Ġthe",
        "Ġ",
        "a",
        "<mask>",
        "</s>",
    ]
    assert tokenizer("the <mask>").input_ids.tolist() == tokenizer("the<mask>").input_ids.tolist()
    assert tokenizer.model_max_length is None


def test_settings(tmp_path: Path) -> None:
    settings = {
        "add_prefix_space": True,
        "model_max_length": 77,
        "mask_token": {"__type": "AddedToken", "content": "[", "lstrip": False},
    }
    tokenizer = TextTokenizer.from_pretrained(save(tmp_path, tokenizer_config=settings))
    assert tokenizer.token(int(tokenizer("a").input_ids[0, 1])) == "Ġ"
    assert (tokenizer.mask_token, tokenizer.model_max_length) == ("[", 77)
    assert tokenizer("a [b").input_ids[0, 4] == tokenizer.mask_token_id  # <s> Ġ a Ġ [


def test_special_tokens_map(tmp_path: Path) -> None:
    folder = save(tmp_path, special_tokens_map={"cls_token": "!", "sep_token": {"content": "#"}, "eos_token": "#"})
    assert TextTokenizer.from_pretrained(folder)("a").input_ids[0, [0, -1]].tolist() == [4, 6]


def test_added_tokens(tmp_path: Path) -> None:
    old = save_vocabulary(
        tmp_path / "old",
        added_tokens={"two words": 262, "<x>": 261},
        special_tokens_map={"additional_special_tokens": ["<x>"]},
    )
    new = save_vocabulary(
        tmp_path / "new", tokenizer_config={"added_tokens_decoder": {"261": {"content": "<x>", "special": True}}}
    )
    for folder, ids in ((old, [262, 261]), (new, [261])):
        tokenizer = TextTokenizer.from_pretrained(folder)
        found = tokenizer("a two words<x>").input_ids[0]
        assert [index for index in found if index > 260] == ids
        assert "<x>" not in tokenizer.decode(found)
    for wrong, message in (({"<x>": 400}, "does not follow"), ({"<x>": "no"}, "damaged")):
        with pytest.raises(CheckpointError, match=message):
            TextTokenizer.from_pretrained(save_vocabulary(tmp_path / "old", added_tokens=wrong))


def test_another_class_is_read_as_its_file_says(tmp_path: Path) -> None:
    content = json.loads(byte_level_tokenizer(300))
    content["normalizer"] = {"type": "Lowercase"}
    for name, text in (("PreTrainedTokenizerFast", "abc"), ("RobertaTokenizer", "ABC")):
        folder = save(tmp_path / name, tokenizer_config={"tokenizer_class": name})
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        tokenizer = TextTokenizer.from_pretrained(folder)
        assert tokenizer.decode(tokenizer("ABC").input_ids[0]) == text


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(
        CheckpointError,
        match=r"holds no tokenizer \(got config.json, vocab.json; expected tokenizer.json, or vocab.json and merges",
    ):
        TextTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json: is not JSON"),
        ("tokenizer.json", b"[]", "not a JSON object"),
        ("tokenizer.json", b"{}", "is not a tokenizer"),
        ("tokenizer.json", b"\xff", "is not UTF-8"),
        ("tokenizer.json", b"[" * 100_000, "is not JSON"),
        ("tokenizer_config.json", b'{"pad_token": 3}', r"pad_token is no token \(got 3"),
        ("tokenizer_config.json", b'{"pad_token": {"lstrip": true}}', "pad_token is no token"),
        ("tokenizer_config.json", b'{"pad_token": null}', "has no pad_token"),
        ("tokenizer_config.json", b'{"model_max_length": "x"}', "model_max_length is no length"),
        ("tokenizer_config.json", b'{"cls_token": "[CLS]"}', r"the vocabulary has no cls_token '\[CLS\]'"),
        ("special_tokens_map.json", b"nonsense", "special_tokens_map.json: is not JSON"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (save(tmp_path) / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        (None, "a b c\n", r"merges.txt: merge 1 is damaged \(got 'a b c'"),
        (None, "a\n", "merge 1 is damaged"),
        (None, "a b\n", "does not fit vocab.json"),
        ('{"a": "b"}', "", "is not a vocabulary"),
        ('{"a": 0}', "", "the vocabulary has no bos_token '<s>'"),
    ],
)
def test_damaged_vocabularies(tmp_path: Path, vocab: str | None, merges: str, message: str) -> None:
    folder = save_vocabulary(tmp_path, merges=merges)
    if vocab is not None:
        (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer.from_pretrained(folder)


def test_a_vocabulary_without_a_mask(tmp_path: Path) -> None:
    folder = save_vocabulary(tmp_path)
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    del ids["<mask>"]
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    tokenizer = TextTokenizer.from_pretrained(folder)
    assert tokenizer.mask_token is None
    assert tokenizer.mask_token_id is None


def test_nothing_heavy_is_imported() -> None:
    heavy = ("tokenizers", "huggingface_hub", "scipy")
    code = f"import sys, d2v_ref.processing, d2v_ref.tasks; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
