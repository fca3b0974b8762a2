"""A corpus of spoken English numbers, made by two speech synthesisers: eSpeak NG and Flite.

Every utterance is a number in words ("minus three hundred and five", "two point seven", "four four one"), spoken by a
voice drawn at random, at a speed and pitch drawn at random.  The same seed and programs give the same samples.

The splits: "train"; "seen", other utterances of the voices of training; "voices", eSpeak variants that training never
hears; "accent", an accent that training never hears; "flite-slt", a voice of Flite that training never hears, and the
only woman's voice that was made of recordings.  A number of three words and more is in "train" or in the other splits,
never in both.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

RATE = 16000  # samples a second
LONGEST = 4.0  # seconds

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = (*DIGITS, *TEENS, *TENS, "hundred", "thousand", "and", "point", "minus")

ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
HELD_OUT_ACCENT = "en-gb-scotland"

# eSpeak's variants that sound like people: no robots, whispers, or effects.
# fmt: off
VARIANTS = (
    "f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m5", "m7", "m8", "adam", "Alex", "Andrea", "Andy", "Annie",
    "antonio", "aunty", "benjamin", "boris", "Denis", "Diogo", "ed", "edward", "edward2", "Gene", "Gene2", "grandma",
    "grandpa", "gustave", "Henrique", "Hugo", "iven", "iven2", "iven3", "Jacky", "klatt", "klatt2", "klatt3", "Lee",
    "marcelo", "Marco", "Mario", "max", "Michael", "michel", "miguel", "Mike", "norbert", "paul", "pedro", "quincy",
    "rob", "robert", "sandro", "shelby", "steph", "steph2", "steph3", "travis", "zac",
)
# fmt: on
HELD_OUT_VARIANTS = ("f5", "anika", "Alicia", "linda", "belinda", "m6", "david", "john", "victor", "pablo")

FLITE = ("kal", "kal16", "awb", "rms")  # kal: as kal16, at 8 kHz
HELD_OUT_FLITE = "slt"

# Kind of number -> how often it is drawn.
KINDS = {"digit": 0.25, "digits": 0.25, "tens": 0.12, "hundreds": 0.2, "thousands": 0.06, "decimal": 0.12}

# Split -> utterances.
SIZES = {"train": 4800, "seen": 300, "voices": 600, "accent": 300, "flite-slt": 300}


@dataclass(frozen=True)
class Utterance:
    """What is said and how: ``voice`` is "flite NAME" or "ACCENT+VARIANT" of eSpeak."""

    split: str
    text: str
    voice: str
    rate: float  # of the synthesiser's normal speed
    pitch: int  # 0 ... 100, 50 is the voice's own
    pauses: bool  # a comma behind every word
    telephone: bool  # cut off at 4 kHz
    padding: tuple[float, float]  # seconds of silence before and behind
    snr: float  # dB of the signal over white noise


@dataclass(frozen=True)
class Corpus:
    """Utterances and their samples, float32 in -1 ... 1 at 16 kHz."""

    utterances: list[Utterance]
    samples: list[np.ndarray]

    def split(self, name: str, keywords: bool = False) -> Corpus:
        """The utterances of a split, or those of them that are one digit."""
        chosen = [i for i, u in enumerate(self.utterances) if u.split == name and (not keywords or u.text in DIGITS)]
        return Corpus([self.utterances[i] for i in chosen], [self.samples[i] for i in chosen])

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def minutes(self) -> float:
        """How long it is."""
        return sum(map(len, self.samples)) / RATE / 60


# ---- what is said ----------------------------------------------------------------------------------------------------


def cardinal(number: int, *, british: bool) -> str:
    """An integer 0 ... 999999 in words, with "and" before tens and ones if British."""
    words: list[str] = []
    if number >= 1000:
        words += [cardinal(number // 1000, british=british), "thousand"]
        number %= 1000
    if number >= 100:
        words += [DIGITS[number // 100], "hundred"]
        number %= 100
    if number or not words:
        words += ["and"] if words and british else []
        words += _below_hundred(number)
    return " ".join(words)


def _below_hundred(number: int) -> list[str]:
    if number < 10:
        return [DIGITS[number]]
    if number < 20:
        return [TEENS[number - 10]]
    return [TENS[number // 10 - 2], *([DIGITS[number % 10]] if number % 10 else [])]


def draw_text(kind: str, rng: np.random.Generator) -> str:
    """A number in words, of one of the ``KINDS``."""
    if kind == "digit":
        return str(rng.choice(DIGITS))
    if kind == "digits":
        return _digits(rng, 2, 5)
    low, high = {"tens": (10, 100), "hundreds": (100, 1000), "thousands": (1000, 20000), "decimal": (0, 100)}[kind]
    number = int(rng.integers(low, high))
    if kind != "tens" and rng.random() < 0.25:
        number -= number % (10 if number < 1000 else 100)  # round numbers, which are rare among all
    sign = "minus " if rng.random() < 0.15 else ""
    fraction = f" point {_digits(rng, 1, 3)}" if kind == "decimal" else ""
    return sign + cardinal(number, british=bool(rng.random() < 0.6)) + fraction


def _digits(rng: np.random.Generator, fewest: int, most: int) -> str:
    return " ".join(rng.choice(DIGITS, rng.integers(fewest, most + 1)))


def _belongs(text: str, split: str) -> bool:
    """Whether a split may have a text: of the longer ones a fifth is kept from training."""
    kept = zlib.crc32(text.encode()) % 5 == 0
    return text.count(" ") < 2 or kept == (split != "train")


# ---- how it is said --------------------------------------------------------------------------------------------------


def draw_voice(split: str, rng: np.random.Generator) -> str:
    """A voice of the split."""
    if split == "flite-slt":
        return f"flite {HELD_OUT_FLITE}"
    if split in ("train", "seen") and rng.random() < 0.12:
        return f"flite {rng.choice(FLITE)}"
    accent = HELD_OUT_ACCENT if split == "accent" else rng.choice(ACCENTS)
    return f"{accent}+{rng.choice(HELD_OUT_VARIANTS if split == 'voices' else VARIANTS)}"


def draw(split: str, rng: np.random.Generator) -> Utterance:
    """An utterance of the split."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    text = draw_text(kind, rng)
    while not _belongs(text, split):
        text = draw_text(kind, rng)
    return Utterance(
        split=split,
        text=text,
        voice=draw_voice(split, rng),
        rate=float(rng.uniform(0.75, 1.25)),
        pitch=int(rng.integers(25, 80)),
        pauses=bool(rng.random() < 0.2),
        telephone=bool(rng.random() < 0.15),
        padding=(float(rng.uniform(0.1, 0.3)), float(rng.uniform(0.1, 0.3))),
        snr=float(rng.uniform(35, 50)),
    )


def synthesise(utterance: Utterance, seed: int) -> np.ndarray:
    """The samples of an utterance, float32 at 16 kHz.  A speaking rate of 1 is 170 words a minute of eSpeak NG.

    Raises:
        OSError: espeak-ng or flite is not installed.
        subprocess.CalledProcessError: the program knows no such voice.
    """
    import soundfile
    import soxr

    speaker, _, name = utterance.voice.partition(" ")
    text = utterance.text.replace(" ", ", ") if utterance.pauses else utterance.text
    if speaker == "flite":
        stretch = f"duration_stretch={1 / utterance.rate:.3f}"
        command = ["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", "/dev/stdout"]
    else:
        speed, pitch = str(round(170 * utterance.rate)), str(utterance.pitch)
        command = ["espeak-ng", "-v", utterance.voice, "-s", speed, "-p", pitch, "--stdout", text]
    sound = subprocess.run(command, check=True, capture_output=True).stdout
    samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
    if utterance.telephone:
        samples, rate = soxr.resample(samples, rate, 8000), 8000
    samples = soxr.resample(samples, rate, RATE)
    return _recorded(samples, utterance, np.random.default_rng(seed))


def _recorded(samples: np.ndarray, utterance: Utterance, rng: np.random.Generator) -> np.ndarray:
    """Silence cut off, the utterance's own silence put on, noise added, and a peak of 0.5."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    before, behind = (round(seconds * RATE) for seconds in utterance.padding)
    samples = np.pad(samples[loud[0] : loud[-1] + 1], (before, behind))
    noise = rng.standard_normal(len(samples)) * samples.std() * 10 ** (-utterance.snr / 20)
    samples = samples + noise
    return (0.5 * samples / np.abs(samples).max()).astype(np.float32)


# ---- recordings of a person ------------------------------------------------------------------------------------------

# A prompt's file -> the word.
PROMPTS = {str(i): cardinal(i, british=False) for i in (*range(21), 30, 40, 50, 60, 70, 80, 90)} | {
    word: word for word in ("hundred", "thousand", "minus")
}


def recorded(folder: Path, seed: int) -> dict[str, Corpus]:
    """Two splits of a person's voice from recorded words: the words alone, and 100 numbers put together of them.

    The folder has 0.wav ... 20.wav, 30.wav ... 90.wav, hundred.wav, thousand.wav and minus.wav.
    """
    import soundfile
    import soxr

    words = {}
    for name, word in PROMPTS.items():
        samples, rate = soundfile.read(folder / f"{name}.wav", dtype="float32")
        words[word] = soxr.resample(samples, rate, RATE)
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    while len(texts) < 100:
        text = draw_text(str(rng.choice(["digits", "hundreds", "thousands"])), rng)
        if words.keys() >= set(text.split()):
            texts.append(text)
    splits = {}
    for split, chosen in {"recorded words": list(words), "recorded numbers": texts}.items():
        utterances = [replace(draw("seen", rng), split=split, text=text, voice="recording") for text in chosen]
        joined = [np.concatenate([words[word] for word in u.text.split()]) for u in utterances]
        sounds = [_recorded(sound, u, rng) for sound, u in zip(joined, utterances, strict=True)]
        splits[split] = Corpus(utterances, sounds)
    return splits


# ---- the corpus ------------------------------------------------------------------------------------------------------


def build(seed: int, sizes: dict[str, int] | None = None) -> Corpus:
    """Draw and synthesise all splits, one after the other."""
    utterances: list[Utterance] = []
    samples: list[np.ndarray] = []
    for index, (split, size) in enumerate((sizes or SIZES).items()):
        rng = np.random.default_rng([seed, index])
        with ThreadPoolExecutor(2) as pool:
            count = 0
            while count < size:  # in rounds, as some utterances turn out too long
                drawn = [draw(split, rng) for _ in range(size - count)]
                seeds = rng.integers(2**31, size=len(drawn)).tolist()
                for utterance, sound in zip(drawn, pool.map(synthesise, drawn, seeds), strict=True):
                    if len(sound) <= LONGEST * RATE:
                        utterances.append(utterance)
                        samples.append(sound)
                        count += 1
    return Corpus(utterances, samples)


def cached(folder: str | Path, seed: int, sizes: dict[str, int] | None = None) -> Corpus:
    """``build``, kept in a folder as samples of 16 bits so that the next run needs no synthesiser."""
    name = "-".join(str(size) for size in (seed, *(sizes or SIZES).values()))
    path = Path(folder) / f"spoken-numbers-{name}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = build(seed, sizes)
        np.savez(
            path,
            utterances=np.array(json.dumps([asdict(u) for u in made.utterances])),
            lengths=np.array([len(sound) for sound in made.samples]),
            samples=np.round(np.concatenate(made.samples) * 32768).astype(np.int16),
        )
    with np.load(path) as stored:
        utterances = [Utterance(**fields) for fields in json.loads(str(stored["utterances"]))]
        samples = np.split(stored["samples"].astype(np.float32) / 32768, np.cumsum(stored["lengths"])[:-1])
    return Corpus(utterances, samples)


# ---- which word comes after which ------------------------------------------------------------------------------------

UNIGRAMS = 0.2  # the share of the unigrams' probability in a bigram's


def language_model(corpus: Corpus) -> str:
    """An ARPA file of the bigrams of a corpus, interpolated with its unigrams (Jelinek and Mercer 1980).

    It has no <unk>: a decoder that uses it writes number words and nothing else.
    """
    sentences = [["<s>", *utterance.text.split(), "</s>"] for utterance in corpus.utterances]
    words = Counter(word for sentence in sentences for word in sentence[1:])
    before = Counter(word for sentence in sentences for word in sentence[:-1])
    pairs = Counter(pair for sentence in sentences for pair in pairwise(sentence))
    share = {word: count / words.total() for word, count in words.items()}
    backoff = math.log10(UNIGRAMS)
    lines = [
        "\\data\\",
        f"ngram 1={len(words) + 1}",
        f"ngram 2={len(pairs)}",
        "",
        "\\1-grams:",
        f"-99\t<s>\t{backoff:.4f}",
    ]
    ends = dict.fromkeys(words, f"\t{backoff:.4f}") | {"</s>": ""}  # nothing comes after it
    lines += [f"{math.log10(share[word]):.4f}\t{word}{ends[word]}" for word in sorted(words)]
    lines += ["", "\\2-grams:"]
    for (first, second), count in sorted(pairs.items()):
        p = (1 - UNIGRAMS) * count / before[first] + UNIGRAMS * share[second]
        lines.append(f"{math.log10(p):.4f}\t{first} {second}")
    return "\n".join([*lines, "", "\\end\\", ""])
