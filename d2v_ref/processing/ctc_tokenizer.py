"""Characters to token ids, and frames of token ids back to text: the tokenizer of CTC models (HF Wav2Vec2CTCTokenizer).

Shapes: B texts, U tokens of the longest, T frames.
"""

# ruff: noqa: S107 - a token of a vocabulary is no password

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.checkpoints import resolve, write_json
from d2v_ref.errors import CheckpointError, InputError
from d2v_ref.losses import IGNORED
from d2v_ref.processing.tokenizer import pad, read_json, read_settings

Offsets = list[dict[str, Any]]

# The vocabulary of the published models (facebook/data2vec-audio-base-960h): letters from the most frequent on.
PUBLISHED = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")

# What transformers mends between words if it is asked to (PreTrainedTokenizerBase.clean_up_tokenization), in its order.
_CLEAN_UP = [(f" {mark}", mark) for mark in (".", "?", "!", ",")] + [(" ' ", "'")]
_CLEAN_UP += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]


@dataclass(frozen=True)
class CTCEncoding:
    """Tokenized texts, padded to one length on the right.  All arrays are int64.

    Attributes:
        input_ids: (B, U), padded with the pad token.
        attention_mask: (B, U), 1 for tokens and 0 for padding.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(B, U), the ids with -100 for padding: labels of ``ctc_loss``."""
        return np.where(self.attention_mask == 1, self.input_ids, IGNORED)


@dataclass(frozen=True)
class Wav2Vec2CTCTokenizerOutput:
    """A text with the frames that it was read from (HF Wav2Vec2CTCTokenizerOutput); lists of them for a batch.

    Attributes:
        text: the text.
        char_offsets: ``{"char": str, "start_offset": int, "end_offset": int}`` for each token of the text, in frames,
            the end excluded; None if not asked for.
        word_offsets: the same for each word, as "word".
    """

    text: str | list[str]
    char_offsets: Offsets | list[Offsets] | None = None
    word_offsets: Offsets | list[Offsets] | None = None


@dataclass(frozen=True)
class _Added:
    """A token that is found in a text as a whole, and takes the white space beside it if it says so."""

    content: str
    lstrip: bool = False
    rstrip: bool = False


class Wav2Vec2CTCTokenizer:
    """One token for each character, a delimiter for a space, and the pad token as CTC's blank.

    Texts, ids and offsets are those of transformers 5.23, but for these, where it does something else than it is asked
    for: a word delimiter other than "|" is the delimiter also when it is read from a checkpoint; one of several
    characters stands for a space as any other, and without one (None) a space is a character; what is not in the
    vocabulary becomes the unknown token also if that was added to it; a token that lies in the beginning of another is
    found also where the other one isn't; an id beyond the vocabulary is an error.

    Args:
        vocab: token -> id, ids 0, 1, 2 ...; or language -> vocabulary, one of which ``target_lang`` names.
        bos_token, eos_token, unk_token, pad_token: special tokens, added behind the vocabulary if they are not in it;
            None if there is none.
        word_delimiter_token: the token that stands for a space.
        replace_word_delimiter_char: what the delimiter becomes in a decoded text.
        do_lower_case: read and write lower case with a vocabulary in upper case.  (Offsets hold the tokens as they
            are.)
        target_lang: the language of a nested vocabulary.
        extra_special_tokens: more tokens that ``skip_special_tokens`` leaves out.
        added_tokens: id -> ``{"content": token, "lstrip": bool, "rstrip": bool}``, tokens that are found in a text as a
            whole (added_tokens_decoder of tokenizer_config.json).
        clean_up_tokenization_spaces: what ``decode`` does if it isn't told.
        origin: where the vocabulary comes from, for messages.

    Attributes:
        vocab: token -> id, added tokens included.
        tokens: the tokens by id.
        all_special_tokens: what ``skip_special_tokens`` leaves out.

    Raises:
        CheckpointError: no vocabulary, ids with gaps or twice the same, added tokens that don't follow it, a setting of
            the wrong type.
        InputError: a language that the vocabulary does not have.
    """

    def __init__(
        self,
        vocab: Mapping[str, Any],
        *,
        bos_token: str | None = "<s>",
        eos_token: str | None = "</s>",
        unk_token: str | None = "<unk>",
        pad_token: str | None = "<pad>",
        word_delimiter_token: str | None = "|",
        replace_word_delimiter_char: str = " ",
        do_lower_case: bool = False,
        target_lang: str | None = None,
        extra_special_tokens: Iterable[str] = (),
        added_tokens: Mapping[int, Mapping[str, Any]] | None = None,
        clean_up_tokenization_spaces: bool = False,
        origin: str | Path = "given vocabulary",
    ) -> None:
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = bos_token, eos_token, unk_token, pad_token
        self.word_delimiter_token, self.replace_word_delimiter_char = word_delimiter_token, replace_word_delimiter_char
        self.do_lower_case, self.clean_up_tokenization_spaces = do_lower_case, clean_up_tokenization_spaces
        self.target_lang, self._origin = target_lang, origin
        self._extra_special_tokens = list(extra_special_tokens)
        self._check_settings()
        named = (bos_token, eos_token, unk_token, pad_token, word_delimiter_token)
        special = [token for token in (*named, *self._extra_special_tokens) if token]
        self.all_special_tokens = list(dict.fromkeys(special))
        base = _language(vocab, target_lang, origin)
        self.vocab_size = len(base)
        self._given = {name: dict(part) if isinstance(part, Mapping) else part for name, part in vocab.items()}
        self.vocab, self._added = _with_added(base, added_tokens or {}, self.all_special_tokens, origin)
        self.tokens = sorted(self.vocab, key=self.vocab.__getitem__)
        longest_first = sorted(self._added, key=len, reverse=True)
        self._splits = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def _check_settings(self) -> None:
        """That every setting has its type, whatever the files held."""
        for name in (*_TOKENS, "target_lang"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise CheckpointError(f"{name} is no string", path=self._origin, got=repr(value), expected="a string")
        if not all(isinstance(token, str) for token in self._extra_special_tokens):
            got = repr(self._extra_special_tokens)
            raise CheckpointError("extra_special_tokens are no tokens", path=self._origin, got=got, expected="strings")
        if self.word_delimiter_token == "":
            hint = "None (null) says that there is none"
            raise CheckpointError("word_delimiter_token is empty", path=self._origin, hint=hint)
        for name, kind in (
            ("replace_word_delimiter_char", str),
            ("do_lower_case", bool),
            ("clean_up_tokenization_spaces", bool),
        ):
            if not isinstance(getattr(self, name), kind):
                got = repr(getattr(self, name))
                raise CheckpointError(f"{name} has the wrong type", path=self._origin, got=got, expected=kind.__name__)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        target_lang: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> Wav2Vec2CTCTokenizer:
        """The tokenizer of a checkpoint: a folder, a shipped one's name, or a hub id.

        Read from vocab.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json, the last two as
        transformers 4 wrote them; of these only vocab.json must be there.

        Args:
            target_lang: the language of a nested vocabulary, if not the one that tokenizer_config.json names.

        Raises:
            CheckpointError: a missing or damaged file.
            UnavailableError: not on this machine.
        """
        folder = resolve(
            name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            weights=False,
        )
        if not (folder / "vocab.json").is_file():
            held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "an empty folder"
            hint = "Copy the tokenizer's files of the model that this one was made from"
            message = "the folder holds no tokenizer for CTC"
            raise CheckpointError(message, path=folder, got=held, expected="vocab.json", hint=hint)
        settings = read_settings(folder)
        same_language = target_lang in (None, settings.get("target_lang"))
        arguments = {name: _text(settings[name]) for name in _TOKENS if name in settings}
        arguments |= {name: settings[name] for name in _OPTIONS if name in settings}
        if target_lang is not None:
            arguments["target_lang"] = target_lang
        return cls(
            read_json(folder / "vocab.json"),
            **arguments,
            extra_special_tokens=_extra_tokens(settings, folder),
            added_tokens=_listed_tokens(folder, settings) if same_language else None,
            origin=folder,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write vocab.json, tokenizer_config.json, special_tokens_map.json and, if there are any, added_tokens.json.

        transformers 4 and 5 load them back, and so does ``from_pretrained``.  Each file is written whole or not at all.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"can't be made a folder: {error.strerror}", path=folder) from None
        flags = {"single_word": False, "normalized": False}
        special = {name: getattr(self, name) for name in _TOKENS if name != "word_delimiter_token"}
        # By the name that transformers 4 gave them and 5 still reads; a list by 5's name is an error in 4.
        extra = {"additional_special_tokens": self._extra_special_tokens} if self._extra_special_tokens else {}
        delimiter: Any = self.word_delimiter_token
        if delimiter not in ("|", None):  # transformers 5.23 ignores a delimiter that is a plain string
            written = {"content": delimiter, "lstrip": False, "rstrip": False, "special": True}
            delimiter = {"__type": "AddedToken", **written, **flags}
        listed = {
            str(self.vocab[token]): {
                **vars(added),
                **flags,
                "special": token in self.all_special_tokens,
            }
            for token, added in self._added.items()
        }
        behind = {token: index for token, index in self.vocab.items() if index >= self.vocab_size}
        write_json(folder / "vocab.json", self._given)
        if behind:
            write_json(folder / "added_tokens.json", behind)
        write_json(folder / "special_tokens_map.json", {name: token for name, token in special.items() if token})
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "Wav2Vec2CTCTokenizer",
                **special,
                "word_delimiter_token": delimiter,
                **{name: getattr(self, name) for name in _OPTIONS},
                **extra,
                "added_tokens_decoder": dict(sorted(listed.items(), key=lambda entry: int(entry[0]))),
            },
        )

    def __len__(self) -> int:
        """How many tokens there are, added ones included; ``vocab_size`` counts those of vocab.json, as in HF."""
        return len(self.tokens)

    @property
    def pad_token_id(self) -> int | None:
        """CTC's blank."""
        return None if self.pad_token is None else self.vocab.get(self.pad_token)

    @property
    def word_delimiter_token_id(self) -> int | None:
        return None if self.word_delimiter_token is None else self.vocab[self.word_delimiter_token]

    # ---- texts to ids ------------------------------------------------------------------------------------------------

    def __call__(self, texts: str | Sequence[str]) -> CTCEncoding:
        """The ids of one text or of a list, in rows of one length.  A text may be empty: nothing is said.

        Raises:
            InputError: what is no text, no list of them, or an empty list; a character that is not in the vocabulary
                of a tokenizer without an unknown token; texts of several lengths without a pad token.
        """
        listed: list[Any] = list(texts) if isinstance(texts, list | tuple) else [texts]
        if not listed:
            raise InputError("there is no text", got="an empty list", expected="at least one text")
        rows = [self.encode(text) for text in listed]
        counts = np.array([len(row) for row in rows])
        mask = (np.arange(counts.max()) < counts[:, None]).astype(np.int64)
        fill = self.pad_token_id
        if fill is None and not mask.all():
            got = f"{counts.min()} ... {counts.max()} tokens"
            hint = "Encode them one at a time, or name a pad_token"
            raise InputError("texts of several lengths need a pad token", got=got, hint=hint)
        return CTCEncoding(pad(rows, fill or 0, "right"), mask)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, (U,) int64; none for an empty one."""
        unknown = None if self.unk_token is None else self.vocab.get(self.unk_token)
        tokens = self.tokenize(text)
        ids = [self.vocab.get(token, unknown) for token in tokens]
        if None in ids:
            hint = "Remove it from the text, or name an unk_token"
            message = "the text has a character that is not in the vocabulary"
            raise InputError(message, got=repr(tokens[ids.index(None)]), hint=hint)
        return np.array(ids, np.int64)

    def tokenize(self, text: str) -> list[str]:
        """A text in tokens, of which some may be unknown: whole added tokens (the longest first), and characters."""
        if not isinstance(text, str):
            raise InputError("the text is no text", got=type(text).__name__, expected="str")
        pieces = [piece for piece in self._splits.split(text) if piece] if self._splits else [text]
        for i, piece in enumerate(pieces):  # one after the other, as in HF: a piece may lose what made it a token
            added = self._added.get(piece, _Added(piece))
            if added.rstrip and i + 1 < len(pieces):
                pieces[i + 1] = pieces[i + 1].lstrip()
            if added.lstrip and i > 0:
                pieces[i - 1] = pieces[i - 1].rstrip()
        return [token for piece in pieces for token in ([piece] if piece in self._added else self._characters(piece))]

    def _characters(self, piece: str) -> list[str]:
        cased = piece.upper() if self.do_lower_case else piece
        return [self.word_delimiter_token or char if char == " " else char for char in cased]

    # ---- ids to texts ------------------------------------------------------------------------------------------------

    def decode(
        self,
        ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        *,
        group_tokens: bool = True,
        spaces_between_special_tokens: bool = False,
        output_char_offsets: bool = False,
        output_word_offsets: bool = False,
    ) -> Any:
        """The text of one id for each frame: repeats merged, the pad token dropped, the delimiter replaced.

        Args:
            ids: (T,) integers 0 ... len(self)-1, an argmax of logits; or, with ``group_tokens=False``, the ids of a
                text.
            skip_special_tokens: leave out special tokens, but for the delimiter, before repeats are merged.  The pad
                token is one: then it doesn't keep equal tokens apart.
            clean_up_tokenization_spaces: remove spaces before marks and endings of English; None for the tokenizer's
                own setting.
            group_tokens: merge repeats.
            spaces_between_special_tokens: a space between all tokens.
            output_char_offsets, output_word_offsets: return also the frames of the tokens, or of the words.

        Returns:
            A str, or a ``Wav2Vec2CTCTokenizerOutput`` if offsets are asked for.

        Raises:
            InputError: an id that the vocabulary has not.
        """
        tokens = [self.tokens[index] for index in self._checked(ids)]
        if skip_special_tokens:
            dropped = set(self.all_special_tokens) - {self.word_delimiter_token}
            tokens = [token for token in tokens if token not in dropped]
        chars = _runs(tokens, group_tokens)
        chars = [entry for entry in chars if entry["char"] != self.pad_token]
        for entry in chars:
            if entry["char"] == self.word_delimiter_token:
                entry["char"] = self.replace_word_delimiter_char
        text = (" " if spaces_between_special_tokens else "").join(entry["char"] for entry in chars).strip()
        if self.do_lower_case:
            text = text.lower()
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        for found, mended in _CLEAN_UP if clean else ():
            text = text.replace(found, mended)
        if not (output_char_offsets or output_word_offsets):
            return text
        nothing = not tokens  # then HF gives both
        words = _words(chars, self.replace_word_delimiter_char) if output_word_offsets or nothing else None
        return Wav2Vec2CTCTokenizerOutput(text, chars if output_char_offsets or nothing else None, words)

    def batch_decode(
        self,
        sequences: Iterable[Any],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        *,
        output_char_offsets: bool = False,
        output_word_offsets: bool = False,
        **options: bool,
    ) -> Any:
        """``decode`` of each: a list of str, or one ``Wav2Vec2CTCTokenizerOutput`` of lists."""
        wanted = {"output_char_offsets": output_char_offsets, "output_word_offsets": output_word_offsets}
        decoded = [
            self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **wanted, **options)
            for ids in sequences
        ]
        if not any(wanted.values()):
            return decoded
        return Wav2Vec2CTCTokenizerOutput(
            [row.text for row in decoded],
            [row.char_offsets for row in decoded] if output_char_offsets else None,
            [row.word_offsets for row in decoded] if output_word_offsets else None,
        )

    def _checked(self, ids: Any) -> list[int]:
        ids = checks.anything("ids", ids)
        if ids.shape == (0,):
            return []
        hint = "-100, which fills up labels, is no token"
        return checks.indices("ids", ids, ("T",), len(self), hint).tolist()


def frames_to_seconds(frames: Any, *, samples_per_frame: float, sampling_rate: float) -> np.ndarray:
    """frames * samples_per_frame / sampling_rate: where a frame starts, in seconds.

    Args:
        frames: a number or an array of them.
        samples_per_frame: how far the frames of the logits are apart, in samples (HF: config.inputs_to_logits_ratio).
        sampling_rate: samples a second.

    Returns:
        float64, of the shape of ``frames``.
    """
    for name, value in (("samples_per_frame", samples_per_frame), ("sampling_rate", sampling_rate)):
        if not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
            raise InputError(f"{name} is no rate", got=repr(value), expected="a positive number")
    frames = checks.anything("frames", frames)
    if frames.dtype.kind not in "iuf":
        raise InputError("frames have the wrong dtype", got=frames.dtype, expected="numbers")
    return frames * np.float64(samples_per_frame) / sampling_rate


def time_stamps(offsets: Offsets, *, samples_per_frame: float, sampling_rate: float) -> Offsets:
    """Offsets in seconds: ``start_time`` and ``end_time`` in the place of ``start_offset`` and ``end_offset``.

    The rest of each entry ("char" or "word") is as it was.  Arguments as those of ``frames_to_seconds``.
    """
    rates = {"samples_per_frame": samples_per_frame, "sampling_rate": sampling_rate}
    times = {"start_offset": "start_time", "end_offset": "end_time"}
    return [
        {
            times.get(name, name): float(frames_to_seconds(value, **rates)) if name in times else value
            for name, value in entry.items()
        }
        for entry in offsets
    ]


def character_vocabulary(size: int) -> dict[str, int]:
    """The vocabulary of so many tokens for synthetic checkpoints.

    Ids 0 ... 31 are those of the published models: <pad>, <s>, </s>, <unk>, |, the letters A ... Z from the most
    frequent on, and '.  A smaller vocabulary has the first of them.  A larger one goes on with the other visible
    characters of ASCII, the ideographs from U+4E00 to U+9FFF and the syllables from U+AC00 to U+D7A3, by code point.

    Raises:
        InputError: fewer than the 5 tokens that are no letters, or more than there are characters.
    """
    ascii_rest = [chr(code) for code in range(0x21, 0x7F) if chr(code) not in PUBLISHED]
    symbols = [*PUBLISHED, *ascii_rest, *map(chr, range(0x4E00, 0xA000)), *map(chr, range(0xAC00, 0xD7A4))]
    if not 5 <= size <= len(symbols):
        raise InputError("no character vocabulary has this size", got=size, expected=f"5 ... {len(symbols)}")
    return {token: index for index, token in enumerate(symbols[:size])}


# ---- offsets ---------------------------------------------------------------------------------------------------------


def _runs(tokens: list[str], group: bool) -> Offsets:
    """Equal neighbours as one entry, or each token as its own, with its frames."""
    entries: Offsets = []
    runs = ((token, len(list(run))) for token, run in groupby(tokens)) if group else ((token, 1) for token in tokens)
    end = 0
    for token, length in runs:
        entries.append({"char": token, "start_offset": end, "end_offset": end + length})
        end += length
    return entries


def _words(chars: Offsets, delimiter: str) -> Offsets:
    """What is between the delimiters, from its first character's first frame to its last one's last."""
    runs = [list(run) for is_delimiter, run in groupby(chars, lambda e: e["char"] == delimiter) if not is_delimiter]
    return [
        {
            "word": "".join(entry["char"] for entry in run),
            "start_offset": run[0]["start_offset"],
            "end_offset": run[-1]["end_offset"],
        }
        for run in runs
    ]


# ---- reading a checkpoint's files ------------------------------------------------------------------------------------

_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "word_delimiter_token")
_OPTIONS = ("replace_word_delimiter_char", "do_lower_case", "target_lang", "clean_up_tokenization_spaces")


def _language(vocab: Mapping[str, Any], target_lang: str | None, origin: str | Path) -> dict[str, int]:
    """The vocabulary itself, or its part for one language."""
    expected = '{"token": id, ...}'
    if not isinstance(vocab, Mapping):
        raise CheckpointError("is no vocabulary", path=origin, got=type(vocab).__name__, expected=expected)
    nested = [name for name, value in vocab.items() if isinstance(value, Mapping)]
    if nested and len(nested) == len(vocab):
        if target_lang is None or target_lang not in vocab:
            message, known = "the vocabulary does not have the language target_lang", ", ".join(sorted(nested)[:12])
            raise InputError(message, path=origin, got=repr(target_lang), expected=known, hint="Name one of them")
        vocab = vocab[target_lang]
    elif target_lang is not None:
        message = "the vocabulary is of one language, and target_lang names one"
        raise InputError(message, path=origin, got=repr(target_lang), hint="Leave target_lang out")
    indices = list(vocab.values())
    if not vocab or not all(type(index) is int for index in indices) or not all(isinstance(t, str) for t in vocab):
        raise CheckpointError("is no vocabulary", path=origin, expected=f"{expected} with integers for ids")
    missing = set(range(len(indices))) - set(indices)
    if missing:
        expected = f"{len(indices)} tokens with the ids 0 ... {len(indices) - 1}, each once"
        message = "the vocabulary's ids are not 0, 1, 2 ..."
        raise CheckpointError(message, path=origin, got=f"none with id {min(missing)}", expected=expected)
    return dict(vocab)


def _with_added(
    base: dict[str, int], listed: Mapping[int, Mapping[str, Any]], special: list[str], origin: str | Path
) -> tuple[dict[str, int], dict[str, _Added]]:
    """The vocabulary with all added tokens behind it, and what is found in texts as a whole.

    In HF's order: the tokens that the files list, the special tokens, and then the tokens of the vocabulary that are
    several characters, which take the white space on both sides.
    """
    vocab, added = dict(base), {}
    for index, token in sorted(listed.items()):
        entry = _added_token(token, origin)
        if vocab.setdefault(entry.content, len(vocab)) != index:
            message = f"the added token {entry.content!r} does not fit the vocabulary"
            raise CheckpointError(message, path=origin, got=f"id {index}", expected=vocab[entry.content])
        added[entry.content] = entry
    for content in special:
        vocab.setdefault(content, len(vocab))
        added.setdefault(content, _Added(content))
    for content in base:
        if len(content) > 1:
            added[content] = _Added(content, lstrip=True, rstrip=True)
    return vocab, added


def _added_token(token: Mapping[str, Any], origin: str | Path) -> _Added:
    flags = ("lstrip", "rstrip", "single_word")
    if (
        not isinstance(token, Mapping)
        or not isinstance(token.get("content"), str)
        or not token["content"]
        or not all(isinstance(token.get(flag, False), bool) for flag in flags)
    ):
        expected = '{"content": "token", "lstrip": bool, "rstrip": bool, ...}'
        raise CheckpointError("its added tokens are damaged", path=origin, got=repr(token), expected=expected)
    if token.get("single_word"):
        hint = "No tokenizer for CTC is known to have one; single_word must be false"
        raise CheckpointError(
            "an added token that is a single word", path=origin, got=repr(token["content"]), hint=hint
        )
    return _Added(token["content"], token.get("lstrip", False), token.get("rstrip", False))


def _text(value: Any) -> Any:
    """A token as a file writes it, "token" or {"content": "token", ...}."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def _extra_tokens(settings: Mapping[str, Any], folder: Path) -> list[Any]:
    """Special tokens that have no argument of their own: named ones, and those of extra_special_tokens."""
    named = [_text(value) for name, value in settings.items() if name.endswith("_token") and name not in _TOKENS]
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if not isinstance(extra, list | dict):
        raise CheckpointError(
            "extra_special_tokens is no list", path=folder, got=repr(extra), expected='["token", ...]'
        )
    unnamed = extra.values() if isinstance(extra, dict) else extra
    return [token for token in (*named, *map(_text, unnamed)) if token is not None]


def _listed_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """id -> added token, of tokenizer_config.json or else of added_tokens.json."""
    path = folder / "added_tokens.json"
    if "added_tokens_decoder" in settings:
        path = folder / "tokenizer_config.json"
        try:
            listed = [(int(index), token) for index, token in settings["added_tokens_decoder"].items()]
        except (AttributeError, ValueError) as error:
            raise CheckpointError(f"its added tokens are damaged: {error}", path=path) from None
    else:
        tokens = read_json(path) if path.is_file() else {}
        listed = [(index, {"content": token}) for token, index in tokens.items()]
    indices = [index for index, _ in listed]
    if not all(type(index) is int for index in indices) or len(set(indices)) < len(indices):
        expected = "an id for each token, no two the same"
        raise CheckpointError("its added tokens are damaged", path=path, got=f"ids {indices}", expected=expected)
    return dict(listed)
