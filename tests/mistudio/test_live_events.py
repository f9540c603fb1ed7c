"""What docs/live-events.md says of live events is what the code does."""

import re
from html.parser import HTMLParser

import pytest
from django.conf import settings
from django.test.signals import template_rendered

from jobs import consumers, live, server, tail
from jobs.models import Job, LiveEvent
from monitoring.models import Host
from tests import rows
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "live-events.md").read_text()


def table(heading):
    """The rows of the first table with these words in its head, cells as lists."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    assert found
    return found


TOPICS = {row[0].strip("`").partition(".")[0]: row for row in table("| topic | who may watch")}
FRAMES = {row[0].strip("`").partition(".")[0]: row[1].strip("`") for row in table("| topic | frame")}


def test_every_topic_of_the_settings_is_on_the_page_with_its_interval_and_its_frame():
    assert TOPICS.keys() == FRAMES.keys() == settings.LIVE_TOPICS.keys()
    assert {name: float(row[4].removesuffix(" s")) for name, row in TOPICS.items()} == {
        name: topic.interval for name, topic in live.topics().items()
    }


@pytest.fixture
def training_and_job(alice):
    training = rows.training(alice.team)
    job = Job.objects.create(team=alice.team, kind="train_sae", queue="gpu", subject=training.subject, title="a job")
    return training, job


def key(name, training, job):
    """Of the topic as the page writes it: jobs.<id>, home.<team>"""
    if name in ("system", "attribution"):
        host = Host.objects.get_or_create(name="here")[0]
        return f"cpu.1h.{host.pk}.2" if name == "system" else f"lanes.{job.team_id}.1h.{host.pk}.2"
    if name in ("hosts", "alerts"):
        return {"hosts": "2", "alerts": "member.2"}[name]
    kind = TOPICS[name][0].strip("`").partition(".")[2]
    known = {"<team>": job.team_id, "<id>": {"jobs": job.pk, "trainings": training.pk}.get(name)}
    return str(known.get(kind, kind))


@pytest.mark.django_db
@pytest.mark.parametrize("name", settings.LIVE_TOPICS)
def test_each_is_rendered_from_the_template_on_the_page_into_one_element_that_begins_as_told(name, training_and_job):
    templates = []

    def note(sender, template, **_):
        templates.append(template.name)

    template_rendered.connect(note)
    try:
        html = live.render(f"{name}.{key(name, *training_and_job)}").strip()
    finally:
        template_rendered.disconnect(note)
    assert templates[0] == re.findall(r"`(.+?)`", TOPICS[name][2])[0]
    example = re.sub(r"\b12\b", key(name, *training_and_job), FRAMES[name])
    assert html.startswith(example)
    assert outermost(html) == 1


@pytest.mark.django_db
@pytest.mark.parametrize("name", settings.LIVE_TOPICS)
def test_it_may_be_watched_by_those_on_the_page(name, training_and_job, alice, bob, charlie):
    among = ("the job's team", "the training's team", "members of the team", "members of any team", "staff")
    who = among.index(TOPICS[name][1])
    bob.is_staff = True
    topic, key_ = live.topics()[name], key(name, *training_and_job)
    assert [topic.visible(person, key_) for person in (alice, bob, charlie)] == [who != 4, True, who == 3]


@pytest.mark.django_db
def test_each_move_of_a_job_is_an_event_of_all_topics_that_show_it_and_of_no_other(training_and_job):
    training, job = training_and_job
    other = Job.objects.create(team=job.team, kind="tokenize", queue="cpu")
    others = {name for name, topic in live.topics().items() if not topic.old_after("")} | {"upkeep"}  # no event
    LiveEvent.objects.all().delete()
    job.move("running")
    expected = {f"{name}.{key(name, training, job)}" for name in TOPICS.keys() - others}
    assert set(LiveEvent.objects.values_list("topic", flat=True)) == expected
    LiveEvent.objects.all().delete()
    other.note("something")
    expected = {f"{name}.{key(name, training, other)}" for name in TOPICS.keys() - others - {"trainings"}}
    assert set(LiveEvent.objects.values_list("topic", flat=True)) == expected


@pytest.mark.django_db
def test_the_whole_frame_on_the_page_is_the_one_that_is_sent(team):
    Job.objects.create(team=team, kind="sleepy", queue="cpu", state="running")
    sent = re.sub(r'data-event="\d+"', 'data-event="57"', live.render(f"shell.{team.pk}").strip())
    assert sent == PAGE.split("```html\n")[1].split("\n```")[0]


def test_the_codes_and_the_number_of_topics_are_those_of_the_consumer():
    codes = {int(row[0]) for row in table("| code | meaning")}
    assert codes == {consumers.SIGNED_OUT, consumers.NOT_FOUND, consumers.TOO_TALKATIVE, tail.FAILED}
    assert f"with {live.MOST_TOPICS} topics at most" in PAGE and f"(group `{live.GROUP}`)" in PAGE


def test_the_bounds_are_those_of_the_server():
    assert f"at most {server.UNSENT // 1024} KiB" in PAGE and f"of {tail.DOOR} pages at a time" in PAGE
    assert f"pinged every {server.PING} s" in PAGE and f"within {server.PATIENCE} s" in PAGE


def outermost(html):
    """How many elements stand beside each other."""

    class Depth(HTMLParser):
        depth = roots = 0

        def handle_starttag(self, tag, attrs):
            self.roots += not self.depth
            self.depth += tag not in ("input", "br", "hr", "img", "link", "meta", "wbr")

        def handle_endtag(self, tag):
            self.depth -= 1

        def handle_startendtag(self, tag, attrs):
            pass

    parser = Depth()
    parser.feed(html)
    assert parser.depth == 0
    return parser.roots
