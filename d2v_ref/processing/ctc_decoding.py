"""From frames to token ids: the best path, and prefix beam search with a language model.

Sources: Graves (2012), sec. 7.5; Hannun et al. (2014), First-pass large vocabulary continuous speech recognition.

Shapes: B utterances, T frames, V tokens, U tokens of a hypothesis, K prefixes of a beam.  All logarithms are natural,
but for those of ARPA files.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from d2v_ref import checks
from d2v_ref.ctc import states
from d2v_ref.errors import InputError


def greedy(logits: Any, input_lengths: Any = None) -> list[np.ndarray]:
    """The most probable token of every valid frame; the tokenizer's ``decode`` merges them to a text.

    Args:
        logits: (B, T, V), finite or -inf.
        input_lengths: (B,) integers 0 ... T, the valid frames; all if None.

    Returns:
        B arrays (length,) of int64.

    Raises:
        InputError: NaN, a wrong shape, a length out of range.
    """
    logits = _scores("logits", logits, ("B", "T", "V"))
    batch, frames, _ = logits.shape
    if input_lengths is None:
        input_lengths = np.full(batch, frames)
    lengths = checks.indices("input_lengths", input_lengths, (batch,), frames + 1)
    return [row[:length] for row, length in zip(logits.argmax(-1), lengths, strict=True)]


@dataclass(frozen=True)
class Hypothesis:
    """A token sequence that beam search found.

    Attributes:
        ids: (U,) int64, the tokens without blanks and repeats of a path: ``tokenizer.decode(ids, group_tokens=False)``.
        score: what it was ranked by, see ``beam_search``.
        log_prob: log p(ids | frames), as far as the beam summed it: all paths that it did not prune.
        path: (T,) int64, the most probable path of these ids, a token a frame, among all paths (Viterbi); of equally
            probable ones that which goes on soonest.  ``tokenizer.decode(path, output_word_offsets=True)`` gives the
            text and where its words are.
        blank: the token that is none.
    """

    ids: np.ndarray
    score: float
    log_prob: float
    path: np.ndarray
    blank: int

    @property
    def frames(self) -> np.ndarray:
        """(U, 2) int64, the frames [first, last + 1) of each token on ``path``."""
        ends = np.cumsum([0, *(len(list(run)) for _, run in groupby(self.path.tolist()))])
        spans = np.stack((ends[:-1], ends[1:]), axis=-1)
        return spans[self.path[ends[:-1]] != self.blank]


class Scorer(Protocol):
    """A language model of words, asked word by word.  A state is what it needs to know of the words before."""

    def start(self) -> Any:
        """The state before the first word."""

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """ln p(word | state), finite; and the state after it."""

    def end(self, state: Any) -> float:
        """ln p(end of sentence | state), finite."""


def beam_search(
    log_probs: Any,
    *,
    blank: int,
    beam_width: int = 100,
    top: int = 1,
    token_threshold: float | None = None,
    beam_threshold: float | None = None,
    tokens: Sequence[str] | None = None,
    word_delimiter: int | None = None,
    scorer: Scorer | None = None,
    alpha: float = 0.5,
    beta: float = 1.5,
    hot_words: Sequence[str] = (),
    hot_word_weight: float = 10.0,
) -> list[Hypothesis]:
    """The token sequences of the highest score, best first (prefix beam search, Hannun et al. 2014, alg. 1).

    score = log p(ids | frames) + alpha * (sum of ln p(word | words before) + ln p(end)) + beta * (number of words)
    + hot_word_weight * (number of hot words), where the terms with alpha and beta are there with a ``scorer`` only.

    A beam holds the best prefixes, each with the summed probability of all its paths.  A word is scored when the
    delimiter follows it, or at the end.  Until then it has, for ranking, the part len(letters so far) / len(hot word)
    of the hot words' weight if a hot word begins with it (of several, the shortest).

    Args:
        log_probs: (T, V), log softmax of logits; -inf forbids a token.
        blank: the token that stands for none (tokenizer.pad_token_id).
        beam_width: how many prefixes are kept after each frame.
        top: how many hypotheses to return, at most.
        token_threshold: in each frame, ignore tokens of a smaller log probability, but for the best.
        beam_threshold: after each frame, drop prefixes whose score is more than this below the best.
        tokens: the text of each token (tokenizer.tokens); words are spelled with them.
        word_delimiter: the token that stands between words (tokenizer.word_delimiter_token_id).
        scorer: a language model.
        alpha, beta: its weight, and the bonus of a word, which makes up for the language model's preference for few
            words.
        hot_words: words that are more probable than the model thinks.
        hot_word_weight: the bonus of each of them.

    Raises:
        InputError: NaN, numbers that are no log probabilities, a wrong shape, a token out of range, a beam without
            width, a hot word that the tokens can't spell, a scorer's number that is not finite.
    """
    log_probs = _checked_log_probs(log_probs)
    vocabulary = log_probs.shape[1]
    blank = int(checks.indices("blank", blank, (), vocabulary))
    for name, count in (("beam_width", beam_width), ("top", top)):
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
            raise InputError(f"{name} is no count", got=repr(count), expected="1 or more")
    token_least = _number("token_threshold", token_threshold, -math.inf)
    beam_most = _number("beam_threshold", beam_threshold, math.inf)
    if beam_most < 0:
        raise InputError("beam_threshold is negative", got=beam_threshold, expected="0 or more")
    weights = [_number(name, v) for name, v in (("alpha", alpha), ("beta", beta), ("hot_word_weight", hot_word_weight))]
    language = _Language(tokens, word_delimiter, blank, vocabulary, scorer, hot_words, weights)
    beam = _Beam(blank, language)
    for frame in log_probs:
        pruned = np.where((frame >= token_least) | (frame == frame.max()), frame, -np.inf)
        beam.advance(pruned, beam_width, beam_most)
    found = beam.finished()[:top]
    paths = _best_paths(log_probs, [ids for _, _, ids in found], blank)
    return [
        Hypothesis(np.array(ids, np.int64), score, log_prob, path, blank)
        for (score, log_prob, ids), path in zip(found, paths, strict=True)
    ]


class _Beam:
    """The prefixes that are kept, as nodes of the tree of all prefixes that ever were.

    Attributes:
        nodes: (K,), the prefixes; 0 is the empty one.
        last: (K,), their last tokens; the blank for the empty one, which nothing repeats.
        ending_blank, ending_label: (K,), log probability of the paths that end in a blank, and in the last token.
        said: (K,), the score of the words that are finished.
        hot: (K,), the state of the hot words after the letters since then.
    """

    def __init__(self, blank: int, language: _Language) -> None:
        self.blank, self.language = blank, language
        self.parent, self.token = [-1], [blank]
        self.children: dict[tuple[int, int], int] = {}
        self.nodes, self.last, self.hot = np.zeros(1, int), np.full(1, blank), np.full(1, _ROOT)
        self.ending_blank, self.ending_label, self.said = np.zeros(1), np.full(1, -np.inf), np.zeros(1)

    def advance(self, frame: np.ndarray, width: int, threshold: float) -> None:
        """All ways on from here by one frame (V,), and the best of them."""
        total = np.logaddexp(self.ending_blank, self.ending_label)
        blank, label = total + frame[self.blank], self.ending_label + frame[self.last]
        longer = total[:, None] + frame  # (K, V): the prefix with one more token
        longer[np.arange(len(self.last)), self.last] = self.ending_blank + frame[self.last]  # without a blank, a repeat
        longer[:, self.blank] = -np.inf
        # What becomes longer may be in the beam already: then it is counted there.
        place = {node: k for k, node in enumerate(self.nodes.tolist())}
        before = np.array([place.get(self.parent[node], -1) for node in place])
        k = np.flatnonzero(before >= 0)
        label[k] = np.logaddexp(label[k], longer[before[k], self.last[k]])
        longer[before[k], self.last[k]] = -np.inf

        gains = self.language.gains(self, frame)
        stays = np.logaddexp(blank, label) + self.said + self.language.hot.partial[self.hot]
        goes = longer + self.said[:, None] + gains
        chosen = _best(np.concatenate((stays, goes.reshape(-1))), width, threshold)
        self._keep(chosen, blank, label, longer, gains)

    def _keep(
        self, chosen: np.ndarray, blank: np.ndarray, label: np.ndarray, longer: np.ndarray, gains: np.ndarray
    ) -> None:
        """The chosen of K prefixes that stay as they are and K V that are one token longer."""
        count, vocabulary = longer.shape
        new = chosen >= count
        k, token = np.divmod(chosen - count, vocabulary)
        k = np.where(new, k, chosen)
        token = np.where(new, token, self.last[k])
        nodes = self.nodes[k]
        for i in np.flatnonzero(new):
            nodes[i] = self._node(int(nodes[i]), int(token[i]))
        finished = new & (token == self.language.delimiter)
        self.said = self.said[k] + np.where(finished, gains[k, token], 0)
        self.hot = np.where(new, self.language.hot.following[self.hot[k], token], self.hot[k])
        self.ending_blank = np.where(new, -np.inf, blank[k])
        self.ending_label = np.where(new, longer[k, token], label[k])
        self.nodes, self.last = nodes, token

    def _node(self, parent: int, token: int) -> int:
        """The node of a prefix with one more token, the same whenever it comes into the beam."""
        node = self.children.setdefault((parent, token), len(self.token))
        if node == len(self.token):
            self.parent.append(parent)
            self.token.append(token)
            self.language.enter(self, node)
        return node

    def finished(self) -> list[tuple[float, float, list[int]]]:
        """Score, log probability and ids of the prefixes as whole utterances, best first."""
        total = np.logaddexp(self.ending_blank, self.ending_label)
        score = total + self.said + self.language.ends(self)
        order = np.argsort(-score, kind="stable")
        return [(float(score[k]), float(total[k]), self._ids(int(self.nodes[k]))) for k in order]

    def _ids(self, node: int) -> list[int]:
        ids = []
        while node:
            ids.append(self.token[node])
            node = self.parent[node]
        return ids[::-1]


def _best(scores: np.ndarray, width: int, threshold: float) -> np.ndarray:
    """Where the ``width`` largest scores are that are possible and not too far below the largest, best first."""
    best = np.argpartition(-scores, width - 1)[:width] if len(scores) > width else np.arange(len(scores))
    best = best[np.argsort(-scores[best], kind="stable")]
    kept = (scores[best] > -np.inf) & (scores[best] >= scores[best[0]] - threshold)
    return best[kept]


def _best_paths(log_probs: np.ndarray, rows: list[list[int]], blank: int) -> np.ndarray:
    """The most probable path (Viterbi) of each of N rows of ids: (N, T), a token a frame."""
    counts = np.array([len(ids) for ids in rows])
    targets = np.full((len(rows), counts.max()), blank)
    for target, ids in zip(targets, rows, strict=True):
        target[: len(ids)] = ids
    labels, skipping = states(targets, blank)
    front = 2  # as in the sum over all paths: a state in front, and nothing in front of that
    best = np.full((len(rows), front + labels.shape[1]), -np.inf)
    best[:, 1] = 0
    moves = np.empty((len(log_probs), *labels.shape), np.int8)
    for t, frame in enumerate(log_probs):
        ways = np.stack((best[:, 2:], best[:, 1:-1], best[:, :-2] + skipping))
        moves[t] = ways.argmax(axis=0)
        best[:, front:] = ways.max(axis=0) + frame[labels]
        best[:, 1] = -np.inf
    n, last = np.arange(len(rows)), 2 * counts
    state = last - (best[n, front + last - 1] > best[n, front + last])
    paths = np.empty((len(rows), len(log_probs)), np.int64)
    for t in range(len(log_probs) - 1, -1, -1):
        paths[:, t] = labels[n, state]
        state = state - moves[t, n, state]
    return paths


# ---- words -----------------------------------------------------------------------------------------------------------

_LOST, _ROOT = 0, 1  # states of the hot words: no hot word begins like this; no letter yet


class _HotWords:
    """The beginnings of hot words as states.

    Attributes:
        partial: (S,), the bonus of a beginning.
        final: (S,), the bonus of a word that ends here.
        following: (S, V), the state after one more token.
        gains: (S, V), the bonus then; after the delimiter, that of the finished word.
    """

    def __init__(
        self, words: Sequence[str], weight: float, tokens: Sequence[str], delimiter: int, vocabulary: int
    ) -> None:
        whole: dict[str, int] = {}  # the shortest word that begins like this
        for word in words:
            for end in range(1, len(word) + 1):
                whole[word[:end]] = min(whole.get(word[:end], len(word)), len(word))
        index = {"": _ROOT, **{start: i for i, start in enumerate(whole, 2)}}
        self.partial = np.array([0, 0, *(weight * len(start) / length for start, length in whole.items())], np.float64)
        self.final = np.array([0, 0, *(weight * (start in words) for start in whole)], np.float64)
        self.following = np.full((len(index) + 1, vocabulary), _LOST)
        for start, i in index.items() if words else ():
            self.following[i] = [index.get(start + token, _LOST) for token in tokens]
        self.following[:, delimiter] = _ROOT
        self.gains = self.partial[self.following]
        self.gains[:, delimiter] = self.final


class _Language:
    """What the scorer and the hot words say of prefixes."""

    def __init__(
        self,
        tokens: Sequence[str] | None,
        delimiter: int | None,
        blank: int,
        vocabulary: int,
        scorer: Scorer | None,
        hot_words: Sequence[str],
        weights: Sequence[float],
    ) -> None:
        self.alpha, self.beta, hot_word_weight = weights
        self.scorer = scorer
        if tokens is not None:
            tokens = _checked_tokens(tokens, vocabulary)
        if delimiter is not None:
            delimiter = int(checks.indices("word_delimiter", delimiter, (), vocabulary))
        hot_words = _checked_words(hot_words)
        if (scorer is not None or hot_words) and (tokens is None or delimiter is None or delimiter == blank):
            expected = "the text of each token, and which of them stands between words and is not the blank"
            got = f"{'no ' if tokens is None else ''}tokens, and {delimiter} for word_delimiter"
            raise InputError("a scorer and hot words need tokens and word_delimiter", got=got, expected=expected)
        for method in ("start", "score", "end") if scorer is not None else ():
            if not callable(getattr(scorer, method, None)):
                raise InputError("the scorer is none", got=type(scorer).__name__, expected=f"a method {method}")
        self.tokens = tokens or ()
        self.delimiter = blank if delimiter is None else delimiter  # nothing is longer by a blank
        spelling = [t for i, t in enumerate(self.tokens) if t and i not in (blank, self.delimiter)]
        for word in hot_words:
            _check_spelling(word, spelling)
        self.hot = _HotWords(hot_words, hot_word_weight, self.tokens, self.delimiter, vocabulary)
        self.states = {0: scorer.start() if scorer is not None else None}  # before the words that begin at a node
        self.words: dict[int, tuple[float, Any]] = {}

    def gains(self, beam: _Beam, frame: np.ndarray) -> np.ndarray:
        """(K, V), what each token adds to the score of the words of each prefix, the unfinished one included."""
        gains = self.hot.gains[beam.hot]
        if self.scorer is not None and frame[self.delimiter] > -np.inf:
            gains[:, self.delimiter] += [self._word(beam, node)[0] for node in beam.nodes.tolist()]
        return gains

    def enter(self, beam: _Beam, node: int) -> None:
        """A new node: a delimiter begins another word."""
        if beam.token[node] == self.delimiter:
            self.states[node] = self._word(beam, beam.parent[node])[1]

    def ends(self, beam: _Beam) -> np.ndarray:
        """(K,), what the end of the utterance adds: the last word, and the end itself."""
        ends = self.hot.final[beam.hot]
        if self.scorer is None:
            return ends
        words = [self._word(beam, node) for node in beam.nodes.tolist()]
        sentences = [_number("the score of the end", self.scorer.end(state)) for _, state in words]
        return ends + [score for score, _ in words] + self.alpha * np.array(sentences)

    def _word(self, beam: _Beam, node: int) -> tuple[float, Any]:
        """The score of the word that ends at a node, and the scorer's state after it; 0 if there is no letter."""
        if self.scorer is None:
            return 0.0, None
        if node not in self.words:
            letters, start = [], node
            while start not in self.states:
                letters.append(self.tokens[beam.token[start]])
                start = beam.parent[start]
            state = self.states[start]
            word = "".join(reversed(letters))
            self.words[node] = self._score(self.scorer, state, word) if word else (0.0, state)
        return self.words[node]

    def _score(self, scorer: Scorer, state: Any, word: str) -> tuple[float, Any]:
        answer = scorer.score(state, word)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise InputError("the scorer gave no score", got=repr(answer), expected="(ln p(word | state), next state)")
        return self.alpha * _number("the score of a word", answer[0]) + self.beta, answer[1]


class NGram:
    """A back-off model of n-grams of words (Katz 1987), a ``Scorer``.

    log10 p(w | h) is that of the n-gram "h w" if the model has it, and else backoff(h) + log10 p(w | h without its
    first word), where a history that the model does not have backs off for nothing.  Words that it does not have are
    <unk>, or have log10 p = -100 if it doesn't have that either.  A sentence is between <s> and </s>.

    Args:
        entries: (word, ..., word) -> (log10 of its probability after the words before it, log10 of the
            back-off weight).
    """

    UNKNOWN = "<unk>"

    def __init__(self, entries: Mapping[tuple[str, ...], tuple[float, float]]) -> None:
        self.entries = entries
        self.order = max(map(len, entries), default=1)

    @classmethod
    def from_arpa(cls, path: str | Path) -> NGram:
        """The model of an ARPA file, plain or compressed by gzip.

        Raises:
            InputError: a file that can't be read, is damaged, or is none.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
            with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as text:
                return cls(_read_arpa(text, path))
        except UnicodeDecodeError as error:
            raise InputError(f"is not UTF-8: {error}", path=path, expected="an ARPA file") from None
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"can't be read: {reason}", path=path, expected="an ARPA file") from None

    def start(self) -> tuple[str, ...]:
        return self._cut(("<s>",))

    def score(self, state: tuple[str, ...], word: str) -> tuple[float, tuple[str, ...]]:
        word = word if (word,) in self.entries else self.UNKNOWN
        history, log10 = state, 0.0
        while (*history, word) not in self.entries and history:
            log10 += self.entries.get(history, (0.0, 0.0))[1]
            history = history[1:]
        log10 += self.entries.get((*history, word), (-100.0, 0.0))[0]
        return log10 * math.log(10), self._cut((*state, word))

    def end(self, state: tuple[str, ...]) -> float:
        return self.score(state, "</s>")[0]

    def _cut(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """As many of the last words as a history has."""
        return words[max(0, len(words) - self.order + 1) :]


def _read_arpa(file: TextIO, path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    stripped = ((number, line.strip(" \t\r\n")) for number, line in enumerate(file, 1))
    lines = ((number, line) for number, line in stripped if line)
    if not any(line == "\\data\\" for _, line in lines):
        raise InputError("is no ARPA file", path=path, expected="a line \\data\\")
    counts: list[int] = []
    number, line = _next(lines, path)
    while match := re.fullmatch(r"ngram[ \t]+([0-9]{1,3})[ \t]*=[ \t]*([0-9]{1,15})", line):
        if int(match[1]) != len(counts) + 1:
            raise _damaged(path, number, line, f"ngram {len(counts) + 1}=...")
        counts.append(int(match[2]))
        number, line = _next(lines, path)
    entries: dict[tuple[str, ...], tuple[float, float]] = {}
    for order, count in enumerate(counts, 1):
        if line != f"\\{order}-grams:":
            raise _damaged(path, number, line, f"\\{order}-grams:")
        for _ in range(count):
            number, line = _next(lines, path)
            words, values = _entry(line, order)
            if values is None or words in entries:
                raise _damaged(path, number, line, f"log10 p, {order} words that were not there, and maybe a weight")
            entries[words] = values
        number, line = _next(lines, path)
    if not counts or line != "\\end\\":
        raise _damaged(path, number, line, "\\end\\" if counts else "ngram 1=...")
    for _ in file:  # to its end, where gzip finds out whether it is whole
        pass
    return entries


def _entry(line: str, order: int) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    """The words of a line, and its two numbers; None if it is none."""
    fields = re.split("[ \t]+", line)
    words, numbers = tuple(fields[1 : order + 1]), [fields[0], *fields[order + 1 :]]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        return words, None
    fits = len(words) == order and len(values) <= 2 and values[0] <= 0 and all(map(math.isfinite, values))
    return words, (values[0], values[1] if len(values) == 2 else 0.0) if fits else None


def _next(lines: Iterator[tuple[int, str]], path: Path) -> tuple[int, str]:
    for number, line in lines:
        return number, line
    raise InputError("the ARPA file is cut off", path=path, expected="\\end\\", hint="Copy or download it again")


def _damaged(path: Path, number: int, line: str, expected: str) -> InputError:
    return InputError(f"line {number} of the ARPA file is damaged", path=path, got=repr(line[:80]), expected=expected)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _scores(name: str, value: Any, shape: tuple[str, ...]) -> np.ndarray:
    """Floating-point numbers of this rank, finite or -inf."""
    x = checks.anything(name, value)
    if x.dtype.kind != "f":
        raise InputError(f"{name} have the wrong dtype", got=x.dtype, expected="floating-point numbers")
    if x.ndim != len(shape) or x.size == 0:
        raise InputError(f"{name} have the wrong shape", got=x.shape, expected=f"({', '.join(shape)}), none of them 0")
    wrong = np.isnan(x) | (x == np.inf)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise InputError(f"{name} are not finite", got=f"{x[where]} at {where}", expected="finite numbers, or -inf")
    return x


def _checked_log_probs(log_probs: Any) -> np.ndarray:
    """(T, V) as float64, with the probabilities of each frame adding up to 1 as well as float16 can."""
    x = _scores("log_probs", log_probs, ("T", "V")).astype(np.float64)
    sums = np.exp(np.minimum(x, 1)).sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > 0.01)
    if len(wrong):
        got = f"frame {wrong[0]}, whose probabilities do not add up to 1"
        raise InputError("these are no log probabilities", got=got, hint="Apply log_softmax to the logits first")
    return x


def _number(name: str, value: Any, default: float | None = None) -> float:
    """A finite number, or None for its default."""
    if value is None and default is not None:
        return default
    return float(checks.array(name, value, (), "fiu"))


def _checked_tokens(tokens: Any, vocabulary: int) -> Sequence[str]:
    if not isinstance(tokens, list | tuple) or not all(isinstance(token, str) for token in tokens):
        raise InputError("tokens are no texts", got=type(tokens).__name__, expected="a list of strings")
    if len(tokens) != vocabulary:
        raise InputError("tokens do not fit log_probs", got=len(tokens), expected=f"{vocabulary}, one for each token")
    return tokens


def _checked_words(words: Any) -> list[str]:
    if not isinstance(words, list | tuple | set | frozenset) or not all(isinstance(w, str) and w for w in words):
        raise InputError("hot_words are no words", got=repr(words), expected="a list of strings, none of them empty")
    return list(words)


def _check_spelling(word: str, tokens: list[str]) -> None:
    """That a word is tokens one after the other."""
    reached = {0}
    for start in range(len(word)):
        if start in reached:
            reached |= {start + len(token) for token in tokens if word.startswith(token, start)}
    if len(word) not in reached:
        got = f"{word[max(reached)]!r} at {max(reached)}"
        hint = "Write it with the vocabulary's letters (upper case?), one word at a time"
        raise InputError(f"the tokens can't spell the hot word {word!r}", got=got, hint=hint)
