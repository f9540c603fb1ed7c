import io
import json
import signal

import pytest
from django.core.management import CommandError, call_command

from jobs.errors import InvalidInput
from jobs.management.job_command import BadInput, JobCommand
from jobs.management.progress_line import ProgressLine, line
from jobs.models import Job, State, Worker
from jobs.order import in_order
from jobs.queue import submit
from tests.jobs.conftest import until

pytestmark = pytest.mark.django_db(transaction=True)


def run(*arguments):
    """Exit code, standard output and standard error of the `jobs` command, in this process."""
    return call("jobs", *arguments)


def call(*arguments):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        call_command(*arguments, stdout=out, stderr=err)
    except SystemExit as end:
        code = end.code
    return code, out.getvalue(), err.getvalue()


# ---- queue


def test_a_queue_is_paused_with_a_reason_shown_and_resumed(row, alice):
    running = row("running", queue="gpu")
    row("queued", queue="gpu")
    code, out, _ = call("queue", "pause", "gpu", "--reason", "a new driver", "--user", "alice", "--now")
    running.refresh_from_db()
    assert code == 0 and "paused by alice" in out and "a new driver" in out and "1 waiting" in out
    assert running.wish == "pause"
    cpu_and_gpu = {queue["queue"]: queue for queue in json.loads(call("queue", "show", "--json")[1])}
    assert cpu_and_gpu["cpu"]["paused"] is None and cpu_and_gpu["gpu"]["paused"]["by"] == "alice"
    assert (cpu_and_gpu["gpu"]["running"], cpu_and_gpu["gpu"]["waiting"]) == ([running.pk], 1)
    assert call("queue", "resume", "gpu")[1] == "The gpu queue is open. No worker is running, 1 waiting.\n"
    assert call("queue", "pause", "gpu", "--user", "nobody")[::2] == (2, "user: There is no user “nobody”.\n")


def test_a_job_is_put_first_last_and_in_its_turn(row):
    first, second = row("queued"), row("queued")
    assert run("first", str(second.pk))[0] == 0 and [w.pk for w in in_order("cpu")] == [second.pk, first.pk]
    assert run("later", str(second.pk))[0] == 0 and [w.pk for w in in_order("cpu")] == [first.pk, second.pk]
    assert run("normal", str(second.pk))[0] == 0 and not Job.objects.exclude(priority=0).exists()
    assert run("first", str(row("running").pk))[0] == 1


def test_a_failure_is_dismissed_once(row):
    job = row("failed")
    assert [run("dismiss", str(job.pk))[0] for _ in range(2)] == [0, 1]


# ---- jobs


def test_list_shows_the_newest_and_filters(row):
    row("failed", title="bad", kind="tokenize")
    row("running", title="good", percent=42.0)
    code, out, _ = run("list")
    assert code == 0 and out.index("good") < out.index("bad") and "42.0 %" in out
    assert [job["title"] for job in json.loads(run("list", "--state", "failed", "--json")[1])] == ["bad"]
    assert json.loads(run("list", "--kind", "sleepy", "--limit", "0", "--json")[1]) == []
    assert "There are no such jobs." in run("list", "--state", "paused")[1]


def test_show_says_everything_about_one_job(row):
    job = row("failed", error_code="NETWORK", error_message="refused", params={"steps": 3})
    job.note("worker lost", pid=7)
    code, out, _ = run("show", str(job.pk))
    assert code == 0 and "worker lost" in out and "refused" in out
    said = json.loads(run("show", str(job.pk), "--json")[1])
    assert said["error"]["code"] == "NETWORK" and said["params"] == {"steps": 3}
    assert [event["what"] for event in said["events"]] == ["worker lost"]


def test_show_says_what_a_job_used_and_what_of_it_was_not_measured(row):
    figures = {
        "cpu": {"total": 192.25, "seconds": 120, "peak": 1.875},
        "memory": {"total": 2**40, "seconds": 1024, "peak": 2**31},
    }
    job = row("running", usage={**figures, "processes": [{"pid": 7}]})
    _, out, _ = run("show", str(job.pk))
    assert "CPU: 192.2 s, mean 1.60 cores, peak 1.88 cores, measured over 120 s" in out
    assert "memory: mean 1,024.0 MiB, peak 2,048.0 MiB" in out and "GPU: not measured" in out
    said = json.loads(run("show", str(job.pk), "--json")[1])["usage"]
    assert said == {
        "cpu": {"total": 192.25, "mean": 192.25 / 120, "peak": 1.875, "seconds": 120},
        "memory": {"total": 2**40, "mean": 2**30, "peak": 2**31, "seconds": 1024},
    }
    assert "not measured" not in run("show", str(row("queued").pk))[1], "nothing of it ran"


def test_logs_are_cleaned(row):
    job = row("running")
    job.folder.mkdir(parents=True)
    (job.folder / "log.txt").write_text("\x1b[31mred\x1b[0m\n")
    assert run("logs", str(job.pk))[:2] == (0, "red\n\n") or run("logs", str(job.pk))[1].strip() == "red"
    assert json.loads(run("logs", str(job.pk), "--json")[1]) == {"id": job.pk, "log": "red\n"}


def test_logs_can_be_followed_to_the_end(row, monkeypatch):
    from jobs.management.commands import jobs as command

    job = row("running")
    job.folder.mkdir(parents=True)
    log = job.folder / "log.txt"
    log.write_text("one\n")

    def next_moment(seconds):
        log.write_text("one\ntwo\n")
        Job.objects.update(state="succeeded")

    monkeypatch.setattr(command.time, "sleep", next_moment)
    assert run("logs", str(job.pk), "--follow")[1].split() == ["one", "two"]


@pytest.mark.parametrize(
    ("state", "action", "code", "after"),
    [
        ("queued", "cancel", 0, "cancelled"),
        ("paused", "resume", 0, "queued"),
        ("running", "pause", 0, "running"),
        ("running", "finish", 0, "running"),
        ("succeeded", "cancel", 1, "succeeded"),
        ("running", "resume", 1, "running"),
    ],
)
def test_actions_say_whether_they_could(row, state, action, code, after):
    job = row(state)
    assert run(action, str(job.pk))[0] == code
    job.refresh_from_db()
    assert job.state == after


def test_a_retry_may_change_parameters(row):
    job = row("failed", suggestion={"overrides": {"batch": 4}}, params={"batch": 8})
    code, out, _ = run("retry", str(job.pk), "--suggested", "--set", "steps=7", "--set", "folder=/x", "--json")
    again = Job.objects.get(pk=json.loads(out)["id"])
    assert code == 0 and (again.params["batch"], again.params["steps"], again.params["folder"]) == (4, 7, "/x")


def test_bad_input_is_exit_code_two_in_words(row):
    job = row("running")
    for arguments in (
        ("show", "999999"),
        ("retry", str(job.pk)),
        ("retry", str(row("failed").pk), "--set", "nonsense"),
    ):
        code, out, err = run(*arguments)
        assert code == 2 and err and not out
    with pytest.raises(CommandError):
        run("list", "--state", "nonsense")


# ---- commands that do work by a job


class Sleep(JobCommand):
    def add_arguments(self, parser):
        super().add_arguments(parser)
        parser.add_argument("--params", type=json.loads, default={})
        parser.add_argument("--bad", default="")

    def make_job(self, team, owner, options):
        if options["bad"] == "field":
            raise BadInput({"width": ["It must be 1 or more."]})
        if options["bad"] == "kind":
            raise InvalidInput("steps is 0.", hint="Give 1 or more.", field="steps")
        return submit("sleepy", options["params"], team=team, owner=owner, title="nap"), None


def sleep(capsys, *arguments, **params):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        call_command(Sleep(), *arguments, "--params", json.dumps(params), stdout=out, stderr=err)
    except SystemExit as end:
        code = end.code
    return code, out.getvalue(), err.getvalue() + capsys.readouterr().err


def test_without_a_worker_the_command_runs_the_job_itself(team, capsys):
    code, out, err = sleep(capsys, "--json", steps=4)
    said = json.loads(out)
    assert code == 0 and said["job"]["state"] == "succeeded" and said["result"] == {"steps": 4, "total": 6}
    assert "100.0 %" in err, "progress goes to standard error"


def test_a_failure_is_exit_code_one_with_message_and_hint(team, capsys):
    code, out, err = sleep(capsys, then="raise", error="DISK_FULL")
    assert code == 1 and "Told to fail with DISK_FULL. Free some space" in err and out == ""


def test_less_memory_is_tried_until_it_fits(team, capsys):
    code, out, _ = sleep(capsys, "--json", batch=8, fits=4)
    assert code == 0 and json.loads(out)["job"]["retry_of"] is not None
    assert Job.objects.count() == 2


@pytest.mark.parametrize(("bad", "field"), [("field", "width"), ("kind", "steps")])
def test_wrong_input_is_exit_code_two_before_any_job(team, capsys, bad, field):
    code, out, err = sleep(capsys, "--json", "--bad", bad)
    assert code == 2 and list(json.loads(out)["errors"]) == [field] and field in err
    assert not Job.objects.exists()


def test_no_wait_leaves_the_job_to_a_worker_and_says_when_there_is_none(team, capsys):
    code, out, err = sleep(capsys, "--no-wait")
    job = Job.objects.get()
    assert code == 0 and job.state == "queued" and f"mistudio jobs show {job.pk}" in out
    assert "mistudio worker --queue cpu" in err
    Worker.objects.create(host="h", pid=1, queue="cpu", slots=1)
    assert "worker" not in sleep(capsys, "--no-wait")[2]


def test_team_and_user_are_chosen_by_name(alice, charlie, capsys):
    sleep(capsys, "--no-wait", "--user", "charlie")
    sleep(capsys, "--no-wait", "--team", "Strangers")
    sleep(capsys, "--no-wait")
    newest = list(Job.objects.order_by("pk"))
    assert [(job.team.name, job.owner and job.owner.username) for job in newest] == [
        ("Strangers", "charlie"),
        ("Strangers", None),
        ("Home team", None),
    ]
    assert sleep(capsys, "--user", "nobody")[0] == 2
    code, _, err = sleep(capsys, "--team", "nobody")
    assert code == 2 and "There are: Home team, Strangers" in err


def test_a_worker_that_is_there_is_watched_and_interrupting_leaves_it_the_job(row, capsys, monkeypatch):
    from jobs import watch

    Worker.objects.create(host="h", pid=1, queue="cpu", slots=1)
    moments = iter(["running", "interrupt"])

    def next_moment(seconds):
        if next(moments) == "interrupt":
            raise KeyboardInterrupt
        Job.objects.update(state="running", attempt=1)

    monkeypatch.setattr(watch.time, "sleep", next_moment)
    code, _, err = sleep(capsys)
    assert code == 130 and "goes on in its worker" in err
    assert Job.objects.get().state == "running"


def test_a_watched_job_that_is_paused_by_somebody_ends_the_command(capsys, monkeypatch, team):
    from jobs import watch

    Worker.objects.create(host="h", pid=1, queue="cpu", slots=1)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: Job.objects.update(state="paused", percent=40))
    code, out, _ = sleep(capsys)
    assert code == 130 and "paused at 40.0 %. Go on: mistudio jobs resume" in out


def test_a_watched_job_whose_worker_goes_is_run_here(capsys, monkeypatch, team):
    from jobs import watch

    Worker.objects.create(host="h", pid=1, queue="cpu", slots=1)
    real = watch.time.sleep

    def gone(seconds):
        Worker.objects.all().delete()
        real(0)

    monkeypatch.setattr(watch.time, "sleep", gone)
    code, out, _ = sleep(capsys, "--json", steps=2)
    assert code == 0 and json.loads(out)["job"]["state"] == "succeeded"


def test_a_running_job_whose_worker_is_lost_is_found_while_watching(monkeypatch, row):
    from jobs import watch

    job = row("running", host="here", supervisor_pid=2**22, supervisor_start=1)
    monkeypatch.setattr(watch, "ROUND", -1)
    reaped = []
    monkeypatch.setattr(watch, "reap", lambda: reaped.append(1) or Job.objects.update(state="queued"))
    assert watch.follow(job).state == "queued" and reaped == [1]


def test_interrupted_in_the_foreground_the_job_is_paused_and_can_go_on(beside, sleepy):
    job = sleepy(steps=100_000)
    command = beside("jobs", "wait", str(job.pk))
    until(lambda: Job.objects.get(pk=job.pk).done > 3)
    assert command.stop(signal.SIGINT) == 130
    job.refresh_from_db()
    assert job.state == "paused" and f"Job {job.pk} paused" in command.text()
    assert run("cancel", str(job.pk))[0] == 0
    assert Job.objects.get(pk=job.pk).state == State.CANCELLED


# ---- progress for people


def test_a_line_says_percent_stage_rate_and_time_left(row):
    job = row("running", percent=50.0, stage="train", rate=43_600.0, unit="tokens", eta_seconds=72)
    assert line(job) == "[############............]  50.0 %  train  43,600 tokens/s  about 72 s left"
    assert line(row("queued")).endswith("waiting")
    assert line(row("failed", percent=50.0, rate=5.0)).endswith("50.0 %  failed")


def test_in_a_file_there_is_a_line_every_tenth_and_for_each_change(row):
    out = io.StringIO()
    show = ProgressLine(out)
    job = row("running", stage="a")
    for percent in range(0, 101, 2):
        job.percent = float(percent)
        show(job)
    job.stage = "b"
    show(job)
    show.end()
    assert len(out.getvalue().splitlines()) == 12


def test_on_a_terminal_one_line_changes(row):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    show = ProgressLine(out)
    job = row("running", stage="a long name")
    show(job)
    job.stage = "b"
    show(job)
    show.end()
    first, second = out.getvalue().split("\r")[1:]
    assert len(second.rstrip("\n")) == len(first), "the shorter line covers the longer one"
    assert out.getvalue().count("\n") == 1
