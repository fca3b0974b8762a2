"""Backends of d2v_ref: subclasses of ``d2v_ref.ops.Ops`` that compute the same operations faster.

A backend is a module of this package and one line of the entry-point group ``d2v_ref.backends`` in pyproject.toml.
The NumPy definitions are the backend "numpy" and need nothing from here.
"""
