import random
from datetime import UTC, datetime, timedelta

import pytest

from monitoring import history as module
from monitoring.history import history, newest, record, roll_up, tidy
from monitoring.models import Host, Sample
from monitoring.reading import KEPT

pytestmark = pytest.mark.django_db

START = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def host():
    return Host.objects.create(name="one")


@pytest.fixture
def now(monkeypatch):
    def at(moment):
        monkeypatch.setattr(module.timezone, "now", lambda: moment)

    return at


def after(seconds):
    return START + timedelta(seconds=seconds)


def write(host, values, every=2, start=0):
    record(host, [(after(start + every * n), {"load.1": value}) for n, value in enumerate(values)])


def rows(host, resolution):
    found = host.samples.filter(resolution=resolution).order_by("at")
    return [((row.at - START).total_seconds(), row.n, row.mean, row.peak) for row in found]


def test_a_coarser_row_holds_mean_and_peak_of_a_complete_interval(host):
    write(host, [1, 2, 3, 4, 5, 10, 20, 60])
    roll_up(host, after(16))
    assert rows(host, 10) == [(0, 5, {"load.1": 3}, {"load.1": 5})], "the second interval goes on"
    roll_up(host, after(20))
    assert rows(host, 10)[1] == (10, 3, {"load.1": 30}, {"load.1": 60})


def test_of_two_readings_of_one_moment_the_later_one_is_kept(host):
    record(host, [(START, {"load.1": 1}), (after(2), {"load.1": 2}), (START, {"load.1": 3})])
    assert rows(host, 1) == [(0, 1, {"load.1": 3}, {}), (2, 1, {"load.1": 2}, {})]


def test_a_reading_with_a_clock_that_was_wrong_is_not_the_newest(host):
    write(host, [1, 2])
    write(host, [9], start=3600)
    assert newest(after(4))[host.pk].mean == {"load.1": 2}
    assert newest(after(3600))[host.pk].mean == {"load.1": 9}


def test_readings_weigh_the_same_and_peaks_survive_in_every_resolution(host):
    values = [random.Random(3).randrange(100) for _ in range(600)]
    del values[7:11]  # the first intervals have fewer readings
    write(host, values[:7])
    write(host, values[7:], start=22)
    roll_up(host, after(1200))
    first = [value for n, value in enumerate(values) if n < 7 or 22 + 2 * (n - 7) < 600]
    (_, n, mean, peak), _ = rows(host, 600)
    assert n == len(first)
    assert mean["load.1"] == pytest.approx(sum(first) / n, abs=0.02)
    assert peak["load.1"] == max(first)


def test_a_series_that_was_there_for_a_part_is_the_mean_of_that_part(host):
    record(host, [(after(0), {"gpu.0.power": 100}), (after(2), {"gpu.0.power": 200}), (after(4), {"load.1": 1})])
    roll_up(host, after(10))
    assert rows(host, 10) == [(0, 3, {"gpu.0.power": 150, "load.1": 1}, {"gpu.0.power": 200, "load.1": 1})]


def test_rolling_up_again_or_in_steps_changes_nothing(host):
    write(host, range(400))
    other = Host.objects.create(name="two")
    write(other, range(400))
    for second in range(0, 801, 8):
        roll_up(other, after(second))
    for _ in range(3):
        roll_up(host, after(800))
    for resolution in KEPT:
        assert rows(host, resolution) == rows(other, resolution)
    assert [len(rows(host, resolution)) for resolution in KEPT] == [400, 80, 13, 1]


@pytest.mark.parametrize("statement", range(3))
def test_what_dies_between_two_writes_loses_and_doubles_nothing(host, monkeypatch, statement):
    write(host, range(400))
    store, calls = module.store, []

    def dying(samples):
        calls.append(1)
        if len(calls) > statement:
            raise SystemExit
        store(samples)

    monkeypatch.setattr(module, "store", dying)
    with pytest.raises(SystemExit):
        roll_up(host, after(800))
    monkeypatch.undo()
    roll_up(host, after(800))
    assert [sum(n for _, n, _, _ in rows(host, resolution)) for resolution in KEPT] == [400, 400, 390, 300]


def test_after_a_long_pause_rows_are_made_in_bounded_steps(host, monkeypatch):
    write(host, range(400))
    monkeypatch.setattr(module, "MOST_ROLLED", 50)
    rolled = roll_up(host, after(800))
    assert rolled[1] == after(90) and len(rows(host, 10)) == 9, "the interval that the fiftieth began waits"
    assert len(rows(host, 60)) == 1, "no coarser row is made of an interval whose finer rows are not there yet"
    for _ in range(20):
        roll_up(host, after(800))
    assert [len(rows(host, resolution)) for resolution in KEPT] == [400, 80, 13, 1]


def test_the_same_moment_is_kept_once(host):
    write(host, [1, 2])
    write(host, [5])
    assert rows(host, 1) == [(0, 1, {"load.1": 5}, {}), (2, 1, {"load.1": 2}, {})]


def test_a_reading_of_the_future_does_not_stop_the_rows(host):
    """The clock was wrong for a while."""
    write(host, [1] * 5, start=10**8)
    roll_up(host, after(10**8 + 10))
    write(host, [2] * 5)
    roll_up(host, after(10))
    assert rows(host, 10)[0] == (0, 5, {"load.1": 2}, {"load.1": 2})


def test_what_is_only_true_of_a_moment_is_not_rolled_up(host):
    record(host, [(after(0), {"cpu.0.percent": 5, "gpu.0.process.7.memory": 1, "of.another.version": 1, "load.1": 1})])
    roll_up(host, after(600))
    assert [set(rows(host, resolution)[0][2]) for resolution in (10, 60)] == [{"cpu.0.percent", "load.1"}, {"load.1"}]


def test_rows_are_deleted_when_they_are_old_but_not_before_they_are_part_of_coarser_ones(host):
    write(host, range(400))
    tidy(after(3600 + 400))
    assert len(rows(host, 1)) == 200
    assert rows(host, 1)[0][0] == 400
    tidy(after(3600 + 10_000))
    assert len(rows(host, 1)) == 0 and len(rows(host, 10)) == 80, "of a host that said nothing since, made just before"
    tidy(after(7 * 86400 + 20_000))
    assert [len(rows(host, resolution)) for resolution in KEPT] == [0, 0, 0, 2]


def test_what_waits_for_its_coarser_row_is_not_deleted_however_old_it_is(host, monkeypatch):
    write(host, range(400))
    monkeypatch.setattr(module, "MOST_ROLLED", 50)
    tidy(after(10**5))
    assert rows(host, 1)[0][0] == 90, "up to there the first fifty are part of coarser rows"


def test_deleting_is_bounded_and_leaves_other_hosts_alone(host, monkeypatch):
    other = Host.objects.create(name="two")
    write(host, range(400))
    write(other, range(20), start=5000)
    monkeypatch.setattr(module, "MOST_DELETED", 100)
    tidy(after(5040))
    assert len(rows(host, 1)) == 300 and len(rows(other, 1)) == 20


def test_a_host_of_which_nothing_is_left_is_forgotten(host):
    write(host, range(5))
    tidy(after(91 * 86400))
    tidy(after(91 * 86400))
    assert not Host.objects.exists()


# ---- looking back


@pytest.fixture
def week(host):
    """The last hour of a week in which little happened, as the sampler would have left it."""
    Sample.objects.bulk_create(
        Sample(host=host, resolution=resolution, at=after(at), n=1, mean={"load.1": 1}, peak={"load.1": 2})
        for resolution, since in ((600, 0), (60, 0), (10, 6 * 86400))
        for at in range(since, 7 * 86400 - 3600, resolution)
    )
    write(host, [1] * 1805, start=7 * 86400 - 3600)
    roll_up(host, after(7 * 86400 + 9))
    return after(7 * 86400 + 9)


def test_a_window_has_the_coarsest_sufficient_rows_and_goes_up_to_now(host, week, now, django_assert_num_queries):
    now(week)
    for hours, points, resolution in ((1, 300, 10), (1, 1000, 1), (6, 300, 60), (24, 300, 60), (168, 300, 600)):
        with django_assert_num_queries(1):
            found = history(host, week - timedelta(hours=hours), week, points)
        assert found[0].seconds == resolution, (hours, points)
        assert len(found) >= points
        assert week - found[-1].at < timedelta(seconds=4)
        ends = [one.at + timedelta(seconds=one.seconds) for one in found]
        assert all(end <= after.at for end, after in zip(ends, found[1:], strict=False)), "no moment is told twice"
        holes = [after.at - end for end, after in zip(ends, found[1:], strict=False)]
        assert max(holes) < timedelta(seconds=2), "and none is left out"


def test_a_window_in_the_past_has_rows_that_are_still_kept(host, week, now):
    now(week)
    since = after(2 * 86400)
    found = history(host, since, since + timedelta(hours=1), 300)
    assert {one.seconds for one in found} == {60} and len(found) == 61


def test_a_host_that_is_watched_since_a_minute_has_a_week_that_begins_then(host, now):
    write(host, range(30))
    roll_up(host, after(61))
    now(after(61))
    found = history(host, after(61) - timedelta(days=7), after(61))
    assert [one.seconds for one in found] == [60]
    assert found[0].mean == {"load.1": 14.5} and found[0].peak == {"load.1": 29}
