"""Alerts are raised, noted and ended as the rules say, by whoever looks."""

from datetime import UTC, datetime, timedelta

import pynvml
import pytest

from mistudio.models import User
from monitoring import sampler as module
from monitoring.admin import ThresholdForm
from monitoring.alerts import MOST, Watch, begin, changed, look_around, tidy_alerts
from monitoring.history import record, tidy
from monitoring.models import Alert, Host, Threshold
from monitoring.reading import DAY
from monitoring.rules import RULES, known, rules
from monitoring.sampler import Sampler
from tests.conftest import ROOT
from tests.monitoring.fake_nvml import FakeGpu, FakeNvml

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
GIB = 2**30


def after(seconds):
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def told():
    """How often it was said that alerts changed."""
    heard = []

    def hear(**kwargs):
        heard.append(1)

    changed.connect(hear)
    yield heard
    changed.disconnect(hear)


@pytest.fixture
def sampler(tmp_path, monkeypatch):
    """Of the host "lab", every 2 s, with a GPU that is made hot: sampler(seconds from NOW, °C or an NVML error)."""
    made, gpu = Sampler(2, tmp_path), FakeGpu()
    made.name, made.probe.gpus.nvml = "lab", FakeNvml(gpu)

    def tick(second, heat):
        gpu.error = heat if heat == pynvml.NVML_ERROR_GPU_IS_LOST else None
        gpu.figures["Temperature"] = heat
        monkeypatch.setattr(module.time, "time", lambda: after(second).timestamp())
        made.tick()
        assert not made.trouble

    return tick


def alert():
    return Alert.objects.get(rule="gpu-temperature")


def test_a_gpu_that_stays_hot_raises_one_alert_that_tells_its_peak_and_when_it_recovered(sampler, told):
    for second in range(0, 30, 2):
        sampler(second, 91)
    assert not Alert.objects.exists(), "not yet for 30 s"
    sampler(30, 88)
    assert (alert().host, alert().thing, alert().since, alert().worst) == ("lab", "GPU 0", NOW, 91)
    sampler(32, 97)
    for second in range(34, 64, 2):
        sampler(second, 79)
    assert alert().recovered_at is None and len(told) == 1
    sampler(64, 79)
    assert (alert().recovered_at, alert().worst, alert().gone, len(told)) == (after(64), 97, False, 2)


def test_it_does_not_flap_around_the_limit():
    watch, held = Watch(), rules()

    def see(second, heat):
        watch.see("lab", {"gpu.0.temperature": heat}, held, after(second))

    for second in range(0, 90, 2):
        see(second, 86 if second % 20 else 85)  # one reading that is not above the limit
    assert not Alert.objects.exists()
    for second in range(100, 140, 2):
        see(second, 86)
    for second in range(140, 200, 2):
        see(second, 82)  # below the limit, and not yet recovered
    for second in range(200, 260, 2):
        see(second, 79 if second % 20 else 81)  # recovered, but not for 30 s
    assert Alert.objects.count() == 1 and alert().recovered_at is None


def test_what_is_no_longer_read_is_over_after_five_minutes_and_did_not_recover(sampler):
    for second in (0, 30):
        sampler(second, 90)
    for second in range(40, 320, 40):
        sampler(second, pynvml.NVML_ERROR_GPU_IS_LOST)
    assert alert().recovered_at is None
    sampler(340, pynvml.NVML_ERROR_GPU_IS_LOST)
    assert alert().recovered_at == after(340) and alert().gone


def test_a_process_that_takes_the_lead_over_goes_on_with_the_alert_of_the_one_before(sampler):
    for second in (0, 30):
        sampler(second, 90)
    values = {"gpu.0.temperature": 70.0}
    successor = Watch()
    for second in (40, 70):
        successor.see("lab", values, rules(), after(second))
    assert alert().recovered_at == after(70)


def reading(**changes):
    return {
        "memory.used": 10 * GIB,
        "memory.total": 64 * GIB,
        "disk./data.used": 3e12,
        "disk./data.free": 1e12,
        "gpu.1.memory": 1 * GIB,
        "gpu.1.memory.total": 80 * GIB,
        "gpu.1.temperature": 40,
    } | changes


@pytest.mark.parametrize(
    ("changes", "rule", "thing", "worst"),
    [
        ({"memory.used": 62 * GIB}, "memory", "", 96.9),
        ({"disk./data.free": 8.16e9}, "disk", "/data", 8.2),
        ({"gpu.1.memory": 79.5 * GIB}, "gpu-memory", "GPU 1", 99.4),
        ({"gpu.1.temperature": 86}, "gpu-temperature", "GPU 1", 86),
    ],
)
def test_each_rule_raises_its_alert_and_ends_it(changes, rule, thing, worst):
    watch = Watch()
    for second in (0, 60):
        watch.see("lab", reading(**changes), rules(), after(second))
    found = Alert.objects.get()
    assert (found.rule, found.thing, found.worst) == (rule, thing, worst)
    for second in (62, 122):
        watch.see("lab", reading(), rules(), after(second))
    assert Alert.objects.get().recovered_at == after(122)


def host(name, ago=0.0, seconds=2):
    made = Host.objects.create(name=name, facts={"seconds": seconds})
    record(made, [(after(-ago), reading())])
    return made


def test_those_who_live_say_which_host_is_silent_and_that_it_is_back():
    host("alive")
    host("just", ago=29)
    host("slow", ago=100, seconds=60)
    host("gone for good", ago=8 * DAY)
    silent = host("silent", ago=45)
    for _ in range(2):  # of several who look
        look_around(rules(), NOW)
    found = Alert.objects.get()
    assert (found.rule, found.host, found.since, found.worst) == ("host-silent", "silent", after(-45), 45)
    record(silent, [(after(20), reading())])
    look_around(rules(), after(22))
    assert Alert.objects.get(host="silent").recovered_at == after(22)


def test_a_host_whose_readings_are_rolled_up_is_still_known_to_be_silent():
    silent = host("silent", ago=0)
    tidy(after(7200))
    assert not silent.samples.filter(resolution=1).exists()
    look_around(rules(), after(7200))
    assert Alert.objects.get().host == "silent"


def test_a_host_that_is_deleted_is_missed_no_longer():
    silent = host("silent", ago=45)
    look_around(rules(), NOW)
    silent.delete()
    look_around(rules(), after(299))
    assert Alert.objects.get().recovered_at is None
    look_around(rules(), after(301))
    assert Alert.objects.get().gone


def test_two_who_raise_the_same_alert_raise_it_once(told):
    for _ in range(2):
        begin(("memory", "lab", ""), NOW, 97.0, NOW)
    assert Alert.objects.count() == 1 and len(told) == 1


def test_a_silence_runs_out_and_outlasts_an_alert_that_comes_again(told):
    person = User.objects.create_user("staff")
    key = ("memory", "lab", "")
    begin(key, NOW, 97.0, NOW)
    Alert.objects.update(silenced_until=after(3600), silenced_by=person, recovered_at=after(60))
    begin(key, after(120), 98.0, after(120))
    again = Alert.objects.open().get()
    assert (again.silenced_until, again.silenced_by) == (after(3600), person)
    Alert.objects.update(seen_at=after(3590))
    told.clear()
    look_around(rules(), after(3599))
    assert not told
    look_around(rules(), after(3600))
    again.refresh_from_db()
    assert (again.silenced_until, again.silenced_by, len(told)) == (None, None, 1)


def test_alerts_are_kept_for_a_day_and_never_more_than_some():
    def ended(ago):
        return Alert(rule="memory", host="lab", since=NOW, worst=1, seen_at=NOW, recovered_at=after(-ago))

    Alert.objects.bulk_create([ended(n) for n in range(MOST + 5)] + [ended(DAY + 1)])
    begin(("memory", "lab", ""), after(-2 * DAY), 97.0, NOW)
    tidy_alerts(NOW)
    assert Alert.objects.open().count() == 1
    assert Alert.objects.count() == MOST + 1
    assert not Alert.objects.filter(recovered_at__lt=after(-MOST)).exists()


# ---- thresholds


def test_a_rule_has_other_thresholds_or_is_off_where_somebody_says_so():
    Threshold.objects.create(rule="gpu-temperature", limit=70, recovers=65, seconds=4)
    Threshold.objects.create(rule="memory", limit=95, recovers=90, on=False)
    watch = Watch()
    for second in (0, 4):
        watch.see("lab", reading(**{"gpu.1.temperature": 71, "memory.used": 64 * GIB}), rules(), after(second))
    assert Alert.objects.get().rule == "gpu-temperature"


def test_thresholds_that_contradict_themselves_are_refused():
    def wrong(**changes):
        known = {"rule": "gpu-temperature", "on": True, "limit": 80, "recovers": 75, "seconds": 5}
        return ThresholdForm(known | changes).errors

    assert not wrong() and not wrong(rule="disk", limit=50, recovers=60)
    assert "at or below the limit" in str(wrong(recovers=81)["recovers"])
    assert "at or above the limit" in str(wrong(rule="disk", limit=50, recovers=40)["recovers"])
    assert "give 0" in str(wrong(rule="host-silent", recovers=10)["seconds"])
    assert "rule" in wrong(rule="nose")


def test_the_page_on_monitoring_names_each_rule_with_its_thresholds():
    page = (ROOT / "docs" / "monitoring.md").read_text()
    found = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in page.splitlines()]
    for rule in known().values():
        word, time = "below" if rule.falls else "above", f"{rule.seconds} s" if rule.seconds else "–"
        assert [rule.name, word, f"{rule.limit:g}", f"{rule.recovers:g}", rule.unit, time] in found
    assert f"{MOST} alerts at most" in page


def test_the_defaults_keep_to_the_same_and_have_names_of_their_own():
    for rule in known().values():
        assert rule.worse(rule.limit, rule.recovers), rule.name
        assert bool(rule.of_reading) != bool(rule.silence) and bool(rule.silence) == (not rule.seconds), rule.name
    assert len(known()) > len(RULES)
