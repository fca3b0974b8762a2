"""A call of every operation of ``Ops``, drawn: shapes, layouts in memory, numbers, and every optional argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from operands import DENORMAL, Call, Draw, Operand, Part, in_format

from d2v_ref.audit.storage import LARGEST
from d2v_ref.nn import BatchNorm2d, Conv1d, Conv2d, Embedding, LayerNorm, Linear
from d2v_ref.ops import ACTIVATIONS

Drawer = Callable[[Draw], Call]
CALLS: dict[str, Drawer] = {}
LOWEST = {"float64": float(np.finfo(np.float64).min), "float32": float(np.finfo(np.float32).min)}
LOWEST |= {form: -LARGEST[form] for form in ("float16", "bfloat16")}


def operation(name: str) -> Callable[[Drawer], Drawer]:
    def register(drawer: Drawer) -> Drawer:
        CALLS[name] = drawer
        return drawer

    return register


def calls(name: str, form: str) -> st.SearchStrategy[Call]:
    """Calls of an operation, of numbers in a format."""
    return st.integers(0, 2**32 - 1).map(lambda seed: drawn(name, form, seed))


def drawn(name: str, form: str, seed: int) -> Call:
    d = Draw(seed, form)
    call = CALLS[name](d)
    return replace(call, by_name=name != "project" and d.number(0, 4) == 0)


def part(d: Draw, cls: type[Any], settings: dict[str, Any], **shapes: tuple[int, ...]) -> Part:
    return Part(cls, settings, {name: d.numbers(*shape) for name, shape in shapes.items()})


# ---- element by element, and along rows


def _elementwise(name: str) -> Drawer:
    def draw(d: Draw) -> Call:
        kind = d.one_of("normal", "sparse", "wide", "denormal", "zero", "special")
        shape = (*d.lead(), d.length(70, 300))
        x = d.array(*shape, kind=kind, scale=d.one_of(1.0, 4.0, 12.0))
        return Call(name, (x,), plain=kind not in ("wide", "special"))

    return draw


for _name in sorted({*ACTIVATIONS.values(), "softplus"}):
    CALLS[_name] = _elementwise(_name)


@operation("activation")
def _activation(d: Draw) -> Call:
    call = _elementwise("activation")(d)
    return replace(call, args=(d.one_of(*sorted(ACTIVATIONS)), *call.args))


@operation("glu")
def _glu(d: Draw) -> Call:
    kind = d.one_of("normal", "sparse", "denormal", "zero", "special")
    x = d.array(*d.lead(), 2 * d.number(0, 40), kind=kind, scale=d.one_of(1.0, 12.0))
    return Call("glu", (x,), plain=kind != "special")


def _softmax(name: str) -> Drawer:
    def draw(d: Draw) -> Call:
        kind = d.one_of("normal", "sparse", "wide", "denormal", "zero", "special")
        x = d.numbers(*d.lead(), d.length(70, 300), kind=kind, scale=d.one_of(1.0, 10.0, 100.0))
        if kind == "normal" and d.often():  # scores that are hidden, in some rows all of them
            x = np.where(d.random.random(x.shape) < d.one_of(0.3, 1.0), x, LOWEST[d.form])
        return Call(name, (d.operand(x),), plain=kind not in ("wide", "special"))

    return draw


CALLS["softmax"], CALLS["log_softmax"] = _softmax("softmax"), _softmax("log_softmax")


@operation("layer_norm")
def _layer_norm(d: Draw) -> Call:
    width, kind = d.length(130, 300, 768), d.one_of("normal", "large mean", "equal", "denormal", "sparse", "special")
    lead = d.lead()
    x = d.numbers(*lead, width, kind=kind if kind in ("denormal", "sparse", "special") else "normal")
    if kind == "large mean":
        x = (x + 10.0 ** d.number(1, 4) * d.random.normal(size=(*lead, 1))) * 10.0 ** d.number(-3, 3)
    elif kind == "equal":
        x = x[..., :1] + np.zeros(width)
    elif kind == "normal":
        x = x * 10.0 ** d.random.uniform(-15, 12, (*lead, 1))  # squares that the format holds
    affine = (d.array(width), d.array(width)) if d.often() else (None, None)
    x = d.numbers_of(x)
    return Call("layer_norm", (d.operand(x), *affine, d.one_of(1e-12, 1e-5, 1.0)), plain=kind != "special")


@operation("batch_norm")
def _batch_norm(d: Draw) -> Call:
    width, kind = d.length(70), d.one_of("normal", "sparse", "denormal", "special")
    x = d.array(d.number(0, 2), d.number(1, 5), d.number(1, 5), width, kind=kind, scale=d.one_of(1.0, 1e4))
    var = d.operand(np.abs(d.numbers(width, kind=d.one_of("normal", "sparse"))))
    eps = d.one_of(1e-12, 1e-5, 0.1)
    return Call("batch_norm", (x, d.array(width), var, d.array(width), d.array(width), eps), plain=kind != "special")


@operation("embedding")
def _embedding(d: Draw) -> Call:
    rows, width = d.number(1, 30), d.length(70)
    dtype = d.one_of("i8", "i4", "u1", "i1", "u8")
    ids = d.random.integers(0, rows, d.lead(20)).astype(dtype)
    return Call(
        "embedding", (replace(d.operand(ids), host=True), d.array(rows, width, kind=d.one_of("normal", "special")))
    )


@operation("embed_norm")
def _embed_norm(d: Draw) -> Call:
    """Tables of a text's embeddings, of which all positions may be those of one row."""
    width, lead = d.length(130, 300, 768), (d.number(1, 4), d.number(1, 20))
    ids, tables, affine = [], [], {"weight": (width,), "bias": (width,)}
    for i in range(d.number(1, 3)):
        rows = d.number(1, 30)
        shape = (1, lead[1]) if i and d.number(0, 2) == 0 else lead
        ids.append(replace(d.operand(d.random.integers(0, rows, shape)), host=True))
        tables.append(part(d, Embedding, {"count": rows, "width": width}, weight=(rows, width)))
    norm = part(d, LayerNorm, {"width": width, "eps": d.one_of(1e-12, 1e-5)}, **affine)
    return Call("embed_norm", (tuple(ids), tuple(tables), norm))


@operation("where")
def _where(d: Draw) -> Call:
    """Masks of rows and of single numbers; what is not taken may be anything."""
    shape, kind = (*d.lead(20), d.length(70)), d.one_of("normal", "special")
    mask = d.operand(d.random.random((*shape[:-1], d.one_of(1, shape[-1]))) < 0.5)
    x, y = d.array(*shape, kind=kind), d.one_of(0, d.array(*shape, kind=kind), d.array(shape[-1]))
    return Call("where", (mask, *d.one_of((x, y), (y, x))))


@operation("add")
def _add(d: Draw) -> Call:
    """Of one shape, or broadcast: rows, a number of each row, fewer axes."""
    shape, kind = (*d.lead(20), d.length(70)), d.one_of("normal", "wide", "denormal", "special")
    other = d.one_of(shape, (shape[-1],), (*shape[:-1], 1), (*[1] * (len(shape) - 1), shape[-1]))
    x, y = d.array(*shape, kind=kind), d.array(*other, kind=kind)
    return Call("add", d.one_of((x, y), (y, x)), plain=kind == "normal")


@operation("concatenate")
def _concatenate(d: Draw) -> Call:
    rank = d.number(1, 4)
    shape, axis = [d.number(1, 6) for _ in range(rank)], d.number(-rank, rank - 1)
    parts = []
    for _ in range(d.number(1, 4)):
        shape[axis] = d.number(0, 5)
        parts.append(d.array(*shape, kind=d.one_of("normal", "special")))
    return Call("concatenate", (tuple(parts), axis))


@operation("split_heads")
def _split_heads(d: Draw) -> Call:
    heads = d.number(1, 4)
    return Call("split_heads", (d.array(d.number(1, 3), d.number(1, 9), heads * d.number(1, 9)), heads))


def _as_it_is(name: str) -> Drawer:
    return lambda d: Call(name, (d.array(*d.lead(), d.number(1, 20), kind=d.one_of("normal", "special")),))


for _name in ("asarray", "constant", "to_numpy"):
    CALLS[_name] = _as_it_is(_name)


# ---- products


@operation("linear")
def _linear(d: Draw) -> Call:
    depth, outputs = d.length(130, 0, 257), d.length(130, 0, 200)
    lead, kind = d.lead(), d.one_of("normal", "normal", "sparse", "wide", "denormal", "special", "lifted")
    if kind == "lifted" and d.form in ("float16", "bfloat16"):  # whose dot products take denormal numbers for nothing
        kind = "denormal"
    x, weight = d.numbers(*lead, depth), d.numbers(outputs, depth)
    if kind == "wide":  # rows and columns of every size, whose products the format holds
        x = x * 10.0 ** d.random.uniform(-15, 15, (*lead, 1))
        weight = weight * 10.0 ** d.random.uniform(-15, 15, (outputs, 1))
    elif kind == "lifted":  # denormal numbers, whose products are none
        x, weight = d.numbers(*lead, depth, kind="denormal"), weight * (1e-5 / DENORMAL[d.form])
    elif kind != "normal":
        x = d.numbers(*lead, depth, kind=kind)
    activation = d.one_of(None, "gelu", d.one_of(*sorted(ACTIVATIONS)))
    more = [d.maybe(outputs), activation, d.maybe(*lead, outputs), d.maybe(outputs)]
    bias, residual, scale = more[0], more[2], more[3]
    return Call(
        "linear",
        (d.operand(d.numbers_of(x)), d.operand(d.numbers_of(weight))),
        {"bias": bias, "activation": activation, "residual": residual, "scale": scale},
        plain=kind not in ("wide", "special"),
    )


@operation("project")
def _project(d: Draw) -> Call:
    """Modules of unequal width, with and without a bias, whose weights the backend has prepared."""
    depth, kind = d.length(130, 257), d.one_of("normal", "sparse", "special")
    linears = []
    for _ in range(d.number(0, 4)):
        outputs, bias = d.length(70), d.often()
        shapes = {"weight": (outputs, depth), **({"bias": (outputs,)} if bias else {})}
        linears.append(part(d, Linear, {"inputs": depth, "outputs": outputs, "bias": bias}, **shapes))
    return Call("project", (d.array(*d.lead(), depth, kind=kind), *linears), plain=kind != "special")


# ---- attention


def _broadcasting(d: Draw, full: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to (B, H, T, S): each of the usual ones, or any."""
    batch, heads, queries, keys = full
    usual = [(batch, 1, 1, keys), (1, 1, queries, keys), full, (keys,), (heads, 1, 1), (1, heads, queries, keys)]
    return d.one_of(*usual, tuple(d.one_of(1, length) for length in full))


@operation("attention")
def _attention(d: Draw) -> Call:
    heads, size = d.number(1, 4), d.one_of(1, 5, 8, 20, 32, 64, 80, 128, 130)
    queries, keys = d.one_of(
        (1, 1), (d.length(70),) * 2, (1, d.length(130, 300)), (d.length(20, 64), d.length(130, 300))
    )
    batch = d.number(1, 3) if keys < 100 else 1
    full, width = (batch, heads, queries, keys), heads * size
    scale = d.one_of(0.0, 0.3, 1.0, 1.0, 5.0)
    q, k, v = (d.numbers(batch, n, width, scale=f) for n, f in ((queries, scale), (keys, 1.0), (keys, 1.0)))
    options: dict[str, Any] = {"causal": d.number(0, 2) == 0, "probs": d.number(0, 1) == 0}
    if d.often():
        mask = d.random.random(_broadcasting(d, full)) < d.one_of(0.2, 0.7, 1.0)
        if mask.ndim == 4 and d.often():
            mask[0, 0, 0] = False  # rows that see nothing
        options["mask"] = d.operand(mask)
    if d.number(0, 2) == 0:
        bias = d.numbers(*_broadcasting(d, full), scale=d.one_of(1.0, 10.0))
        if d.number(0, 2) == 0:  # an additive mask, with rows that see nothing
            bias = np.where(d.random.random(bias.shape) < 0.5, bias, LOWEST[d.form])
            if bias.ndim > 1:
                bias[..., 0, :] = bias.min()
        options["bias"] = d.operand(bias)
    if d.number(0, 2) == 0:
        options["head_mask"] = d.array(*_broadcasting(d, full))
    plain = True
    if d.number(0, 4) == 0:
        plain = _spoil(d, q, k, options)
    return Call("attention", (*(d.operand(x) for x in (q, k, v)), heads), options, plain)


def _spoil(d: Draw, q: np.ndarray, k: np.ndarray, options: dict[str, Any]) -> bool:
    """NaN in a query, or in a key, which is none to a query that may not see it."""
    spoilt = d.one_of(q, k)
    spoilt[d.number(0, len(q) - 1), d.number(0, spoilt.shape[1] - 1)] = np.nan
    return False


@operation("relative_key_bias")
def _relative_key_bias(d: Draw) -> Call:
    heads, size, queries = d.number(1, 3), d.one_of(1, 5, 8, 20, 64), d.length(20)
    keys, batch = queries + d.number(0, 9), d.number(1, 2)
    table = d.array(2 * (keys + d.number(0, 3)) - 1, size)
    q, k = d.array(batch, queries, heads * size), d.array(batch, keys, heads * size)
    return Call("relative_key_bias", (q, k, heads, table, d.one_of(True, False)))


# ---- convolutions


def _signal(d: Draw, width: int, span: int, padding: int, kind: str) -> Operand:
    least = max(span - 2 * padding, 1)
    return d.array(d.number(1, 3), least + d.length(70, 0), width, kind=kind)


@operation("conv1d")
def _conv1d(d: Draw) -> Call:
    groups, kind = d.one_of(1, 1, 2, 3, 16), d.one_of("normal", "sparse", "denormal", "special")
    width, outputs = groups * d.one_of(1, 3, 5, 16, 33), groups * d.one_of(1, 2, 5, 16, 48)
    taps, stride, dilation, padding = d.one_of(1, 2, 3, 4, 10, 19), d.number(1, 5), d.number(1, 4), d.number(0, 9)
    if groups == 16:
        width, outputs = 16 * d.number(1, 6), 16 * d.number(1, 6)
    x = _signal(d, width, dilation * (taps - 1) + 1, padding, kind)
    more = {"bias": d.maybe(outputs), "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Call("conv1d", (x, d.array(outputs, width // groups, taps)), more, plain=kind != "special")


@operation("conv_norm_act")
def _conv_norm_act(d: Draw) -> Call:
    """Modules whose weights the backend has prepared; the first layer of an audio model among them."""
    groups = d.one_of(1, 1, 2, 3)
    width, outputs = groups * d.one_of(1, 1, 7, 33, 64), groups * d.one_of(1, 5, 16, 65)
    taps, stride, padding = d.one_of(1, 2, 3, 10), d.number(1, 5), d.one_of(0, 0, 2)
    bias, affine = d.often(), d.often()
    settings = {"inputs": width, "outputs": outputs, "kernel": taps, "stride": stride, "padding": padding}
    settings |= {"groups": groups, "bias": bias}
    shapes = {"weight": (outputs, width // groups, taps), **({"bias": (outputs,)} if bias else {})}
    conv = part(d, Conv1d, settings, **shapes)
    affinities = {"weight": (outputs,), "bias": (outputs,)} if affine else {}
    eps = d.one_of(1e-12, 1e-5, 1.0)
    norm = part(d, LayerNorm, {"width": outputs, "eps": eps, "elementwise_affine": affine}, **affinities)
    x = _signal(d, width, taps, padding, kind := d.one_of("normal", "sparse", "zero", "special"))
    activation = d.one_of("gelu", d.one_of(*sorted(ACTIVATIONS)))
    return Call("conv_norm_act", (x, conv, norm, activation), plain=kind != "special")


def _map(
    d: Draw, channels: int, least: tuple[int, int] = (1, 1), kind: str = "normal", most: int = 12, fewest: int = 1
) -> Operand:
    height, width = (low + d.number(0, most) for low in least)
    return d.array(d.number(fewest, 2), height, width, channels, kind=kind)


def _kernel(d: Draw) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Kernel, stride and padding: as patches are cut, or any."""
    if d.number(0, 1):
        side = d.one_of(1, 2, 4, 16)
        return (side, side), (side, side), 0
    return (d.number(1, 3), d.number(1, 3)), (d.number(1, 3), d.number(1, 3)), d.number(0, 2)


@operation("conv2d")
def _conv2d(d: Draw) -> Call:
    kernel, stride, padding = _kernel(d)
    channels, outputs, kind = d.one_of(1, 3, 17, 33), d.length(70), d.one_of("normal", "sparse", "special")
    least = (max(kernel[0] - 2 * padding, 1), max(kernel[1] - 2 * padding, 1))
    x = _map(d, channels, least, kind)
    more = {"bias": d.maybe(outputs), "stride": stride, "padding": padding}
    return Call("conv2d", (x, d.array(outputs, channels, *kernel)), more, plain=kind != "special")


@operation("conv2d_norm_act")
def _conv2d_norm_act(d: Draw) -> Call:
    kernel, stride, padding = _kernel(d)
    channels, outputs, bias = d.one_of(1, 3, 17, 33), d.length(70), d.often()
    settings = {"inputs": channels, "outputs": outputs, "kernel": kernel, "stride": stride, "padding": padding}
    shapes = {"weight": (outputs, channels, *kernel), **({"bias": (outputs,)} if bias else {})}
    conv = part(d, Conv2d, settings | {"bias": bias}, **shapes)
    names = ("weight", "bias", "running_mean", "running_var")
    norm = part(d, BatchNorm2d, {"width": outputs, "eps": d.one_of(1e-5, 0.1)}, **dict.fromkeys(names, (outputs,)))
    norm.weights["running_var"] = np.abs(norm.weights["running_var"])
    least = (max(kernel[0] - 2 * padding, 1), max(kernel[1] - 2 * padding, 1))
    return Call("conv2d_norm_act", (_map(d, channels, least), conv, norm, d.one_of("relu", *sorted(ACTIVATIONS))))


@operation("conv_transpose2d")
def _conv_transpose2d(d: Draw) -> Call:
    channels, outputs, side = d.one_of(1, 3, 17, 33), d.length(33), d.number(1, 3)
    x, weight = _map(d, channels, most=8, fewest=0), d.array(channels, outputs, side, side)
    return Call("conv_transpose2d", (x, weight, d.array(outputs)))


# ---- maps, and rows of frames


@operation("max_pool2d")
def _max_pool2d(d: Draw) -> Call:
    side, kind = d.number(1, 4), d.one_of("normal", "sparse", "special")
    return Call("max_pool2d", (_map(d, d.length(20), (side, side), kind, fewest=0), side), plain=kind != "special")


@operation("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(d: Draw) -> Call:
    kind = d.one_of("normal", "sparse", "special")
    return Call(
        "adaptive_avg_pool2d", (_map(d, d.length(20), kind=kind, fewest=0), d.number(1, 7)), plain=kind != "special"
    )


@operation("resize")
def _resize(d: Draw) -> Call:
    size = (d.number(1, 20), d.number(1, 20))
    kind = d.one_of("normal", "sparse")
    return Call("resize", (_map(d, d.length(20), kind=kind, fewest=0), size, d.one_of("bilinear", "bicubic")))


@operation("statistics_pooling")
def _statistics_pooling(d: Draw) -> Call:
    batch, frames, kind = d.number(1, 4), d.number(0, 40), d.one_of("normal", "large mean", "sparse", "special")
    x = d.numbers(batch, frames, d.length(20), kind="normal" if kind == "large mean" else kind)
    if kind == "large mean":
        x = d.numbers_of(x + 1e3)
    lengths = [d.number(-frames - 2, frames + 3) for _ in range(batch)]
    return Call("statistics_pooling", (d.operand(x), lengths), plain=kind != "special")


# ---- large ones


def large_calls(form: str) -> list[Call]:
    """Calls in which several threads have something to do, of every operation that threads may share."""
    random = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return in_format(random.normal(size=shape), form)

    def array(*shape: int) -> Operand:
        return Operand(numbers(*shape))

    def made(cls: type[Any], settings: dict[str, Any], **shapes: tuple[int, ...]) -> Part:
        return Part(cls, settings, {name: numbers(*shape) for name, shape in shapes.items()})

    wide, vector = array(70, 1000), Operand(numbers(1000))
    conv = made(Conv1d, {"inputs": 64, "outputs": 64, "kernel": 3, "stride": 2, "bias": False}, weight=(64, 64, 3))
    first = made(Conv1d, {"inputs": 1, "outputs": 64, "kernel": 10, "stride": 5, "bias": False}, weight=(64, 1, 10))
    norm = made(LayerNorm, {"width": 64, "eps": 1e-5}, weight=(64,), bias=(64,))
    wide_norm = made(LayerNorm, {"width": 300, "eps": 1e-5}, weight=(300,), bias=(300,))
    flat = made(
        Conv2d, {"inputs": 33, "outputs": 64, "kernel": (3, 3), "padding": 1}, weight=(64, 33, 3, 3), bias=(64,)
    )
    names = ("weight", "bias", "running_mean", "running_var")
    batch_norm = made(BatchNorm2d, {"width": 64}, **dict.fromkeys(names, (64,)))
    batch_norm.weights["running_var"] = np.abs(batch_norm.weights["running_var"])
    linears = [made(Linear, {"inputs": 300, "outputs": n}, weight=(n, 300), bias=(n,)) for n in (300, 65, 130)]
    q, k, v = array(2, 150, 128), array(2, 300, 128), array(2, 300, 128)
    mask = np.arange(300) < np.array([300, 170])[:, None, None, None]
    masks = {"mask": Operand(mask), "bias": array(1, 4, 150, 300)}
    residual = {"residual": array(70, 520), "activation": "gelu", "bias": array(520), "scale": array(520)}
    ids = Operand(random.integers(0, 70, (20, 100)), host=True)
    channels = [array(33) for _ in range(2)]
    return [
        Call("linear", (array(70, 300), array(520, 300)), residual),
        Call("linear", (array(1, 1000), array(1001, 1000)), {}),
        Call("project", (array(2, 35, 300), *linears)),
        Call("attention", (q, k, v, 4), masks),
        Call("attention", (q, k, v, 2), {"causal": True, "probs": True}),
        Call("attention", (array(1, 1, 128), array(1, 300, 128), array(1, 300, 128), 4), {"causal": True}),
        *(Call("gelu", (array(70, n),)) for n in (1000, 999)),
        *(Call(name, (wide,)) for name in ("silu", "softmax", "log_softmax", "glu")),
        Call("activation", ("gelu_new", wide)),
        Call("add", (wide, array(70, 1000))),
        Call("add", (vector, wide)),
        Call("where", (Operand(random.random((70, 1)) < 0.5), wide, 0)),
        Call("concatenate", ((wide, array(70, 30), wide), 1)),
        Call("layer_norm", (wide, vector, vector, 1e-5)),
        Call("embedding", (ids, array(70, 300))),
        Call(
            "embed_norm", ((ids, ids), (made(Embedding, {"count": 70, "width": 300}, weight=(70, 300)),) * 2, wide_norm)
        ),
        Call("conv_norm_act", (array(1, 4000, 1), first, norm, "gelu")),
        Call("conv_norm_act", (array(2, 400, 64), conv, norm, "gelu")),
        Call("conv1d", (array(2, 200, 96), array(96, 6, 19)), {"padding": 9, "groups": 16, "bias": array(96)}),
        Call("conv1d", (array(1, 400, 64), array(96, 64, 5)), {"dilation": 3}),
        Call("conv2d", (array(2, 64, 64, 3), array(96, 3, 16, 16)), {"stride": (16, 16), "bias": array(96)}),
        Call("conv2d_norm_act", (array(2, 20, 21, 33), flat, batch_norm, "relu")),
        Call("conv_transpose2d", (array(2, 14, 14, 64), array(64, 65, 2, 2), array(65))),
        Call("batch_norm", (array(2, 20, 21, 33), channels[0], Operand(np.ones(33)), *channels, 1e-5)),
        Call("max_pool2d", (array(2, 41, 40, 33), 2)),
        Call("adaptive_avg_pool2d", (array(2, 41, 40, 33), 3)),
        Call("resize", (array(1, 14, 14, 65), (56, 55), "bilinear")),
        Call("resize", (array(1, 14, 14, 65), (21, 40), "bicubic")),
        Call("relative_key_bias", (array(2, 50, 128), array(2, 60, 128), 4, array(199, 32), True)),
        Call("statistics_pooling", (array(4, 200, 65), [200, 120, 1, 7])),
    ]
