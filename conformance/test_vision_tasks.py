"""Vision pipelines against transformers 5.23's, on Pillow: the same folder in, the same answers out."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conformance import oracle
from conformance.test_tasks import DTYPES, clear, hold
from d2v_ref import synth
from d2v_ref.auto import model_class
from d2v_ref.processing.image_processor import BeitImageProcessor
from d2v_ref.tasks import pipeline
from d2v_ref.vision import Data2VecVisionConfig

CLASSIFIER, SEGMENTER = "Data2VecVisionForImageClassification", "Data2VecVisionForSemanticSegmentation"
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 24,
    "patch_size": 6,
    "use_relative_position_bias": True,
    "out_indices": [2, 3, 4, 5],
    "auxiliary_channels": 8,
}


def save(folder: Path, name: str, processor: dict[str, Any] | None = None, **values: Any) -> Path:
    """A tiny checkpoint with synthetic weights, some of them larger, so that the answers are not all alike."""
    config = Data2VecVisionConfig(**{**SMALL, **values})
    declared = model_class(name)(config)
    weights = synth.weights({key: value.shape for key, _, _, value in declared.named_parameters()}, 5)
    for key in weights:
        if key.endswith(("classifier.weight", "projection.weight")):
            weights[key] = weights[key] * 8
    model_class(name)(config, weights, dtype="float64").save_pretrained(folder)
    BeitImageProcessor(**{"size": config.image_size, **(processor or {})}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision-tasks")
    several: dict[str, Any] = {"problem_type": "multi_label_classification"}
    cut = {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": 24, "resample": 2}
    return {
        "classes": save(root / "classes", CLASSIFIER, num_labels=7),
        "classes, cropped": save(root / "cropped", CLASSIFIER, cut, num_labels=3),
        "several labels": save(root / "several", CLASSIFIER, num_labels=3, **several),
        "one label": save(root / "one", CLASSIFIER, num_labels=1),
        "regression": save(root / "number", CLASSIFIER, num_labels=1, problem_type="regression"),
        "segments": save(root / "segments", SEGMENTER, num_labels=5),
        "segments, cropped": save(root / "segments-cropped", SEGMENTER, cut, num_labels=3),
        "features": save(root / "features", "Data2VecVisionModel"),
        "features, class token": save(root / "token", "Data2VecVisionModel", use_mean_pooling=False),
        "features, any size": save(root / "sizes", "Data2VecVisionModel", {"size": {"shortest_edge": 20}}),
    }


@cache
def both(folder: Path, task: str, dtype: str) -> tuple[Any, Any]:
    processor = transformers.BeitImageProcessorPil.from_pretrained(folder)
    options = {"image_processor": processor, "dtype": oracle.DTYPES[dtype], "device": "cpu"}
    return pipeline(None, folder, dtype=dtype), transformers.pipeline(task, model=str(folder), **options)


def picture(height: int, width: int, mode: str, orientation: int, seed: int) -> Image.Image:
    """Patches of colour and noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8)).resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(coarse, np.int64) + random.integers(-20, 20, (height, width, 3))
    found = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)
    if orientation != 1:
        found.getexif()[0x0112] = orientation
    return found


pictures = st.builds(
    picture,
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(["RGB", "RGB", "L", "RGBA", "P", "CMYK", "1"]),
    st.sampled_from([1, 1, 1, 6, 8, 3, 5]),
    st.integers(0, 2**32 - 1),
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Which transformers' classification gives to its processor as they are."""
    x = np.asarray(picture(draw(st.integers(6, 40)), draw(st.integers(6, 40)), "RGB", 1, draw(st.integers(0, 99))))
    return draw(st.sampled_from([x, x.transpose(2, 0, 1).copy(), x.astype(np.float32)]))


some = st.one_of(pictures, st.lists(pictures, min_size=1, max_size=4))
batches = st.integers(1, 3)


@DTYPES
@pytest.mark.parametrize("name", ["classes", "classes, cropped", "several labels", "one label", "regression"])
def test_image_classification(
    name: str, dtype: str, bound: float, folders: dict[str, Path], tally: dict[str, Any]
) -> None:
    ours, theirs = both(folders[name], "image-classification", dtype)

    @settings(max_examples=60)
    @given(
        inputs=st.one_of(some, arrays(), st.lists(arrays(), min_size=1, max_size=2)),
        top_k=st.sampled_from(["default", None, 1, 2, 9]),
        function=st.sampled_from([None, "softmax", "sigmoid", "none"]),
        batch_size=batches,
    )
    def check(inputs: Any, top_k: Any, function: str | None, batch_size: int) -> None:
        options: dict[str, Any] = {} if top_k == "default" else {"top_k": top_k}
        options |= {"function_to_apply": function} if function else {}
        want = theirs(inputs, batch_size=batch_size, **options)
        if clear(want, 1e-9 if dtype == "float64" else 1e-5):
            got = ours(inputs, batch_size=batch_size, **options)
            hold(got, want, bound, tally[f"image-classification, {dtype}"])
            tally[f"image-classification, {dtype}"].cases += 1

    check()


@DTYPES
@pytest.mark.parametrize("name", ["segments", "segments, cropped"])
def test_image_segmentation(
    name: str, dtype: str, bound: float, folders: dict[str, Path], tally: dict[str, Any]
) -> None:
    """The same labels with the same masks; of pixels whose two best classes are equal up to rounding either."""
    ours, theirs = both(folders[name], "image-segmentation", dtype)
    several = set()

    @settings(max_examples=60)
    @given(inputs=some, batch_size=batches)
    def check(inputs: Any, batch_size: int) -> None:
        got, want = ours(inputs, batch_size=batch_size), theirs(inputs, batch_size=batch_size)
        if not isinstance(inputs, list):
            inputs, got, want = [inputs], [got], [want]
        assert len(got) == len(want) == len(inputs)
        for one, mine, segments in zip(inputs, got, want, strict=True):
            unclear = close_calls(theirs, one, bound)
            assert mine["map"].shape == unclear.shape
            theirs_by_label = {entry["label"]: np.asarray(entry["mask"]) == 255 for entry in segments}
            mine_by_label = {entry["label"]: entry["mask"] for entry in mine["segments"]}
            none = np.zeros(unclear.shape, bool)
            for label in theirs_by_label | mine_by_label:
                masks = theirs_by_label.get(label, none), mine_by_label.get(label, none)
                assert np.array_equal(masks[0] & ~unclear, masks[1] & ~unclear)
            if not unclear.any():
                assert list(mine_by_label) == list(theirs_by_label)
            several.add(len(segments))
            tally[f"image-segmentation, {dtype}"].cases += 1
            tally[f"image-segmentation, {dtype}"].arrays += len(segments)

    check()
    assert max(several) > 1


def close_calls(theirs: Any, image: Image.Image, bound: float) -> np.ndarray:
    """Where transformers' two highest logits of a pixel (H, W) differ by no more than rounding."""
    inputs = theirs.preprocess(image)
    size = inputs.pop("target_size")[0]
    with torch.no_grad():
        logits = theirs.model(**inputs).logits
    resized = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
    best = resized.topk(2, dim=0).values
    return (best[0] - best[1] <= 10 * bound * float(logits.abs().max())).numpy()


@DTYPES
@pytest.mark.parametrize("name", ["features", "features, class token", "features, any size"])
def test_image_features(name: str, dtype: str, bound: float, folders: dict[str, Path], tally: dict[str, Any]) -> None:
    ours, theirs = both(folders[name], "image-feature-extraction", dtype)

    @settings(max_examples=40)
    @given(inputs=some)
    def check(inputs: Any) -> None:
        got, want = ours(inputs), theirs(inputs)
        for mine, other in zip(got, want, strict=True) if isinstance(inputs, list) else [(got, want)]:
            expected = np.asarray(other)
            assert mine.shape == expected.shape
            worst = float(np.abs(mine - expected).max()) / float(np.abs(expected).max())
            assert worst <= bound
            entry = tally[f"image-feature-extraction, {dtype}"]
            entry.worst = max(entry.worst, worst / bound)
            entry.cases += 1
            entry.arrays += 1

    check()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # a gif, by transformers
@settings(max_examples=30)
@given(image=pictures, suffix=st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".gif", ".tiff"]))
def test_files(
    image: Image.Image,
    suffix: str,
    folders: dict[str, Path],
    tally: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("files") / f"a{suffix}"
    keep: dict[str, Any] = {"exif": image.getexif()} if suffix in (".png", ".jpg", ".webp", ".tiff") else {}
    image.convert("RGB").save(path, **keep)
    ours, theirs = both(folders["classes"], "image-classification", "float64")
    want = theirs(str(path))
    if clear(want, 1e-9):
        hold(ours(path), want, 1e-9, tally["image-classification, files"])
        tally["image-classification, files"].cases += 1
