"""Train ``tiny-audio``: a Data2VecAudio that writes down spoken numbers and tells spoken digits apart.

python -m conformance.training.tiny_audio --cache FOLDER                     # about an hour on one core
python -m conformance.training.tiny_audio --cache FOLDER --out try --steps-scale 0.01

Stage 1 is data2vec's own objective on the sound alone.  Stage 2 fine-tunes the encoder and both heads together: CTC on
characters, and a classification of single digits.  The corpus is made by espeak-ng and flite, which have to be
installed, and is kept in the cache folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecAudioForSequenceClassification,
    Data2VecAudioModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
)

from conformance.training import common, spoken_numbers
from conformance.training.objective import Pretraining
from conformance.training.spoken_numbers import DIGITS, RATE, Corpus
from d2v_ref.checkpoints import write_json
from d2v_ref.pretraining import AUDIO, span_mask
from d2v_ref.tasks.metrics import edit_distance

Batch = dict[str, torch.Tensor]

# The tokens of CTC; no number is written with a q.
VOCABULARY = ("<pad>", "<s>", "</s>", "z", "|", *"etaonihsrdlumwcfgypbvk'xj", "<unk>")

OBJECTIVE = replace(AUDIO, average_top_k_layers=3, ema_decay=0.99, ema_end_decay=0.999, ema_anneal_end_step=500)


@dataclass(frozen=True)
class Settings:
    """What a run is made of."""

    seed: int = 7
    pretraining_steps: int = 600
    pretraining_rate: float = 5e-4
    mask_prob: float = 0.65
    mask_length: int = 6
    fine_tuning_steps: int = 4000
    fine_tuning_rate: float = 7e-4
    digits_first: float = 0.1  # the share of fine-tuning with the classification of digits alone
    short_first: float = 0.2  # where CTC goes over from numbers of one and two words to all
    second_cycle_steps: int = 1700  # again from the peak to 0, with half the augmentation and more utterances
    second_cycle_utterances: int = 9600
    second_cycle_rate: float = 4e-4
    batch_seconds: float = 24.0
    keyword_every: int = 3  # steps; a batch of single digits is added to the loss
    keyword_batch_seconds: float = 12.0
    weight_decay: float = 0.01


def configuration() -> Data2VecAudioConfig:
    """The model's: 50 frames a second.

    Convolutions have a bias: without one, the layer norm behind each takes away how loud a frame is.  Weights start at
    about 1 / sqrt(hidden_size); from Hugging Face's 0.02, which suits wider models, so narrow a one hardly learns.
    """
    return Data2VecAudioConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        conv_dim=(64, 96, 96, 96, 96),
        conv_kernel=(20, 8, 4, 4, 4),
        conv_stride=(10, 4, 2, 2, 2),
        conv_bias=True,
        num_feat_extract_layers=5,
        num_conv_pos_embeddings=2,
        num_conv_pos_embedding_groups=16,
        conv_pos_kernel_size=19,
        initializer_range=0.09,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        final_dropout=0.0,
        classifier_proj_size=64,
        layerdrop=0.0,
        mask_time_prob=0.05,
        mask_time_length=5,
        mask_time_min_masks=0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        id2label=dict(enumerate(DIGITS)),
        label2id={word: i for i, word in enumerate(DIGITS)},
    )


# ---- batches ---------------------------------------------------------------------------------------------------------


def augmented(sound: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Another recording of an utterance: faster and higher or slower and lower, another tone, noise, silence."""
    speed = rng.uniform(1 - 0.12 * strength, 1 + 0.14 * strength)
    at = np.arange(0, len(sound) - 1, speed)
    sound = np.interp(at, np.arange(len(sound)), sound)
    sound[1:] += strength * rng.uniform(-0.3, 0.3) * sound[:-1]
    sound = np.pad(sound, rng.integers(0, RATE // 8, 2))
    if rng.random() < 0.7 * strength:
        sound += rng.standard_normal(len(sound)) * sound.std() * 10 ** (-rng.uniform(15, 40) / 20)
    return sound.astype(np.float32)


def batches(sounds: list[np.ndarray], seconds: float, rng: np.random.Generator) -> Iterator[list[int]]:
    """Indices of utterances of similar length, of so many seconds with their padding; without end."""
    lengths = np.array([len(sound) for sound in sounds])
    while True:
        order = rng.permutation(len(sounds))
        made: list[list[int]] = []
        for pool in np.array_split(order, max(1, len(order) // 256)):
            batch: list[int] = []
            for index in sorted(pool.tolist(), key=lambda i: lengths[i]):
                if batch and (len(batch) + 1) * lengths[index] > seconds * RATE:
                    made.append(batch)
                    batch = []
                batch.append(index)
            made.append(batch)
        for i in rng.permutation(len(made)):
            yield made[i]


class Processor:
    """Sounds and texts to tensors, with Hugging Face's own feature extractor and tokenizer."""

    def __init__(self, folder: Path) -> None:
        vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "vocab.json", vocabulary)
        self.extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
        self.tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
        self.extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def sounds(self, sounds: list[np.ndarray]) -> Batch:
        """input_values and attention_mask, padded."""
        return dict(self.extractor(sounds, sampling_rate=RATE, padding=True, return_tensors="pt"))

    def labels(self, texts: list[str]) -> torch.Tensor:
        """Characters' ids, padded with -100."""
        rows = [torch.tensor(self.tokenizer(text).input_ids) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


# ---- the two stages --------------------------------------------------------------------------------------------------


def pretrain(
    student: Data2VecAudioModel,
    corpus: Corpus,
    processor: Processor,
    settings: Settings,
    steps: int,
    curve: common.Curve,
    rng: np.random.Generator,
) -> None:
    """Stage 1: data2vec's objective.  A batch's utterances are cut to the shortest, so that nothing is padded."""
    task = Pretraining(student, OBJECTIVE).train()
    optimizer = common.optimizer_of(task.trained(), settings.weight_decay)
    losses, deviations = [], []
    for step, chosen in zip(range(steps), batches(corpus.samples, settings.batch_seconds, rng), strict=False):
        sounds = [augmented(corpus.samples[i], rng) for i in chosen]
        shortest = min(map(len, sounds))
        starts = [int(rng.integers(len(sound) - shortest + 1)) for sound in sounds]
        inputs = processor.sounds([sound[a : a + shortest] for sound, a in zip(sounds, starts, strict=True)])
        values = {"input_values": inputs["input_values"]}
        frames = int(student._get_feat_extract_output_lengths(shortest))
        mask = torch.from_numpy(
            span_mask((len(sounds), frames), rng, mask_prob=settings.mask_prob, mask_length=settings.mask_length)
        )
        loss = task.loss(values, {**values, "mask_time_indices": mask}, mask)
        common.update(optimizer, loss, common.learning_rate(step, steps, settings.pretraining_rate))
        task.update_teacher(step)
        losses.append(loss.item())
        if (step + 1) % max(1, steps // 10) == 0:
            deviations.append(task.targets(values).std(dim=(0, 1)).mean().item())
            curve.point("pre-training", step + 1, loss=np.mean(losses), target_std=deviations[-1])
            losses.clear()


def fine_tune(
    ctc: Data2VecAudioForCTC,
    classifier: Data2VecAudioForSequenceClassification,
    corpus: Corpus,
    processor: Processor,
    settings: Settings,
    steps: int,
    curve: common.Curve,
    rng: np.random.Generator,
    *,
    second: bool = False,
) -> None:
    """Stage 2, a cycle of it: CTC in every step, and single digits in some."""
    digits_first, short_first = (0.0, 0.0) if second else (settings.digits_first, settings.short_first)
    peak, strength = (settings.second_cycle_rate, 0.5) if second else (settings.fine_tuning_rate, 1.0)
    train, words, seen = corpus.split("train"), corpus.split("train", keywords=True), corpus.split("seen")
    seen = Corpus(seen.utterances[:100], seen.samples[:100])
    short = [i for i, u in enumerate(train.utterances) if u.text.count(" ") < 2]
    of_short = batches([train.samples[i] for i in short], settings.batch_seconds, rng)
    of_all = batches(train.samples, settings.batch_seconds, rng)
    parameters = {id(p): p for model in (ctc, classifier) for p in model.parameters()}
    optimizer = common.optimizer_of(parameters.values(), settings.weight_decay)
    of_words = batches(words.samples, settings.keyword_batch_seconds, rng)
    losses, word_losses = [], []
    for step in range(steps):
        ctc.train()
        classifier.train()
        loss = torch.zeros(())
        if step >= digits_first * steps:
            brief = step < short_first * steps
            chosen = [short[i] for i in next(of_short)] if brief else next(of_all)
            inputs = processor.sounds([augmented(train.samples[i], rng, strength) for i in chosen])
            loss = ctc(**inputs, labels=processor.labels([train.utterances[i].text for i in chosen])).loss
            losses.append(loss.item())
        if step < digits_first * steps or step % settings.keyword_every == 0:
            chosen = next(of_words)
            inputs = processor.sounds([augmented(words.samples[i], rng, strength) for i in chosen])
            labels = torch.tensor([DIGITS.index(words.utterances[i].text) for i in chosen])
            word_loss = classifier(**inputs, labels=labels).loss
            word_losses.append(word_loss.item())
            loss = loss + word_loss
        common.update(optimizer, loss, common.learning_rate(step, steps, peak))
        if (step + 1) % max(1, steps // (8 if second else 16)) == 0:
            values = evaluate(ctc, classifier, seen, processor)
            means = {name: np.mean(x) for name, x in (("ctc", losses), ("keyword", word_losses)) if x}
            curve.point("second cycle" if second else "fine-tuning", step + 1, **means, **values)
            losses.clear()
            word_losses.clear()


# ---- how good it is --------------------------------------------------------------------------------------------------


@torch.inference_mode()
def evaluate(
    ctc: Data2VecAudioForCTC,
    classifier: Data2VecAudioForSequenceClassification,
    corpus: Corpus,
    processor: Processor,
) -> dict[str, float]:
    """Word and character error rate of all utterances, and accuracy on single digits; one utterance at a time."""
    ctc.eval()
    classifier.eval()
    words, characters, right = [], [], []
    for utterance, sound in zip(corpus.utterances, corpus.samples, strict=True):
        inputs = processor.sounds([sound])
        text = processor.tokenizer.decode(ctc(**inputs).logits[0].argmax(dim=-1).tolist())
        words.append((edit_distance(utterance.text.split(), text.split()), len(utterance.text.split())))
        characters.append((edit_distance(utterance.text, text), len(utterance.text)))
        if utterance.text in DIGITS:
            right.append(DIGITS[int(classifier(**inputs).logits.argmax())] == utterance.text)
    wer, cer = (np.sum([errors for errors, _ in x]) / np.sum([count for _, count in x]) for x in (words, characters))
    accuracy = {"keyword_accuracy": float(np.mean(right))} if right else {}
    return {"wer": float(wer), "cer": float(cer), **accuracy}


# ---- samples ---------------------------------------------------------------------------------------------------------

SAMPLES = {"voices": 8, "accent": 3, "flite-slt": 3}  # of numbers of several words, 2.2 s at most
SAMPLE_SECONDS = 2.2


def write_samples(corpus: Corpus, folder: Path, rng: np.random.Generator) -> None:
    """Held-out utterances as FLAC and ``samples.json``: drawn at random before any model has heard them."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for utterance, sound in drawn_samples(corpus, rng):
        name = utterance.text.replace(" ", "-") + ".flac"
        soundfile.write(folder / name, np.round(sound * 32768).astype(np.int16), RATE, subtype="PCM_16")
        speaker, _, voice = utterance.voice.partition(" ")
        said = f"Flite's voice {voice}" if speaker == "flite" else f"eSpeak NG's voice {utterance.voice}"
        task = "audio-classification" if utterance.text in DIGITS else "automatic-speech-recognition"
        what = "accent" if utterance.split == "accent" else "voice"
        entries.append(
            {
                "task": task,
                "input": name,
                "truth": utterance.text,
                "held_out": f"the {what} ({said})",
            }
        )
    write_json(folder / "samples.json", entries)


def drawn_samples(corpus: Corpus, rng: np.random.Generator) -> list[tuple[spoken_numbers.Utterance, np.ndarray]]:
    """Numbers of several words, each once, and each digit once in a held-out voice."""
    drawn: dict[str, tuple[spoken_numbers.Utterance, np.ndarray]] = {}
    for split, count in SAMPLES.items():
        part, wanted = corpus.split(split), len(drawn) + count
        for i in rng.permutation(len(part)):
            utterance, sound = part.utterances[i], part.samples[i]
            fits = utterance.text not in DIGITS and len(sound) <= SAMPLE_SECONDS * RATE
            if fits and len(drawn) < wanted:
                drawn.setdefault(utterance.text, (utterance, sound))
    digits = corpus.split("voices", keywords=True)
    for i in rng.permutation(len(digits)):
        drawn.setdefault(digits.utterances[i].text, (digits.utterances[i], digits.samples[i]))
    return list(drawn.values())


# ---- the run ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=common.MODELS / "tiny-audio")
    parser.add_argument("--cache", type=Path, required=True, help="where the corpus is kept (250 MB)")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="for a smoke run: the share of the steps")
    parser.add_argument("--second-cycle", action="store_true", help="only that, from what the first left in --out")
    parser.add_argument("--recordings", type=Path, help="recorded words to test on: a folder of 0.wav ... 90.wav")
    arguments = parser.parse_args()
    settings = Settings()
    corpus = spoken_numbers.cached(arguments.cache, settings.seed)
    curve = common.Curve({**asdict(settings), "objective": asdict(OBJECTIVE), "steps_scale": arguments.steps_scale})
    for split in spoken_numbers.SIZES:
        part = corpus.split(split)
        curve.facts["settings"][f"data {split}"] = {
            "utterances": len(part),
            "digits": len(corpus.split(split, keywords=True)),
            "minutes": round(part.minutes, 1),
        }
    rng = common.seeded(settings.seed)
    processor = Processor(arguments.out)
    write_samples(corpus, arguments.out / "samples", np.random.default_rng(settings.seed))
    steps = [
        max(20, round(n * arguments.steps_scale))
        for n in (settings.pretraining_steps, settings.fine_tuning_steps, settings.second_cycle_steps)
    ]
    if not arguments.second_cycle:
        ctc = Data2VecAudioForCTC(configuration())
        classifier = Data2VecAudioForSequenceClassification(configuration())
        classifier.data2vec_audio = ctc.data2vec_audio
        torch.nn.init.zeros_(ctc.lm_head.weight)  # so that CTC's first steps, which are large, don't upset the encoder
        pretrain(ctc.data2vec_audio, corpus.split("train"), processor, settings, steps[0], curve, rng)
        fine_tune(ctc, classifier, corpus, processor, settings, steps[1], curve, rng)
        finish(ctc, classifier, corpus, processor, curve, arguments)
    curve.continue_from(arguments.out)
    rng = common.seeded(settings.seed + 1)
    more = spoken_numbers.cached(arguments.cache, settings.seed + 1, {"train": settings.second_cycle_utterances})
    corpus = Corpus(corpus.utterances + more.utterances, corpus.samples + more.samples)
    ctc = Data2VecAudioForCTC.from_pretrained(arguments.out, dtype=torch.float32)
    classifier = Data2VecAudioForSequenceClassification.from_pretrained(arguments.out, dtype=torch.float32)
    classifier.data2vec_audio = ctc.data2vec_audio
    fine_tune(ctc, classifier, corpus, processor, settings, steps[2], curve, rng, second=True)
    finish(ctc, classifier, corpus, processor, curve, arguments)


def finish(
    ctc: Data2VecAudioForCTC,
    classifier: Data2VecAudioForSequenceClassification,
    corpus: Corpus,
    processor: Processor,
    curve: common.Curve,
    arguments: argparse.Namespace,
) -> None:
    """Save the checkpoint in float16, and measure it on every split."""
    common.rounded_to_float16(ctc)
    common.rounded_to_float16(classifier)
    common.save([ctc, classifier], arguments.out)
    text = spoken_numbers.language_model(corpus.split("train"))
    (arguments.out / "numbers.arpa").write_text(text, encoding="utf-8")
    tests = {split: corpus.split(split) for split in spoken_numbers.SIZES if split != "train"}
    if arguments.recordings:
        tests |= spoken_numbers.recorded(arguments.recordings, Settings().seed)
    for split, part in tests.items():
        for name, value in evaluate(ctc, classifier, part, processor).items():
            curve.metric(f"{split} {name}", value)
    curve.write(arguments.out)


if __name__ == "__main__":
    main()
