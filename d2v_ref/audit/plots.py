"""Pictures of what a model attends to, and of the relative positions that it has learned (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.checkpoints import replacing
from d2v_ref.errors import InputError
from d2v_ref.golden.arguments import forward_arguments
from d2v_ref.nn import recorder
from d2v_ref.pages import new_figure
from d2v_ref.pretrained import PreTrainedModel

PROBS = "#probs"
DPI = 110
_PANEL = 2.3  # inches of a head's map
_POINTS = 256  # of a map in either direction, at most: what a panel can show
_COLUMNS = (4, 5, 6)  # heads in a row, of more than one row


def write_plots(model: PreTrainedModel, arrays: dict[str, Any], folder: str | Path) -> list[Path]:
    """Run a model and write PNG files, each whole or not at all, the same bits for the same input.

    - ``attention-MODULE.png``: the probabilities of every attention, all heads on one colour scale, queries down and
      keys across; with ``-input-I`` for each of several inputs.
    - ``class-token-MODULE.png``, of a vision model: the class token's attention to the patches where they lie.
    - ``relative-positions-MODULE.png``: a vision model's table of relative position biases, a map of distances for each
      head; of a text model with relative_key positions its table of embeddings.

    MODULE is the path in the model.

    Args:
        model: whose forward pass it is.
        arrays: by the names of its arguments.
        folder: made if it isn't there; files of these names are replaced.

    Returns:
        The files.

    Raises:
        MissingPackageError: matplotlib is not installed.
        InputError: the model does not take the arrays, or the folder can't be made.
        CheckpointError: a file can't be written.
    """
    new_figure()  # before anything is computed: the package may be missing
    arrays = {name: checks.anything(name, x) for name, x in arrays.items()}
    given = forward_arguments(model, arrays, {})
    folder = _made(Path(folder))
    written: list[Path] = []

    def see(name: str, value: Any) -> None:
        if name.endswith(PROBS):
            written.extend(_write_attention(model, name.removesuffix(PROBS), model.ops.to_numpy(value), arrays, folder))

    with recorder(see):
        model(**given)
    for name, figure in _tables(model):
        written.append(_write(figure, folder / f"relative-positions-{name}.png"))
    return written


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't be made a folder: {error.strerror}", path=folder) from None
    return folder


def _write(figure: Any, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path


def _write_attention(
    model: PreTrainedModel, name: str, probs: np.ndarray, arrays: dict[str, np.ndarray], folder: Path
) -> Iterator[Path]:
    """The pictures of one attention (B, H, T, S)."""
    pixels = arrays.get("pixel_values")
    for i, own in enumerate(probs):
        suffix = f"-input-{i}" if len(probs) > 1 else ""
        yield _write(_attention_figure(f"{name}{suffix}", own), folder / f"attention-{name}{suffix}.png")
        if pixels is not None:
            down, across = model.config.patch  # type: ignore[attr-defined]  # of a model that takes pixels
            picture = pixels[i]
            window = picture.shape[1] // down, picture.shape[2] // across
            picture = picture[:, : window[0] * down, : window[1] * across]  # what fills no patch is not seen
            figure = _class_token_figure(f"{name}{suffix}", own[:, 0, 1:].reshape(len(own), *window), picture)
            yield _write(figure, folder / f"class-token-{name}{suffix}.png")


def _attention_figure(title: str, probs: np.ndarray) -> Any:
    """probs (H, T, S)."""
    queries, keys = probs.shape[1:]
    figure, panels = _grid(len(probs), keys / queries)
    largest = float(np.nanmax(probs, initial=0.0)) or 1.0
    down, across = -(-queries // _POINTS), -(-keys // _POINTS)
    for head, axes in enumerate(panels):
        points = _blocks(probs[head], down, across)
        edges = (-0.5, points.shape[1] * across - 0.5, points.shape[0] * down - 0.5, -0.5)
        image = axes.imshow(points, vmin=0, vmax=largest, cmap="magma", extent=edges, aspect="auto")
        axes.set_title(f"head {head}", fontsize=9)
    words = f", the largest of each {down} x {across}" if down * across > 1 else ""
    figure.suptitle(f"{title}\nattention probabilities{words}", fontsize=10)
    figure.supxlabel(f"key (of {keys})", fontsize=9)
    figure.supylabel(f"query (of {queries})", fontsize=9)
    figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02)
    return figure


def _blocks(x: np.ndarray, down: int, across: int) -> np.ndarray:
    """The largest of each block of a map: a mean would hide what a query attends to alone."""
    x = np.maximum.reduceat(x, range(0, x.shape[0], down), axis=0)
    return np.maximum.reduceat(x, range(0, x.shape[1], across), axis=1)


def _class_token_figure(title: str, maps: np.ndarray, picture: np.ndarray) -> Any:
    """maps (H, h, w), picture (C, h', w')."""
    height, width = maps.shape[1:]
    figure, panels = _grid(len(maps) + 1, picture.shape[2] / picture.shape[1])
    panels[0].imshow(_visible(picture), aspect="auto")
    panels[0].set_title("picture", fontsize=9)
    largest = float(np.nanmax(maps, initial=0.0)) or 1.0
    for head, axes in enumerate(panels[1:]):
        image = axes.imshow(maps[head], vmin=0, vmax=largest, cmap="magma", aspect="auto")
        axes.set_title(f"head {head}", fontsize=9)
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(f"{title}\nthe class token's attention to {height} x {width} patches", fontsize=10)
    figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02)
    return figure


def _visible(picture: np.ndarray) -> np.ndarray:
    """Pixels (C, H, W) of any range as a picture: (H, W, 3), or (H, W) in grey if they are not three channels."""
    x = picture.astype(np.float64)
    x = (x - x.min()) / ((x.max() - x.min()) or 1.0)
    return x.transpose(1, 2, 0) if len(x) == 3 else np.repeat(x.mean(0)[:, :, None], 3, axis=2)


def _grid(count: int, shape: float) -> tuple[Any, list[Any]]:
    """A figure of so many panels; ``shape`` is the width of one divided by its height."""
    # As few empty places as can be, and then as few rows.
    columns = count if count <= max(_COLUMNS) else min(_COLUMNS, key=lambda c: (-count % c, -c))
    rows = -(-count // columns)
    shape = min(max(shape, 1 / 3), 3.0)
    width, height = _PANEL * max(shape, 1.0), _PANEL * max(1 / shape, 1.0)
    figure = new_figure(1.6 + columns * width, 1.1 + rows * height)
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes in panels:
        axes.set_box_aspect(1 / shape)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=5, integer=True)
    return figure, panels


def _tables(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The module and the picture of each table of relative positions."""
    for name, module in model.named_modules():
        if hasattr(module, "relative_position_bias_table"):
            table = model.ops.to_numpy(module.relative_position_bias_table)
            yield name, _bias_figure(name, table, module.window)  # type: ignore[attr-defined]  # has both
        elif name.endswith("distance_embedding"):
            yield name, _distances_figure(name, model.ops.to_numpy(module.weight))  # type: ignore[attr-defined]


def _bias_figure(title: str, table: np.ndarray, window: tuple[int, int]) -> Any:
    """table ((2 h - 1)(2 w - 1) + 3, H): a map of distances for each head, and three numbers of the class token."""
    height, width = window
    maps = table[:-3].T.reshape(-1, 2 * height - 1, 2 * width - 1)
    figure, panels = _grid(len(maps), width / height)
    largest = float(np.abs(table).max()) or 1.0
    edges = (0.5 - width, width - 0.5, height - 0.5, 0.5 - height)
    for head, axes in enumerate(panels):
        image = axes.imshow(maps[head], vmin=-largest, vmax=largest, cmap="RdBu_r", extent=edges, aspect="auto")
        axes.set_title(f"head {head}\n{' / '.join(f'{number:.2g}' for number in table[-3:, head])}", fontsize=8)
    words = "bias of the scores by distance; in numbers: class token to patch / from patch / to itself"
    figure.suptitle(f"{title}\n{words}", fontsize=10)
    figure.supxlabel("patches from key to query, across", fontsize=9)
    figure.supylabel("patches from key to query, down", fontsize=9)
    figure.colorbar(image, ax=panels, shrink=0.8, pad=0.02)
    return figure


def _distances_figure(title: str, table: np.ndarray) -> Any:
    """table (2 P - 1, d), the row of distance 0 in the middle."""
    far = table.shape[0] // 2
    figure = new_figure(9.0, 4.0)
    axes = figure.add_subplot()
    largest = float(np.abs(table).max()) or 1.0
    edges = (-far - 0.5, far + 0.5, table.shape[1] - 0.5, -0.5)
    image = axes.imshow(table.T, vmin=-largest, vmax=largest, cmap="RdBu_r", extent=edges, aspect="auto")
    axes.set_title(f"{title}\nembeddings of distances", fontsize=10)
    axes.set_xlabel("tokens from key to query", fontsize=9)
    axes.set_ylabel("dimension of a head", fontsize=9)
    figure.colorbar(image, ax=axes, pad=0.02)
    return figure
