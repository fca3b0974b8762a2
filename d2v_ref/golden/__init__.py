"""Golden outputs: what a model computes, module by module, written down to hold other implementations against."""

from d2v_ref.golden.bounds import tolerances
from d2v_ref.golden.bundle import Bundle, read_bundle
from d2v_ref.golden.check import PASSED, Report, Row, check, compare
from d2v_ref.golden.forms import counts
from d2v_ref.golden.recording import RUNS, record

__all__ = [
    "PASSED",
    "RUNS",
    "Bundle",
    "Report",
    "Row",
    "check",
    "compare",
    "counts",
    "read_bundle",
    "record",
    "tolerances",
]
