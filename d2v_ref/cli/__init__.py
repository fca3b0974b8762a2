"""The ``d2v-ref`` command.

Exit codes: 0 done, 1 a comparison failed, 2 a wrong input or use, 3 something that this machine lacks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import d2v_ref
from d2v_ref.cli.common import say_error
from d2v_ref.cli.golden import golden
from d2v_ref.cli.run import run
from d2v_ref.cli.synth import synth
from d2v_ref.cli.which import backends
from d2v_ref.errors import D2VError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(d2v_ref.__version__, prog_name="d2v-ref")
def cli() -> None:
    """Data2Vec models in NumPy: run them, record what they compute, hold other implementations against it."""


for command in (run, golden, synth, backends):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every D2VError becomes one line and its exit code."""
    try:
        cli.main(arguments, prog_name="d2v-ref", standalone_mode=True)
    except D2VError as error:
        say_error(error)
        sys.exit(error.exit_code)
