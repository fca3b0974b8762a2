"""Pictures of attentions and relative positions: which files, what is in them, the same bits again, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import audio_models
import numpy as np
import pytest
import text_models
import vision_models
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from test_cli import _here, d2v, disk, refused  # noqa: F401 - a fixture
from test_precision import SAMPLES

from d2v_ref import InputError
from d2v_ref.audit import plots
from d2v_ref.audit.plots import write_plots
from d2v_ref.errors import CheckpointError, MissingPackageError
from d2v_ref.vision import relative_position_index

TEXT = "Data2VecTextModel"


def names(written: list[Path]) -> list[str]:
    """Without folder and ending; each file is a picture of a sensible size."""
    for path in written:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert all(100 < side < 5000 for side in picture.size)
            assert not {"Software", "Creation Time"} & set(picture.info)
    return [path.name.removesuffix(".png") for path in written]


def drawn(function: str, *arguments: Any) -> list[Any]:
    """The axes of a figure that hold a map, without the bar of colours."""
    figure = getattr(plots, function)(*arguments)
    return [axes for axes in figure.axes if axes.images]


def maps(axes: list[Any]) -> list[np.ndarray]:
    return [np.asarray(each.images[0].get_array()) for each in axes]


# ---- which files ----------------------------------------------------------------------------------------------------


def test_text() -> None:
    model = text_models.build(TEXT, dtype="float32")
    written = write_plots(model, {"input_ids": text_models.token_ids(TEXT)}, "plots/deep")
    layers = [f"attention-encoder.layer.{i}.attention.self" for i in range(2)]
    assert names(written) == [f"{layer}-input-{row}" for layer in layers for row in range(2)]
    assert {path.parent for path in written} == {Path("plots/deep")}
    assert sorted(path.name for path in Path("plots/deep").iterdir()) == sorted(path.name for path in written)


def test_a_decoder_with_cross_attention_and_relative_positions() -> None:
    changes: dict[str, Any] = {
        "is_decoder": True,
        "add_cross_attention": True,
        "position_embedding_type": "relative_key",
    }
    model = text_models.build(TEXT, dtype="float32", num_hidden_layers=1, **changes)
    states = np.zeros((1, 6, 12), np.float32)
    arrays = {"input_ids": text_models.token_ids(TEXT, batch=1), "encoder_hidden_states": states}
    layer = "encoder.layer.0"
    assert names(write_plots(model, arrays, ".")) == [
        f"attention-{layer}.attention.self",
        f"attention-{layer}.crossattention.self",
        f"relative-positions-{layer}.attention.self.distance_embedding",
    ]


def test_audio() -> None:
    model = audio_models.build(audio_models.CTC, dtype="float32")
    written = write_plots(model, {"input_values": audio_models.samples(batch=1)}, ".")
    assert names(written) == [f"attention-data2vec_audio.encoder.layers.{i}.attention" for i in range(2)]


@pytest.mark.parametrize("size", [(12, 12), (13, 8)])
def test_vision(size: tuple[int, int]) -> None:
    """Also a picture of other patches than the table was made for, and with a rest that fills no patch."""
    model = vision_models.build(vision_models.CLASSIFIER, dtype="float32", num_hidden_layers=1)
    arrays = {"pixel_values": vision_models.pictures(0, 1, *size)}
    written = write_plots(model, arrays, ".")
    assert [path.read_bytes() for path in written] == [
        path.read_bytes() for path in write_plots(model, arrays, "again")
    ]
    attention = "data2vec_vision.encoder.layer.0.attention.attention"
    assert names(written) == [
        f"attention-{attention}",
        f"class-token-{attention}",
        "relative-positions-data2vec_vision.encoder.relative_position_bias",
        f"relative-positions-{attention}.relative_position_bias",
    ]


def test_no_layers_are_no_pictures() -> None:
    model = text_models.build(TEXT, num_hidden_layers=0)
    assert write_plots(model, {"input_ids": [[5]]}, ".") == []


# ---- what is in them ------------------------------------------------------------------------------------------------


def test_all_heads_are_on_one_scale_of_colours() -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(7), (5, 4))
    axes = drawn("_attention_figure", "name", probs)
    for head, picture in enumerate(maps(axes)):
        np.testing.assert_array_equal(picture, probs[head])
    assert {each.images[0].get_clim() for each in axes} == {(0, probs.max())}
    assert [each.get_title() for each in axes] == [f"head {head}" for head in range(5)]
    words = axes[0].figure.get_suptitle(), axes[0].figure.get_supxlabel(), axes[0].figure.get_supylabel()
    assert words == ("name\nattention probabilities", "key (of 7)", "query (of 4)")


@settings(max_examples=60)
@given(data=st.data(), down=st.integers(1, 4), across=st.integers(1, 4))
def test_of_many_tokens_the_largest_of_each_block_is_seen(data: st.DataObject, down: int, across: int) -> None:
    x = data.draw(hnp.arrays(float, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(0, 1)))
    got = plots._blocks(x, down, across)
    for (i, j), value in np.ndenumerate(got):
        assert value == x[i * down : (i + 1) * down, j * across : (j + 1) * across].max()
    assert got.shape == (-(-x.shape[0] // down), -(-x.shape[1] // across))


def test_a_picture_of_many_tokens_is_small() -> None:
    probs = np.zeros((1, 700, 300), np.float32)
    probs[0, 699, 1] = 1
    axes = drawn("_attention_figure", "name", probs)
    assert maps(axes)[0].shape == (234, 150)
    assert maps(axes)[0][-1, 0] == 1
    assert "the largest of each 3 x 2" in axes[0].figure.get_suptitle()


def test_the_class_tokens_attention_lies_on_the_picture() -> None:
    """Patch (i, j) is token 1 + i w + j."""
    model = vision_models.build(vision_models.BARE, dtype="float32", num_hidden_layers=1)
    pixels = vision_models.pictures(0, 1, 13, 8).astype("f4")
    p = model.record(pixels)[1]["encoder.layer.0.attention.attention#probs"]
    with mock.patch.object(plots, "_class_token_figure", wraps=plots._class_token_figure) as figure:
        write_plots(model, {"pixel_values": pixels}, ".")
    (_, shown, picture), _ = figure.call_args
    assert picture.shape == (2, 12, 8)
    assert shown.shape == (3, 3, 2)
    for head, i, j in np.ndindex(shown.shape):
        assert shown[head, i, j] == p[0, head, 0, 1 + 2 * i + j]
    assert drawn("_class_token_figure", "name", shown, picture)[0].get_title() == "picture"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pixels_of_any_range_can_be_seen(channels: int) -> None:
    pixels = np.random.default_rng(0).normal(size=(channels, 5, 4)) * 40
    shown = plots._visible(pixels)
    assert shown.shape == (5, 4, 3)
    assert (shown.min() >= 0) & (shown.max() <= 1)
    assert (plots._visible(np.full((channels, 2, 2), 7.0)) == 0).all()


def test_a_bias_lies_where_its_distance_is() -> None:
    """Down and across from key to query, as the model looks it up."""
    window, heads = (3, 3), 2
    table = np.random.default_rng(0).normal(size=(5 * 5 + 3, heads))
    axes = drawn("_bias_figure", "name", table, window)
    index = relative_position_index(window)
    for head, picture in enumerate(maps(axes)):
        left, right, bottom, top = axes[head].images[0].get_extent()
        assert (left, right, bottom, top) == (-2.5, 2.5, 2.5, -2.5)
        for query, key in np.ndindex(9, 9):
            down, across = query // 3 - key // 3, query % 3 - key % 3
            assert picture[int(down - 0.5 - top), int(across - 0.5 - left)] == table[index[1 + query, 1 + key], head]
        assert axes[head].get_title().partition("\n")[2] == " / ".join(f"{x:.2g}" for x in table[-3:, head])
        low, high = axes[head].images[0].get_clim()
        assert -low == high == np.abs(table).max()


def test_distances_are_centred() -> None:
    table = np.random.default_rng(0).normal(size=(9, 4))
    (axes,) = drawn("_distances_figure", "name", table)
    np.testing.assert_array_equal(maps([axes])[0], table.T)
    assert axes.images[0].get_extent() == [-4.5, 4.5, 3.5, -0.5]


@pytest.mark.parametrize("count", range(1, 25))
def test_heads_fill_rows(count: int) -> None:
    figure, panels = plots._grid(count, 1.0)
    rows, columns = panels[0].get_subplotspec().get_gridspec().get_geometry()
    assert len(panels) == len(figure.axes) == count
    assert rows * columns - count < columns <= 6


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-text", "tiny-audio"])
def test_the_command_writes_the_same_bits_again(name: str) -> None:
    contents = []
    for folder in ("one", "two"):
        said = d2v("audit", name, SAMPLES[name], "--plots", folder)
        assert said.code == 0
        files = sorted(Path(folder).iterdir())
        assert said.err.splitlines() == [str(path) for path in sorted(files, key=lambda p: said.err.index(str(p)))]
        assert [path for path in files if path.suffix != ".png"] == []
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4


def test_a_picture_is_there_as_a_whole_or_not_at_all() -> None:
    from matplotlib.figure import Figure

    model, arrays = text_models.build(TEXT, dtype="float32"), {"input_ids": [[5, 6]]}
    before = [path.read_bytes() for path in write_plots(model, arrays, ".")]

    def breaks_off(self: Figure, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    with mock.patch.object(Figure, "savefig", breaks_off), pytest.raises(CheckpointError, match="No space left"):
        write_plots(model, arrays, ".")
    assert sorted(path.read_bytes() for path in Path().iterdir()) == sorted(before)


def test_without_matplotlib_nothing_is_computed() -> None:
    model = mock.MagicMock()
    with mock.patch.dict("sys.modules", {"matplotlib.figure": None}):
        with pytest.raises(MissingPackageError, match=r"not installed\. Install it: pip install 'd2v-ref\[plots\]'"):
            write_plots(model, {}, "plots")
        refused("audit", "tiny-text", "a <mask>", "--plots", "plots", says="plots need matplotlib", code=3)
    assert model.mock_calls == []
    assert disk(Path()) == {}


def test_what_is_refused() -> None:
    Path("a file").write_bytes(b"")
    model = text_models.build(TEXT)
    for folder in ("a file", "a file/plots"):
        with pytest.raises(InputError, match="can't be made a folder"):
            write_plots(model, {"input_ids": [[5]]}, folder)
    with pytest.raises(InputError, match="takes no array of this name"):
        write_plots(model, {"pixel_values": np.zeros((1, 3, 8, 8))}, "plots")
    np.savez("ids.npz", input_ids=[[99999]])
    refused("audit", "tiny-text", "ids.npz", "--plots", "a file", says="can't be made a folder")
    Path("made").mkdir()
    refused("audit", "tiny-text", "ids.npz", "--plots", "made", says="input_ids is out of range")
