"""Tokenizing against transformers 5.23: the same files, the same ids, offsets, words and texts, bit for bit."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, RobertaTokenizer

from d2v_ref.processing import TextTokenizer
from d2v_ref.processing.tokenizer import byte_level_tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't even look up.",
    "She sells sea shells on the sea shore; the shells she sells are surely sea shells.",
    "In 1492 they sailed the ocean blue, and in 1969 somebody walked on the moon.",
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
    "Whether the weather be fine or whether the weather be not, we'll weather the weather whatever the weather.",
    "Peter's pepper, Paul's paper and the people's newspapers were read again and again.",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = [
    *SPECIAL,
    *(
        "<mask>",
        " <mask>",
        "<mask> ",
        "\n<mask>",
        "< mask >",
        "<<s>>",
        "</s",
        "Ġ",
        "ĊĠ",
        "the",
        " the",
        " dog",
        "weather",
        "'s",
        "'LL",
    ),
    *(
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\ufeff",
        "\u200b",
        "\u200d",
        "\x00",
        "\x7f",
        "\x85",
    ),
    *(
        "é",
        "e\u0301",
        "a\u0308\u0323",
        "ß",
        "İ",
        "ﬁ",
        "你好",
        "日本語",
        "مرحبا",
        "नमस्ते",
        "한글",
        "\u1112\u1161\u11ab",
        "Ω",
    ),
    *("🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "\ufffd", "\ufffe", "\U0010ffff", "\ud7ff", "\ue000"),
    *("x" * 300, "-" * 80, "3.14159", "https://example.org/?q=a&b=c#d", "don't", "I'm", "123456", "A_b", "..."),
]

texts = st.one_of(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), min_size=1, max_size=12).map("".join),
    st.sampled_from(SENTENCES),
    st.text(min_size=1),
).filter(lambda text: text.strip() != "")


def train(full_alphabet: bool) -> Tokenizer:
    """A small BPE of the sentences above; without the full alphabet, a text may hold bytes that it has no token for."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if full_alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*SPECIAL, mask], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def write(folder: Path, **files: Any) -> None:
    folder.mkdir()
    for name, value in {"config": {"model_type": "data2vec-text"}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


PLAIN = {"rstrip": False, "normalized": False, "single_word": False}
MASK = {"content": "<mask>", "lstrip": True, **PLAIN}
TYPED = {"__type": "AddedToken"}  # how tokenizer_config.json marks them
BRACKETS = {"bos_token": "[", "cls_token": "[", "eos_token": "]", "sep_token": "]"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with every layout of tokenizer's files."""
    root = tmp_path_factory.mktemp("tokenizers")
    byte_level, trained, poor = json.loads(byte_level_tokenizer(700)), train(True), train(False)
    write(root / "byte level", tokenizer=byte_level)
    write(root / "tokenizer.json", tokenizer=json.loads(trained.to_str()))
    write(root / "poor alphabet", tokenizer=json.loads(poor.to_str()))
    write(root / "vocab and merges", special_tokens_map={"mask_token": MASK, "pad_token": "<pad>"})
    write(
        root / "prefix space",
        tokenizer_config={
            "add_prefix_space": True,
            "mask_token": {**TYPED, **MASK},
            "tokenizer_class": "RobertaTokenizer",
        },
    )
    write(root / "offsets with spaces", tokenizer_config={"trim_offsets": False, "mask_token": {**TYPED, **MASK}})
    write(root / "other names", tokenizer_config={**BRACKETS, "mask_token": {**TYPED, **MASK}, "model_max_length": 90})
    write(
        root / "old names",
        special_tokens_map={**BRACKETS, "mask_token": MASK},
        added_tokens={"<new>": 420, "<newer>": 421},
    )
    for name in ("vocab and merges", "prefix space", "offsets with spaces", "other names", "old names"):
        trained.model.save(str(root / name))
    RobertaTokenizer.from_pretrained(root / "tokenizer.json").save_pretrained(root / "saved")
    write(root / "saved again", tokenizer=json.loads((root / "saved/tokenizer.json").read_text(encoding="utf-8")))
    return {folder.name: folder for folder in root.iterdir() if (folder / "config.json").is_file()}


NAMES = [
    *("byte level", "tokenizer.json", "poor alphabet", "vocab and merges", "prefix space"),
    *("offsets with spaces", "other names", "old names", "saved again"),
]


@cache
def both(folder: Path) -> tuple[TextTokenizer, Any]:
    return TextTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def hold(ours: TextTokenizer, theirs: Any, got: Any, want: Any, tally: Any) -> None:
    """Every row of an encoding, and the texts that it decodes to."""
    for row, ids in enumerate(want["input_ids"]):
        length = int(got.attention_mask[row].sum())
        assert got.input_ids[row, :length].tolist() == ids
        assert (got.input_ids[row, length:] == theirs.pad_token_id).all()
        assert [tuple(pair) for pair in got.offsets[row, :length].tolist()] == want["offset_mapping"][row]
        assert got.special_tokens_mask[row, :length].tolist() == want["special_tokens_mask"][row]
        assert got.word_ids[row, :length].tolist() == [-1 if word is None else word for word in want.word_ids(row)]
        assert got.sequence_ids[row, :length].tolist() == [
            -1 if index is None else index for index in want.sequence_ids(row)
        ]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert [ours.token(index) for index in ids] == theirs.convert_ids_to_tokens(ids)
        tally.cases += 1
        tally.arrays += 6


EXTRAS = {"return_offsets_mapping": True, "return_special_tokens_mask": True}


@pytest.mark.parametrize("name", NAMES)
def test_tokens(name: str, folders: dict[str, Path], tally: dict[str, Any]) -> None:
    ours, theirs = both(folders[name])
    assert (ours.mask_token, ours.mask_token_id) == (theirs.mask_token, theirs.mask_token_id)
    assert (ours.pad_token_id, ours.cls_token_id, ours.vocab_size) == (
        theirs.pad_token_id,
        theirs.cls_token_id,
        len(theirs),
    )

    @settings(max_examples=200)
    @given(
        batch=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
        paired=st.booleans(),
        length=st.integers(5, 30),
        cut=st.booleans(),
    )
    def check(batch: list[tuple[str, str]], paired: bool, length: int, cut: bool) -> None:
        firsts, seconds = [first for first, _ in batch], [second for _, second in batch] if paired else None
        limits: dict[str, Any] = {"truncation": True, "max_length": length} if cut else {}
        want = theirs(firsts, seconds, **limits, **EXTRAS)
        hold(ours, theirs, ours(firsts, seconds, **limits), want, tally[f"tokenizer, {name}"])

    check()


@settings(max_examples=300)
@given(
    first=texts,
    second=st.lists(texts, min_size=1, max_size=6).map(" ".join),
    stride=st.integers(0, 12),
    room=st.integers(1, 20),
)
def test_windows(
    folders: dict[str, Path], tally: dict[str, Any], first: str, second: str, stride: int, room: int
) -> None:
    ours, theirs = both(folders["tokenizer.json"])
    length = len(theirs(first, add_special_tokens=False)["input_ids"]) + 4 + stride + room
    limits: dict[str, Any] = {
        "truncation": "only_second",
        "max_length": length,
        "stride": stride,
        "return_overflowing_tokens": True,
    }
    want = theirs(first, second, **limits, **EXTRAS)
    hold(ours, theirs, ours.windows(first, second, max_length=length, stride=stride), want, tally["tokenizer, windows"])


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 419), min_size=1, max_size=20), skip=st.booleans())
def test_decoding_any_ids(folders: dict[str, Path], ids: list[int], skip: bool) -> None:
    ours, theirs = both(folders["tokenizer.json"])
    assert ours.decode(np.array(ids), skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_the_mask_takes_the_space_before_it_without_any_settings(tmp_path: Path) -> None:
    """As in transformers 4.  transformers 5 forgets it if neither tokenizer.json nor the settings say so."""
    write(tmp_path / "bare")
    train(True).model.save(str(tmp_path / "bare"))
    ours, theirs = TextTokenizer.from_pretrained(tmp_path / "bare"), AutoTokenizer.from_pretrained(tmp_path / "bare")
    plain = "the dog<mask> and the fox"
    assert ours(plain).input_ids[0].tolist() == theirs(plain)["input_ids"]
    spaced = ours("the dog <mask> and the fox").input_ids[0].tolist()
    assert spaced == ours(plain).input_ids[0].tolist()
    assert theirs("the dog <mask> and the fox")["input_ids"] != spaced
