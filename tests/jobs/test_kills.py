import json

import pytest

from jobs.models import Job, State
from jobs.queue import retry
from tests.kills import Killing

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

JOBS, STEPS, STRIKES = 5, 150, 12


@pytest.fixture
def killing(tmp_path):
    started = []

    def make(seed):
        started.append(Killing(tmp_path, seed, {"MISTUDIO_CPU_SLOTS": "2"}))
        started[-1].start()
        return started[-1]

    yield make
    for one in started:
        for process in one.everybody():
            process.kill()


def ended(jobs):
    """Are all done? One that gave up after three losses in a row is tried again, as a person would."""
    for n, job in enumerate(jobs):
        job.refresh_from_db()
        if job.state == State.FAILED:
            assert job.error_code == "WORKER_LOST", job.error_message
            jobs[n] = retry(job)
    return all(job.state == State.SUCCEEDED for job in jobs)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_killed_whenever_every_job_ends_right_and_nothing_is_left(killing, sleepy, tmp_path, seed):
    jobs = [sleepy(steps=STEPS, seconds=0.05, folder=str(tmp_path / f"job{n}")) for n in range(JOBS)]
    storm = killing(seed)
    storm.until(lambda: ended(jobs), strikes=STRIKES)
    assert len(storm.struck) >= 4, f"only {storm.struck} were struck before all was done"
    for n, job in enumerate(jobs):
        assert job.result == {"steps": STEPS, "total": sum(range(STEPS))}
        assert json.loads((tmp_path / f"job{n}" / "ingested.json").read_text())["steps"] == STEPS
        assert sorted(job.metrics.values_list("step", flat=True))[-1] == STEPS
        endings = [event.detail["state"] for event in job.events.all() if event.detail.get("state") in State.finished()]
        assert endings == ["succeeded"], "ended once"
    assert Job.objects.filter(attempt__gt=1).exists(), "some were interrupted"
    assert storm.stop() == 0
    assert storm.left_over() == []
