"""Settings of the property tests: the same draws every time, and no clock decides."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tests", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
