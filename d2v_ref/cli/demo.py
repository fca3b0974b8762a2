"""``d2v-ref demo``: the shipped models on their samples, and a golden held against every backend."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from d2v_ref.cli.common import computing_options, progress, visible
from d2v_ref.errors import BackendError, ConformanceError, InputError

WIDTH = 98
EXAMPLES = 2  # of each task
RECORDED = "tiny-audio"  # what the golden is of
NEXT = """\
next, with your own files:
  d2v-ref run tiny-vision photo.png        a digit; --task image-segmentation: several, as a map
  d2v-ref run tiny-audio speech.wav        a spoken number
  d2v-ref run tiny-text "a small <mask>"   a word; --task text-classification: what it is about
  d2v-ref golden record tiny-text "a small <mask>" -o golden && d2v-ref golden check golden
  d2v-ref run --help                       all tasks; models of your own or from the hub"""


@click.command(short_help="Run the models that come with the package.")
@computing_options()
@click.option(
    "-o", "--output", "bundle", metavar="BUNDLE", type=click.Path(path_type=Path), help="Folder to keep the golden in."
)
def demo(backend: str, dtype: str, bundle: Path | None) -> None:
    """Run the three tiny trained models that come with the package, and check what they compute.

    Each answers the held-out samples that come with it, with both of its heads; the answers must be the recorded ones.
    Then every module's output of one run is recorded and checked with every backend that is installed.  It needs no
    network, and takes some seconds.  Exit code 1 if an answer or an output is another one.
    """
    from d2v_ref import models

    start = time.monotonic()
    if bundle is not None and os.path.lexists(bundle):  # before the models run, what would be an error after it
        raise InputError("exists already", path=bundle, hint="Choose another folder, or remove this one")
    wrong = [line for name in models.NAMES for line in _show_answers(name, backend, dtype)]
    wrong += _show_golden(backend, dtype, bundle)
    if wrong:
        more = f"{len(wrong)} such differences in all" if len(wrong) > 1 else None
        raise ConformanceError(wrong[0], hint=more)
    click.echo(NEXT)
    click.echo(f"every answer and output is the recorded one; {time.monotonic() - start:.0f} s")


# ---- answers ---------------------------------------------------------------------------------------------------------


def _show_answers(name: str, backend: str, dtype: str) -> Iterator[str]:
    """Print what a model answers; a line about each task of which an answer is not the recorded one."""
    from d2v_ref.models import results, samples

    with progress(name, len(samples(name))) as advance:
        found = results.run(name, progress=advance, backend=backend, dtype=dtype)
    for result in found:
        click.echo(f"{name}, {result.task} ({result.kind})")
        for line in _examples(result):
            click.echo(line)
        count, differing = len(result.samples), result.differing()
        measure, value = result.score()
        same = f"{count - len(differing)} of {count} answers are as recorded"
        click.echo(f"  {measure} {value:.1%} on {count} held-out samples; {same}")
        if differing:
            got = f"{len(differing)} of {count} answers of {name}, {result.task}, are not the recorded ones"
            yield f"{got}, the first to {visible(differing[0].input)[:60]!r}"


def _examples(result: Any) -> Iterator[str]:
    """The first samples: input, answer and truth, a line each."""
    import numpy as np

    from d2v_ref.models.results import is_right, truth

    for sample, answer in list(zip(result.samples, result.answers, strict=True))[:EXAMPLES]:
        true = truth(sample)
        if isinstance(answer, str):
            judged = "right" if is_right(answer, true) else f"truth: {true}"
        else:
            judged = f"{np.mean(answer == true):.1%} of pixels right"
            answer = ", ".join(result.labels[label] for label in np.unique(answer).tolist())
        said = _cut(visible(f"{answer.strip()}  ({judged})"), 60)
        yield f"  {_cut(visible(sample.input), WIDTH - len(said) - 8)}  ->  {said}"


def _cut(text: str, width: int) -> str:
    """At most so many letters of a text, those around the mask if it has one."""
    start = max(0, min(text.find("<mask>") - width // 2, len(text) - width))
    kept = text[start : start + width]
    if start > 0:
        kept = f"...{kept[3:]}"
    return f"{kept[:-3]}..." if start + width < len(text) else kept


# ---- the golden ------------------------------------------------------------------------------------------------------


def _show_golden(backend: str, dtype: str, bundle: Path | None) -> Iterator[str]:
    """Record a golden and print who reproduces it; a line about each backend that does not."""
    from d2v_ref import models
    from d2v_ref.golden import PASSED, check
    from d2v_ref.ops import backends

    folder = models.folder(RECORDED)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary, "golden") if bundle is None else bundle
        sample = models.samples(RECORDED)[0]
        count = _record(folder, sample, place, backend, dtype)
        kept = "" if bundle is None else f", kept in {visible(str(bundle))}"
        click.echo(f"golden of {RECORDED}, {visible(sample.input)}: {count} arrays of modules{kept}")
        for name in [info.name for info in backends() if info.available]:
            try:
                report = check(place, model=folder, backend=name)
            except BackendError as error:  # a machine without its device, or a backend without the dtype
                click.echo(f"  {name}: {visible(str(error))}")
                continue
            passed = sum(row.status == PASSED for row in report.rows)
            click.echo(f"  {name}: {passed} of {len(report.rows)} arrays passed")
            if report.first is not None:
                yield f"the golden of {RECORDED} differs with backend {name}, first in {report.first.name}"


def _record(folder: Path, sample: Any, place: Path, backend: str, dtype: str) -> int:
    """Record a bundle of a recording; how many outputs it has."""
    import d2v_ref
    from d2v_ref import golden

    extractor = d2v_ref.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    arrays = extractor(d2v_ref.read_audio(sample.given, extractor.sampling_rate), padding=True).arrays()
    model = d2v_ref.load(folder, backend=backend, dtype=dtype)
    with progress("golden", golden.runs(dtype)) as advance:
        made = golden.record(model, arrays, place, name=RECORDED, folder=folder, progress=advance)
    return len(made.manifest["taps"])
