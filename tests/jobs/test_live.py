import asyncio
import contextlib
import os
import socket
import time

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.db import connections, transaction

from jobs import consumers, live, tail
from jobs.models import Job, LiveEvent, Worker
from jobs.tail import GATHER, Reader, tail_here
from mistudio.asgi import application

pytestmark = pytest.mark.django_db(transaction=True)


PATIENCE = 30  # s: the machine may be busy


@pytest.fixture(autouse=True)
def thread_connections():
    """Connections that the event loop's threads opened must not outlive the test's tables."""
    yield
    connections.close_all()


def page(client, path, origin=b"http://localhost"):
    """A websocket as this signed-in browser would open it."""
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items()) if client else ""
    headers = [(b"origin", origin), (b"host", b"localhost"), (b"cookie", cookies.encode())]
    return WebsocketCommunicator(application, path, headers=headers)


@contextlib.asynccontextmanager
async def opened(client, path):
    socket = page(client, path)
    connected, _ = await socket.connect(timeout=PATIENCE)
    assert connected
    try:
        yield socket
    finally:
        await socket.disconnect()


async def change(job, **fields):
    def update():
        Job.objects.filter(pk=job.pk).update(**fields)
        live.publish_job(Job.objects.get(pk=job.pk))

    await sync_to_async(update)()


async def close_code(socket):
    message = await socket.receive_output(timeout=PATIENCE)
    while message["type"] != "websocket.close":
        message = await socket.receive_output(timeout=PATIENCE)
    return message["code"]


async def test_a_page_gets_the_whole_current_fragment_first_and_then_each_change(client_of, alice, row, monkeypatch):
    monkeypatch.setattr(tail, "POLL", 10 * PATIENCE)
    job = await sync_to_async(row)("running", percent=12.0)
    async with opened(await sync_to_async(client_of)(alice), f"/live/?t=jobs.{job.pk}") as socket:
        first = await socket.receive_from(timeout=PATIENCE)
        assert f'id="job-{job.pk}"' in first and "12.0 %" in first
        await change(job, percent=34.0)
        assert "34.0 %" in await socket.receive_from(timeout=PATIENCE), "the bell woke it, long before the next look"


async def test_many_changes_are_one_frame_with_the_last_of_each_topic(client_of, alice, row):
    jobs = [await sync_to_async(row)("running", title=f"job {n}") for n in range(2)]
    async with opened(
        await sync_to_async(client_of)(alice), f"/live/?t=jobs.{jobs[0].pk}&t=jobs.{jobs[1].pk}"
    ) as socket:
        await socket.receive_from(timeout=PATIENCE)
        await asyncio.sleep(0.2)

        def many():
            with transaction.atomic():
                for percent in range(1, 51):
                    for job in jobs:
                        Job.objects.filter(pk=job.pk).update(percent=percent)
                        live.publish_job(job)

        await sync_to_async(many)()
        frame = await socket.receive_from(timeout=PATIENCE)
        assert frame.count("50.0 %") >= 2 and "49.0 %" not in frame
        assert await socket.receive_nothing(timeout=0.5)


async def test_a_topic_is_rendered_once_for_all_pages_that_watch_it(client_of, alice, bob, row, monkeypatch):
    job = await sync_to_async(row)("running")
    path = f"/live/?t=jobs.{job.pk}"
    async with contextlib.AsyncExitStack() as stack:
        clients = [await sync_to_async(client_of)(person) for person in (alice, bob)]
        sockets = [await stack.enter_async_context(opened(client, path)) for client in clients * 5]
        for socket in sockets:
            await socket.receive_from(timeout=PATIENCE)
        renderings = []
        monkeypatch.setattr(live, "render", lambda name: renderings.append(name) or f'<p id="x">{len(renderings)}</p>')
        await change(job, percent=1.0)
        frames = {await socket.receive_from(timeout=PATIENCE) for socket in sockets}
    assert renderings == [f"jobs.{job.pk}"] and frames == {'<p id="x">1</p>'}


async def test_pages_that_come_at_once_share_their_renderings(client_of, alice, row, monkeypatch):
    job = await sync_to_async(row)("running")
    client = await sync_to_async(client_of)(alice)
    render, renderings = live.render, []
    monkeypatch.setattr(live, "render", lambda name: renderings.append(name) or render(name))
    async with contextlib.AsyncExitStack() as stack:
        sockets = [page(client, f"/live/?t=jobs.{job.pk}") for _ in range(60)]
        for socket in sockets:
            stack.push_async_callback(socket.disconnect)
        await asyncio.gather(*[socket.connect(timeout=PATIENCE) for socket in sockets])
        for socket in sockets:
            assert f'id="job-{job.pk}"' in await socket.receive_from(timeout=PATIENCE)
            assert await socket.receive_nothing(timeout=0.01), "who came first is not shown the same again"
    assert len(renderings) < 10, "one for those that are let in together"


async def test_changes_of_a_tenth_of_a_second_are_one_rendering_and_the_last_is_shown(
    client_of, alice, row, monkeypatch
):
    job = await sync_to_async(row)("running")
    async with opened(await sync_to_async(client_of)(alice), f"/live/?t=jobs.{job.pk}") as socket:
        await socket.receive_from(timeout=PATIENCE)
        render, renderings = live.render, []
        monkeypatch.setattr(live, "render", lambda name: renderings.append(time.monotonic()) or render(name))
        for percent in range(1, 41):
            await change(job, percent=float(percent))
            await asyncio.sleep(0.01)
        while "40.0 %" not in await socket.receive_from(timeout=PATIENCE):
            continue
    pauses = len(renderings) - 1
    assert pauses > 1 and (renderings[-1] - renderings[0]) / pauses > 0.09, renderings


async def test_a_page_that_reads_slowly_is_sent_the_newest_of_each_topic():
    sent, room = [], asyncio.Event()

    async def send(message):
        sent.append(message["text"])
        await room.wait()

    slow = consumers.Page({"cookies": {}, "query_string": b""}, send)
    writing = asyncio.create_task(slow.write())
    slow.show("a", "a1")
    await asyncio.sleep(0)
    for n in range(2, 100):
        slow.show("a", f"a{n}")
        slow.show("b", f"b{n}")
        await asyncio.sleep(0)
    assert sent == ["a1"] and slow.unsent == {"a": "a99", "b": "b99"}
    room.set()
    slow.show("b", "b99")
    for _ in range(5):
        await asyncio.sleep(0)
    writing.cancel()
    assert sent == ["a1", "a99\nb99"]


async def test_who_cannot_be_looked_up_is_asked_to_come_back_and_who_watches_goes_on(
    client_of, alice, row, monkeypatch, caplog
):
    job = await sync_to_async(row)("running")
    client = await sync_to_async(client_of)(alice)
    async with opened(client, f"/live/?t=jobs.{job.pk}") as socket:
        await socket.receive_from(timeout=PATIENCE)
        monkeypatch.setattr(consumers.Page, "refusal", lambda page: 1 / 0)
        async with opened(client, f"/live/?t=jobs.{job.pk}") as late:
            assert await close_code(late) == tail.FAILED
        tail_here().ask(*tail_here().pages)
        await change(job, percent=7.0)
        assert "7.0 %" in await socket.receive_from(timeout=PATIENCE)
    assert caplog.text.count("could not be looked up") == 2


async def test_a_topic_that_ticks_is_rendered_while_somebody_watches_and_sent_when_it_changed(
    client_of, alice, monkeypatch
):
    renderings = []
    clock = live.Topic(
        visible=lambda user, key: True,
        render=lambda key: renderings.append(key) or f'<p id="clock">{len(renderings) // 3}</p>',
        interval=0.05,
        old_after=live.at_each_interval,
    )
    monkeypatch.setattr(live, "topics", lambda: {"clock": clock})
    async with opened(await sync_to_async(client_of)(alice), "/live/?t=clock.1") as socket:
        frames = [await socket.receive_from(timeout=PATIENCE) for _ in range(4)]
    assert frames == [f'<p id="clock">{n}</p>' for n in range(4)], "without any event; what did not change not again"
    assert len(renderings) >= 9
    rendered = len(renderings)
    await asyncio.sleep(0.3)
    assert len(renderings) <= rendered + 1, "nobody watches"


async def test_why_a_job_waits_is_looked_at_again_without_an_event_as_long_as_it_waits(
    client_of, alice, row, monkeypatch
):
    monkeypatch.setattr(live, "WHILE_IT_WAITS", 0.1)
    job = await sync_to_async(row)("queued")
    client = await sync_to_async(client_of)(alice)
    async with opened(client, f"/live/?t=jobs.{job.pk}") as socket:
        assert "No worker of the cpu queue" in await socket.receive_from(timeout=5)
        await sync_to_async(Worker.objects.create)(host="here", pid=1, queue="cpu", slots=1)
        assert "it starts in a moment" in await socket.receive_from(timeout=5)
        monkeypatch.setattr(live, "WHILE_IT_WAITS", 60.0)
        await asyncio.sleep(0.3)  # the next look is far away, and an event does not wait for it
        await change(job, state="running")
        assert "data-waits" not in await socket.receive_from(timeout=5)
        await asyncio.sleep(0.1)
        assert not tail_here().due


def test_those_that_tick_as_often_tick_together_and_not_twice_within_half_an_interval():
    assert {tail.next_tick(at, 5.0) for at in (100.0, 100.3, 102.4)} == {105.0}
    assert tail.next_tick(102.6, 5.0) == tail.next_tick(105.2, 5.0) == 110.0


async def test_a_change_between_the_first_look_and_the_first_frame_is_not_lost(client_of, alice, row, monkeypatch):
    job = await sync_to_async(row)("running", percent=1.0)
    slow = live.render

    def late(name):
        html = slow(name)
        if "1.0 %" in html and "99.0 %" not in html:
            Job.objects.filter(pk=job.pk).update(percent=99.0)
            live.publish_job(job)
        return html

    monkeypatch.setattr(live, "render", late)
    async with opened(await sync_to_async(client_of)(alice), f"/live/?t=jobs.{job.pk}") as socket:
        assert "99.0 %" not in await socket.receive_from(timeout=PATIENCE)
        assert "99.0 %" in await socket.receive_from(timeout=PATIENCE)


async def test_what_did_not_change_is_not_sent_again(client_of, alice, row):
    job = await sync_to_async(row)("cancelled")
    async with opened(await sync_to_async(client_of)(alice), f"/live/?t=jobs.{job.pk}") as socket:
        await socket.receive_from(timeout=PATIENCE)
        await change(job)
        assert await socket.receive_nothing(timeout=0.7)


@pytest.mark.parametrize(
    ("who", "path", "code"),
    [
        (None, "/live/?t=jobs.1", consumers.SIGNED_OUT),
        ("charlie", "/live/?t=jobs.{pk}", consumers.NOT_FOUND),
        ("charlie", "/live/?t=operations.{team}", consumers.NOT_FOUND),
        ("alice", "/live/?t=jobs.999999", consumers.NOT_FOUND),
        ("alice", "/live/?t=jobs.abc", consumers.NOT_FOUND),
        ("alice", "/live/?t=jobs.{pk}&t=nonsense.1", consumers.NOT_FOUND),
        ("alice", "/live/", consumers.NOT_FOUND),
        ("alice", "/live/?" + "&".join(f"t=jobs.{n}" for n in range(live.MOST_TOPICS + 1)), consumers.NOT_FOUND),
        ("alice", "/live/?" + "&".join(f"t={n}" for n in range(200)), consumers.NOT_FOUND),
        ("alice", "/elsewhere/", consumers.NOT_FOUND),
    ],
)
async def test_a_page_that_may_not_watch_is_closed_for_good(request, client_of, alice, charlie, row, who, path, code):
    job = await sync_to_async(row)("running")
    client = await sync_to_async(client_of)(request.getfixturevalue(who)) if who else None
    async with opened(client, path.format(pk=job.pk, team=job.team_id)) as socket:
        assert await close_code(socket) == code
    assert not tail_here().watchers


async def test_a_page_of_another_site_is_refused(client_of, alice, row):
    job = await sync_to_async(row)("running")
    client = await sync_to_async(client_of)(alice)
    socket = page(client, f"/live/?t=jobs.{job.pk}", origin=b"http://evil.example")
    connected, _ = await socket.connect(timeout=PATIENCE)
    assert not connected


async def test_who_signs_out_stops_watching(client_of, alice, row, monkeypatch):
    monkeypatch.setattr(tail, "RECHECK", 0.1)
    job = await sync_to_async(row)("running")
    client = await sync_to_async(client_of)(alice)
    async with opened(client, f"/live/?t=jobs.{job.pk}") as socket:
        await socket.receive_from(timeout=PATIENCE)
        assert await socket.receive_nothing(timeout=0.4)
        await sync_to_async(client.logout)()
        assert await close_code(socket) == consumers.SIGNED_OUT


async def test_a_page_that_talks_too_much_is_closed(client_of, alice, row):
    job = await sync_to_async(row)("running")
    client = await sync_to_async(client_of)(alice)
    async with opened(client, f"/live/?t=jobs.{job.pk}") as socket:
        await socket.send_to("ping")
        await socket.receive_from(timeout=PATIENCE)
        assert await socket.receive_nothing(timeout=0.1), "what it says is ignored"
        await socket.send_to("x" * 2000)
        assert await close_code(socket) == consumers.TOO_TALKATIVE


async def test_the_tail_rests_while_no_page_is_open(client_of, alice, row):
    job = await sync_to_async(row)("running")
    client = await sync_to_async(client_of)(alice)
    async with opened(client, f"/live/?t=jobs.{job.pk}") as socket:
        await socket.receive_from(timeout=PATIENCE)
        assert len(list(live.bells().iterdir())) == 1
        tasks = list(tail_here().tasks)
    await asyncio.sleep(0.1)
    assert all(task.done() for task in tasks) and not list(live.bells().iterdir()), "its bell is gone too"


async def test_without_a_bell_a_change_is_seen_within_seconds(client_of, alice, row, monkeypatch):
    monkeypatch.setattr(live, "wake", lambda: None)
    job = await sync_to_async(row)("running")
    client = await sync_to_async(client_of)(alice)
    async with opened(client, f"/live/?t=jobs.{job.pk}") as socket:
        await socket.receive_from(timeout=PATIENCE)
        await change(job, percent=77.0)
        assert "77.0 %" in await socket.receive_from(timeout=10)


async def test_a_topic_that_fails_takes_no_other_with_it_and_is_tried_again(client_of, alice, row, monkeypatch):
    monkeypatch.setattr(tail, "AGAIN", 0.1)
    good, bad = [await sync_to_async(row)("running") for _ in range(2)]
    failures = []
    render = live.render

    def sometimes(name):
        if name == f"jobs.{bad.pk}" and len(failures) < 2:
            failures.append(name)
            raise RuntimeError("broken template")
        return render(name)

    client = await sync_to_async(client_of)(alice)
    async with opened(client, f"/live/?t=jobs.{good.pk}&t=jobs.{bad.pk}") as socket:
        await socket.receive_from(timeout=PATIENCE)
        monkeypatch.setattr(live, "render", sometimes)
        await change(good, percent=5.0)
        await change(bad, percent=6.0)
        seen = ""
        while "6.0 %" not in seen:
            seen += await socket.receive_from(timeout=PATIENCE)
    assert "5.0 %" in seen and len(failures) == 2


# ---- events and bells


def test_events_are_told_once_committed_or_never(row, monkeypatch):
    rings = []
    monkeypatch.setattr(live, "wake", lambda: rings.append(LiveEvent.objects.count()))
    with contextlib.suppress(RuntimeError), transaction.atomic():
        live.publish("jobs.1")
        raise RuntimeError("undone")
    assert rings == [] and not LiveEvent.objects.exists()
    with transaction.atomic():
        live.publish("jobs.1", "jobs.2")
        assert rings == []
    assert rings == [2]


def test_a_topic_with_a_fault_does_not_stop_the_job(row, monkeypatch, caplog):
    good = live.topics()["jobs"]
    bad = live.Topic(visible=good.visible, render=good.render, of_job=lambda job: 1 / 0)
    monkeypatch.setattr(live, "topics", lambda: {"jobs": good, "bad": bad})
    job = row("running")
    assert job.move("succeeded") and "cannot tell whether it shows" in caplog.text
    assert list(LiveEvent.objects.values_list("topic", flat=True)) == [f"jobs.{job.pk}"]


def test_the_reader_finds_an_event_that_was_committed_after_one_with_a_higher_id():
    LiveEvent.objects.create(pk=1000, topic="early.1")
    reader = Reader()
    reader.read()
    LiveEvent.objects.create(pk=1002, topic="fast.1")
    assert reader.read() == {"fast.1"}
    LiveEvent.objects.create(pk=1001, topic="slow.1")
    assert reader.read() == {"slow.1"}
    assert reader.read() == set() and reader.high == 1002


def test_the_reader_gives_up_on_ids_that_were_never_used(monkeypatch):
    reader = Reader()
    LiveEvent.objects.create(pk=50, topic="t.1")
    assert reader.read() == {"t.1"} and len(reader.gaps) == 49
    monkeypatch.setattr(tail, "LATE", 0)
    reader.read()
    assert reader.gaps == {}


def test_a_bell_of_a_killed_process_is_taken_down(tmp_path, settings):
    settings.MISTUDIO_DATA = tmp_path / ("deep" * 30)  # longer than the address of a socket may be
    (settings.MISTUDIO_DATA / "live").mkdir(parents=True)
    bell, path = live.hang_bell()
    dead, dead_path = live.hang_bell()
    dead.close()
    live.wake()
    assert bell.recv(16) == b"!" and not dead_path.exists() and path.exists()
    bell.close()


def test_a_bell_that_rings_already_blocks_nobody():
    bell, path = live.hang_bell()
    start = time.monotonic()
    for _ in range(2000):
        live.ring()
    assert time.monotonic() - start < 2
    bell.close()
    path.unlink()


def test_without_any_web_process_publishing_is_silent():
    live.wake()
    assert not live.bells().exists()


def test_a_bell_is_a_socket_for_everybody_on_this_machine(tmp_path):
    bell, path = live.hang_bell()
    assert path.name.startswith(f"{os.getpid()}-") and path.is_socket()
    with pytest.raises(BlockingIOError):
        bell.recv(1)
    assert bell.family == socket.AF_UNIX and GATHER == 0.03
    bell.close()
    path.unlink()


# ---- polling


def test_polling_gets_the_same_fragments(client_of, alice, row):
    job = row("running", percent=12.0)
    reply = client_of(alice).get(f"/live/fragments/?t=jobs.{job.pk}&t=operations.{job.team_id}")
    assert reply.status_code == 200 and reply.headers["Cache-Control"] == "no-store"
    html = reply.content.decode()
    assert html.count(f'id="job-{job.pk}"') == 1 and html.count('id="operations"') == 1


def test_polling_for_what_one_may_not_see_is_not_found(client_of, alice, charlie, client, row):
    job = row("running")
    assert client_of(charlie).get(f"/live/fragments/?t=jobs.{job.pk}").status_code == 404
    assert client_of(alice).get("/live/fragments/").status_code == 404
    assert client_of(alice).get("/live/fragments/?t=nonsense.1").status_code == 404
    assert client.get(f"/live/fragments/?t=jobs.{job.pk}").status_code == 302


async def test_a_page_that_cannot_be_sent_its_news_is_closed_and_may_come_back():
    said = []

    async def send(message):
        said.append(message)
        if message["type"] == "websocket.send":
            raise ValueError("not this one")

    page = consumers.Page({"cookies": {}, "query_string": b"t=jobs.1"}, send)
    page.show("jobs.1", "<p>news</p>")
    await asyncio.wait_for(page.write(), PATIENCE)
    assert said[-1] == {"type": "websocket.close", "code": tail.FAILED}
