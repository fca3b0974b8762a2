"""The innermost loops, written as LLVM code: the register tile of a matrix product, and packing for it.

``tile`` computes a block of C = first + A B that is held in registers from the first k to the last: one vector of B
meets every row's number of A, so that a product costs one instruction and few loads.  LLVM's own vectoriser does not
find this form.  Everything else in this backend is a plain loop that it does vectorise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .compiling import routine
from .pointers import INT64, at, function
from .target import TARGET

INT32 = ir.IntType(32)


def _bytes(number: Any) -> int:
    return int(number.bitwidth) // 8


class _Vectors:
    """Emits operations on vectors of one type."""

    def __init__(self, context: Any, builder: Any, number: Any) -> None:
        self.builder, self.lanes = builder, TARGET.lanes(_bytes(number))
        self.number = context.get_value_type(number)
        self.vector = ir.VectorType(self.number, self.lanes)
        self.align = _bytes(number)
        self.suffix = f"v{self.lanes}f{number.bitwidth}"

    def load(self, start: Any) -> Any:
        value = self.builder.load(self.builder.bitcast(start, self.vector.as_pointer()))
        value.align = self.align
        return value

    def load_factor(self, start: Any) -> Any:
        """A vector of a product's second factor."""
        return self.load(start)

    def store(self, value: Any, start: Any) -> None:
        self.builder.store(value, self.builder.bitcast(start, self.vector.as_pointer())).align = self.align

    def everywhere(self, number: Any) -> Any:
        """A vector of one number."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, number, INT32(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, self.lanes), None))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c."""
        if not TARGET.fused:
            return self.builder.fadd(self.builder.fmul(a, b), c)
        fma = function(self.builder.module, f"llvm.fma.{self.suffix}", *[self.vector] * 4)
        return self.builder.call(fma, [a, b, c])


class _Bfloat16(ir.types.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash(_Bfloat16)


class _Pairs(_Vectors):
    """Emits sums in float32 of products of bfloat16, whose factors lie in pairs along k, as int32 (AVX512_BF16)."""

    def __init__(self, context: Any, builder: Any) -> None:
        super().__init__(context, builder, types.float32)
        self.pairs = ir.VectorType(INT32, self.lanes)

    def load_factor(self, start: Any) -> Any:
        value = self.builder.load(self.builder.bitcast(start, self.pairs.as_pointer()))
        value.align = self.align
        return value

    def everywhere(self, number: Any) -> Any:
        undefined = ir.Constant(self.pairs, ir.Undefined)
        first = self.builder.insert_element(undefined, number, INT32(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(self.pairs, None))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a0 b0 + a1 b1 + c."""
        halves = ir.VectorType(_Bfloat16(), 2 * self.lanes)
        module = self.builder.module
        dot = function(module, "llvm.x86.avx512bf16.dpbf16ps.512", self.vector, self.vector, halves, halves)
        return self.builder.call(dot, [c, self.builder.bitcast(a, halves), self.builder.bitcast(b, halves)])


@intrinsic
def lanes(typing: Any, like: Any) -> Any:
    """The numbers in a vector, a constant; ``like`` is a number or a pointer."""
    count = TARGET.lanes(_bytes(getattr(like, "dtype", like)))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return INT64(count)

    return types.int64(like), codegen


@intrinsic
def width(typing: Any, like: Any) -> Any:
    """The columns of a tile, a constant; ``like`` is a number or a pointer."""
    count = TARGET.width(_bytes(getattr(like, "dtype", like)))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return INT64(count)

    return types.int64(like), codegen


ROWS = TARGET.rows
LINE_VECTORS = 512 // TARGET.bits  # vectors in a cache line of 64 bytes
AHEAD = 2  # cache lines that a tile fetches ahead at each k


@intrinsic
def _tile(
    typing: Any,
    rows: Any,
    vectors: Any,
    depth: Any,
    a: Any,
    lda: Any,
    b: Any,
    ldb: Any,
    c: Any,
    ldc: Any,
    f: Any,
    ldf: Any,
    ahead: Any,
    scale: Any,
    added: Any,
    ld_added: Any,
) -> Any:
    """A switch over one loop for every height and width of tile, whose sums are in registers."""
    integer = types.int64
    signature = types.void(integer, integer, integer, a, integer, b, integer, c, integer, f, integer, b, c, c, integer)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, vectors, *operands = args
        vectors_of_sums = _Pairs(context, builder) if a.dtype == types.int32 else _Vectors(context, builder, a.dtype)
        case = builder.add(
            builder.mul(builder.sub(rows, INT64(1)), INT64(TARGET.vectors)), builder.sub(vectors, INT64(1))
        )
        done = builder.append_basic_block("done")
        switch = builder.switch(case, done)
        for i in range(TARGET.rows):
            for j in range(TARGET.vectors):
                block = builder.append_basic_block(f"tile{i + 1}x{j + 1}")
                switch.add_case(INT64(i * TARGET.vectors + j), block)
                builder.position_at_end(block)
                _Product(vectors_of_sums, i + 1, j + 1, *operands).emit()
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


class _Product:
    """Emits C = first + A B for one size of tile."""

    def __init__(
        self, v: _Vectors, rows: int, vectors: int, depth: Any, a: Any, lda: Any, b: Any, ldb: Any, *outer: Any
    ) -> None:
        self.v, self.builder = v, v.builder
        self.line = v.lanes * LINE_VECTORS  # numbers in a cache line
        self.cells = [(i, j) for i in range(rows) for j in range(vectors)]
        self.rows, self.vectors = rows, vectors
        self.depth, self.b, self.ldb = depth, b, ldb
        self.a_rows = [self._row(a, lda, i) for i in range(rows)]
        self.c, self.ldc, self.first, self.ldf, self.ahead, self.scale, self.added, self.ld_added = outer

    def _row(self, start: Any, stride: Any, i: int) -> Any:
        return self.builder.gep(start, [self.builder.mul(stride, INT64(i))]) if i else start

    def _cell(self, start: Any, stride: Any, i: int, j: int) -> Any:
        return self.builder.gep(self._row(start, stride, i), [INT64(j * self.v.lanes)])

    def _step(self, k: Any, b: Any, sums: list[Any]) -> list[Any]:
        """One k: sums + a_k b_k."""
        row_of_b = [self.v.load_factor(self.builder.gep(b, [INT64(j * self.v.lanes)])) for j in range(self.vectors)]
        sums = list(sums)
        for i in range(self.rows):
            number = self.builder.load(self.builder.gep(self.a_rows[i], [k]))
            number.align = self.v.align
            factor = self.v.everywhere(number)
            for j in range(self.vectors):
                cell = i * self.vectors + j
                sums[cell] = self.v.multiply_add(factor, row_of_b[j], sums[cell])
        return sums

    def _prefetch(self, index: Any) -> None:
        """Brings a cache line of what the next tiles need into the second-level cache, while this one computes."""
        byte = ir.IntType(8).as_pointer()
        fetch = function(self.builder.module, "llvm.prefetch.p0", ir.VoidType(), byte, INT32, INT32, INT32)
        place = self.builder.bitcast(self.builder.gep(self.ahead, [index]), byte)
        self.builder.call(fetch, [place, INT32(0), INT32(2), INT32(1)])

    def emit(self) -> None:
        builder = self.builder
        sums = [self.v.load(self._cell(self.first, self.ldf, i, j)) for i, j in self.cells]
        even = builder.and_(self.depth, INT64(-2))
        sums, b = self._loop(INT64(0), even, self.b, sums, 2)
        sums, _ = self._loop(even, self.depth, b, sums, 1)  # the last k of an odd number
        sums = self._where_given(self.scale, sums, lambda: self._scaled(sums))
        sums = self._where_given(self.added, sums, lambda: self._with_residual(sums))
        for (i, j), value in zip(self.cells, sums, strict=True):
            self.v.store(value, self._cell(self.c, self.ldc, i, j))

    def _scaled(self, sums: list[Any]) -> list[Any]:
        scales = [self.v.load(self._cell(self.scale, INT64(0), 0, j)) for j in range(self.vectors)]
        return [self.builder.fmul(value, scales[j]) for (_, j), value in zip(self.cells, sums, strict=True)]

    def _with_residual(self, sums: list[Any]) -> list[Any]:
        return [
            self.builder.fadd(value, self.v.load(self._cell(self.added, self.ld_added, i, j)))
            for (i, j), value in zip(self.cells, sums, strict=True)
        ]

    def _where_given(self, start: Any, sums: list[Any], changed: Callable[[], list[Any]]) -> list[Any]:
        """The sums changed, unless ``start`` is a null pointer."""
        builder, before = self.builder, self.builder.block
        given, after = builder.append_basic_block("given"), builder.append_basic_block("given.end")
        builder.cbranch(builder.icmp_unsigned("!=", start, ir.Constant(start.type, None)), given, after)
        builder.position_at_end(given)
        new = changed()
        builder.branch(after)
        builder.position_at_end(after)
        merged = []
        for old, value in zip(sums, new, strict=True):
            phi = builder.phi(self.v.vector)
            phi.add_incoming(old, before)
            phi.add_incoming(value, given)
            merged.append(phi)
        return merged

    def _loop(self, begin: Any, end: Any, b: Any, sums: list[Any], unrolled: int) -> tuple[list[Any], Any]:
        """k from begin to end, so many at a time; not once if they are equal."""
        builder = self.builder
        before = builder.block
        loop, after = builder.append_basic_block("k"), builder.append_basic_block("k.end")
        builder.cbranch(builder.icmp_signed("<", begin, end), loop, after)
        builder.position_at_end(loop)
        k, at_b = builder.phi(INT64), builder.phi(b.type)
        running = [builder.phi(self.v.vector) for _ in sums]
        new, next_b = list(running), at_b
        if unrolled > 1:
            for line in range(AHEAD * unrolled):
                self._prefetch(builder.add(builder.mul(k, INT64(AHEAD * self.line)), INT64(line * self.line)))
        for step in range(unrolled):
            new = self._step(builder.add(k, INT64(step)), next_b, new)
            next_b = builder.gep(next_b, [self.ldb])
        next_k = builder.add(k, INT64(unrolled))
        for phi, first, following in zip([k, at_b, *running], [begin, b, *sums], [next_k, next_b, *new], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", next_k, end), loop, after)
        builder.position_at_end(after)
        merged = []
        for first, following in zip([b, *sums], [next_b, *new], strict=True):
            phi = builder.phi(first.type)
            phi.add_incoming(first, before)
            phi.add_incoming(following, loop)
            merged.append(phi)
        return merged[1:], merged[0]


@routine
def tile(rows, vectors, depth, a, lda, b, ldb, c, ldc, first, ldf, ahead, scale, added, ld_added):
    """C = added + scale * (first + A B), of at most ``ROWS`` rows and ``width`` columns, in whole vectors.

    A (rows, depth), B (depth, vectors * lanes), C, first and added (rows, vectors * lanes): pointers and the distance
    of their rows.  With ``ldf`` 0 every row begins with the same numbers: the bias.  ``first`` may be C itself.
    ``scale`` (vectors * lanes) and ``added`` are null pointers where there is none.  From ``ahead`` on,
    ``AHEAD`` cache lines for each k are brought into the second-level cache; nothing is read of them.

    Where A and B point to int32, they are pairs of bfloat16 along the depth, which counts the pairs; C is float32.
    """
    _tile(rows, vectors, depth, a, lda, b, ldb, c, ldc, first, ldf, ahead, scale, added, ld_added)


@intrinsic
def _transpose(typing: Any, source: Any, lds: Any, target: Any, ldt: Any) -> Any:
    """A square of lanes x lanes, rows to columns, by log2(lanes) rounds of exchanging halves."""
    integer = types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, lds, target, ldt = args
        v = _Vectors(context, builder, signature.args[0].dtype)
        mask = ir.VectorType(INT32, v.lanes)
        rows = [v.load(builder.gep(source, [builder.mul(lds, INT64(i))])) for i in range(v.lanes)]
        half = v.lanes // 2
        while half:
            low = ir.Constant(mask, [j if not j & half else v.lanes + j - half for j in range(v.lanes)])
            high = ir.Constant(mask, [j + half if not j & half else v.lanes + j for j in range(v.lanes)])
            for i in range(v.lanes):
                if not i & half:
                    pair = rows[i], rows[i + half]
                    rows[i], rows[i + half] = builder.shuffle_vector(*pair, low), builder.shuffle_vector(*pair, high)
            half //= 2
        for i, row in enumerate(rows):
            v.store(row, builder.gep(target, [builder.mul(ldt, INT64(i))]))
        return context.get_dummy_value()

    return types.void(source, integer, source, integer), codegen


@intrinsic
def maximum(typing: Any, x: Any, count: Any) -> Any:
    """The largest number of so many vectors, the lowest number for none (LLVM does not vectorise it: NaN).

    Of four vectors at a time, as one maximum has to wait for the one before.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, count = args
        number = signature.return_type
        v = _Vectors(context, builder, number)
        least = v.everywhere(ir.Constant(v.number, float(np.finfo(str(number)).min)))
        fours = builder.and_(count, INT64(-4))
        tops = _maxima(v, x, INT64(0), fours, [least] * 4)
        for other in tops[1:]:
            tops[0] = builder.select(builder.fcmp_ordered(">", other, tops[0]), other, tops[0])
        (top,) = _maxima(v, x, fours, count, tops[:1])
        result = builder.extract_element(top, INT32(0))
        for lane in range(1, v.lanes):
            other = builder.extract_element(top, INT32(lane))
            result = builder.select(builder.fcmp_ordered(">", other, result), other, result)
        return result

    return x.dtype(x, types.int64), codegen


def _maxima(v: _Vectors, x: Any, begin: Any, end: Any, tops: list[Any]) -> list[Any]:
    """Emits the maxima of ``tops`` and of the vectors from begin to end, as many at a time as ``tops``."""
    builder, before = v.builder, v.builder.block
    loop, after = builder.append_basic_block("maximum"), builder.append_basic_block("maximum.end")
    builder.cbranch(builder.icmp_signed("<", begin, end), loop, after)
    builder.position_at_end(loop)
    i, running = builder.phi(INT64), [builder.phi(v.vector) for _ in tops]
    higher = []
    for step, top in enumerate(running):
        here = v.load(builder.gep(x, [builder.mul(builder.add(i, INT64(step)), INT64(v.lanes))]))
        higher.append(builder.select(builder.fcmp_ordered(">", here, top), here, top))
    following = builder.add(i, INT64(len(tops)))
    for phi, first, next_value in zip([i, *running], [begin, *tops], [following, *higher], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(next_value, loop)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
    builder.position_at_end(after)
    merged = []
    for first, next_value in zip(tops, higher, strict=True):
        phi = builder.phi(v.vector)
        phi.add_incoming(first, before)
        phi.add_incoming(next_value, loop)
        merged.append(phi)
    return merged


@routine
def pack(rows, ld, count, depth, out, columns):
    """out[k, j] = rows[j, k] for j < count, 0 up to ``columns``: a panel of a product's second factor.

    rows (count, depth) at distances of ``ld``, out (depth, columns) without gaps.
    """
    step = lanes(rows)
    whole = depth - depth % step
    j = 0
    while j + step <= count:
        for k in range(0, whole, step):
            _transpose(at(rows, j * ld + k), ld, at(out, k * columns + j), columns)
        for i in range(step):
            for k in range(whole, depth):
                out[k * columns + j + i] = rows[(j + i) * ld + k]
        j += step
    for i in range(j, count):
        for k in range(depth):
            out[k * columns + i] = rows[i * ld + k]
    for k in range(depth):
        for i in range(count, columns):
            out[k * columns + i] = 0


@intrinsic
def _rounded(typing: Any, low: Any, high: Any) -> Any:
    """Two float32 as a pair of bfloat16, each rounded to the nearest, ties to even; NaN stays NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        halves = []
        for number in args:
            bits = builder.bitcast(number, INT32)
            odd = builder.and_(builder.lshr(bits, INT32(16)), INT32(1))
            nearest = builder.add(bits, builder.add(odd, INT32(0x7FFF)))
            quiet = builder.or_(bits, INT32(0x400000))
            nan = builder.fcmp_unordered("uno", number, number)
            halves.append(builder.lshr(builder.select(nan, quiet, nearest), INT32(16)))
        return builder.or_(halves[0], builder.shl(halves[1], INT32(16)))

    return types.int32(types.float32, types.float32), codegen


@routine
def pair_row(x, count, out):
    """A row of float32 as pairs of bfloat16 along it, 0 beside the last of an odd number."""
    for i in range(count // 2):
        out[i] = _rounded(x[2 * i], x[2 * i + 1])
    if count % 2:
        out[count // 2] = _rounded(x[count - 1], np.float32(0))


@routine
def pair_columns(panel, depth, columns, out):
    """A packed panel (depth, columns) as pairs of bfloat16 along the depth, 0 beside the last of an odd number."""
    for k in range(depth // 2):
        low, high, pairs = at(panel, 2 * k * columns), at(panel, (2 * k + 1) * columns), at(out, k * columns)
        for j in range(columns):
            pairs[j] = _rounded(low[j], high[j])
    if depth % 2:
        low, pairs = at(panel, (depth - 1) * columns), at(out, depth // 2 * columns)
        for j in range(columns):
            pairs[j] = _rounded(low[j], np.float32(0))


def steps(depth, factor):
    """How many steps a sum over ``depth`` takes: as many, or half for factors in pairs."""
    raise NotImplementedError("is compiled into kernels")


@overload(steps, inline="always")
def _steps(depth, factor):
    if factor == types.int32:
        return lambda depth, factor: (depth + 1) // 2
    return lambda depth, factor: depth


def as_factors(x, count, out, factor):
    """Numbers of a row as factors: as they are, or in pairs of bfloat16."""
    raise NotImplementedError("is compiled into kernels")


@overload(as_factors)
def _as_factors(x, count, out, factor):
    def floats(x, count, out, factor):
        for i in range(count):
            out[i] = x[i]

    def pairs(x, count, out, factor):
        pair_row(x, count, out)

    return pairs if factor == types.int32 else floats


def rows_as_factors(x, ld, rows, count, out, factor):
    """Rows as factors, and their distance: the rows themselves, or in pairs of bfloat16 at ``out``."""
    raise NotImplementedError("is compiled into kernels")


@overload(rows_as_factors)
def _rows_as_factors(x, ld, rows, count, out, factor):
    def floats(x, ld, rows, count, out, factor):
        return x, ld

    def pairs(x, ld, rows, count, out, factor):
        for i in range(rows):
            pair_row(at(x, i * ld), count, at(out, i * ((count + 1) // 2)))
        return out, (count + 1) // 2

    return pairs if factor == types.int32 else floats


def panel_to_fill(own, out, factor):
    """Where a panel is packed that will have its factors at ``out``: there, or at ``own`` if it becomes pairs."""
    raise NotImplementedError("is compiled into kernels")


@overload(panel_to_fill)
def _panel_to_fill(own, out, factor):
    if factor == types.int32:
        return lambda own, out, factor: own
    return lambda own, out, factor: out


def panel_as_factors(panel, depth, columns, out, factor):
    """Factors at ``out`` of a panel (depth, columns) that was packed where ``panel_to_fill`` says."""
    raise NotImplementedError("is compiled into kernels")


@overload(panel_as_factors)
def _panel_as_factors(panel, depth, columns, out, factor):
    def floats(panel, depth, columns, out, factor):
        pass

    def pairs(panel, depth, columns, out, factor):
        pair_columns(panel, depth, columns, out)

    return pairs if factor == types.int32 else floats
