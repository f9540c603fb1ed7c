import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs import live
from jobs.tail import interval
from mistudio import monitored
from mistudio.models import Membership
from monitoring.history import record, roll_up, tidy
from monitoring.models import Host
from monitoring.reading import KEPT
from tests.mistudio.test_pages import queries

pytestmark = pytest.mark.django_db
GIB = 2**30


@pytest.fixture(autouse=True)
def nothing_remembered():
    """Hosts of other tests had the same numbers."""
    monitored.past.cache_clear()


def values(gpus=0, **changes):
    found = {
        "cpu.percent": 37.5,
        "load.1": 1.25,
        "memory.used": 12 * GIB,
        "memory.total": 64 * GIB,
        "swap.used": 0,
        "swap.total": 0,
        "disk./data.used": 300 * GIB,
        "disk./data.free": 100 * GIB,
        "disk.read": 5 * 2**20,
        "disk.written": 2**20,
        "network.received": 0,
        "network.sent": 0,
    }
    for number in range(gpus):
        found |= {f"gpu.{number}.utilization": 93, f"gpu.{number}.memory": 70 * GIB}
        found |= {f"gpu.{number}.memory.total": 80 * GIB, f"gpu.{number}.temperature": 61, f"gpu.{number}.power": 300.5}
        found |= {f"gpu.{number}.clock.sm": 1980, f"gpu.{number}.process.4711.memory": 69 * GIB}
    return found | changes


def host(name="lab-01", gpus=0, absent=None, ago=0, readings=60, **changes):
    """A host that was read for two minutes, up to so many seconds ago."""
    facts = {"gpus": {str(n): "NVIDIA H200" for n in range(gpus)}, "absent": absent or {}, "seconds": 2}
    made = Host.objects.create(name=name, facts=facts)
    end = timezone.now() - timedelta(seconds=ago)
    record(made, [(end - timedelta(seconds=2 * n), values(gpus, **changes)) for n in range(readings)])
    roll_up(made, end)
    return made


def text_of(answer):
    return re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<[^>]+>", " ", answer.content.decode(), flags=re.DOTALL))


def test_before_the_first_reading_the_page_says_when_it_comes(alice, client_of, settings):
    assert "Nothing has been read yet" in text_of(client_of(alice).get("/monitor/"))
    settings.MONITOR_SECONDS = 0
    assert "MISTUDIO_MONITOR_SECONDS is 0" in text_of(client_of(alice).get("/monitor/"))


def test_each_part_is_shown_with_its_value_unit_and_peak(alice, client_of):
    host(gpus=2)
    answer = client_of(alice).get("/monitor/")
    text = text_of(answer)
    assert "37.5 %" in text and "1.25 processes" in text
    assert "peak 12.0 of 64.0 GiB in 1 h" in text
    assert "peak 300 of 400 GiB in 1 h" in text
    assert "read 5.00 MiB/s; written 1.00 MiB/s" in text
    assert "GPU 1 · NVIDIA H200" in text and "peak 70.0 of 80.0 GiB" in text
    assert "1,980 MHz" in text and "Process 4711 69.0 GiB" in text
    assert "Swap" not in text, "there is none"
    assert "<title>Utilization: 37.5 % at " in answer.content.decode()


def test_without_a_gpu_the_page_says_why_and_shows_the_rest(alice, client_of):
    host(absent={"gpu": "NVML Shared Library Not Found"})
    text = text_of(client_of(alice).get("/monitor/"))
    assert "No GPU is seen: NVML Shared Library Not Found." in text and "37.5 %" in text


def test_a_part_that_cannot_be_read_says_why(alice, client_of):
    host(absent={"disk./data": "[Errno 116] Stale file handle"})
    assert "Disk Not read: [Errno 116] Stale file handle." in text_of(client_of(alice).get("/monitor/"))


def test_a_gpu_that_vanished_is_named_beside_the_one_that_is_there(alice, client_of):
    made = host(gpus=1, absent={"gpu.1": "GPU is lost", "gpu.0.fan": "Not Supported"})
    Host.objects.filter(pk=made.pk).update(facts={**made.facts, "gpus": {"0": "NVIDIA H200", "1": "NVIDIA A100"}})
    text = text_of(client_of(alice).get("/monitor/"))
    assert "GPU 1 · NVIDIA A100" in text and "GPU 1 is not seen: GPU is lost." in text
    assert "Fan not measured: Not Supported" in text and "No GPU is seen" not in text


def test_a_host_that_is_silent_is_stale_since_then_and_shows_no_value_as_if_it_were_of_now(alice, client_of):
    host(ago=300)
    text = text_of(client_of(alice).get("/monitor/"))
    assert re.search(r"Stale since ([1-9]\d? \w+ )?\d\d:\d\d:\d\d : last reading 5 min ago", text)
    assert "37.5" not in text.split("peak")[0] and "peak 37.5 % in 1 h" in text


def test_a_host_that_is_gone_has_no_reading_in_a_short_window(alice, client_of):
    host(ago=2 * 3600)
    tidy(timezone.now())
    text = text_of(client_of(alice).get("/monitor/"))
    assert "Stale no reading in the last 1 h" in text and "Nothing was read in the last 1 h." in text
    assert "peak 37.5 % in 6 h" in text_of(client_of(alice).get("/monitor/?window=6h"))


def test_window_and_host_are_in_the_address(alice, client_of):
    host("one")
    host("two", **{"cpu.percent": 88})
    client = client_of(alice)
    assert "37.5 %" in text_of(client.get("/monitor/?host=one"))
    answer = client.get("/monitor/?host=two&window=7d")
    text = answer.content.decode()
    assert "88.0" in text and "<option selected>two</option>" in text
    assert '<a href="?host=two&amp;window=24h">24 h</a>' in text
    assert '<a href="?host=two&amp;window=7d" aria-current="page">7 days</a>' in text
    assert "in 7 days" in text
    for query in ("host=three", "host=two&window=2h", "host=two&window="):
        status = client.get(f"/monitor/?{query}").status_code
        assert status == (200 if query.endswith("window=") else 404), query


def test_the_name_of_a_host_is_escaped(alice, client_of):
    host("<script>alert(1)</script>")
    host("other")
    for url in ("/monitor/", "/monitor/?host=other"):
        assert "<script>alert" not in client_of(alice).get(url).content.decode()


def test_the_page_asks_as_much_for_a_week_of_readings_as_for_a_minute(alice, client_of):
    def queries(url):
        monitored.past.cache_clear()
        with CaptureQueriesContext(connection) as caught:
            assert client.get(url).status_code == 200
        return len(caught)

    client = client_of(alice)
    few = host("few", readings=3)
    many = host("many", gpus=8, readings=0)
    now = timezone.now()
    for resolution in KEPT:
        many.samples.bulk_create(
            many.samples.model(
                host=many,
                resolution=resolution,
                at=now - timedelta(seconds=resolution * n),
                mean=values(8),
                peak=values(8),
            )
            for n in range(1, 200)
        )
    assert queries(f"/monitor/?host={few}&window=7d") == queries(f"/monitor/?host={many}&window=7d") <= 22


# ---- several hosts


def test_several_hosts_stand_beside_each_other_and_lead_to_their_charts(alice, client_of):
    host("lab-01", gpus=2, **{"gpu.1.utilization": 0})
    host("lab-02", ago=300)
    client = client_of(alice)
    text = text_of(client.get("/monitor/"))
    table = r"lab-01 37.5 % 18.8 % of 64.0 GiB 75.0 % 100.0 GiB free 1 of 2 0 \d\d:\d\d:\d\d"
    silent = r"lab-02 – – – – 1 Stale [\w :]+ 5 min ago"
    assert re.search(f"{table} {silent}", text) and "2 hosts" in text
    assert '<a class="mono" href="?host=lab-02">' in client.get("/monitor/").content.decode()
    page = client.get("/monitor/?host=lab-02")
    assert '<a href="/monitor/">Monitor</a>' in page.content.decode() and "Processor" in text_of(page)


def test_the_page_of_the_hosts_asks_as_much_for_ten_as_for_two(alice, client_of):
    client = client_of(alice)
    host("one", readings=3)
    host("two", readings=3)
    few = queries(client, "/monitor/")
    for n in range(8):
        host(f"more-{n}", readings=3)
    assert queries(client, "/monitor/") == few <= 22


def test_the_table_of_the_hosts_is_pushed_as_the_page_shows_it(alice, client_of):
    host("one")
    host("two", gpus=1)
    page = client_of(alice).get("/monitor/").content.decode()
    for name in ("hosts.2", "alerts.member.2"):
        assert f"&amp;t={name}" in page and live.render(name).strip() in page


# ---- the pace of a person


def test_each_person_keeps_a_pace_of_their_own(alice, bob, client_of):
    made = host()
    client = client_of(alice)
    page = "http://testserver/monitor/?window=6h"
    assert client.post("/monitor/pace/", {"seconds": "10"}, headers={"referer": page})["Location"] == page
    html = client_of(alice).get("/monitor/").content.decode()
    assert f"system.cpu.1h.{made.pk}.10" in html and "alerts.member.10" in html
    assert 'value="10" aria-pressed="true"' in html
    assert f"system.cpu.1h.{made.pk}.2" in client_of(bob).get("/monitor/").content.decode()


def test_a_pace_that_is_not_offered_changes_nothing(alice, client_of):
    client = client_of(alice)
    host()
    for seconds in ("0", "3", "", "1e1", "-2"):
        assert "give one of 1, 2, 5, 10" in text_of(client.post("/monitor/pace/", {"seconds": seconds}, follow=True))
    assert type(alice).objects.get(pk=alice.pk).monitor_seconds == 2
    assert client.get("/monitor/pace/").status_code == 405


def test_a_topic_is_rendered_at_the_pace_in_its_name_but_no_oftener_than_there_are_readings(settings):
    settings.MONITOR_SECONDS = 2
    asked = (
        "system.cpu.1h.3.10",
        "system.cpu.1h.3.1",
        "attribution.lanes.7.1h.3.5",
        "hosts.5",
        "alerts.staff.1",
        "shell.1",
    )
    assert [interval(name) for name in asked] == [10, 2, 5, 5, 2, 1]
    settings.MONITOR_SECONDS = 60
    assert interval("system.host.7d.3.5") == 60


# ---- live


def test_a_part_is_pushed_as_the_page_shows_it(alice, client_of):
    made = host(gpus=1)
    page = client_of(alice).get("/monitor/?window=6h").content.decode()
    names = [f"system.{part}.6h.{made.pk}.2" for part in ("host", *monitored.PARTS)]
    assert all(f"&amp;t={name}" in page for name in names)
    assert live.allowed(alice, names)
    for name in names:
        fragment = live.render(name)
        part = name.split(".")[1]
        assert re.match(rf'\s*<(section|p) class="[\w ]+" id="system-{part}"', fragment), name
        assert fragment.strip() in page, name


def test_a_new_reading_is_in_the_next_fragment(alice):
    made = host()
    name = f"system.memory.1h.{made.pk}.2"
    before = live.render(name)
    record(made, [(timezone.now() + timedelta(seconds=1), values(**{"memory.used": 48 * GIB}))])
    after = live.render(name)
    assert "48.0" in after and "48.0" not in before


def test_a_reading_with_a_clock_that_was_wrong_is_not_shown_as_now(alice):
    made = host()
    record(made, [(timezone.now() + timedelta(hours=1), values(**{"memory.used": 48 * GIB}))])
    assert "48.0" not in live.render(f"system.memory.1h.{made.pk}.2")


def test_only_members_of_a_team_watch_and_only_what_there_is(alice, charlie):
    made = host()
    good = f"system.cpu.1h.{made.pk}.2"
    assert live.allowed(alice, [good]) and live.allowed(charlie, [good])
    assert not live.allowed(AnonymousUser(), [good])
    for bad in (
        "cpu",
        "cpu.1h",
        f"cpu.2h.{made.pk}.2",
        f"nose.1h.{made.pk}.2",
        "cpu.1h.999.2",
        "cpu.1h.x.2",
        f"cpu.1h.{'9' * 30}.2",
        f"cpu.1h.{made.pk}",
        f"cpu.1h.{made.pk}.3",
        f"cpu.1h.{made.pk}.2.2",
    ):
        assert not live.allowed(alice, [f"system.{bad}"]), bad
    Membership.objects.filter(user=charlie).delete()
    assert not live.allowed(type(charlie).objects.get(pk=charlie.pk), [good])


def test_nothing_is_drawn_twice_for_the_parts_of_one_moment(alice, monkeypatch):
    made, asked = host(), []
    history = monitored.history
    monkeypatch.setattr(monitored, "history", lambda *args: asked.append(1) or history(*args))
    now = timezone.now()
    monkeypatch.setattr(monitored.timezone, "now", lambda: now)
    for part in monitored.PARTS:
        live.render(f"system.{part}.1h.{made.pk}.2")
    assert len(asked) == 1


def test_the_topics_of_a_page_that_are_rendered_together_ask_for_their_host_and_its_newest_reading_once(
    alice, client_of
):
    host(gpus=2)
    names = re.findall(r"[?;]t=([\w.]+)", client_of(alice).get("/monitor/").content.decode().split("ws-connect")[1])
    asking = [name for name in names if name.startswith(("system", "attribution"))]
    client = client_of(alice)
    with CaptureQueriesContext(connection) as caught:
        assert client.get("/live/fragments/", {"t": asking}).status_code == 200
    asked = [query["sql"] for query in caught]
    assert len(asking) >= 8
    for table in ("monitoring_host", "monitoring_sample"):
        assert sum(f'FROM "{table}"' in sql and "LIMIT 1" in sql for sql in asked) == 1, table
    assert len(asked) <= 11


def test_a_gap_in_the_readings_is_a_gap_in_the_line(alice):
    made = host(readings=0)
    now = timezone.now()
    for start in (600, 3000):  # seconds ago
        record(made, [(now - timedelta(seconds=start - 2 * n), values()) for n in range(100)])
    roll_up(made, now)
    figure = monitored.look(made, monitored.WINDOWS["1h"]).past.figure(monitored.PARTS["cpu"][1][0], "")["figure"]
    assert figure.count('<path class="line') == 2
