"""The ``d2v-ref`` command.

Exit codes: 0 done, 1 a comparison failed, 2 a wrong input or use, 3 something that this machine lacks; 130 and 141, as
the shell has it, if the user or the reader of the output broke off.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

import d2v_ref
from d2v_ref.cli.audit import audit
from d2v_ref.cli.bench import bench
from d2v_ref.cli.common import say_error
from d2v_ref.cli.demo import demo
from d2v_ref.cli.diff import diff
from d2v_ref.cli.golden import golden
from d2v_ref.cli.run import run
from d2v_ref.cli.synth import synth
from d2v_ref.cli.warmup import warmup
from d2v_ref.cli.which import backends
from d2v_ref.errors import D2VError


class _Commands(click.Group):
    """The commands; every error of theirs becomes one line and its exit code."""

    def invoke(self, context: click.Context) -> None:
        try:
            super().invoke(context)
            return
        except D2VError as error:
            code = say_error(error)
        except KeyboardInterrupt:
            click.echo(err=True)  # the terminal has shown ^C
            code = 130
        except BrokenPipeError:  # of `d2v-ref ... | head`
            _drop_output()
            code = 141
        except OSError as error:  # what nobody else can see coming: a full disk behind standard output
            _drop_output()
            say_error(D2VError(f"the system refuses: {error.strerror}", path=error.filename))
            code = 3
        except MemoryError:
            say_error(D2VError("the memory does not suffice", hint="Give shorter inputs, or fewer at a time"))
            code = 3
        context.exit(code)


def _drop_output() -> None:
    """Have what is still to be written to standard output go nowhere, so that Python's exit does not fail on it."""
    with suppress(io.UnsupportedOperation):  # no file, so nothing fails
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(d2v_ref.__version__, prog_name="d2v-ref")
def cli() -> None:
    """Data2Vec models in NumPy: run them, record what they compute, hold other implementations against it."""


for command in (demo, run, golden, diff, audit, synth, bench, backends, warmup):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks
    cli.main(arguments, prog_name="d2v-ref")
