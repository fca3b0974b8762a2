"""Trains d2v_ref/models/tiny-text: the words of WordNet's glosses, and the category of what a gloss defines.

    python -m conformance.training.tiny_text [--wordnet FOLDER] [--out FOLDER] [--steps-scale 0.01]

Stage 1 is data2vec's objective on single glosses. Stage 2 trains the encoder with both heads: in every batch tokens are
hidden as BERT hides them, and the loss of the hidden tokens and that of the categories are added.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    AddedToken,
    Data2VecTextConfig,
    Data2VecTextForMaskedLM,
    Data2VecTextForSequenceClassification,
    RobertaTokenizerFast,
)

from conformance.training import common, wordnet
from conformance.training.objective import Pretraining
from d2v_ref.checkpoints import write_json
from d2v_ref.pretraining import TEXT, bert_mask

SEED = 0
VOCABULARY = 2816
MAX_LENGTH = 128  # tokens, special tokens included
BATCH = 64
SAMPLES = 24  # of each task
OBJECTIVE = dataclasses.replace(
    TEXT, average_top_k_layers=3, ema_decay=0.99, ema_end_decay=0.999, ema_anneal_end_step=2000
)


@dataclass(frozen=True)
class Recipe:
    """Both stages' settings.

    Attributes:
        definitions: how many rows of stage 2 are the definition alone, without the examples.
        masked: how many tokens are hidden in stage 2; whole: in how many rows none is.
    """

    pretraining_steps: int = 3000
    pretraining_rate: float = 1e-3
    steps: int = 13000
    rate: float = 1.5e-3
    definitions: float = 0.5
    masked: float = 0.15
    whole: float = 0.25
    points: int = 13  # of the curve, in stage 2


# ---- texts -----------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str]) -> RobertaTokenizerFast:
    """Byte-level BPE of VOCABULARY tokens, with RoBERTa's special tokens at RoBERTa's places."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    found = json.loads(backend.to_str())["model"]
    return RobertaTokenizerFast(
        vocab={**found["vocab"], "<mask>": VOCABULARY - 1},
        merges=[tuple(pair) for pair in found["merges"]],
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=MAX_LENGTH,
    )


@dataclass(frozen=True)
class Rows:
    """A split as token ids: whole glosses, definitions alone, and the category of each."""

    glosses: list[np.ndarray]
    definitions: list[np.ndarray]
    categories: np.ndarray


def rows_of(synsets: Sequence[wordnet.Synset], tokenizer: RobertaTokenizerFast) -> Rows:
    def ids(texts: list[str]) -> list[np.ndarray]:
        return [np.array(row) for row in tokenizer(texts, truncation=True)["input_ids"]]

    categories = np.array([synset.category for synset in synsets])
    return Rows(ids([s.gloss for s in synsets]), ids([s.definition for s in synsets]), categories)


def some(rows: Rows, generator: np.random.Generator) -> Rows:
    """As many rows, drawn, as the held-out splits have."""
    chosen = generator.choice(len(rows.glosses), wordnet.HELD_OUT, replace=False)
    return Rows([rows.glosses[i] for i in chosen], [rows.definitions[i] for i in chosen], rows.categories[chosen])


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(B, T of the longest), with <pad> (1) to the right."""
    table = np.full((len(rows), max(map(len, rows))), 1)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def batches(lengths: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Every row once, BATCH of about one length at a time: sorted within 50 batches that are drawn at random."""
    order, group = generator.permutation(len(lengths)), 50 * BATCH
    groups = [order[i : i + group] for i in range(0, len(order), group)]
    chunks = [chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in groups]
    found = [chunk[i : i + BATCH] for chunk in chunks for i in range(0, len(chunk), BATCH)]
    for i in generator.permutation(len(found)):
        yield found[i]


def endless(
    rows: Rows, generator: np.random.Generator, definitions: float = 0.0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of ids (B, T) and categories (B,), epoch after epoch; of a ``definitions``-th the definition alone."""
    while True:
        short = generator.random(len(rows.glosses)) < definitions
        texts = [b if alone else a for a, b, alone in zip(rows.glosses, rows.definitions, short, strict=True)]
        for chosen in batches(np.array([len(text) for text in texts]), generator):
            yield padded([texts[i] for i in chosen]), rows.categories[chosen]


def hide(ids: np.ndarray, generator: np.random.Generator, probability: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees of ids (B, T), and which tokens it has to tell."""
    return bert_mask(ids, generator, mask_token_id=VOCABULARY - 1, vocab_size=VOCABULARY, mlm_probability=probability)


def questions(glosses: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A split as perplexity is measured on it: ids, what is seen of them, what is selected; (B, T) each.

    Every row has masks of its own, drawn by its number in the split, whatever it is batched with.
    """
    order = sorted(range(len(glosses)), key=lambda i: len(glosses[i]))
    for start in range(0, len(order), BATCH):
        chunk = order[start : start + BATCH]
        hidden = [hide(glosses[i][None], np.random.default_rng((SEED, i))) for i in chunk]
        ids = padded([glosses[i] for i in chunk])
        selected = np.zeros(ids.shape, bool)
        for row, (_, places) in zip(selected, hidden, strict=True):
            row[: places.shape[1]] = places[0]
        yield ids, padded([seen[0] for seen, _ in hidden]), selected


# ---- the model -------------------------------------------------------------------------------------------------------


def configuration() -> Data2VecTextConfig:
    return Data2VecTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=MAX_LENGTH + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.1,
        tie_word_embeddings=True,
        id2label=dict(enumerate(wordnet.CATEGORIES)),
        label2id={name: i for i, name in enumerate(wordnet.CATEGORIES)},
    )


class Model(torch.nn.Module):
    """One encoder with both heads."""

    def __init__(self) -> None:
        super().__init__()
        self.words = Data2VecTextForMaskedLM(configuration())
        self.categories = Data2VecTextForSequenceClassification(configuration())
        self.categories.data2vec_text = self.encoder = self.words.data2vec_text

    def forward(self, ids: torch.Tensor, selected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vocabulary's logits of the selected tokens (N, V), and the categories' (B, C)."""
        states = self.encoder(**inputs(ids)).last_hidden_state
        return self.words.lm_head(states[selected]), self.categories.classifier(states)


def inputs(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


# ---- training --------------------------------------------------------------------------------------------------------


def pretrain(model: Model, rows: Rows, recipe: Recipe, generator: np.random.Generator, curve: common.Curve) -> None:
    """Stage 1. The curve has the mean loss since the last point, and the targets' variance, which shows a collapse."""
    stage = Pretraining(model.encoder, OBJECTIVE).train()
    optimizer = common.optimizer_of(stage.trained())
    source, losses = endless(rows, generator), []
    for step in range(recipe.pretraining_steps):
        ids, _ = next(source)
        seen, selected = map(torch.from_numpy, hide(ids, generator))
        whole = torch.from_numpy(ids)
        loss = stage.loss(inputs(whole), inputs(seen), selected)
        common.update(optimizer, loss, common.learning_rate(step, recipe.pretraining_steps, recipe.pretraining_rate))
        stage.update_teacher(step)
        losses.append(loss.item())
        if (step + 1) % max(recipe.pretraining_steps // 8, 1) == 0:
            variance = stage.targets(inputs(whole))[whole != 1].var(dim=0).mean().item()
            curve.point("data2vec", step + 1, loss=np.mean(losses), target_variance=variance)
            losses.clear()


def fine_tune(
    model: Model, rows: Rows, validation: Rows, recipe: Recipe, generator: np.random.Generator, curve: common.Curve
) -> None:
    """Stage 2."""
    optimizer = common.optimizer_of(model.parameters())
    source, losses = endless(rows, generator, recipe.definitions), []
    for step in range(recipe.steps):
        ids, categories = next(source)
        seen, selected = hide(ids, generator, recipe.masked)
        whole = generator.random((len(ids), 1)) < recipe.whole
        seen, selected = np.where(whole, ids, seen), selected & ~whole
        words, scores = model.train()(torch.from_numpy(seen), torch.from_numpy(selected))
        mlm = F.cross_entropy(words, torch.from_numpy(ids[selected]))
        category = F.cross_entropy(scores, torch.from_numpy(categories))
        common.update(optimizer, mlm + category, common.learning_rate(step, recipe.steps, recipe.rate))
        losses.append((mlm.item(), category.item()))
        if (step + 1) % max(recipe.steps // recipe.points, 1) == 0:
            mean = np.mean(losses, axis=0)
            found = measured(model, validation)
            curve.point("heads", step + 1, mlm_loss=mean[0], category_loss=mean[1], **found)
            losses.clear()


# ---- measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measured(model: Model, rows: Rows) -> dict[str, float]:
    """Of the hidden tokens of the glosses: perplexity, and how many are the first, and among the first five.

    Of the definitions' categories: how many are the first, and among the first three, and F1 averaged over the
    categories that the split has.
    """
    model.eval()
    ranks, losses = [], []
    for ids, seen, selected in questions(rows.glosses):
        words, _ = model(torch.from_numpy(seen), torch.from_numpy(selected))
        truth = torch.from_numpy(ids[selected])
        losses.append(F.cross_entropy(words.double(), truth, reduction="none"))
        ranks.append(rank(words, truth))
    scores = []
    for i in range(0, len(rows.definitions), BATCH):
        ids = padded(rows.definitions[i : i + BATCH])
        scores.append(model(torch.from_numpy(ids), torch.zeros(ids.shape, dtype=torch.bool))[1])
    place, categories = torch.cat(ranks), torch.cat(scores)
    category_place = rank(categories, torch.from_numpy(rows.categories))
    return {
        "perplexity": torch.cat(losses).mean().exp().item(),
        "token_top1": (place < 1).double().mean().item(),
        "token_top5": (place < 5).double().mean().item(),
        "category_accuracy": (category_place < 1).double().mean().item(),
        "category_top3": (category_place < 3).double().mean().item(),
        "category_macro_f1": macro_f1(categories.argmax(dim=1).numpy(), rows.categories),
    }


def rank(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How many of the logits (N, C) are larger than that of the truth (N,)."""
    return (logits > logits.gather(1, truth[:, None])).sum(dim=1)


def macro_f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN) of each class that the truth has, averaged."""
    scores = []
    for c in np.unique(truth):
        hits = ((predicted == c) & (truth == c)).sum()
        scores.append(2 * hits / ((predicted == c).sum() + (truth == c).sum()))
    return float(np.mean(scores))


def baselines(train: Rows, test: Rows) -> dict[str, float]:
    """What needs no model: the tokens' frequencies, and always the most frequent category."""
    counts = np.bincount(np.concatenate([row[1:-1] for row in train.glosses]), minlength=VOCABULARY) + 1
    hidden = np.concatenate([ids[selected] for ids, _, selected in questions(test.glosses)])
    majority = Counter(train.categories.tolist()).most_common(1)[0][0]
    return {
        "unigram_perplexity": float(np.exp(-np.log(counts[hidden] / counts.sum()).mean())),
        "unigram_top1": float((hidden == counts.argmax()).mean()),
        "majority_accuracy": float((test.categories == majority).mean()),
        "majority_macro_f1": macro_f1(np.full_like(test.categories, majority), test.categories),
    }


def accuracy_by_category(model: Model, rows: Rows) -> dict[str, Any]:
    """Of each category that the split has: how many synsets, and how many of them are told right."""
    with torch.no_grad():
        ids = [torch.from_numpy(row[None]) for row in rows.definitions]
        found = [int(model.eval()(x, torch.zeros(x.shape, dtype=torch.bool))[1].argmax()) for x in ids]
    right = np.array(found) == rows.categories
    return {
        wordnet.CATEGORIES[c]: [int((rows.categories == c).sum()), int(right[rows.categories == c].sum())]
        for c in np.unique(rows.categories).tolist()
    }


# ---- samples ---------------------------------------------------------------------------------------------------------


def samples(test: Sequence[wordnet.Synset], tokenizer: RobertaTokenizerFast) -> list[dict[str, str]]:
    """Texts of the test split: definitions to classify, and glosses with one word to fill in, drawn by the seed."""
    held_out = "a gloss of the test split: no text with its definition or one of its examples was trained on"
    generator = random.Random(SEED)
    by_definition = {synset.definition: synset for synset in test}
    definitions = wordnet.drawn(by_definition, SEED + 1)[:SAMPLES]
    found = [("text-classification", text, wordnet.CATEGORIES[by_definition[text].category]) for text in definitions]
    masked = (hide_word(text, tokenizer, generator) for text in wordnet.drawn((s.gloss for s in test), SEED + 2))
    pairs = [pair for pair in masked if pair is not None][:SAMPLES]
    found += [("fill-mask", text, word) for text, word in pairs]
    return [{"task": task, "input": text, "truth": truth, "held_out": held_out} for task, text, truth in found]


def hide_word(gloss: str, tokenizer: RobertaTokenizerFast, generator: random.Random) -> tuple[str, str] | None:
    """The gloss without one of its words of four letters or more that is a single token, and the word; None if none."""
    words = [
        match
        for match in re.finditer(r"(?<= )[a-z]{4,}(?![\w'-])", gloss)
        if tokenizer.tokenize(f" {match[0]}") == [f"Ġ{match[0]}"]
    ]
    if not words:
        return None
    word = generator.choice(words)
    return f"{gloss[: word.start()]}<mask>{gloss[word.end() :]}", word[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="the data files' folder")
    parser.add_argument("--out", type=Path, default=common.MODELS / "tiny-text")
    parser.add_argument("--steps-scale", type=float, default=1.0)
    options = parser.parse_args()
    recipe = Recipe()
    recipe = dataclasses.replace(
        recipe,
        pretraining_steps=round(recipe.pretraining_steps * options.steps_scale),
        steps=round(recipe.steps * options.steps_scale),
    )
    splits = wordnet.split(wordnet.read(options.wordnet), SEED)
    tokenizer = train_tokenizer([synset.gloss for synset in splits.train])
    train, validation, test = (rows_of(s, tokenizer) for s in (splits.train, splits.validation, splits.test))
    settings = {"seed": SEED, "batch": BATCH, "objective": dataclasses.asdict(OBJECTIVE), **dataclasses.asdict(recipe)}
    sizes = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
    tokens = sum(map(len, train.glosses))
    curve = common.Curve({**settings, "splits": sizes, "train_tokens": tokens})

    generator = common.seeded(SEED)
    model = Model()
    pretrain(model, train, recipe, generator, curve)
    fine_tune(model, train, validation, recipe, generator, curve)

    common.rounded_to_float16(model)
    for name, rows in {"train": some(train, generator), "validation": validation, "test": test}.items():
        for metric, value in measured(model, rows).items():
            curve.metric(f"{name}_{metric}", value)
    for metric, value in baselines(train, test).items():
        curve.metric(metric, value)
    curve.facts["test_categories"] = accuracy_by_category(model, test)
    tokenizer.save_pretrained(options.out)
    common.save([model.words, model.categories], options.out)
    (options.out / "samples").mkdir(exist_ok=True)
    write_json(options.out / "samples" / "samples.json", samples(splits.test, tokenizer))
    curve.write(options.out)


if __name__ == "__main__":
    main()
