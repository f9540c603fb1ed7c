"""Open pages when the site is restarted or the network is cut in the middle of a frame: right again by themselves."""

import re
import socket
import threading

import pytest
from playwright.sync_api import expect

from tests.browser.test_live import link

pytestmark = pytest.mark.slow

JOB = """
from jobs.models import Job
from mistudio.models import Team
answer = Job.objects.create(team=Team.default(), kind="sleepy", queue="cpu", title="open", state="paused", percent=1).pk
"""
CHANGE = """
from jobs.live import publish
from jobs.models import Job
Job.objects.filter(pk={pk}).update(percent={percent})
publish("jobs.{pk}")
"""


@pytest.fixture
def job(shell):
    return shell(JOB)


def stays_and_shows(page, percent):
    """Whether it is the document that was opened, once it shows this."""
    expect(page.locator(".pct").first).to_have_text(re.compile(rf"^\s*{percent}\.0\s*%"), timeout=60_000)
    return page.evaluate("() => window.stayed")


def open_page(page, address):
    page.goto(address)
    link(page, "Live")
    page.evaluate("() => { window.stayed = true; }")


def test_a_restarted_site_finds_its_pages_again(page, studio, shell, job):
    open_page(page, f"/jobs/{job}/")
    studio.stop()
    shell(CHANGE.format(pk=job, percent=42))
    studio.start()
    assert stays_and_shows(page, 42)
    link(page, "Live")
    shell(CHANGE.format(pk=job, percent=43))
    assert stays_and_shows(page, 43)


class Wire:
    """Between browser and site. `cut` ends the next socket that gets a frame, in the middle of that."""

    def __init__(self, port):
        self.to, self.cut, self.cuts = ("127.0.0.1", port), False, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:  # the test ended
                return
            far = socket.create_connection(self.to)
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self.carry, args=(source, target, source is far), daemon=True).start()

    def carry(self, source, target, from_site):
        try:
            while data := source.recv(65536):
                if self.cut and from_site and data[0] in (0x81, 0xC1) and len(data) > 100:
                    self.cut, self.cuts = False, self.cuts + 1
                    target.sendall(data[: len(data) // 2])
                    break
                target.sendall(data)
            for end in (source, target):
                end.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other thread was first
            pass


def test_a_network_that_is_cut_in_the_middle_of_a_frame_leaves_the_page_right(chromium, signed_in, studio, shell, job):
    wire = Wire(studio.port)
    context = chromium.new_context(storage_state=signed_in, base_url=wire.url)
    page = context.new_page()
    open_page(page, f"/jobs/{job}/")
    for percent in (51, 52, 53):
        wire.cut = True
        shell(CHANGE.format(pk=job, percent=percent))
        assert stays_and_shows(page, percent)
        link(page, "Live")
    assert wire.cuts == 3
    context.close()
    wire.listener.close()
