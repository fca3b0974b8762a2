"""data2vec's objective against the one that trains: torch's and transformers' modules, and their masks.

``conformance.training.objective`` is held against ``d2v_ref.pretraining`` in float64 on drawn models of every modality,
torch.nn.functional against its parts, and transformers' mask generators, given the same draws, against its masks.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast
from transformers.models.data2vec.modeling_data2vec_audio import _compute_mask_indices
from transformers.models.flava.image_processing_pil_flava import FlavaMaskingGenerator

from conformance import audio_draws, draws, oracle, vision_draws
from conformance.compare import compare
from conformance.training.objective import Pretraining
from d2v_ref import pretraining
from d2v_ref.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v_ref.ops import Ops
from d2v_ref.pretraining import AUDIO, TEXT, VISION, Objective, bert_mask, block_mask, span_mask
from d2v_ref.text import Data2VecTextConfig
from d2v_ref.vision import Data2VecVisionConfig

seeds = st.integers(0, 2**32 - 1)
betas = st.sampled_from([0.0, 1e-3, 2.0, 4.0]) | st.floats(1e-6, 10)
MODALITIES = {
    "Data2VecAudioModel": AUDIO,
    "Data2VecTextModel": TEXT,
    "Data2VecVisionModel": VISION,
}
Case = tuple[
    Any, dict[str, Any], dict[str, Any], np.ndarray
]  # configuration, the teacher's inputs, the student's, mask


# ---- a training, step by step


@st.composite
def objectives(draw: st.DrawFn, published: Objective, layers: int) -> Objective:
    """The published settings with a K that the model has, or any others of the same modules."""
    small = replace(published, average_top_k_layers=min(published.average_top_k_layers, layers))
    if draw(st.booleans()):
        return small
    norm = draw(st.sampled_from(["", "instance_norm_target_layer", "layer_norm_target_layer"]))
    end = draw(st.floats(0, 1))
    return replace(
        small,
        average_top_k_layers=draw(st.integers(1, layers)),
        instance_norm_target_layer=norm == "instance_norm_target_layer",
        layer_norm_target_layer=norm == "layer_norm_target_layer",
        layer_norm_targets=draw(st.booleans()),
        loss_beta=draw(betas),
        loss_scale=draw(st.sampled_from(["1/sqrt(D)", "1/D", 1.0, 0.25])),
        ema_decay=end * draw(st.floats(0, 1)),
        ema_end_decay=end,
        ema_anneal_end_step=draw(st.integers(0, 5)),
        averaged=draw(st.sampled_from([published.averaged, ("encoder.",), ("",), ()])),
        regression_head=draw(st.sampled_from(["linear", "mlp", "norm"])),
    )


@st.composite
def audio_cases(draw: st.DrawFn) -> Case:
    changes = {"mask_time_prob": 0.6, "apply_spec_augment": True, "add_adapter": False}
    config = draw(audio_draws.audio_configs("Data2VecAudioModel", **changes))
    drawn, model = np.random.default_rng(draw(seeds)), Data2VecAudioModel(config)
    batch, samples = draw(st.integers(1, 3)), model.least_samples + draw(st.integers(0, 60))
    seen: dict[str, Any] = {"input_values": drawn.normal(size=(batch, samples))}
    frames = model.frame_lengths(samples)
    lengths = None
    if draw(st.booleans()):
        counts = drawn.integers(model.least_samples, samples + 1, batch)
        seen["attention_mask"] = (np.arange(samples) < counts[:, None]).astype(np.int64)
        lengths = model.frame_lengths(counts)
    span = draw(st.integers(1, min(3, int(frames if lengths is None else lengths.min()))))
    mask = span_mask((batch, frames), drawn, mask_length=span, lengths=lengths)
    return config, seen, {**seen, "mask_time_indices": mask}, mask


@st.composite
def text_cases(draw: st.DrawFn) -> Case:
    config = draw(draws.text_configs("Data2VecTextModel"))
    drawn = np.random.default_rng(draw(seeds))
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    ids = drawn.integers(0, config.vocab_size, shape)
    seen: dict[str, Any] = {"input_ids": ids}
    pad: Any = config.pad_token_id
    if draw(st.booleans()):
        seen["attention_mask"] = (np.arange(shape[1]) < drawn.integers(1, shape[1] + 1, shape[0])[:, None]).astype(int)
        ids[seen["attention_mask"] == 0] = pad
    hidden, selected = bert_mask(
        ids,
        drawn,
        mask_token_id=config.vocab_size - 1,
        vocab_size=config.vocab_size,
        special_token_ids=[pad],
        mlm_probability=0.4,  # of a few tokens; sometimes none
    )
    return config, seen, {**seen, "input_ids": hidden}, selected


@st.composite
def vision_cases(draw: st.DrawFn) -> Case:
    config = draw(vision_draws.vision_configs("Data2VecVisionModel"))
    config = type(config)(**{**config.to_dict(), "use_mask_token": True})
    drawn, (height, width) = np.random.default_rng(draw(seeds)), config.window
    size = (draw(st.integers(1, 3)), config.num_channels, height * config.patch[0], width * config.patch[1])
    seen = {"pixel_values": drawn.normal(size=size)}
    mask = drawn.random((size[0], height * width)) < draw(st.floats(0, 1))
    return config, seen, {**seen, "bool_masked_pos": mask}, mask


CASES = {
    "Data2VecAudioModel": audio_cases(),
    "Data2VecTextModel": text_cases(),
    "Data2VecVisionModel": vision_cases(),
}


class Both:
    """One training, here and in torch: a student, a teacher of other weights, and a head."""

    def __init__(self, name: str, config: Any, objective: Objective, seed: int) -> None:
        options: dict[str, Any] = {"add_pooling_layer": False} if name == "Data2VecVisionModel" else {}
        self.objective = objective
        self.student, student = oracle.pair(name, config, seed, "float64", **options)
        self.teacher, teacher = oracle.pair(name, config, seed + 1, "float64", **options)
        torch.manual_seed(seed % 2**32)  # the head's weights
        self.torch = Pretraining(student, objective).double().eval()
        self.torch.teacher.load_state_dict(teacher.state_dict())
        self.head = pretraining.regression_head(config.hidden_size, objective)
        self.head.bind(arrays(self.torch.head), Ops("float64"))
        self.torch.head.register_forward_hook(self._keep)

    def _keep(self, module: Any, arguments: Any, output: torch.Tensor) -> None:
        self.prediction = output

    def hold_step(self, seen: dict[str, Any], hidden: dict[str, Any], mask: np.ndarray, tally: Any) -> None:
        """Loss, target and prediction of a step."""
        theirs, chosen = oracle.to_torch(seen, "float64"), torch.from_numpy(mask)
        with torch.no_grad():
            loss = self.torch.loss(theirs, oracle.to_torch(hidden, "float64"), chosen)
            target = self.torch.targets(theirs)[chosen]
        want = {"loss": loss.numpy(), "target": target.numpy(), "prediction": self.prediction.detach().numpy()}
        out = pretraining.pretraining_step(
            self.student, self.teacher, self.head, self.objective, mask=mask, student_inputs=hidden, teacher_inputs=seen
        )
        # What is normalised is of the size of 1, even of a layer that varies by its rounding only.
        bounds = {key: oracle.EXACT * max(1.0, np.abs(value).max(initial=0.0)) for key, value in want.items()}
        compare(dict(out.items()), want, bounds, tally)

    def move(self, step: int, drawn: np.random.Generator) -> None:
        """The student learns something, and the teachers follow."""
        with torch.no_grad():
            for weight in self.torch.student.parameters():
                weight += 0.05 * torch.from_numpy(drawn.normal(size=weight.shape))
        self.torch.update_teacher(step)
        self.student = self._ours(arrays(self.torch.student))
        moved = pretraining.ema_update(self.teacher.state_dict(), self.student.state_dict(), step, self.objective)
        self.teacher = self._ours(moved)

    def _ours(self, weights: dict[str, np.ndarray]) -> Any:
        options = {} if not hasattr(self.student, "pooler") or self.student.pooler is not None else NO_POOLER
        return type(self.student)(self.student.config, weights, dtype="float64", **options)

    def hold_teacher(self, tally: Any) -> None:
        """Every weight of the teachers."""
        want = {name: weight.detach().numpy() for name, weight in self.torch.teacher.named_parameters()}
        compare(self.teacher.state_dict(), want, oracle.EXACT, tally)


NO_POOLER = {"add_pooling_layer": False}


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The weights as they are now; the module may change them afterwards."""
    return {name: weight.detach().numpy().copy() for name, weight in module.named_parameters()}


@pytest.mark.parametrize("name", MODALITIES)
def test_a_drawn_training(name: str, tally: dict[str, Any]) -> None:
    """A step, some updates of the teacher while the student moves, and the step again."""

    @settings(max_examples=20)
    @given(data=st.data(), case=CASES[name], seed=st.integers(0, 2**62))
    def check(data: st.DataObject, case: Case, seed: int) -> None:
        config, seen, hidden, mask = case
        objective = data.draw(objectives(MODALITIES[name], config.num_hidden_layers))
        assume(not objective.instance_norm_target_layer or mask.shape[1] > 1)  # of one position torch refuses it
        both, drawn = Both(name, config, objective, seed), np.random.default_rng(seed)
        both.hold_step(seen, hidden, mask, tally[f"{name}, float64, pre-training"])
        for step in range(data.draw(st.integers(1, 7))):
            both.move(step, drawn)
        both.hold_teacher(tally[f"{name}, float64, teacher's weights"])
        both.hold_step(seen, hidden, mask, tally[f"{name}, float64, pre-training"])

    check()


SMALL: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 20}
PUBLISHED: dict[str, tuple[Any, dict[str, Any]]] = {
    "Data2VecAudioModel": (
        Data2VecAudioConfig(**SMALL, conv_dim=[8] * 7, num_conv_pos_embedding_groups=4, mask_time_prob=0.65),
        {"input_values": np.random.default_rng(0).normal(size=(2, 8000))},
    ),
    "Data2VecTextModel": (
        Data2VecTextConfig(**SMALL, vocab_size=50, max_position_embeddings=64, pad_token_id=1),
        {"input_ids": np.random.default_rng(1).integers(5, 49, (3, 60))},
    ),
    "Data2VecVisionModel": (
        Data2VecVisionConfig(
            **SMALL, image_size=28, patch_size=2, use_mask_token=True, use_shared_relative_position_bias=True
        ),
        {"pixel_values": np.random.default_rng(2).normal(size=(2, 3, 28, 28))},
    ),
}


@pytest.mark.parametrize("name", MODALITIES)
def test_the_published_settings(name: str, tally: dict[str, Any]) -> None:
    """As they are: twelve layers, K of them, the paper's masks, and the decay at both ends and in the middle."""
    config, seen = PUBLISHED[name]
    objective, drawn = MODALITIES[name], np.random.default_rng(3)
    if objective is AUDIO:
        mask = span_mask((2, 24), drawn)
        hidden = {**seen, "mask_time_indices": mask}
    elif objective is TEXT:
        ids, mask = bert_mask(seen["input_ids"], drawn, mask_token_id=49, vocab_size=50)
        hidden = {"input_ids": ids}
    else:
        mask = np.stack([block_mask((14, 14), drawn).reshape(-1) for _ in range(2)])
        hidden = {**seen, "bool_masked_pos": mask}
    both = Both(name, config, objective, 4)
    both.hold_step(seen, hidden, mask, tally[f"{name}, float64, pre-training"])
    end = objective.ema_anneal_end_step
    for step in (0, end // 3, end, end + 1000):
        both.move(step, drawn)
        both.hold_teacher(tally[f"{name}, float64, teacher's weights"])
    both.hold_step(seen, hidden, mask, tally[f"{name}, float64, pre-training"])


# ---- its parts


@settings(max_examples=100)
@given(seed=seeds, beta=betas, scale=st.sampled_from([1e-3, 1.0, 30.0]), dtype=st.sampled_from(["float32", "float64"]))
def test_the_loss_is_torch_s(seed: int, beta: float, scale: float, dtype: str, tally: dict[str, Any]) -> None:
    drawn = np.random.default_rng(seed)
    shape = drawn.integers(1, 9, 2)
    x, y = (scale * drawn.normal(size=shape).astype(dtype) for _ in range(2))
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    if beta == 0:
        want = F.mse_loss(a, b, reduction="sum")
    else:
        want = F.smooth_l1_loss(a, b, reduction="sum", beta=beta)
    got = pretraining.regression_loss(x, y, replace(TEXT, loss_beta=beta, loss_scale=1.0))
    assert got.dtype == dtype
    bound = 1e-10 if dtype == "float64" else 1e-5
    compare({"loss": got}, {"loss": want.numpy() / shape[0]}, bound, tally["regression loss"])


@settings(max_examples=100)
@given(seed=seeds, spread=st.sampled_from([0.0, 3.0]), dtype=st.sampled_from(["float32", "float64"]))
def test_the_normalisations_are_torch_s(seed: int, spread: float, dtype: str, tally: dict[str, Any]) -> None:
    """Of layers of all sizes, down to those where the epsilon counts."""
    drawn = np.random.default_rng(seed)
    shape = drawn.integers(1, 4), drawn.integers(2, 12), drawn.integers(1, 9)
    x = (np.exp(spread * drawn.normal(size=(shape[0], 1, shape[2]))) * drawn.normal(size=shape)).astype(dtype)
    a = torch.from_numpy(x)
    one = replace(AUDIO, average_top_k_layers=1, instance_norm_target_layer=False)
    got = {
        "instance_norm_target_layer": pretraining.teacher_targets([x], replace(one, instance_norm_target_layer=True)),
        "layer_norm_target_layer": pretraining.teacher_targets([x], replace(one, layer_norm_target_layer=True)),
        "layer_norm_targets": pretraining.teacher_targets([x], replace(one, layer_norm_targets=True)),
    }
    normed = F.layer_norm(a, a.shape[-1:]).numpy()
    want = {
        "instance_norm_target_layer": F.instance_norm(a.transpose(1, 2)).transpose(1, 2).numpy(),
        "layer_norm_target_layer": normed,
        "layer_norm_targets": normed,
    }
    compare(got, want, 1e-10 if dtype == "float64" else 2e-3, tally["target normalisations"])


# ---- the masks


@settings(max_examples=200)
@given(data=st.data(), seed=seeds, prob=st.sampled_from([0.0, 0.65, 1.0]) | st.floats(0, 1))
def test_spans_are_transformers_and_rows_lose_the_rest(
    data: st.DataObject, seed: int, prob: float, tally: dict[str, Any]
) -> None:
    """The same spans of the same seed; the rows with the fewest frames keep them all, and one row keeps its spans."""
    batch, length = data.draw(st.sampled_from([1, 1, 2, 5])), data.draw(st.integers(1, 80))
    span = data.draw(st.integers(1, min(length, 12)))
    lengths, padding = None, None
    if data.draw(st.booleans()):
        lengths = np.random.default_rng(seed).integers(span, length + 1, batch)
        padding = torch.from_numpy(np.arange(length) < lengths[:, None])
    np.random.seed(seed)  # noqa: NPY002 - transformers draws from the global generator
    want = _compute_mask_indices((batch, length), prob, span, padding, 1)
    generator = np.random.RandomState(seed)
    got = span_mask((batch, length), generator, mask_prob=prob, mask_length=span, lengths=lengths)
    counts = want.sum(axis=1)
    np.testing.assert_array_equal(got.sum(axis=1), counts.min())
    np.testing.assert_array_equal(got[counts == counts.min()], want[counts == counts.min()])
    assert (got <= want).all()
    tally["masks of spans"].cases += 1


class Rolled(np.random.Generator):
    """Draws as Python's random module does after ``random.seed(seed)``, from which Flava's generator draws.

    Flava asks for an area between ``least`` and what is left, which may be the smaller of the two.
    """

    def __init__(self, seed: int, least: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.random_module, self.least = random.Random(seed), least

    def uniform(self, low: float, high: float) -> float:  # type: ignore[override]
        if high == self.least:
            low, high = high, low
        return self.random_module.uniform(low, high)

    def integers(self, high: int) -> int:  # type: ignore[override]
        return self.random_module.randint(0, high - 1)


@settings(max_examples=200)
@given(data=st.data(), seed=seeds, aspect=st.just(0.3) | st.floats(0.3, 1))
def test_blocks_bit_for_bit(data: st.DataObject, seed: int, aspect: float, tally: dict[str, Any]) -> None:
    """BEiT's generator as transformers has it, for Flava."""
    grid = data.draw(st.just((14, 14)) | st.tuples(st.integers(1, 16), st.integers(1, 16)))
    wanted = data.draw(st.integers(1, grid[0] * grid[1]))
    least = data.draw(st.integers(1, wanted) | st.just(min(16, wanted)))
    before = random.getstate()
    random.seed(seed)
    flava = FlavaMaskingGenerator(grid, wanted, mask_group_min_patches=least, mask_group_min_aspect_ratio=aspect)
    want = np.asarray(flava())
    random.setstate(before)
    rolled = Rolled(seed, least)
    got = block_mask(grid, rolled, num_masking_patches=wanted, min_num_patches=least, min_aspect=aspect)
    np.testing.assert_array_equal(got, want.astype(bool))
    tally["masks of blocks"].cases += 1


VOCABULARY = 40


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"w{i}" for i in range(VOCABULARY - 5))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[3]))
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


class Told:
    """Answers the collator's questions, in its order, with what ``bert_mask`` draws of the same seed.

    The collator asks who is selected, who of all is hidden, who of the others is replaced, and for their new ids.
    """

    def __init__(self, seed: int, shape: tuple[int, int]) -> None:
        drawn = np.random.default_rng(seed)
        self.chance, self.fate = drawn.random(shape), drawn.random(shape)
        self.anything = drawn.integers(VOCABULARY, size=shape)
        self.answers: list[np.ndarray] = []

    def binomial(self, n: int, p: Any, size: tuple[int, int]) -> np.ndarray:
        if len(self.answers) == 0:
            self.answers.append(self.chance < p)
        elif len(self.answers) == 1:
            self.hidden = p
            self.answers.append(self.fate < p)
        else:  # the last part of what is not hidden
            self.answers.append(self.fate >= 1 - p * (1 - self.hidden))
        return self.answers[-1].astype(int)

    def integers(self, low: int, high: int, size: int, dtype: Any) -> np.ndarray:
        selected, hidden, replaced = self.answers
        ids = self.anything[selected & ~hidden & replaced]
        assert (low, high, size) == (0, VOCABULARY, len(ids))
        return ids


@settings(max_examples=100)
@given(data=st.data(), seed=seeds, prob=st.sampled_from([0.15, 1.0]) | st.floats(0.001, 1))
def test_bert_s_rules_bit_for_bit(
    data: st.DataObject, seed: int, prob: float, tokenizer: Any, tally: dict[str, Any]
) -> None:
    shape = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    ids = np.random.default_rng(seed + 1).integers(0, VOCABULARY, shape)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=prob, seed=0)
    collator.generator = Told(seed, shape)
    want, labels = collator.numpy_mask_tokens(ids.copy())
    arguments: dict[str, Any] = {"mask_token_id": 4, "vocab_size": VOCABULARY, "special_token_ids": range(5)}
    seen, selected = bert_mask(ids, np.random.default_rng(seed), mlm_probability=prob, **arguments)
    np.testing.assert_array_equal(seen, want)
    np.testing.assert_array_equal(selected, labels != -100)
    np.testing.assert_array_equal(ids[selected], labels[selected])
    tally["masks of BERT"].cases += 1


def test_bert_s_rates_are_the_collator_s(tokenizer: Any) -> None:
    """Each side with its own draws: how often a token is selected, and what becomes of it."""
    ids = np.random.default_rng(5).integers(0, VOCABULARY, (300, 1000))
    seen, selected = bert_mask(
        ids, np.random.default_rng(6), mask_token_id=4, vocab_size=VOCABULARY, special_token_ids=range(5)
    )
    collator = DataCollatorForLanguageModeling(tokenizer, seed=7)
    collator.create_rng()
    special = torch.from_numpy(ids < 5)
    theirs, labels = collator.torch_mask_tokens(torch.from_numpy(ids.copy()), special_tokens_mask=special)

    def counts(seen: np.ndarray, selected: np.ndarray) -> np.ndarray:
        after, before = seen[selected], ids[selected]
        drawn = after[(after != before) & (after != 4)]
        fates = [selected.sum(), (after == 4).sum(), (after == before).sum(), len(drawn)]
        return np.concatenate((fates, np.bincount(drawn, minlength=VOCABULARY)))

    got, want = counts(seen, selected), counts(theirs.numpy(), labels.numpy() != -100)
    assert (np.abs(got - want) <= 5 * np.sqrt(got + want + 1)).all()  # five standard deviations of the difference
    assert got[1] > 30_000
