"""The engines that ``d2v-ref bench`` measures beside ours compute the same as ours, so that their times compare.

At tiny size, each case in a process of its own, as the benchmark has it.  A peer that is not installed, or has no
bfloat16 here, is skipped by its own word.
"""

from __future__ import annotations

from typing import Any

import pytest

from d2v_ref.bench import children
from d2v_ref.bench.cases import Case
from d2v_ref.bench.peers import PEERS
from d2v_ref.bench.timing import ALLOWED, Timing
from d2v_ref.errors import D2VError

CASES = {
    "text": Case("text", "Data2VecTextModel", "tiny", (2, 17)),
    "vision": Case("vision", "Data2VecVisionForImageClassification", "tiny", (2, 3, 64, 64), {"num_labels": 9}),
    "audio": Case("audio", "Data2VecAudioForCTC", "tiny", (1, 4000)),
}


@pytest.fixture(scope="module")
def reasons() -> dict[str, str]:
    """Why a peer can't run here."""
    found = {}
    for name, peer in PEERS.items():
        try:
            peer.check()
        except D2VError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module", params=CASES)
def timing(request: pytest.FixtureRequest, reasons: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Timing:
    """A case with everybody who can run here, in one process: importing and exporting takes the time."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp("bench")
    engines = ["numpy", *(name for name in PEERS if name not in reasons)]
    least = {"repeat": 1, "seconds": 0}
    job = {"kind": "time", "case": case.as_dict(), "engines": engines, **least, "folder": str(folder)}
    return Timing.from_dict(children.run(case.name, job, 1))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_computes_the_same(name: str, timing: Timing, reasons: dict[str, str], tally: dict[str, Any]) -> None:
    if name in reasons:
        pytest.skip(reasons[name])
    found = {timed.engine: timed for timed in timing.engines}
    difference, allowed = found[name].difference, ALLOWED[found[name].dtype]
    assert found["numpy"].difference == 0.0
    assert 0 < difference <= allowed
    if found[name].dtype == "bfloat16":
        assert difference > 10 * ALLOWED["float32"]  # it did round
    count = tally[f"engines of the benchmark, {name}"]
    count.cases += 1
    count.worst = max(count.worst, difference / allowed)
