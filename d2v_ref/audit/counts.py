"""What a run computes, counted by operation and module: multiply-adds, element operations, bytes.

Counted are the calls of ``Ops`` that a forward pass makes when nobody records it, each for the module that makes it.  A
fused operation counts as those that it is defined by: a product and its activation, the convolution and the
normalisation for their own modules; an activation that is fused counts for the module whose product it is fused with.

- multiply_adds: of products with weights, convolutions and attention, biases apart; half of what is called FLOPs.
  Zeros of a padding count, as they do in torch.utils.flop_counter.
- element_operations: additions, products, divisions, comparisons and values of a function, of one number each, whose
  number is that of an array's elements: an activation is one for each of them, whichever it is.
- bytes_read, bytes_written: every array that an operation takes and gives, once; of a table the rows that it takes.

What modules compute without ``Ops`` is not counted: sums of embeddings, masks of frames, losses.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from d2v_ref.nn import Module, unrecorded
from d2v_ref.ops import ACTIVATIONS, Ops
from d2v_ref.pretrained import PreTrainedModel

Array = Any
Call = dict[str, Any]  # the arguments of an operation by name


@dataclass(frozen=True)
class Cost:
    """What operations cost; costs add up."""

    calls: int = 0
    multiply_adds: int = 0
    element_operations: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Cost)))


@dataclass(frozen=True)
class Step:
    """One operation: of the module that called it, or of one that it was handed."""

    operation: str
    cost: Cost
    path: str | None = None  # None for the caller's


@dataclass(frozen=True)
class ModuleCount:
    """A module's weights, what its own calls cost, and what it costs with all modules inside it.

    Attributes:
        parameters: numbers that are its own weights.
        all_parameters: those of the modules inside it too; a tied weight once.
        operations: its own calls.
        total: the sum of its own and of those of the modules inside it.
    """

    path: str
    kind: str
    parameters: int
    all_parameters: int
    operations: dict[str, Cost]
    total: Cost


def count_modules(model: PreTrainedModel, arguments: dict[str, Any]) -> list[ModuleCount]:
    """Every module, in the order of declaration, for one forward pass with these arguments."""
    own = count_operations(model, arguments)
    total = dict.fromkeys(own, Cost())
    for path, costs in own.items():
        cost = sum(costs.values(), Cost())
        for owner in _owners(path):
            if owner in total:  # a list of modules has a step in the path and is none itself
                total[owner] += cost
    return [
        ModuleCount(
            path=path,
            kind=type(module).__name__,
            parameters=sum(_weights(module, [module]).values()),
            all_parameters=sum(_weights(module, [inner for _, inner in module.named_modules()]).values()),
            operations=own[path],
            total=total[path],
        )
        for path, module in model.named_modules()
    ]


def count_operations(model: PreTrainedModel, arguments: dict[str, Any]) -> dict[str, dict[str, Cost]]:
    """The operations that each module calls itself in one forward pass: path -> name in ``Ops`` -> cost."""
    copy = model.with_ops(model.ops)  # of the same arrays; one that has kept nothing of earlier runs
    account: dict[str, dict[str, Cost]] = {path: {} for path, _ in copy.named_modules()}
    for path, module in copy.named_modules():
        module.ops = CountedOps(model.ops, path, account)  # type: ignore[assignment]
    with unrecorded():
        copy(**arguments)
    return account


def _owners(path: str) -> list[str]:
    """The path, and those of what it is in: a.b is in a, which is in the model itself."""
    steps = path.split(".") if path else []
    return [".".join(steps[:i]) for i in range(len(steps) + 1)]


def _weights(model: Module, modules: list[Module]) -> dict[int, int]:
    """The size of every weight that modules hold, a tied one once."""
    arrays = [getattr(module, attribute) for module in modules for attribute in module.parameters()]
    return {id(array): math.prod(array.shape) for array in arrays}


class CountedOps:
    """The operations of one module: a backend computes, and every call goes to the module's account."""

    def __init__(self, ops: Ops, path: str, account: dict[str, dict[str, Cost]]) -> None:
        self._ops, self._path, self._account = ops, path, account

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._ops, name)
        if name not in FORMULAS:
            return operation

        def counted(*args: Any, **kwargs: Any) -> Any:
            out = operation(*args, **kwargs)
            call = inspect.signature(getattr(Ops, name)).bind(self._ops, *args, **kwargs)
            call.apply_defaults()
            for step in FORMULAS[name](call.arguments, out):
                costs = self._account[self._path if step.path is None else step.path]
                costs[step.operation] = costs.get(step.operation, Cost()) + step.cost
            return out

        return counted


# ---- one formula for each operation: its arguments and its result -> what was done -----------------------------------


def _step(
    operation: str, out: Array, *read: Array, products: int = 0, elements: int = 0, path: str | None = None
) -> Step:
    return Step(operation, Cost(1, products, elements, _bytes(*read), _bytes(out)), path)


def _bytes(*arrays: Array) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


def _product(
    operation: str, y: Array, x: Array, weight: Array, bias: Array, products: int, path: str | None = None
) -> Step:
    added = 0 if bias is None else y.size
    return _step(operation, y, x, weight, bias, products=products, elements=added, path=path)


def _activation_of(name: str, y: Array) -> Step:
    """One for each number."""
    return _step(ACTIVATIONS[name], y, y, elements=y.size)


def _activation(call: Call, y: Array) -> Iterator[Step]:
    yield _activation_of(call["name"], y)


def _each(operation: str, steps: int) -> Callable[[Call, Array], Iterator[Step]]:
    """So many steps for each number of the result."""

    def formula(call: Call, y: Array) -> Iterator[Step]:
        yield _step(operation, y, call["x"], elements=steps * y.size)

    return formula


def _add(call: Call, y: Array) -> Iterator[Step]:
    yield _step("add", y, call["x"], call["y"], elements=y.size)


def _linear(call: Call, y: Array) -> Iterator[Step]:
    """K products for each of the N results of each row; the bias, the activation, the scale and the residual each one
    for each result.
    """
    x, weight = call["x"], call["weight"]
    yield _product("linear", y, x, weight, call["bias"], y.size * weight.shape[1])
    if call["activation"] is not None:
        yield _activation_of(call["activation"], y)
    for other in (call["scale"], call["residual"]):
        if other is not None:
            yield _step("linear", y, y, other, elements=y.size)


def _project(call: Call, out: tuple[Array, ...]) -> Iterator[Step]:
    """As ``linear``, for each of the modules."""
    for linear, y in zip(call["linears"], out, strict=True):
        products = y.size * linear.weight.shape[1]
        yield _product("linear", y, call["x"], linear.weight, linear.bias, products, linear.path)


def _convolution(operation: str) -> Callable[[Call, Array], Iterator[Step]]:
    """As many products for each result as a kernel has numbers: its taps times the channels of a group."""

    def formula(call: Call, y: Array) -> Iterator[Step]:
        weight = call["weight"]
        yield _product(operation, y, call["x"], weight, call["bias"], y.size * math.prod(weight.shape[1:]))

    return formula


def _conv_transpose2d(call: Call, y: Array) -> Iterator[Step]:
    """As many products for each number that comes in as its tile has numbers."""
    x, weight = call["x"], call["weight"]
    yield _product("conv_transpose2d", y, x, weight, call["bias"], x.size * math.prod(weight.shape[1:]))


def _conv_norm_act(call: Call, y: Array) -> Iterator[Step]:
    conv, norm = call["conv"], call["norm"]
    products = y.size * math.prod(conv.weight.shape[1:])
    yield _product("conv1d", y, call["x"], conv.weight, conv.bias, products, conv.path)
    yield _normalised(y, norm.weight, norm.bias, norm.path)
    yield _activation_of(call["activation"], y)


def _conv2d_norm_act(call: Call, y: Array) -> Iterator[Step]:
    conv, norm = call["conv"], call["norm"]
    products = y.size * math.prod(conv.weight.shape[1:])
    yield _product("conv2d", y, call["x"], conv.weight, conv.bias, products, conv.path)
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    yield _step("batch_norm", y, y, *statistics, elements=4 * y.size, path=norm.path)
    yield _activation_of(call["activation"], y)


def _normalised(y: Array, weight: Array, bias: Array, path: str | None = None) -> Step:
    """Sum, difference, square, sum, division; then weight and bias.  What is done once a row is not counted."""
    steps = 5 if weight is None else 7
    return _step("layer_norm", y, y, weight, bias, elements=steps * y.size, path=path)


def _layer_norm(call: Call, y: Array) -> Iterator[Step]:
    yield _normalised(y, call["weight"], call["bias"])


def _batch_norm(call: Call, y: Array) -> Iterator[Step]:
    """Difference, division, weight, bias."""
    read = (call[name] for name in ("x", "mean", "var", "weight", "bias"))
    yield _step("batch_norm", y, *read, elements=4 * y.size)


_SOFTMAX = 5  # maximum, difference, exponential, sum, division


def _attention(call: Call, out: tuple[Array, Array]) -> Iterator[Step]:
    """B T S D products for the scores and as many for the context; q is scaled; each of the B H T S scores passes a
    softmax, and once each the bias, the mask (given, causal or both), and the head mask.
    """
    (context, p), q, k = out, call["q"], call["k"]
    batch, queries, width = q.shape
    scores = batch * call["heads"] * queries * k.shape[1]
    masked = call["causal"] or call["mask"] is not None
    passes = _SOFTMAX + masked + (call["bias"] is not None) + (call["head_mask"] is not None)
    cost = Cost(
        calls=1,
        multiply_adds=2 * batch * queries * k.shape[1] * width,
        element_operations=q.size + passes * scores,
        bytes_read=_bytes(q, k, call["v"], call["mask"], call["bias"], call["head_mask"]),
        bytes_written=_bytes(context, p),
    )
    yield Step("attention", cost)


def _relative_key_bias(call: Call, y: Array) -> Iterator[Step]:
    """d products for each score, of the query and of the key if it counts too, which are added; then the scale."""
    q, k, weight = call["q"], call["k"], call["weight"]
    sides = 2 if call["with_key"] else 1
    rows = q.shape[1] + k.shape[1] - 1  # of the table: one for each distance
    read = _bytes(q, k if call["with_key"] else None) + rows * weight[0].nbytes
    yield Step("relative_key_bias", Cost(1, sides * y.size * weight.shape[1], sides * y.size, read, _bytes(y)))


def _embedding(call: Call, y: Array) -> Iterator[Step]:
    yield Step("embedding", Cost(1, 0, 0, _bytes(call["ids"], y), _bytes(y)))


def _embed_norm(call: Call, y: Array) -> Iterator[Step]:
    """The rows of each table, which broadcast to the result's; their sums are not counted, as everywhere."""
    norm = call["norm"]
    for ids, table in zip(call["ids"], call["tables"], strict=True):
        rows = ids.size * y.itemsize * y.shape[-1]
        yield Step("embedding", Cost(1, 0, 0, _bytes(ids) + rows, rows), table.path)
    yield _normalised(y, norm.weight, norm.bias, norm.path)


def _concatenate(call: Call, y: Array) -> Iterator[Step]:
    yield _step("concatenate", y, *call["arrays"])


def _statistics_pooling(call: Call, y: Array) -> Iterator[Step]:
    """Sum, difference, square and sum of the frames that count."""
    _, frames, channels = call["x"].shape
    counted = sum(len(range(frames)[:length]) for length in call["lengths"])
    yield _step("statistics_pooling", y, call["x"], elements=4 * counted * channels)


def _max_pool2d(call: Call, y: Array) -> Iterator[Step]:
    yield _step("max_pool2d", y, call["x"], elements=y.size * call["size"] ** 2)


def _adaptive_avg_pool2d(call: Call, y: Array) -> Iterator[Step]:
    """An addition for each number of each cell, down and then across; cells may overlap."""
    batch, height, width, channels = call["x"].shape
    size = call["size"]
    down, across = (
        sum(-(-(i + 1) * length // size) - i * length // size for i in range(size)) for length in (height, width)
    )
    yield _step("adaptive_avg_pool2d", y, call["x"], elements=batch * channels * (down * width + size * across))


def _resize(call: Call, y: Array) -> Iterator[Step]:
    """A product and an addition for each of the 2 (bilinear) or 4 (bicubic) pixels of a sum, down and then across."""
    batch, _, width, channels = call["x"].shape
    taps = 2 if call["mode"] == "bilinear" else 4
    yield _step("resize", y, call["x"], elements=2 * taps * (batch * y.shape[1] * width * channels + y.size))


FORMULAS: dict[str, Callable[[Call, Any], Iterator[Step]]] = {
    **{name: _each(name, 1) for name in (*ACTIVATIONS.values(), "softplus")},
    "activation": _activation,
    "add": _add,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "attention": _attention,
    "batch_norm": _batch_norm,
    "concatenate": _concatenate,
    "conv1d": _convolution("conv1d"),
    "conv2d": _convolution("conv2d"),
    "conv2d_norm_act": _conv2d_norm_act,
    "conv_norm_act": _conv_norm_act,
    "conv_transpose2d": _conv_transpose2d,
    "embed_norm": _embed_norm,
    "embedding": _embedding,
    "glu": _each("glu", 2),  # sigmoid and product
    "layer_norm": _layer_norm,
    "linear": _linear,
    "log_softmax": _each("log_softmax", _SOFTMAX),
    "max_pool2d": _max_pool2d,
    "project": _project,
    "relative_key_bias": _relative_key_bias,
    "resize": _resize,
    "softmax": _each("softmax", _SOFTMAX),
    "statistics_pooling": _statistics_pooling,
}
