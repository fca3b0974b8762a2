"""Operations: their definitions in NumPy, and the backends that compute them faster."""

from d2v_ref.ops.definitions import ACTIVATIONS, Ops
from d2v_ref.ops.registry import BackendInfo, backends, get_ops

__all__ = ["ACTIVATIONS", "BackendInfo", "Ops", "backends", "get_ops"]
