"""The glosses of WordNet 3.0 and their lexicographer categories, read from WordNet's data files (wndb(5WN)).

A gloss is a definition and, after it, examples in quotes: ``a mode of action; "if you persist in that course ..."``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from d2v_ref.errors import InputError

# The lexicographer files in the order of their numbers (lexnames(5WN)).
CATEGORIES: tuple[str, ...] = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute"),
    *("noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group"),
    *("noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant"),
    *("noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state"),
    *("noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication"),
    *("verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
HELD_OUT = 2000  # synsets of the validation split, and of the test split


@dataclass(frozen=True)
class Synset:
    """One sense.

    Attributes:
        gloss: the definition and its examples.
        definition: the gloss up to the first example.
        category: index in CATEGORIES.
    """

    gloss: str
    definition: str
    category: int

    @property
    def examples(self) -> frozenset[str]:
        return frozenset(re.findall(r'"([^"]+)"', self.gloss))


@dataclass(frozen=True)
class Splits:
    train: list[Synset]
    validation: list[Synset]
    test: list[Synset]


def read(folder: Path) -> list[Synset]:
    """Every synset, in the order of the files.

    Raises:
        InputError: the folder lacks a data file, or a line is not one of WordNet's.
    """
    synsets = []
    for path in (folder / name for name in FILES):
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            hint = "Install WordNet 3.0 (Debian: wordnet-base), and give the folder that holds its data files"
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"is no data file of WordNet: {reason}", path=path, hint=hint) from None
        for number, line in enumerate(lines, 1):
            if line.startswith("  "):  # the licence stands above the data
                continue
            data, bar, gloss = line.partition(" | ")
            fields, gloss = data.split(), " ".join(gloss.split())
            if not (bar and gloss and len(fields) > 1 and fields[1].isdecimal() and int(fields[1]) < len(CATEGORIES)):
                raise InputError(f"line {number} is no synset", path=path, got=line[:60])
            synsets.append(Synset(gloss, re.split(r';\s*"', gloss)[0], int(fields[1])))
    return synsets


def drawn(texts: Iterable[str], seed: int) -> list[str]:
    """The distinct texts in an order that looks random and is the same everywhere: that of SHA-256("SEED TEXT")."""
    return sorted(set(texts), key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())


def split(synsets: list[Synset], seed: int) -> Splits:
    """Held out are whole definitions: what shares a definition or an example with a held-out synset is not trained on.

    In the order of ``drawn``, the first HELD_OUT definitions are the test split and the next HELD_OUT the validation
    split.  Of several synsets with one definition, only the first is in the split.
    """
    order = drawn((synset.definition for synset in synsets), seed)
    first = {synset.definition: synset for synset in reversed(synsets)}
    test, validation = ([first[text] for text in order[i : i + HELD_OUT]] for i in (0, HELD_OUT))
    definitions = {synset.definition for synset in (*test, *validation)}
    examples = frozenset().union(*(synset.examples for synset in (*test, *validation)))
    train = [s for s in synsets if s.definition not in definitions and not s.examples & examples]
    return Splits(train, validation, test)
