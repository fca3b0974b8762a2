"""``d2v-ref warmup``: what a backend compiles, before it is needed."""

from __future__ import annotations

import time

import click

from d2v_ref.cli.common import progress, visible


@click.command(short_help="Compile a backend's kernels ahead.")
@click.option("--backend", metavar="NAME", default="numba", show_default=True, help="See `d2v-ref backends`.")
@click.option(
    "--dtype",
    "dtypes",
    metavar="DTYPE",
    multiple=True,
    default=["float32"],
    show_default=True,
    help="To compute in, one that the backend takes; several times.",
)
def warmup(backend: str, dtypes: tuple[str, ...]) -> None:
    """Compile every kernel of a backend for this processor, so that no run has to wait for it.

    They are kept in D2V_CACHE_DIR, or in the user's folder for caches, and compiled again when this package, Numba or
    the processor is another one.

    \b
    d2v-ref warmup
    d2v-ref warmup --dtype float32 --dtype bfloat16
    """
    from d2v_ref.ops import get_ops

    found = [get_ops(backend, dtype).kernels(dtype) for dtype in dtypes]
    compilers = {name: make for kernels in found if kernels for name, make in kernels.compilers.items()}
    if not compilers:
        click.echo(visible(f"{backend}: there is nothing to compile"))
        return
    start, fresh = time.perf_counter(), 0
    with progress("warmup", len(compilers)) as advance:
        for make in compilers.values():
            fresh += make()
            advance(1)
    seconds, there = time.perf_counter() - start, len(compilers) - fresh
    click.echo(visible(f"{backend}, {', '.join(dtypes)}: {fresh} compiled, {there} were there, {seconds:.0f} s"))
    for folder in dict.fromkeys(str(kernels.folder) for kernels in found if kernels):
        click.echo(visible(f"kept in {folder}"))
