"""CTC against torch and transformers 5.23: losses, and what beam search sums; texts, ids and offsets bit for bit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers import Wav2Vec2CTCTokenizer as Theirs
from transformers.loss.loss_ctc import ForCTCLoss

from conformance.compare import compare
from d2v_ref.ctc import ctc_loss
from d2v_ref.golden.bounds import FORMATS
from d2v_ref.processing.ctc_decoding import beam_search
from d2v_ref.processing.ctc_tokenizer import Wav2Vec2CTCTokenizer, character_vocabulary

torch.set_num_threads(1)

EXACT = 1e-10  # relative, float64


@st.composite
def utterances(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Logits (B, T, V), labels with repeats, blanks and ignored ones, valid lengths, and the blank."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, frames, vocabulary = draw(st.integers(1, 5)), draw(st.integers(1, 40)), draw(st.integers(1, 12))
    few = draw(st.integers(1, vocabulary))  # tokens among the labels: the fewer, the more repeats
    longest = draw(st.integers(0, frames + 2))  # with repeats or shorter lengths, more than fit
    labels = random.integers(0, few, (batch, longest))
    for row in labels:
        row[random.integers(0, longest + 1) :] = -100
    labels[random.random(labels.shape) < draw(st.sampled_from([0, 0.2, 1]))] = -100
    lengths = np.full(batch, frames) if draw(st.booleans()) else random.integers(0, frames + 1, batch)
    logits = draw(st.sampled_from([0.1, 3.0, 30.0])) * random.normal(size=(batch, frames, vocabulary))
    return logits, labels, lengths, draw(st.integers(0, vocabulary - 1))


options = st.fixed_dictionaries({"reduction": st.sampled_from(["sum", "mean", "none"]), "zero_infinity": st.booleans()})


def torch_loss(utterance: Any, dtype: torch.dtype, wanted: np.ndarray, **options: Any) -> np.ndarray:
    """torch.nn.functional.ctc_loss of the labels that are wanted."""
    logits, labels, lengths, blank = utterance
    log_probs = torch.tensor(logits, dtype=dtype).log_softmax(-1).transpose(0, 1)
    targets, counts = torch.tensor(labels[wanted]), torch.tensor(wanted.sum(1))
    loss = torch.nn.functional.ctc_loss(log_probs, targets, torch.tensor(lengths), counts, blank=blank, **options)
    return loss.numpy()


@pytest.mark.parametrize("rule", ["v5", "v4"])
def test_loss_in_float64(rule: str, tally: dict[str, Any]) -> None:
    @settings(max_examples=500)
    @given(utterance=utterances(), options=options)
    def check(utterance: Any, options: Any) -> None:
        logits, labels, lengths, blank = utterance
        wanted = (labels != -100) & (labels != blank) if rule == "v5" else labels >= 0
        want = torch_loss(utterance, torch.float64, wanted, **options)
        got = ctc_loss(logits, labels, lengths, blank=blank, target_rule=rule, **options)
        hold(got, want, EXACT * scale(logits, want), tally[f"CTC loss, float64, {rule}"])

    check()


def scale(logits: np.ndarray, losses: np.ndarray) -> float:
    """A loss is a sum of differences of logits: its rounding is that of numbers of their size, however small it is."""
    return float(max(np.abs(logits).max(), np.abs(losses[np.isfinite(losses)]).max(initial=0)))


def hold(got: np.ndarray, want: np.ndarray, bound: float, tally: Any) -> None:
    """The same infinities, and the other losses within an absolute bound."""
    infinite = np.isinf(want)
    np.testing.assert_array_equal(np.isinf(got), infinite)
    compare({"loss": np.where(infinite, 0, got)}, {"loss": np.where(infinite, 0, want)}, {"loss": bound}, tally)


def rounding(logits: np.ndarray, loss: float) -> float:
    """How far a float32 sum may be from that of float64, to first order.

    A frame adds one log probability and two log-sums to a forward variable.  Each is a number no larger than what a
    path of weight has lost so far, the loss and the logits' range at most, and rounds by at most 4 units in the last
    place (of exp, log1p and the two sums).  So does each log probability, whose size is the logits' range.
    """
    spread = 2 * np.abs(logits).max() + np.log(logits.shape[-1])
    return 4 * 4 * FORMATS["float32"].unit_roundoff * logits.shape[1] * (loss + spread)


@settings(max_examples=500)
@given(utterance=utterances(), zero_infinity=st.booleans())
def test_loss_in_float32_within_a_bound(tally: dict[str, Any], utterance: Any, zero_infinity: bool) -> None:
    logits, labels, lengths, blank = utterance
    logits = logits.astype(np.float32)
    plain: dict[str, Any] = {"blank": blank, "reduction": "none", "zero_infinity": zero_infinity}
    exact = ctc_loss(logits.astype(np.float64), labels, lengths, **plain)
    wanted = (labels != -100) & (labels != blank)
    want = torch_loss((logits, labels, lengths, blank), torch.float32, wanted, reduction="none", zero_infinity=False)
    got = ctc_loss(logits, labels, lengths, **plain)
    assert got.dtype == np.float32
    bound = rounding(logits, float(exact[np.isfinite(exact)].max(initial=0)))
    hold(got, exact, bound, tally["CTC loss, float32, against float64"])
    if zero_infinity:
        want[np.isinf(want)] = 0
    hold(got, want, 2 * bound, tally["CTC loss, float32, against torch"])


@settings(max_examples=300)
@given(utterance=utterances(), options=options)
def test_loss_as_the_model_calls_it(tally: dict[str, Any], utterance: Any, options: Any) -> None:
    """transformers' ForCTCLoss, whose log probabilities are float32 whatever the logits are."""
    logits, labels, lengths, blank = utterance
    for dtype in (np.float32, np.float64):
        tensors = [torch.tensor(array) for array in (logits.astype(dtype), labels, lengths)]
        want = ForCTCLoss(*tensors, blank_token_id=blank, **options).numpy()
        got = ctc_loss(logits.astype(dtype), labels, lengths, blank=blank, **options)
        finite = np.abs(want[np.isfinite(want)])
        bound = 2 * rounding(logits, float(finite.max(initial=0))) * len(logits)
        hold(got, want, bound, tally["CTC loss, ForCTCLoss"])


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(1, 6), vocabulary=st.integers(2, 5))
def test_a_whole_beam_sums_what_the_loss_sums(tally: dict[str, Any], seed: int, frames: int, vocabulary: int) -> None:
    logits = 3 * np.random.default_rng(seed).normal(size=(1, frames, vocabulary))
    log_probs = torch.tensor(logits[0]).log_softmax(-1).numpy()
    for found in beam_search(log_probs, blank=0, beam_width=10**6, top=20):
        labels = found.ids[None]
        utterance = logits, labels, np.array([frames]), 0
        want = torch_loss(utterance, torch.float64, labels >= 0, reduction="sum")
        hold(np.array(-found.log_prob), want, EXACT * scale(logits, want), tally["CTC beam search, log probabilities"])


# ---- texts, ids and offsets ------------------------------------------------------------------------------------------

WORDS = ["HELLO", "WORLD", "hello", "it's", "DON'T", "ß", "Ünï", "ch", "sch", "<s>", "</s>", "<unk>", "<pad>", "|", "/"]
SPACES = [" ", "  ", "\t", "\n", "\u00a0", "."]
texts = st.lists(st.one_of(st.sampled_from(WORDS + SPACES), st.text(max_size=3)), max_size=10).map("".join)


def rows(ours: Wav2Vec2CTCTokenizer) -> st.SearchStrategy[list[int]]:
    """Ids of frames, with repeats: what an argmax of logits is like."""
    runs = st.lists(st.tuples(st.integers(0, len(ours) - 1), st.integers(1, 3)), max_size=15)
    return runs.map(lambda pairs: [index for index, count in pairs for _ in range(count)])


FLAGS = ("group_tokens", "spaces_between_special_tokens", "output_char_offsets", "output_word_offsets")
decoding = st.fixed_dictionaries(
    {
        **{name: st.booleans() for name in ("skip_special_tokens", *FLAGS)},
        "clean_up_tokenization_spaces": st.sampled_from([None, True, False]),
    }
)


def hold_texts(ours: Wav2Vec2CTCTokenizer, theirs: Any, batch: list[str], tally: Any) -> None:
    """Ids and padding of a batch of texts."""
    batch = [text for text in batch if not spoiled(theirs, text)] or [""]
    got, want = ours(batch), theirs(batch, padding=True)
    assert got.input_ids.tolist() == want["input_ids"]
    assert got.attention_mask.tolist() == want["attention_mask"]
    for text in batch:
        assert ours.encode(text).tolist() == theirs(text)["input_ids"]
        tally.cases += 1


def spoiled(theirs: Any, text: str) -> bool:
    """Whether transformers' search for added tokens cuts a text in a wrong place.

    It promises the longest token that is there, and where one token lies in another it may cut out a piece that is none
    and still holds one.
    """
    pieces = theirs.tokens_trie.split(text)
    tokens = set(theirs.added_tokens_encoder)
    return any(token in piece for piece in pieces if piece not in tokens for token in tokens)


def hold_decoding(ours: Wav2Vec2CTCTokenizer, theirs: Any, ids: list[int], options: Any, tally: Any) -> None:
    """Text and offsets of a row of ids."""
    got, want = ours.decode(ids, **options), theirs.decode(ids, **options)
    if isinstance(got, str):
        assert got == want
    else:
        assert asdict(got) == {name: getattr(want, name) for name in ("text", "char_offsets", "word_offsets")}
    tally.cases += 1
    tally.arrays += 1


@st.composite
def tokenizers(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, Any]]:
    """A vocabulary and the arguments of a tokenizer: tokens of one character and of several, special ones missing."""
    letters = st.sampled_from([*"ABCHLOSßab<>|/_' ", "ch", "sch", "<A>", "SS", "  ", "x "])
    special = st.sampled_from(["<s>", "</s>", "<unk>", "<pad>", "_", "/", "S", "[PAD]"])
    # Without an unknown token in the vocabulary, transformers gives None for an id.
    tokens = draw(st.permutations(["<unk>", *draw(st.lists(letters, unique=True)), *draw(st.sets(special))]))
    options: dict[str, Any] = {
        name: draw(special) for name in draw(st.sets(st.sampled_from(["bos_token", "eos_token", "pad_token"])))
    }
    options |= {
        "word_delimiter_token": draw(st.sampled_from("|/_ ")),
        "replace_word_delimiter_char": draw(st.sampled_from([" ", "-", "", ". "])),
        "do_lower_case": draw(st.booleans()),
        "clean_up_tokenization_spaces": draw(st.booleans()),
        "extra_special_tokens": draw(st.sampled_from([[], ["A"], ["<new>", "B"]])),
    }
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, options


@settings(max_examples=400)
@given(
    drawn=tokenizers(),
    batch=st.lists(texts, min_size=1, max_size=3),
    options=st.lists(decoding, max_size=3),
    data=st.data(),
)
def test_drawn_tokenizers(
    tmp_path_factory: pytest.TempPathFactory,
    tally: dict[str, Any],
    drawn: Any,
    batch: list[str],
    options: list[Any],
    data: Any,
) -> None:
    vocab, arguments = drawn
    path = tmp_path_factory.getbasetemp() / "vocab.json"
    path.write_text(json.dumps(vocab), encoding="utf-8")
    ours, theirs = Wav2Vec2CTCTokenizer(vocab, **arguments), Theirs(path, **arguments)
    assert ours.vocab == theirs.get_vocab()
    assert (len(ours), ours.vocab_size, ours.pad_token_id) == (len(theirs), theirs.vocab_size, theirs.pad_token_id)
    assert ours.word_delimiter_token_id == theirs.word_delimiter_token_id
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    hold_texts(ours, theirs, batch, tally["CTC tokenizer, drawn vocabularies, texts"])
    for flags in options:
        ids = data.draw(rows(ours))
        hold_decoding(ours, theirs, ids, flags, tally["CTC tokenizer, drawn vocabularies, ids"])


def write(folder: Path, **files: Any) -> None:
    folder.mkdir()
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


TYPED = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
LETTERS = {token: index for index, token in enumerate(["|", "A", "B", "'", "ch", "[UNK]", "[PAD]"])}
BRACKETS = {"unk_token": "[UNK]", "pad_token": "[PAD]"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with every layout of the tokenizer's files, as transformers 4 and 5 write them."""
    root, published = tmp_path_factory.mktemp("ctc"), character_vocabulary(32)
    mark = {"config": {"model_type": "data2vec-audio"}}
    write(root / "vocab only", vocab=published, **mark)
    lower = {"do_lower_case": True, "replace_word_delimiter_char": " ", "tokenizer_class": "Wav2Vec2CTCTokenizer"}
    write(root / "lower case", vocab=published, tokenizer_config=lower, **mark)
    write(
        root / "map and added tokens",
        vocab=LETTERS,
        tokenizer_config={"unk_token": "<unk>"},
        special_tokens_map={**BRACKETS, "additional_special_tokens": ["<noise>"], "bos_token": "<s>"},
        added_tokens={"<s>": 7, "</s>": 8, "<noise>": 9, "<tag>": 10},
        **mark,
    )
    plain = {"special": True, "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
    listed = {"7": {"content": "<s>", **plain}, "8": {"content": "</s>", **plain}, "1": {"content": "A", **plain}}
    write(
        root / "added_tokens_decoder",
        vocab=LETTERS,
        tokenizer_config={**BRACKETS, "added_tokens_decoder": listed, "clean_up_tokenization_spaces": True},
        added_tokens={"<other>": 7},
        special_tokens_map={"pad_token": "A"},
        **mark,
    )
    delimiter = {**TYPED, "content": "'", "special": True}
    write(
        root / "typed delimiter",
        vocab=LETTERS,
        tokenizer_config={**BRACKETS, "word_delimiter_token": delimiter, "mask_token": "B", "speaker_token": "<me>"},
        **mark,
    )
    nested = {"eng": published, "deu": {**LETTERS, "<new>": 7}}
    write(root / "nested", vocab=nested, tokenizer_config={"target_lang": "deu", **BRACKETS}, **mark)
    for folder in [entry for entry in root.iterdir() if entry.is_dir()]:
        saved, mine = root / f"{folder.name}, saved by transformers", root / f"{folder.name}, saved"
        Theirs.from_pretrained(folder).save_pretrained(saved)
        Wav2Vec2CTCTokenizer.from_pretrained(folder).save_pretrained(mine)
        for copy in (saved, mine):
            (copy / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    return {folder.name: folder for folder in root.iterdir()}


LAYOUTS = ["vocab only", "lower case", "map and added tokens", "added_tokens_decoder", "typed delimiter", "nested"]


@pytest.mark.parametrize("kind", ["", ", saved by transformers", ", saved"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoints_tokenizer(layout: str, kind: str, folders: dict[str, Path], tally: dict[str, Any]) -> None:
    """Read from the same folder, and what was saved here and there read back here and there."""
    theirs = Theirs.from_pretrained(folders[layout])
    ours = Wav2Vec2CTCTokenizer.from_pretrained(folders[layout + kind])
    again = AutoTokenizer.from_pretrained(folders[layout + kind])
    assert type(again) is Theirs
    assert ours.vocab == theirs.get_vocab() == again.get_vocab()
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens) == set(again.all_special_tokens)

    # What transformers writes of a delimiter that is not "|" it does not read.
    others = (theirs,) if layout + kind == "typed delimiter, saved by transformers" else (theirs, again)

    @settings(max_examples=60)
    @given(batch=st.lists(texts, min_size=1, max_size=3), ids=rows(ours), options=decoding)
    def check(batch: list[str], ids: list[int], options: Any) -> None:
        for other in others:
            hold_texts(ours, other, batch, tally[f"CTC tokenizer, {layout}{kind}"])
            hold_decoding(ours, other, ids, options, tally[f"CTC tokenizer, {layout}{kind}"])

    check()


@settings(max_examples=100)
@given(data=st.data(), options=decoding)
def test_batches_of_ids(data: Any, options: Any, folders: dict[str, Path]) -> None:
    ours = Wav2Vec2CTCTokenizer.from_pretrained(folders["vocab only"])
    theirs = Theirs.from_pretrained(folders["vocab only"])
    batch = data.draw(st.lists(rows(ours).filter(bool), min_size=1, max_size=4))
    skipped = {**options, "skip_special_tokens": False}  # transformers fails on a batch that begins with an empty row
    got, want = ours.batch_decode(batch, **skipped), theirs.batch_decode(batch, **skipped)
    if isinstance(got, list):
        assert got == want
    else:
        assert asdict(got) == {name: getattr(want, name) for name in ("text", "char_offsets", "word_offsets")}


def test_where_transformers_is_not_followed(tmp_path: Path) -> None:
    """The differences that the tokenizer's docstring names: once they are gone there, they should go here."""
    write(tmp_path / "slash", vocab={**LETTERS, "/": 7}, tokenizer_config={"word_delimiter_token": "/", **BRACKETS})
    ours, theirs = Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "slash"), Theirs.from_pretrained(tmp_path / "slash")
    assert (ours.decode([1, 7, 2]), theirs.decode([1, 7, 2])) == ("A B", "A/B")
    assert (ours.encode("A B").tolist(), theirs("A B")["input_ids"]) == ([1, 7, 2], [1, 0, 2])
    path = tmp_path / "slash" / "vocab.json"
    for delimiter, mine, other in (("ch", [1, 4, 2], [1, 5, 5, 2]), (None, [1, 5, 2], [1, 5, 5, 5, 5, 2])):
        arguments: dict[str, Any] = {"word_delimiter_token": delimiter, **BRACKETS}
        assert Wav2Vec2CTCTokenizer({**LETTERS, "/": 7}, **arguments).encode("A B").tolist() == mine
        assert Theirs(path, **arguments)("A B")["input_ids"] == other
    assert Wav2Vec2CTCTokenizer(LETTERS).encode("AZ").tolist() == [1, 9]  # <s>, </s> and <unk> behind the vocabulary
    assert Theirs(path)("AZ")["input_ids"] == [1, None]
    nested = {token: index for index, token in enumerate(["<unk>", *"ABCDX", "ABCDD", "BC"])}
    path.write_text(json.dumps(nested), encoding="utf-8")
    assert spoiled(Theirs(path), "ABCXDD")
    assert Wav2Vec2CTCTokenizer(nested).tokenize("ABCXDD") == ["A", "BC", "X", "D", "D"]
    assert Theirs(path).tokenize("ABCXDD") == list("ABCXDD")
