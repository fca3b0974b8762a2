"""Text to token ids and back: byte-level BPE (Radford et al. 2019, sec. 2.2), RoBERTa's kind (Liu et al. 2019).

The merging itself is done by the ``tokenizers`` package, as in transformers' RobertaTokenizer; what is here reads the
files, checks the texts and lays the result out as arrays.

Shapes: B texts (or windows of one text), T tokens of the longest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from d2v_ref.checkpoints import resolve
from d2v_ref.errors import CheckpointError, InputError, UnavailableError

# The names that transformers gives special tokens, and RoBERTa's tokens (RobertaTokenizer.__init__).
SPECIAL_TOKENS: Mapping[str, str] = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ROBERTA = (None, "RobertaTokenizer", "RobertaTokenizerFast")


@dataclass(frozen=True)
class Encoding:
    """Tokenized texts, padded to one length.  All arrays are int64.

    Attributes:
        input_ids: (B, T), padded with the pad token.
        attention_mask: (B, T), 1 for tokens and 0 for padding.
        offsets: (B, T, 2), the characters [first, last + 1) of its text that a token stands for, without surrounding
            spaces; (0, 0) for special tokens and padding.
        special_tokens_mask: (B, T), 1 for padding and the special tokens that were put around a text, 0 for those that
            a text spells out.
        word_ids: (B, T), the word that a token is of, counted from 0 in each text of a pair; -1 for special tokens and
            padding.
        sequence_ids: (B, T), 0 for the first text of a pair, 1 for the second; -1 for special tokens and padding.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    offsets: np.ndarray
    special_tokens_mask: np.ndarray
    word_ids: np.ndarray
    sequence_ids: np.ndarray

    def rows(self) -> list[np.ndarray]:
        """The ids of each row, without padding."""
        return [ids[mask == 1] for ids, mask in zip(self.input_ids, self.attention_mask, strict=True)]


class TextTokenizer:
    """Byte-level BPE with RoBERTa's special tokens (HF RobertaTokenizer).

    Args:
        backend: a ``tokenizers.Tokenizer``.
        special_tokens: name ("mask_token") -> token; one that is missing or None is not there.
        model_max_length: how many tokens the checkpoint's tokenizer_config.json allows; None if it does not say.
        origin: where the tokenizer comes from, for messages.

    Raises:
        CheckpointError: a special token is not in the vocabulary, or there is none for padding.
    """

    def __init__(
        self,
        backend: Any,
        special_tokens: Mapping[str, str | None] = SPECIAL_TOKENS,
        *,
        model_max_length: int | None = None,
        origin: str | Path = "given tokenizer",
    ) -> None:
        self.backend, self.model_max_length = backend, model_max_length
        self.special_tokens = {name: token for name, token in special_tokens.items() if token is not None}
        self._lock = threading.Lock()  # truncation is a state of the backend
        if backend.token_to_id(self.special_tokens.get("mask_token", "")) is None:
            self.special_tokens.pop("mask_token", None)  # a checkpoint may do without: only fill-mask needs it
        for name, token in self.special_tokens.items():
            if backend.token_to_id(token) is None:
                hint = "The vocabulary and the special tokens are of different tokenizers"
                raise CheckpointError(f"the vocabulary has no {name} {token!r}", path=origin, hint=hint)
        if "pad_token" not in self.special_tokens:
            hint = 'Name one in tokenizer_config.json ("pad_token")'
            raise CheckpointError("the tokenizer has no pad_token", path=origin, hint=hint)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> TextTokenizer:
        """The tokenizer of a checkpoint: a folder, a shipped one's name, or a hub id.

        Read from tokenizer.json, or else from vocab.json and merges.txt (with added_tokens.json); special tokens are
        those that tokenizer_config.json and special_tokens_map.json name, or else RoBERTa's.  Settings that change the
        tokens (add_prefix_space, trim_offsets) count as transformers counts them.

        Raises:
            CheckpointError: no tokenizer's files, a damaged file, a special token that is not in the vocabulary.
            UnavailableError: not on this machine, or the ``tokenizers`` package isn't.
        """
        folder = resolve(
            name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            weights=False,
        )
        settings = read_settings(folder)
        special = {name: settings.get(name, default) for name, default in SPECIAL_TOKENS.items()}
        names = {name: value["content"] if isinstance(value, dict) else value for name, value in special.items()}
        whole = (folder / "tokenizer.json").is_file()
        if whole:
            backend = _read_tokenizer_json(folder / "tokenizer.json")
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            backend = _read_vocabulary(folder / "vocab.json", folder / "merges.txt")
        else:
            held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "an empty folder"
            expected = "tokenizer.json, or vocab.json and merges.txt"
            hint = "Copy the tokenizer's files of the model that this one was made from"
            raise CheckpointError("the folder holds no tokenizer", path=folder, got=held, expected=expected, hint=hint)
        if not whole or settings.get("tokenizer_class") in _ROBERTA:  # HF reads other classes as tokenizer.json says
            add_prefix_space, trim_offsets = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
            _set_roberta(backend, names["sep_token"], names["cls_token"], bool(add_prefix_space), bool(trim_offsets))
        _declare_special(backend, special)
        if not whole:
            _add_tokens(backend, folder, settings)
        return cls(backend, names, model_max_length=settings.get("model_max_length"), origin=folder)

    def __call__(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: bool = False,
        padding_side: Literal["right", "left"] = "right",
    ) -> Encoding:
        """``<s> text </s>``, or ``<s> text </s></s> pair </s>``, of one text or of a list.

        Args:
            texts: one text, or B.
            pairs: the second text of each.
            max_length: how many tokens a row may have, special tokens included.
            truncation: cut longer rows to ``max_length``: the end of the text, or of the longer text of a pair.
                Without, they are errors.
            padding_side: "right", or "left" for generation.

        Raises:
            InputError: a text that is empty, no string, no Unicode text (a lone surrogate), or too long.
        """
        inputs: list[Any] = _checked_texts(texts, "text")
        if pairs is not None:
            seconds = _checked_texts(pairs, "pair")
            if len(seconds) != len(inputs):
                got = f"{len(inputs)} texts and {len(seconds)} pairs"
                raise InputError("there are not as many pairs as texts", got=got, expected="a pair for each text")
            inputs = list(zip(inputs, seconds, strict=True))
        if not inputs:
            raise InputError("there is no text", got="an empty list", expected="at least one text")
        limits = None
        if truncation:
            least = self.backend.num_special_tokens_to_add(pairs is not None) + 1
            if max_length is None or max_length < least:
                raise InputError("max_length does not serve to truncate", got=max_length, expected=f"{least} or more")
            limits = {"max_length": max_length, "strategy": "longest_first"}
        encodings = self._encode(inputs, limits)
        for i, encoding in enumerate(encodings):
            if max_length is not None and len(encoding.ids) > max_length:
                name, got = _which("text", i, inputs), f"{len(encoding.ids)} tokens"
                hint = "Shorten or split it, or cut it with truncation=True (--truncate)"
                raise InputError(f"{name} is too long", got=got, expected=f"at most {max_length}", hint=hint)
        return self._arrays(encodings, padding_side)

    def windows(self, text: str, pair: str, *, max_length: int, stride: int) -> Encoding:
        """A pair in as many rows as its second text needs: the whole first text and a window of the second in each.

        Args:
            max_length: tokens of a row, special tokens included.
            stride: how many tokens of the second text a window has in common with the one before (HF's and SQuAD's
                "doc stride").

        Raises:
            InputError: as in a call; or the first text leaves no room, or not more than ``stride`` tokens, for the
                second.
        """
        text, pair = _checked(text, "the text"), _checked(pair, "the pair")
        taken = len(self._encode([text], None, special=False)[0].ids) + self.backend.num_special_tokens_to_add(True)
        if max_length - taken <= stride:
            message = "the first text leaves too little room for the second"
            expected = f"at most {max_length - stride - 1}: windows of {max_length} that overlap by {stride}"
            hint = "Shorten the first text (the question), or let the windows overlap less"
            raise InputError(message, got=f"{taken} tokens", expected=expected, hint=hint)
        limits = {"max_length": max_length, "strategy": "only_second", "stride": stride}
        first = self._encode([(text, pair)], limits)[0]
        return self._arrays([first, *first.overflowing], "right")

    def _encode(self, inputs: list[Any], limits: dict[str, Any] | None, special: bool = True) -> list[Any]:
        with self._lock:
            self.backend.no_padding()
            if limits is None:
                self.backend.no_truncation()
            else:
                self.backend.enable_truncation(**limits)
            return self.backend.encode_batch(inputs, add_special_tokens=special)

    def _arrays(self, encodings: list[Any], side: Literal["right", "left"]) -> Encoding:
        def table(rows: Iterable[Sequence[Any]], fill: int) -> np.ndarray:
            return pad([[-1 if value is None else value for value in row] for row in rows], fill, side)

        starts = table(([start for start, _ in e.offsets] for e in encodings), 0)
        ends = table(([end for _, end in e.offsets] for e in encodings), 0)
        return Encoding(
            input_ids=table((e.ids for e in encodings), self.pad_token_id),
            attention_mask=table((e.attention_mask for e in encodings), 0),
            offsets=np.stack((starts, ends), axis=-1),
            special_tokens_mask=table((e.special_tokens_mask for e in encodings), 1),
            word_ids=table((e.word_ids for e in encodings), -1),
            sequence_ids=table((e.sequence_ids for e in encodings), -1),
        )

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids: bytes that are no UTF-8 become U+FFFD, ids beyond the vocabulary nothing, as in HF."""
        numbers = [int(index) for index in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < 1 << 32:
            got = f"{min(numbers)} ... {max(numbers)}"
            raise InputError("a token id is out of range", got=got, expected="0 or more")
        return self.backend.decode(numbers, skip_special_tokens=skip_special_tokens)

    def token(self, index: int) -> str:
        """The token of an id as the vocabulary spells it, a space as "Ġ"."""
        found = self.backend.id_to_token(int(index)) if index >= 0 else None
        if found is None:
            raise InputError("no token has this id", got=index, expected=f"0 ... {self.vocab_size - 1}")
        return found

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return self.backend.get_vocab_size()

    @property
    def mask_token(self) -> str | None:
        return self.special_tokens.get("mask_token")

    @property
    def mask_token_id(self) -> int | None:
        return self._id("mask_token")

    @property
    def cls_token_id(self) -> int | None:
        return self._id("cls_token")

    @property
    def pad_token_id(self) -> int:
        return self.backend.token_to_id(self.special_tokens["pad_token"])

    def _id(self, name: str) -> int | None:
        return self.backend.token_to_id(self.special_tokens[name]) if name in self.special_tokens else None


def pad(rows: Sequence[Sequence[int] | np.ndarray], fill: int, side: Literal["right", "left"] = "right") -> np.ndarray:
    """Rows of different lengths as one int64 array (B, T), filled up on the right or the left."""
    if side not in ("right", "left"):
        raise InputError("padding_side is no side", got=side, expected="right or left")
    out = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for line, row in zip(out, rows, strict=True):
        line[slice(len(row)) if side == "right" else slice(len(line) - len(row), None)] = row
    return out


def byte_alphabet() -> list[str]:
    """The 256 symbols of byte-level BPE in GPT-2's order (bytes_to_unicode): printable bytes first, as themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def byte_level_tokenizer(vocab_size: int) -> str:
    """The text of a tokenizer.json for synthetic checkpoints, in which every text encodes and every id decodes.

    Ids 0 ... 3 are <s>, <pad>, </s> and <unk>; then come the 256 symbols of ``byte_alphabet``; then pairs of two
    symbols in row-major order (index of the first * 256 + index of the second), each with its merge, as many as fit;
    the last id is <mask>.

    Raises:
        InputError: a size that is not 261 ... 65797.
    """
    symbols = byte_alphabet()
    least = 4 + len(symbols) + 1
    if not least <= vocab_size <= least + len(symbols) ** 2:
        expected = f"{least} ... {least + len(symbols) ** 2}: special tokens, bytes and pairs of bytes"
        raise InputError("no byte-level tokenizer has this size", got=vocab_size, expected=expected)
    merges = [(symbols[i // 256], symbols[i % 256]) for i in range(vocab_size - least)]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *symbols, *(a + b for a, b in merges), "<mask>"]
    backend = _bpe({token: index for index, token in enumerate(tokens)}, merges)
    _set_roberta(backend, "</s>", "<s>", add_prefix_space=False, trim_offsets=True)
    _declare_special(backend, SPECIAL_TOKENS)
    return backend.to_str()


# ---- reading a checkpoint's files ------------------------------------------------------------------------------------


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        hint = "Run `pip install tokenizers`, or give the model token ids"
        raise UnavailableError("reading text needs the tokenizers package, which is not installed", hint=hint) from None
    return tokenizers


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"can't be read: {error.strerror}", path=path) from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"is not UTF-8: {error}", path=path, hint="Download it again") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not JSON: {error}", path=path, hint="Download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError("is not a JSON object", path=path, got=type(value).__name__)
    return value


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and over it, unless it lists added tokens itself, special_tokens_map.json (as in HF)."""
    path, table = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    settings = read_json(path) if path.is_file() else {}
    if table.is_file() and "added_tokens_decoder" not in settings:
        settings = {**settings, **read_json(table)}
    for name in SPECIAL_TOKENS:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str) and value is not None:
            expected = '"token" or {"content": "token", ...}'
            raise CheckpointError(f"{name} is no token", path=folder, got=repr(value), expected=expected)
    length = settings.get("model_max_length")
    if length is not None and not (isinstance(length, int | float) and length > 0):
        message = "model_max_length is no length"
        raise CheckpointError(message, path=path, got=repr(length), expected="a positive number")
    return settings


def _read_tokenizer_json(path: Path) -> Any:
    read_json(path)  # to tell a file that is cut off from one of another kind
    tokenizers = _import_tokenizers()
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise CheckpointError(f"is not a tokenizer: {error}", path=path, hint="Download it again") from None


def _read_vocabulary(vocab: Path, merges: Path) -> Any:
    _import_tokenizers()
    ids = read_json(vocab)
    if not all(isinstance(index, int) and index >= 0 for index in ids.values()):
        raise CheckpointError("is not a vocabulary", path=vocab, expected='{"token": id, ...}')
    lines = _read(merges).split("\n")  # not splitlines, which would split inside tokens
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in pairs):
        wrong = next(number for number, pair in enumerate(pairs, 1) if len(pair) != 2)
        got = repr(" ".join(pairs[wrong - 1]))
        raise CheckpointError(f"merge {wrong} is damaged", path=merges, got=got, expected="two tokens")
    try:
        return _bpe(ids, pairs)
    except Exception as error:  # the package raises nothing more special
        raise CheckpointError(f"does not fit {vocab.name}: {error}", path=merges, hint="Download both again") from None


def _bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, ...]]) -> Any:
    tokenizers = _import_tokenizers()
    model = tokenizers.models.BPE(
        vocab=dict(vocab), merges=list(merges), continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
    )
    return tokenizers.Tokenizer(model)


def _set_roberta(backend: Any, sep: str | None, cls: str | None, add_prefix_space: bool, trim_offsets: bool) -> None:
    """What HF's RobertaTokenizer puts around the vocabulary, whatever tokenizer.json says of it."""
    tokenizers = _import_tokenizers()
    backend.normalizer = None
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = tokenizers.decoders.ByteLevel()
    ends = [(token, backend.token_to_id(token)) for token in (sep, cls) if token is not None]
    if len(ends) == 2 and all(index is not None for _, index in ends):  # where they are missing, TextTokenizer says so
        backend.post_processor = tokenizers.processors.RobertaProcessing(*ends, trim_offsets, add_prefix_space)


def _declare_special(backend: Any, special: Mapping[str, Any]) -> None:
    """Have special tokens found in texts as one token, where tokenizer.json does not do so already."""
    tokenizers = _import_tokenizers()
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for name, value in special.items():
        given = value if isinstance(value, dict) else {"content": value}
        text = given["content"]
        if text is None or text in known or backend.token_to_id(text) is None:
            continue
        # The mask stands for a word with the space before it (RobertaTokenizerFast of transformers 4; 5 forgets it
        # where no file says so).
        flags = {"lstrip": name == "mask_token", "normalized": False, "special": True}
        flags.update({flag: given[flag] for flag in ("lstrip", "rstrip", "single_word", "normalized") if flag in given})
        backend.add_special_tokens([tokenizers.AddedToken(text, **flags)])
        known.add(text)


def _add_tokens(backend: Any, folder: Path, settings: Mapping[str, Any]) -> None:
    """Tokens beyond vocab.json's: added_tokens_decoder of tokenizer_config.json, or else added_tokens.json."""
    tokenizers = _import_tokenizers()
    path = folder / "added_tokens.json"
    if "added_tokens_decoder" in settings:
        path, listed = folder / "tokenizer_config.json", settings["added_tokens_decoder"]
    else:
        extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
        special = {token["content"] if isinstance(token, dict) else token for token in extra}
        tokens = read_json(path) if path.is_file() else {}
        listed = {index: {"content": token, "special": token in special} for token, index in tokens.items()}
    try:
        added = [(int(index), tokenizers.AddedToken(**token)) for index, token in listed.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"its added tokens are damaged: {error}", path=path) from None
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, token in sorted(added, key=lambda pair: pair[0]):
        if token.content not in known:
            backend.add_tokens([token])
        free = backend.token_to_id(token.content)
        if free != index:
            message = f"the added token {token.content!r} does not follow the vocabulary"
            raise CheckpointError(message, path=path, got=f"id {index}", expected=free)


# ---- texts -----------------------------------------------------------------------------------------------------------


def _which(word: str, index: int, texts: Sequence[Any]) -> str:
    return f"the {word}" if len(texts) == 1 else f"{word} {index}"


def _checked_texts(texts: Any, word: str) -> list[str]:
    texts = list(texts) if isinstance(texts, list | tuple) else [texts]
    return [_checked(text, _which(word, i, texts)) for i, text in enumerate(texts)]


def _checked(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{name} is no text", got=type(text).__name__, expected="str")
    if not text.strip():
        raise InputError(f"{name} is empty", got=repr(text[:20]), expected="something to read")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        got = f"a lone surrogate at character {error.start}"
        hint = "It was probably decoded with errors='surrogateescape': decode the bytes as UTF-8"
        raise InputError(f"{name} is no Unicode text", got=got, hint=hint) from None
    return text
