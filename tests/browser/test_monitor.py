"""The monitor by itself: readings come, and the indicator says by which way, or since when none does."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.test_live import link


@pytest.fixture
def monitor(page, shell):
    """Of a host that was read at least once."""
    assert shell("""
import time
from monitoring.models import Sample
while not Sample.objects.exists():
    time.sleep(0.1)
answer = True
""")
    return page


def wait_for_reading(page):
    before = page.locator("#system-host").inner_text()
    expect(page.locator("#system-host")).not_to_have_text(before)


def colour(page, state):
    return page.locator(f"#connection [data-link={state}] .icon").evaluate("icon => getComputedStyle(icon).color")


def points(page):
    lines = page.locator("#system-memory path.line")
    return sum(line.count(",") for line in lines.evaluate_all("lines => lines.map(line => line.getAttribute('d'))"))


@pytest.mark.slow
def test_the_points_of_a_chart_increase(monitor):
    monitor.goto("/monitor/")
    link(monitor, "Live")
    before = points(monitor)
    for _ in range(240):  # a figure of one hour is drawn anew every 10 s, and five readings may become one mean
        if points(monitor) > before:
            return
        monitor.wait_for_timeout(250)
    raise AssertionError(f"{before} points, and no more")


@pytest.mark.slow
def test_the_indicator_tells_the_way_of_the_readings_or_since_when_there_are_none(monitor):
    page, sockets = monitor, []

    def carry(socket):
        sockets.append(socket)
        socket.close(code=1012) if cut else socket.connect_to_server()

    cut = False
    page.route_web_socket("**/live/**", carry)
    page.clock.install()  # timers of the page, which can be put forward
    page.goto("/monitor/")
    link(page, "Live")
    green = colour(page, "live")

    cut = True
    sockets[-1].close(code=1012)
    link(page, "Connecting")
    assert page.locator("h1").is_visible()
    page.clock.fast_forward(4100)
    link(page, "Polling")
    amber = colour(page, "polling")

    page.route("**/live/fragments/**", lambda route: route.abort())
    page.clock.fast_forward(12100)
    page.clock.fast_forward(3000)
    expect(page.locator("#connection")).to_have_text(re.compile(r"Stale\s+since\s+\d\d:\d\d:\d\d"), use_inner_text=True)
    assert len({green, amber, colour(page, "stale")}) == 3

    page.unroute("**/live/fragments/**")
    page.clock.fast_forward(3000)
    link(page, "Polling")
    cut = False
    page.clock.fast_forward(64_000)  # the longest pause between two attempts at a socket
    link(page, "Live")
    wait_for_reading(page)
