"""Trains tiny-vision: a Data2VecVision encoder of width 64 with two heads, a digit's class and a map of digits.

    python -m conformance.training.tiny_vision [--out FOLDER] [--steps-scale 0.01]

Stage 1 is data2vec's objective on pictures without labels; stage 2 fine-tunes the encoder and both heads together, the
losses added, in bfloat16 where torch's autocast has it.

The folder gets weights, settings, samples and curve.json with the results; its README.md tells them.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    BeitImageProcessorPil,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionForSemanticSegmentation,
)

from conformance.training.common import (
    MODELS,
    Curve,
    learning_rate,
    optimizer_of,
    rounded_to_float16,
    save,
    seeded,
    update,
)
from conformance.training.digits import (
    BACKGROUND,
    LABELS,
    PICTURE,
    Digits,
    Pen,
    ink,
    picture,
    plain,
    printed,
    scene,
    splits,
)
from conformance.training.objective import Pretraining
from d2v_ref.checkpoints import write_json
from d2v_ref.pretraining import VISION, block_mask
from d2v_ref.processing.segmentation_maps import indexed_png, label_colours

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "pretraining_steps": 400,
    "pretraining_peak": 1e-3,
    "steps": 2600,
    "peak": 1.5e-3,
    "weight_decay": 0.05,
    "pictures": 64,  # of a batch
    "scenes": 16,
    "average_top_k_layers": 4,
    "ema_decay": 0.99,
    "ema_end_decay": 0.998,
}
NO_DIGIT, PLAIN = 1 / 11, 0.35  # shares of a batch's pictures
TEST_SCENES = 200


def config() -> Data2VecVisionConfig:
    """The shape: six layers, 8 x 8 patches, and relative positions as the base model has them."""
    return Data2VecVisionConfig(
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=32,
        patch_size=4,
        use_mask_token=True,
        use_relative_position_bias=True,
        layer_scale_init_value=0.5,
        initializer_range=0.1,
        drop_path_rate=0.0,
        out_indices=[3, 4, 6, 7],  # counted from 1 for the embeddings: the outputs of layers 2, 3, 5 and 6
        use_auxiliary_head=False,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )


class Data:
    """Batches as the image processor makes them, drawn anew from a split's digits."""

    def __init__(self, digits: Digits, processor: BeitImageProcessorPil, generator: np.random.Generator) -> None:
        self.digits, self.processor, self.generator = digits, processor, generator

    def pixel_values(self, images: list[Image.Image]) -> torch.Tensor:
        return self.processor(images, return_tensors="pt")["pixel_values"]

    def pictures(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``count`` pictures, most of them with a digit, and their labels."""
        images, labels = [], []
        for fate in self.generator.random(count):
            chosen = self.generator.integers(len(self.digits.labels))
            digit, label = self.digits.pixels[chosen], self.digits.labels[chosen]
            if fate < NO_DIGIT:
                images.append(picture(None, self.generator))
                label = BACKGROUND
            elif fate < NO_DIGIT + PLAIN:
                images.append(plain(digit, dark_on_light=self.generator.random() < 0.5))
            else:
                images.append(picture(digit, self.generator))
            labels.append(int(label))
        return self.pixel_values(images), torch.tensor(labels)

    def scenes(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``count`` scenes, and every second pixel's label: a label for each quarter of the logits' cells."""
        drawn = [scene(self.digits, self.generator) for _ in range(count)]
        maps = np.stack([labels[::2, ::2] for _, labels in drawn])
        return self.pixel_values([image for image, _ in drawn]), torch.from_numpy(maps.astype(np.int64))


@torch.no_grad()
def look_at_neighbours(encoder: nn.Module) -> None:
    """Let each head begin at the patch to the left, right, above or below: bias -|distance - neighbour|^2.

    With tables of zeros a model without absolute positions begins blind to where anything is (Cordonnier et al. 2020;
    d'Ascoli et al. 2021).
    """
    down, across = np.indices((15, 15)) - 7  # the table's rows: query minus key, of 8 x 8 patches
    for layer in encoder.encoder.layer:
        table = layer.attention.attention.relative_position_bias.relative_position_bias_table
        for head, (y, x) in enumerate([(0, 1), (0, -1), (1, 0), (-1, 0)]):
            table[:-3, head] = torch.from_numpy(-np.square(down - y) - np.square(across - x)).reshape(-1)


def pretrain(encoder: nn.Module, data: Data, steps: int, curve: Curve) -> None:
    """Stage 1: data2vec's objective on pictures and scenes, half and half; no label is looked at."""
    decays = {"ema_decay": SETTINGS["ema_decay"], "ema_end_decay": SETTINGS["ema_end_decay"]}
    objective = replace(
        VISION, average_top_k_layers=SETTINGS["average_top_k_layers"], ema_anneal_end_step=steps, **decays
    )
    training = Pretraining(encoder, objective)
    optimizer = optimizer_of(training.trained(), SETTINGS["weight_decay"])
    half = SETTINGS["pictures"] // 2
    losses = []
    for step in range(steps):
        pixels = torch.cat([data.pictures(half)[0], data.scenes(half)[0]])
        mask = torch.from_numpy(
            np.stack([block_mask((8, 8), data.generator, min_num_patches=5).reshape(-1) for _ in range(len(pixels))])
        )
        loss = training.loss({"pixel_values": pixels}, {"pixel_values": pixels, "bool_masked_pos": mask}, mask)
        update(optimizer, loss, learning_rate(step, steps, SETTINGS["pretraining_peak"]))
        training.update_teacher(step)
        losses.append(loss.item())
        if (step + 1) % max(1, steps // 7) == 0:
            curve.point("pretraining", step + 1, loss=np.mean(losses), spread=spread(training, pixels))
            losses.clear()


def spread(training: Pretraining, pixels: torch.Tensor) -> float:
    """Standard deviation of the targets over patches: near 0 if the teacher says the same everywhere."""
    return training.targets({"pixel_values": pixels}).flatten(0, 1).std(dim=0).mean().item()


class Examination:
    """The same pictures of a split every time, and what the two models make of them."""

    def __init__(self, digits: Digits, processor: BeitImageProcessorPil, seed: int, scenes: int) -> None:
        generator = np.random.default_rng(seed)
        self.processor, self.digits = processor, digits
        labels = digits.labels
        none = np.full(len(labels) // 2, BACKGROUND)
        self.pictures = {
            "dark_on_light": ([plain(digit, dark_on_light=True) for digit in digits.pixels], labels),
            "light_on_dark": ([plain(digit, dark_on_light=False) for digit in digits.pixels], labels),
            "drawn_anyhow": ([picture(digit, generator) for digit in digits.pixels], labels),
            "no_digit": ([picture(None, generator) for _ in none], none),
        }
        self.scenes = [scene(digits, generator) for _ in range(scenes)]

    def accuracies(self, classifier: nn.Module) -> dict[str, float]:
        """Share of right labels by kind of picture."""
        return {
            kind: float((self.classes(classifier, images) == labels).mean())
            for kind, (images, labels) in self.pictures.items()
        }

    @torch.no_grad()
    def classes(self, classifier: nn.Module, images: list[Image.Image]) -> np.ndarray:
        inputs = self.processor(images, return_tensors="pt")
        return classifier.eval()(**inputs).logits.argmax(dim=1).numpy()

    @torch.no_grad()
    def maps(self, segmenter: nn.Module) -> list[np.ndarray]:
        """Each scene's labels at its own size, as Hugging Face's pipeline makes them."""
        found: list[np.ndarray] = []
        for start in range(0, len(self.scenes), 20):
            images = [image for image, _ in self.scenes[start : start + 20]]
            outputs = segmenter.eval()(**self.processor(images, return_tensors="pt"))
            sizes = [image.size[::-1] for image in images]
            maps = self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            found += [labels.numpy() for labels in maps]
        return found

    def confusion(self, segmenter: nn.Module) -> np.ndarray:
        """How many pixels of all scenes are of one class and get another's label: (11, 11), the truth down."""
        counts = np.zeros((len(LABELS), len(LABELS)))
        for got, (_, want) in zip(self.maps(segmenter), self.scenes, strict=True):
            np.add.at(counts, (want.reshape(-1), got.reshape(-1)), 1)
        return counts


def overlaps(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, (11,)."""
    both = np.diag(confusion)
    return both / (confusion.sum(axis=0) + confusion.sum(axis=1) - both)


def fine_tune(
    classifier: nn.Module, segmenter: nn.Module, data: Data, validation: Examination, steps: int, curve: Curve
) -> None:
    """Stage 2: both heads and the encoder, cross entropy of pictures plus cross entropy of pixels."""
    parameters = {id(p): p for model in (classifier, segmenter) for p in model.parameters()}
    optimizer = optimizer_of(parameters.values(), SETTINGS["weight_decay"])
    losses = []
    for step in range(steps):
        classifier.train()
        segmenter.train()
        pixels, labels = data.pictures(SETTINGS["pictures"])
        scenes, maps = data.scenes(SETTINGS["scenes"])
        with torch.autocast("cpu", torch.bfloat16):
            picture_loss = classifier(pixel_values=pixels, labels=labels).loss
            scene_loss = segmenter(pixel_values=scenes, labels=maps).loss
        update(optimizer, picture_loss + scene_loss, learning_rate(step, steps, SETTINGS["peak"], warmup=0.05))
        losses.append((picture_loss.item(), scene_loss.item()))
        if (step + 1) % max(1, steps // 14) == 0:
            means = dict(zip(("picture_loss", "scene_loss"), np.mean(losses, axis=0), strict=True))
            mean_iou = overlaps(validation.confusion(segmenter)).mean()
            values = validation.accuracies(classifier) | {"mean_iou": mean_iou}
            curve.point("fine-tuning", step + 1, **means, **values)
            losses.clear()


def write_samples(test: Examination, folder: Path) -> None:
    """40 digits and 6 scenes of the test split, drawn at random, and what they show."""
    generator = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, chosen in enumerate(generator.choice(len(test.digits.labels), 40, replace=False)):
        kind = generator.choice(["dark_on_light", "light_on_dark"])
        images, labels = test.pictures[kind]
        name = f"digit-{i:02}.png"
        images[chosen].convert("L").save(folder / name, optimize=True)
        entries.append(("image-classification", name, LABELS[labels[chosen]], "a digit of the test split"))
    for i, chosen in enumerate(generator.choice(len(test.scenes), 6, replace=False)):
        image, labels = test.scenes[chosen]
        name, mask = f"scene-{i}.png", f"scene-{i}-mask.png"
        image.save(folder / name, optimize=True)
        indexed_png(labels, folder / mask, label_colours(dict(enumerate(LABELS))))
        entries.append(("image-segmentation", name, mask, "a scene of digits of the test split"))
    write_json(
        folder / "samples.json",
        [dict(zip(("task", "input", "truth", "held_out"), entry, strict=True)) for entry in entries],
    )


def report(curve: Curve, name: str, data: Examination, classifier: nn.Module, segmenter: nn.Module) -> None:
    """The metrics of a split."""
    for kind, accuracy in data.accuracies(classifier).items():
        curve.metric(f"{name}_accuracy_{kind}", accuracy)
    confusion = data.confusion(segmenter)
    found = overlaps(confusion)
    curve.metric(f"{name}_mean_iou", found.mean())
    curve.metric(f"{name}_mean_iou_of_digits", found[:BACKGROUND].mean())
    for label, overlap in zip(LABELS, found, strict=True):
        curve.metric(f"{name}_iou_{label}", overlap)
    inked = confusion[:BACKGROUND]
    curve.metric(f"{name}_ink_right", np.trace(inked) / inked.sum())
    curve.metric(f"{name}_ink_as_background", inked[:, BACKGROUND].sum() / inked.sum())


def report_limits(curve: Curve, test: Examination, classifier: nn.Module) -> None:
    """What becomes of the accuracy, black on white, where digits are smaller, thinner or turned farther."""
    unlike: dict[str, tuple[float, float, float]] = {}  # size as a share of the picture, weight, degrees
    unlike |= {f"size_{size}": (size, 0.0, 0.0) for size in (0.3, 0.4, 0.5, 0.6, 0.7)}
    unlike |= {f"thinner_{amount}": (0.85, -amount, 0.0) for amount in (0.1, 0.2, 0.3)}
    unlike |= {f"turned_{degrees}": (0.85, 0.0, degrees) for degrees in (10, 20, 30)}
    for name, (size, weight, degrees) in unlike.items():
        middle = PICTURE / 2
        pen = Pen(middle, middle, size * PICTURE, angle=math.radians(degrees), weight=weight)
        images = [printed(ink(digit, PICTURE, pen), dark_on_light=True) for digit in test.digits.pixels]
        curve.metric(f"test_accuracy_{name}", (test.classes(classifier, images) == test.digits.labels).mean())


def main() -> None:
    """Train, measure, write the folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=MODELS / "tiny-vision")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="share of the steps, for a try")
    arguments = parser.parse_args()

    generator, curve, parts = seeded(SETTINGS["seed"]), Curve(SETTINGS), splits()
    processor = BeitImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    classifier = Data2VecVisionForImageClassification(config())
    segmenter = Data2VecVisionForSemanticSegmentation(classifier.config)
    segmenter.data2vec_vision = classifier.data2vec_vision
    segmenter.to(memory_format=torch.channels_last)  # faster convolutions
    look_at_neighbours(classifier.data2vec_vision)
    data = Data(parts["train"], processor, generator)
    validation = Examination(parts["validation"], processor, seed=1, scenes=40)

    pretrain(classifier.data2vec_vision, data, round(SETTINGS["pretraining_steps"] * arguments.steps_scale), curve)
    fine_tune(classifier, segmenter, data, validation, round(SETTINGS["steps"] * arguments.steps_scale), curve)

    models = rounded_to_float16(classifier), rounded_to_float16(segmenter)
    save(models, arguments.out)
    processor.save_pretrained(arguments.out)
    test = Examination(parts["test"], processor, seed=2, scenes=TEST_SCENES)
    report(curve, "train", Examination(parts["train"], processor, seed=3, scenes=TEST_SCENES), *models)
    report(curve, "validation", validation, *models)
    report(curve, "test", test, *models)
    report_limits(curve, test, models[0])
    write_samples(test, arguments.out / "samples")
    curve.write(arguments.out)


if __name__ == "__main__":
    main()
