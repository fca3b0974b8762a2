"""Synthetic weights: the same numbers in every language, from a seed, a name and an index.

A golden that is made of them needs no download: whoever ports a head regenerates the checkpoint from the few lines
below.  Everything is in unsigned 64-bit integers that wrap, and the last step is a product that is exact in float32, or
one sum that is rounded to the nearest (even) float32, so that there is nothing to round differently.

Element ``i`` (0, 1, 2, ... in row-major order) of the weight called ``name`` is made in five steps.

1. ``h = FNV-1a-64(name)``: start from 0xCBF29CE484222325; for each byte of the name in UTF-8,
   ``h = (h XOR byte) * 0x100000001B3``.
2. ``key = mix(h XOR mix(seed + 0x9E3779B97F4A7C15))``
3. ``z = mix(key + (i + 1) * 0x9E3779B97F4A7C15)``, where ``mix`` is the finaliser of SplitMix64 (Steele et al. 2014)::

       mix(z):  z = (z XOR (z >> 30)) * 0xBF58476D1CE4E5B9
                z = (z XOR (z >> 27)) * 0x94D049BB133111EB
                return z XOR (z >> 31)

4. ``u = ((z >> 40) - 2^23) / 2^23``: the upper 24 bits as a multiple of 2^-23 in [-1, 1).
5. The weight is, with a power of two for its scale, so that the product is exact and only the sum with 1 rounds:

   - two or more axes: ``u * 2^-k``, ``k`` the smallest integer with ``3 * 4^k >= fan_in``, where ``fan_in`` is the
     number of elements of one row (the product of all axes but the first).  The standard deviation 2^-k / sqrt(3) is
     at most 1 / sqrt(fan_in), and more than half of it, so that a layer neither damps nor blows up what passes;
   - one axis, ending in ".weight" after a part with "norm" in it, whatever the case of its letters
     (``LayerNorm.weight``, ``layernorm_before.weight``), or ending in "running_var": ``1 + u * 2^-3``;
   - one axis otherwise: ``u * 2^-4``.

``tests/test_synth.py`` holds this text against a second reading of it in plain Python integers, and lists values to
compare with.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from d2v_ref.errors import InputError

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_CHUNK = 1 << 20  # elements at a time: the integers need several times the memory of the weights


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """The synthetic weight of every name, float32."""
    return {name: weight(name, shape, seed) for name, shape in shapes.items()}


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The synthetic weight ``name``, float32, as the module's text describes it."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 64:
        raise InputError("the seed is out of range", got=repr(seed), expected="an integer 0 ... 2^64 - 1")
    seed = int(seed)
    key = _mix(np.array([_fnv1a(name)], np.uint64) ^ _mix(np.array([(seed + _GOLDEN) & _WORD], np.uint64)))
    out = np.empty(int(np.prod(shape)), np.float32)
    offset, scale = _distribution(name, shape)
    for start in range(0, out.size, _CHUNK):
        index = np.arange(start + 1, min(start + _CHUNK, out.size) + 1, dtype=np.uint64)
        bits = _mix(key + index * np.uint64(_GOLDEN)) >> np.uint64(40)
        u = (bits.astype(np.int64) - (1 << 23)).astype(np.float32) * np.float32(2.0**-23)
        out[start : start + len(index)] = np.float32(offset) + u * np.float32(scale)
    return out.reshape(shape)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if len(shape) > 1:
        fan_in, k = int(np.prod(shape[1:])), 0
        while 3 * 4**k < fan_in:
            k += 1
        return 0.0, 2.0**-k
    module, _, last = name.lower().rpartition(".")
    positive = last == "running_var" or (last == "weight" and "norm" in module.rpartition(".")[2])
    return (1.0, 2.0**-3) if positive else (0.0, 2.0**-4)


def _fnv1a(name: str) -> int:
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & _WORD
    return h


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
