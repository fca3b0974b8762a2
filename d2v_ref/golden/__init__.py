"""Golden outputs: what a model computes, module by module, written down to hold other implementations against."""

from d2v_ref.golden.bounds import FORMATS, tolerances
from d2v_ref.golden.bundle import Bundle, read_bundle
from d2v_ref.golden.check import check, check_port
from d2v_ref.golden.comparing import compare
from d2v_ref.golden.forms import counts
from d2v_ref.golden.recording import record, runs
from d2v_ref.golden.report import FAILED, MISSING, PASSED, UNOBSERVABLE, Report, Row

__all__ = [
    "FAILED",
    "FORMATS",
    "MISSING",
    "PASSED",
    "UNOBSERVABLE",
    "Bundle",
    "Report",
    "Row",
    "check",
    "check_port",
    "compare",
    "counts",
    "read_bundle",
    "record",
    "runs",
    "tolerances",
]
