import re

import pytest
from django.urls import reverse
from django.utils import timezone

from jobs.models import Job, Worker
from jobs.order import put
from jobs.queue import nudges, pause_queue
from tests.mistudio.test_pages import queries

pytestmark = pytest.mark.django_db


def text(reply):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", reply.content.decode()))


# ---- list


@pytest.mark.parametrize(
    ("state", "titles"),
    [
        ("failed", {"f"}),
        ("succeeded", {"s"}),
        ("cancelled", {"c"}),
        ("queued", {"q"}),
        ("running", {"r"}),
        ("paused", {"p"}),
        ("", {"f", "s", "c", "q", "r", "p"}),
    ],
)
def test_each_tab_shows_its_states_and_counts_all(client_of, alice, row, state, titles):
    for name in ("queued", "running", "paused", "succeeded", "failed", "cancelled"):
        row(name, title=f"job-{name[0]}")
    reply = client_of(alice).get(f"/jobs/?state={state}")
    assert {t.removeprefix("job-") for t in re.findall(r"<bdi>(job-\w)</bdi>", reply.content.decode())} == titles
    counts = dict(re.findall(r">(\w+) <span class=\"n\">(\d+)</span>", reply.content.decode()))
    expected = {"All": "6", "Running": "1", "Waiting": "1", "Paused": "1", "Failed": "1", "Finished": "1"}
    assert counts == {**expected, "Cancelled": "1"}


def test_filters_are_in_the_address_and_work_together(client_of, alice, row):
    row("failed", title="first tokenization", kind="tokenize")
    row("failed", title="second tokenization", kind="tokenize")
    other = row("failed", title="first training", kind="train_sae", subject="training:7")
    client = client_of(alice)

    def titles(query):
        return set(re.findall(r"<bdi>([^<]+)</bdi></a>", client.get(f"/jobs/?{query}").content.decode()))

    assert titles("state=failed&q=FIRST") == {"first tokenization", "first training"}
    assert titles("state=failed&q=first&kind=tokenize") == {"first tokenization"}
    assert titles(f"q={other.pk}") >= {"first training"}
    assert titles("q=training:7") == {"first training"}
    assert titles("state=running&q=first") == set()


def test_an_empty_list_says_what_will_be_there_and_no_match_says_so(client_of, alice, row):
    client = client_of(alice)
    assert "Jobs appear here as soon as" in text(client.get("/jobs/?state=failed"))
    row("succeeded", title="x")
    assert "1 job is in other states" in text(client.get("/jobs/?state=failed"))
    assert "No jobs match" in text(client.get("/jobs/?q=zzz"))
    assert "none of them has this name" in text(client.get("/jobs/?q=zzz"))


def test_pages_of_fifty(client_of, alice, row, team):
    Job.objects.bulk_create(
        Job(team=team, kind="sleepy", queue="cpu", state="succeeded", title=f"n{n}") for n in range(60)
    )
    client = client_of(alice)
    first, second = (client.get(f"/jobs/?state=succeeded&page={page}").content.decode() for page in (1, 2))
    assert first.count('id="job-row-') == 50 and second.count('id="job-row-') == 10
    assert "state=succeeded" in re.search(r'rel="next" href="([^"]+)"', first)[1]


def test_the_list_asks_as_much_for_fifty_jobs_as_for_one(client_of, alice, row):
    client = client_of(alice)
    paths = ("/jobs/", "/jobs/?state=failed", "/jobs/?q=a")
    row("running"), row("failed")
    few = [queries(client, path) for path in paths]
    for state in ("running", "queued", "failed"):
        for _ in range(20):
            row(state, owner=alice)
    assert [queries(client, path) for path in paths] == few
    assert max(few) < 30


def test_nonsense_in_the_address_is_no_error(client_of, alice, row):
    row("failed")
    for query in ("state=nonsense", "page=abc", "page=999", "kind=nonsense", "q=%00", "q=" + "9" * 50, "q=%F0%9F"):
        assert client_of(alice).get(f"/jobs/?{query}").status_code == 200


# ---- one job


def test_what_a_job_uses_is_shown_with_units_and_what_is_not_measured_is_said(client_of, alice, row):
    GIB = 2**30
    usage = {
        "cpu": {"total": 192, "seconds": 120, "peak": 1.9, "now": 1.8},
        "memory": {"total": 120 * GIB, "seconds": 120, "peak": 1.4 * GIB, "now": 1.2 * GIB},
        "read": {"total": 3 * GIB, "seconds": 120, "peak": GIB, "now": 0},
        "written": {"total": 0, "seconds": 120, "peak": 0, "now": 0},
        "processes": [],
    }
    job = row("running", usage=usage)
    shown = text(client_of(alice).get(f"/jobs/{job.pk}/"))
    assert "CPU 3 min 12 s , now 1.8 , mean 1.6, peak 1.9 cores" in shown
    assert "Memory 1.2 GiB , mean 1.0 GiB, peak 1.4 GiB" in shown
    assert "Disk 3.0 GiB read, 0 B written" in shown
    assert "GPU not measured" in shown
    gpu = {"total": 60, "seconds": 120, "peak": 0.99, "now": 0.93}
    Job.objects.filter(pk=job.pk).update(state="succeeded", usage={**usage, "gpu": gpu})
    shown = text(client_of(alice).get(f"/jobs/{job.pk}/"))
    assert "GPU 1 min 00 s , mean 50 %, peak 99 % ; memory not measured" in shown.replace("99 %;", "99 % ;")
    assert ", now" not in shown and "Memory mean 1.0 GiB" in shown, "it has ended"


def test_the_page_of_a_job_shows_all_that_is_known(client_of, alice, row):
    job = row(
        "running",
        owner=alice,
        title="my job",
        percent=42.0,
        stage="sleep",
        stage_index=1,
        done=42,
        total=100,
        unit="steps",
        rate=3.5,
        eta_seconds=17,
        started_at=timezone.now(),
        heartbeat_at=timezone.now(),
        params={"steps": 100},
        attempt=2,
    )
    job.note("worker lost", attempt=1, percent=20.0, pid=77, host="box")
    job.folder.mkdir(parents=True)
    (job.folder / "log.txt").write_text("line one\n\x1b[31mred <b>line</b>\n")
    reply = client_of(alice).get(job.get_absolute_url())
    shown = text(reply)
    progress = ("my job", "42.0", "42 of 100 steps", "about 17 s left", "attempt 2", "alice")
    history = ("Worker lost", "attempt 1 at 20 %", "process 77 on box", "line one", f"mistudio jobs show {job.pk}")
    for part in (*progress, *history):
        assert part in shown, part
    assert "red &lt;b&gt;line&lt;/b&gt;" in reply.content.decode(), "output is never markup"


def test_a_failed_job_says_why_and_offers_the_one_click(client_of, alice, row):
    job = row(
        "failed",
        error_code="OUT_OF_MEMORY",
        error_message="2 GiB asked.",
        error_hint="Use less.",
        error_detail="Trace <x>",
        finished_at=timezone.now(),
        suggestion={"label": "Retry with batch 4", "overrides": {"batch": 4}},
        params={"batch": 8},
    )
    client = client_of(alice)
    shown = text(client.get(job.get_absolute_url()))
    for part in ("2 GiB asked.", "Use less.", "Retry with batch 4", "Trace &lt;x&gt;", "OUT OF MEMORY"):
        assert part.lower() in shown.lower(), part
    reply = client.post(reverse("job_retry", args=[job.pk]), {"suggested": "1"})
    again = job.retries.get()
    assert again.params["batch"] == 4 and reply.url == again.get_absolute_url()
    assert f"retried as job {again.pk}" in text(client.get(job.get_absolute_url()))
    assert f"again after job {job.pk}" in text(client.get(again.get_absolute_url()))


def test_a_waiting_job_says_what_it_waits_for(client_of, alice, row):
    first, second = row("queued"), row("queued")
    client = client_of(alice)
    assert "mistudio worker --queue cpu" in text(client.get(first.get_absolute_url()))
    Worker.objects.create(host="h", pid=1, queue="cpu", slots=2)
    assert "Next on the cpu queue. It waits for nothing, it starts" in text(client.get(first.get_absolute_url()))
    assert "1 job before it" in text(client.get(second.get_absolute_url()))
    put(second, "first")
    assert "Next on the cpu queue" in text(client.get(second.get_absolute_url()))
    pause_queue("cpu", by=alice, reason="<b>moving</b>")
    shown = text(client.get(first.get_absolute_url()))
    assert "The cpu queue is paused by alice since" in shown and "“ &lt;b&gt;moving&lt;/b&gt; ”" in shown
    assert "1 job starts before this one then" in shown


def test_every_state_has_a_page_and_exactly_the_buttons_that_work(client_of, alice, row):
    buttons = {
        "queued": {"cancel", "order"},
        "running": {"cancel", "pause", "finish"},
        "paused": {"cancel", "resume"},
        "failed": {"retry"},
        "cancelled": {"retry"},
        "succeeded": set(),
    }
    client = client_of(alice)
    for state, expected in buttons.items():
        job = row(state, started_at=timezone.now())
        html = client.get(job.get_absolute_url()).content.decode()
        assert set(re.findall(rf'action="/jobs/{job.pk}/(\w+)/"', html)) == expected, state


def test_the_page_of_a_job_links_to_what_it_works_on(client_of, alice, row, settings):
    settings.SUBJECT_URL = "tests.jobs.test_views.somewhere"
    job = row("running", subject="training:7", started_at=timezone.now())
    assert 'href="/found/training:7"' in client_of(alice).get(job.get_absolute_url()).content.decode()
    settings.SUBJECT_URL = ""
    assert "Open what it works on" not in client_of(alice).get(job.get_absolute_url()).content.decode()


def somewhere(subject):
    return f"/found/{subject}"


def test_the_whole_log_is_a_download_that_no_browser_renders(client_of, alice, row):
    job = row("running")
    assert client_of(alice).get(reverse("job_log", args=[job.pk])).status_code == 404
    job.folder.mkdir(parents=True)
    (job.folder / "log.txt").write_text("<script>")
    reply = client_of(alice).get(reverse("job_log", args=[job.pk]))
    assert b"".join(reply.streaming_content) == b"<script>" and reply.headers["Content-Type"].startswith("text/plain")
    assert f'attachment; filename="job-{job.pk}.log"' == reply.headers["Content-Disposition"]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


# ---- actions

ACTIONS = ("cancel", "pause", "resume", "finish", "retry", "order", "dismiss")


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_are_for_the_team_by_post_with_a_token_alone(client_of, alice, charlie, client, row, action):
    job = row("running")
    url = reverse(f"job_{action}", args=[job.pk])
    assert client_of(alice).get(url).status_code == 405
    assert client_of(charlie).post(url).status_code == 404
    assert client.post(url).url.startswith("/login/")
    assert client_of(alice, enforce_csrf_checks=True).post(url).status_code == 403
    assert client_of(alice).post(reverse(f"job_{action}", args=[10**9])).status_code == 404
    job.refresh_from_db()
    assert job.wish == "" and job.state == "running"


def test_pages_of_another_team_do_not_exist(client_of, charlie, bob, row):
    job = row("running", started_at=timezone.now())
    for url in (job.get_absolute_url(), reverse("job_log", args=[job.pk])):
        assert client_of(charlie).get(url).status_code == 404
    assert "a job" not in text(client_of(charlie).get("/jobs/"))
    assert client_of(bob).get(job.get_absolute_url()).status_code == 200


@pytest.mark.parametrize(
    ("state", "action", "wish", "after"),
    [
        ("running", "cancel", "cancel", "running"),
        ("running", "pause", "pause", "running"),
        ("running", "finish", "finish", "running"),
        ("queued", "cancel", "", "cancelled"),
        ("paused", "resume", "", "queued"),
        ("running", "order", "", "running"),
        ("running", "dismiss", "", "running"),
        ("succeeded", "cancel", "", "succeeded"),
        ("succeeded", "resume", "", "succeeded"),
    ],
)
def test_each_action_does_what_it_says(client_of, alice, row, state, action, wish, after):
    job = row(state)
    client = client_of(alice)
    reply = client.post(reverse(f"job_{action}", args=[job.pk]), follow=True)
    job.refresh_from_db()
    assert (job.wish, job.state) == (wish, after) and reply.redirect_chain[0][0] == job.get_absolute_url()
    assert "a job" in text(reply) and len(list(reply.context["messages"])) == 1


def test_an_action_leads_back_to_the_page_it_was_on_but_never_to_another_site(client_of, alice, row):
    job = row("paused")
    url = reverse("job_cancel", args=[job.pk])
    client = client_of(alice)
    assert client.post(url, {"next": "/trainings/3/"}).url == "/trainings/3/"
    assert client.post(url, {"next": "https://evil.example/"}).url == job.get_absolute_url()
    assert client.post(url, headers={"referer": "http://testserver/jobs/?state=paused"}).url.endswith(
        "/jobs/?state=paused"
    )
    assert client.post(url, headers={"referer": "https://evil.example/"}).url == job.get_absolute_url()


def test_what_is_refused_is_said(client_of, alice, row):
    job = row("running")
    shown = text(client_of(alice).post(reverse("job_retry", args=[job.pk]), follow=True))
    assert "is not finished. Wait for it, or cancel it first." in shown and not job.retries.exists()


def test_a_retry_waits_with_a_message(client_of, alice, row):
    job = row("failed")
    client_of(alice).post(reverse("job_retry", args=[job.pk]))
    assert job.retries.get().state == "queued" and nudges("cpu") == 1


# ---- live


def test_a_padded_number_opens_no_job_of_another_team(client_of, alice, charlie, row):
    row("running", pk=1)
    theirs = row("running", pk=1234)
    Job.objects.filter(pk=theirs.pk).update(team=charlie.team)
    padded = f"jobs.{'1'.zfill(18)}{theirs.pk}"
    assert client_of(alice).get("/live/fragments/", {"t": padded}).status_code == 404
    assert client_of(alice).get("/live/fragments/", {"t": "jobs.1"}).status_code == 200


def test_the_page_watches_its_job_and_the_list_its_team(client_of, alice, row):
    job = row("running", started_at=timezone.now())
    client = client_of(alice)
    shell = f"/live/?t=shell.{job.team_id}"
    assert f'{shell}&amp;t=jobs.{job.pk}"' in client.get(job.get_absolute_url()).content.decode()
    assert f'{shell}&amp;t=operations.{job.team_id}"' in client.get("/operations/").content.decode()
    assert f'{shell}"' in client.get("/jobs/?state=failed").content.decode()


def test_every_page_hears_of_a_job_that_ends_as_another_begins(client_of, alice, row):
    from jobs import live

    first, shell = row("running"), f"shell.{alice.team.pk}"
    first.note("running")
    before = live.render(shell)
    assert before.strip() in client_of(alice).get("/jobs/").content.decode()
    first.move("succeeded")
    row("running").note("running")
    after = live.render(shell)
    assert before != after and all('1<span class="wide-only"> running</span>' in html for html in (before, after))


def test_a_fragment_has_one_root_with_the_id_it_is_swapped_by(row):
    from jobs import live

    job = row("running", started_at=timezone.now())
    for name, key in ((f"jobs.{job.pk}", f"job-{job.pk}"), (f"operations.{job.team_id}", "operations")):
        html = live.render(name).strip()
        tag = re.match(r"<(\w+)", html)[1]
        assert f'id="{key}"' in html.partition(">")[0] and html.endswith(f"</{tag}>")
    assert live.render("jobs.999999") == "" and live.render("nonsense.1") == ""
