"""``d2v-ref backends``: who can compute here."""

from __future__ import annotations

import click


@click.command()
def backends() -> None:
    """List the backends, whether they run here, and which operations each computes itself."""
    from d2v_ref.ops import backends as known

    for info in known():
        state = "available" if info.available else f"not available: {info.reason}"
        click.echo(f"{info.name}: {state}")
        if info.overrides:
            click.echo(f"  computes itself: {', '.join(info.overrides)}")
