"""``d2v-ref bench``: how fast our backends are beside other engines."""

from __future__ import annotations

from pathlib import Path

import click

from d2v_ref.cli.common import progress, say_error, to_json, visible
from d2v_ref.errors import InputError


@click.command(short_help="Measure our backends beside other engines.")
@click.option("--case", "cases", metavar="CASE", multiple=True, help="Only this one; may be given again.")
@click.option("--engine", "engines", metavar="NAME", multiple=True, help="Only this one; may be given again.")
@click.option(
    "--repeat", type=click.IntRange(1), metavar="N", default=7, show_default=True, help="The least turns of a case."
)
@click.option(
    "--seconds",
    type=click.IntRange(0),
    metavar="S",
    default=30,
    show_default=True,
    help="Short cases take more turns, for so long.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    envvar="D2V_NUM_THREADS",
    show_default="D2V_NUM_THREADS, or every core",
    help="Of every engine.",
)
@click.option("--memory", is_flag=True, help="Measure our engines' peak memory instead.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write all numbers as well.")
def bench(
    cases: tuple[str, ...],
    engines: tuple[str, ...],
    repeat: int,
    seconds: int,
    threads: int | None,
    memory: bool,
    json_file: Path | None,
) -> None:
    """Time forward passes of our backends, torch, ONNX Runtime and OpenVINO, and print tables in Markdown.

    Cases are models of the published sizes with synthetic weights: text-1x128, vision-8, audio-large-5s.  Each has a
    process of its own, in which the engines compute the same in turns; one that computes something else is an error.

    Engines are every backend, in float32 or in the dtype after a colon (numba:bfloat16), torch, onnxruntime, openvino
    and openvino:bfloat16, which `pip install 'd2v-ref[bench]'` installs.  One that can't run is left out, with a line
    that says why.  All of it takes a quarter of an hour on two cores, which should have nothing else to do.

    \b
    d2v-ref bench
    d2v-ref bench --case text-1x128 --case audio-5s --engine numpy --engine openvino
    """
    from d2v_ref.bench import machine, timing
    from d2v_ref.bench.cases import CASES, case
    from d2v_ref.bench.engines import Ours, default_engines, engine
    from d2v_ref.bench.report import choose, markdown, measure_cases, time_cases
    from d2v_ref.checkpoints import replacing

    if json_file is not None and not json_file.parent.is_dir():  # before, not after, a quarter of an hour
        raise InputError("there is no such folder", path=json_file.parent)
    wanted = [case(name) for name in cases or CASES]
    names = engines or default_engines()
    if memory and not engines:
        names = [name for name in names if isinstance(engine(name), Ours)]
    if memory and not cases:
        wanted = [one for one in wanted if one.size == "base"]
    chosen, left_out = choose(names)
    for name, reason in left_out.items():
        click.echo(visible(f"left out: {name}: {reason}"), err=True)
    count = machine.cores() if threads is None else threads
    each = len(chosen) if memory else timing.steps(len(chosen), repeat)
    with progress("bench", len(wanted) * each) as advance:
        if memory:
            report = measure_cases(wanted, chosen, left_out, count, advance)
        else:
            report = time_cases(wanted, chosen, left_out, count, repeat, seconds, advance)
    if json_file is not None:
        with replacing(json_file) as temporary:
            temporary.write_text(to_json(report.as_dict()) + "\n", encoding="utf-8")
    if report.timings or report.memory:
        for line in markdown(report):
            click.echo(visible(line))
    if report.failed:
        *others, last = report.failed.values()
        for error in others:
            say_error(error)
        raise last
