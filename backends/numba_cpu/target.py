"""The processor that Numba compiles for, and the register tile that suits it.

A tile is a block of the product that is kept in registers while the sum over k runs: ``rows`` rows of ``vectors``
vectors.  It is as large as the registers allow, beside a row of vectors of the second factor and one number of the
first, because the work done for each number that is loaded grows with it (Goto & van de Geijn 2008, sec. 4).
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Target(NamedTuple):
    """What is known of the processor.

    Attributes:
        name: "avx512", "avx2", "neon" or "portable".
        bits: the width of a vector register.
        rows, vectors: the tile.
        fused: whether a product and a sum are one instruction, rounded once.
        bfloat16: whether there are dot products of bfloat16 pairs (AVX512_BF16).
    """

    name: str
    bits: int
    rows: int
    vectors: int
    fused: bool
    bfloat16: bool

    def lanes(self, itemsize: int) -> int:
        """The numbers in a vector."""
        return self.bits // (8 * itemsize)

    def width(self, itemsize: int) -> int:
        """The columns of a tile, and of a panel of packed weights."""
        return self.lanes(itemsize) * self.vectors


def of_features(triple: str, features: str) -> Target:
    """The tile for a processor by LLVM's name and its features (``+avx2,-avx512f,...``)."""
    has = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    if "avx512f" in has:
        return Target("avx512", 512, 6, 4, True, "avx512bf16" in has)  # 24 sums in 32 registers
    if {"avx2", "fma"} <= has:
        return Target("avx2", 256, 6, 2, True, False)  # 12 sums in 16 registers
    if triple.startswith(("aarch64", "arm64")):
        return Target("neon", 128, 6, 4, True, False)  # 24 sums in 32 registers
    return Target("portable", 128, 6, 2, False, False)  # 12 sums in the 16 registers of SSE2


def _detected() -> Target:
    from numba.core.registry import cpu_target

    # What Numba generates code for, which NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may narrow.
    magic: Any = cpu_target.target_context.codegen().magic_tuple()
    triple, _, features = magic
    return of_features(triple, features)


TARGET = _detected()
