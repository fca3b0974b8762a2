"""What kernels take of a card: registers, shared memory, and what should be none, spills and other local memory.

``python -m d2v_backends.cupy.resources [ARCHITECTURE]`` compiles every kernel and prints the table.  It needs no card.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

from .compiling import Built, built, variants


class Resources(NamedTuple):
    """What a kernel takes: registers of a thread, bytes, and the tensor cores' instructions in its code."""

    kernel: str
    registers: int
    shared: int  # without what a launch asks for
    stack: int
    spilled: int
    tensor: int


def resources(program: Built) -> list[Resources]:
    """Every kernel of a program, by what ``--ptxas-options=-v`` tells."""
    found = []
    assembly = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", program.ptx, re.DOTALL))
    for name, told in re.findall(r"entry function '(\w+)'(.*?)(?=Compiling|\Z)", program.log, re.DOTALL):

        def total(pattern: str, told: str = told) -> int:
            return sum(map(int, re.findall(pattern, told)))

        found.append(
            Resources(
                name,
                registers=total(r"Used (\d+) registers"),
                shared=total(r"(\d+) bytes smem"),
                stack=total(r"(\d+) bytes stack frame"),
                spilled=total(r"(\d+) bytes spill"),
                tensor=len(re.findall(r"\bmma\.sync", assembly[name])),
            )
        )
    return found


def main(arch: int = 90) -> None:
    """Prints the table."""
    print(f"{'kernel':60}" + "".join(f"{field:>10}" for field in Resources._fields[1:]))
    for variant in variants():
        for kernel, *numbers in resources(built(variant, arch)):
            print(f"{f'{variant} {kernel}':60}" + "".join(f"{number:10}" for number in numbers))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
