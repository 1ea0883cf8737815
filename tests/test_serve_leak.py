"""Nothing unchecked gets out of the server: hundreds of schedules over real sockets, with streams and without."""

import pytest

from benchmarks import leak
from warmline.dialogue import ladder, stream
from warmline.safety.levels import Level
from warmline.safety.validate import release
from warmline.safety.validate.release import Verdict

NUM_SCHEDULES = 250


def test_nothing_unchecked_leaks_over_sockets() -> None:
    total = leak.total_of(leak.play_all(0, NUM_SCHEDULES, seed=0, sink_name="http"))
    assert total.leaks == {}, f"python -m benchmarks.leak --sink http --only {total.leaky[0]}"
    assert total.canaries > 2 * NUM_SCHEDULES
    # It would show nothing if its schedules went nowhere.
    assert total.sinks["sse"] > NUM_SCHEDULES / 2
    assert total.sinks["http"] > NUM_SCHEDULES / 10
    assert {"log", "audit", "metrics", "kept"} <= total.sinks.keys()
    assert {level for level, _ in total.answers} == {level.label for level in Level}
    assert {source for _, source in total.answers} >= {"model", "guided", "notice"}


def _passed(*_: object) -> Verdict:
    return Verdict((), (), ())


@pytest.mark.parametrize(
    ("places", "broken"),
    [
        ([(release, "validate_sentence")], _passed),
        ([(release, "validate"), (ladder, "validate")], _passed),
        ([(ladder, "reason_of"), (stream, "reason_of")], str),
    ],
)
def test_a_broken_release_is_found_over_sockets(places: list, broken: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in places:
        monkeypatch.setattr(module, name, broken)
    assert "sse" in leak.total_of(leak.play_all(0, 40, seed=1, sink_name="http")).leaks
