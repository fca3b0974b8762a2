"""``d2v-ref backends``: who can compute here."""

from __future__ import annotations

import click

from d2v_ref.cli.common import visible


@click.command(short_help="List who can compute here.")
def backends() -> None:
    """List the backends, whether they run here, and which operations each computes itself."""
    from d2v_ref.ops import backends as known

    for info in known():
        state = "available" if info.available else f"not available: {info.reason}"
        click.echo(visible(f"{info.name}: {state}"))
        if info.overrides:
            click.echo(f"  computes itself: {', '.join(info.overrides)}")
