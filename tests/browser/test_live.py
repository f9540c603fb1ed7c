"""What live.js does with pages: it swaps in news and never takes away what the reader is doing."""

import re

import pytest
from playwright.sync_api import expect

CANCEL = "from jobs.models import Job; from jobs.queue import request_cancel; request_cancel(Job.objects.get(pk={}))"
SUBMIT = """
from jobs.queue import submit
from mistudio.models import Team, User
user = User.objects.order_by("pk").first()
answer = submit("sleepy", {params}, team=Team.default(), owner=user, title={title!r}).pk
"""


ENDED = """
from jobs.models import Job, State
from mistudio.models import Team
job = Job.objects.create(team=Team.default(), kind="sleepy", queue="cpu", title={!r}, state=State.SUCCEEDED)
job.note("succeeded")
"""


@pytest.fixture
def sleepy(shell, signed_in):
    """Submit a job that sleeps in steps, and see to its end."""
    made = []

    def submit(title, **params):
        known = {"steps": 240, "seconds": 0.25, **params}
        made.append(shell(SUBMIT.format(params=known, title=title)))
        return f"/jobs/{made[-1]}/"

    yield submit
    for pk in made:
        shell(CANCEL.format(pk))


def link(page, state):
    """Wait until the connection is of this state, as the reader sees it."""
    expect(page.locator("#connection")).to_contain_text(state, timeout=30_000, use_inner_text=True)


def percent(page):
    return float(re.search(r"[\d.]+", page.locator(".pct").first.inner_text())[0])


def wait_for_progress(page):
    before = percent(page)
    page.wait_for_function(
        "before => parseFloat(document.querySelector('.pct').textContent.match(/[\\d.]+/)[0]) > before", arg=before
    )


def test_news_come_over_the_socket_and_leave_open_what_was_opened(page, sleepy):
    page.goto(sleepy("over the socket"))
    link(page, "Live")
    expect(page.locator(".badge").first).to_have_text("Running", timeout=30_000)
    page.locator("main details.confirm summary").first.click()
    wait_for_progress(page)
    assert page.locator("main details.confirm").first.evaluate("menu => menu.open")
    page.keyboard.press("Escape")
    assert not page.locator("main details.confirm").first.evaluate("menu => menu.open")
    assert page.wrong == []


def test_a_button_that_came_with_the_news_works(page, sleepy):
    page.goto(sleepy("paused by a button"))
    link(page, "Live")
    expect(page.locator(".badge").first).to_have_text("Running", timeout=30_000)
    wait_for_progress(page)
    assert page.locator("main form [name=csrfmiddlewaretoken]").count() == 0, "the fragment was rendered for nobody"
    page.get_by_role("button", name=re.compile("^Pause")).click(delay=1000)  # news come while it is pressed
    expect(page.locator(".badge").first).to_have_text("Paused", timeout=30_000)
    expect(page.get_by_role("button", name=re.compile("^Resume"))).to_be_visible()
    expect(page.locator(".toast")).to_contain_text("saves its state")  # the page was fetched anew meanwhile


def test_what_is_selected_is_not_taken_away(page, sleepy):
    page.goto(sleepy("selected"))
    link(page, "Live")
    expect(page.locator(".badge").first).to_have_text("Running", timeout=30_000)
    wait_for_progress(page)
    page.evaluate("() => getSelection().selectAllChildren(document.querySelector('.pct'))")  # no news in between
    held = page.locator(".pct").first.inner_text()
    page.wait_for_timeout(2500)
    assert page.locator(".pct").first.inner_text() == held
    page.evaluate("() => getSelection().removeAllRanges()")
    wait_for_progress(page)


def test_a_list_and_the_header_follow_jobs_that_begin_elsewhere(page, sleepy):
    page.goto("/jobs/?q=elsewhere")
    link(page, "Live")
    expect(page.locator("main")).not_to_contain_text("begun elsewhere")
    sleepy("begun elsewhere")
    expect(page.locator("main")).to_contain_text("begun elsewhere", timeout=30_000)
    expect(page.locator("#work")).to_contain_text(re.compile(r"[1-9] running"), timeout=30_000)


@pytest.mark.slow
def test_the_operations_page_shows_a_new_job_and_its_progress_without_a_reload(page, sleepy):
    page.goto("/operations/")
    link(page, "Live")
    page.evaluate("() => { window.sameDocument = true; }")
    sleepy("begun while somebody looked")
    row = page.locator("#operations tr", has_text="begun while somebody looked")
    expect(row.locator(".badge")).to_have_text("Running", timeout=30_000)
    expect(page.locator(".places")).to_contain_text("begun while somebody looked")
    expect(row.locator(".mini span")).to_have_text(re.compile(r"[1-9]\d*\.\d %"), timeout=30_000)
    first = row.locator(".mini span").inner_text()
    expect(row.locator(".mini span")).not_to_have_text(first, timeout=30_000)
    assert page.evaluate("() => window.sameDocument") and page.wrong == []


def test_a_list_shows_a_job_that_came_and_went_between_two_looks(page, shell):
    page.goto("/jobs/?state=succeeded&q=short")
    link(page, "Live")
    shell(ENDED.format("a short one"))
    expect(page.locator("main")).to_contain_text("a short one", timeout=30_000)


def test_an_answer_that_took_long_does_not_undo_a_newer_one(page, shell):
    page.goto("/jobs/?state=succeeded&q=slow")
    link(page, "Live")
    held = []

    def hold_the_first(route):
        if held:
            route.continue_()
        else:
            held.append((route, route.fetch()))

    page.route("**/jobs/?state=succeeded&q=slow", hold_the_first)
    shell(ENDED.format("the first slow one"))
    while not held:
        page.wait_for_timeout(50)
    shell(ENDED.format("the second slow one"))
    expect(page.locator("main")).to_contain_text("the second slow one", timeout=30_000)
    route, answer = held[0]
    with page.expect_response("**/jobs/?state=succeeded&q=slow") as late:
        route.fulfill(response=answer)
    assert "the second slow one" not in late.value.text()
    page.wait_for_timeout(200)  # it would have been placed by now
    expect(page.locator("main")).to_contain_text("the second slow one")


def test_what_was_typed_survives_the_news(page, sleepy):
    page.goto("/jobs/")
    link(page, "Live")
    page.locator("[data-search]").fill("half a word")
    page.locator("[data-search]").blur()
    sleepy("while somebody types")
    expect(page.locator("#work")).to_contain_text(re.compile(r"[1-9] running"), timeout=30_000)
    page.wait_for_timeout(2000)  # the page would have fetched itself by now
    expect(page.locator("[data-search]")).to_have_value("half a word")


@pytest.mark.slow
def test_without_a_socket_the_page_asks(page, sleepy):
    page.route_web_socket("**/live/**", lambda socket: socket.close(code=1008))
    page.clock.install()
    page.goto(sleepy("by asking"))
    page.clock.fast_forward(4100)  # it hopes for a socket so long
    link(page, "Polling")
    before = percent(page)
    wait_for_progress(page)
    assert percent(page) > before


@pytest.mark.slow
def test_a_silent_server_is_said_and_news_come_again(page, sleepy):
    sockets = []

    def through(socket):
        sockets.append(socket)
        socket.connect_to_server() if len(sockets) != 2 else socket.close(code=1008)

    page.route_web_socket("**/live/**", through)
    page.goto(sleepy("with a gap"))
    link(page, "Live")
    page.route("**/live/fragments/**", lambda route: route.abort())
    sockets[0].close(code=1012)
    link(page, "Stale")
    page.unroute("**/live/fragments/**")
    link(page, "Polling")
    before = percent(page)
    wait_for_progress(page)
    assert percent(page) > before


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_is_stale_and_asked_again(page, shell):
    address, sockets, held = "/jobs/?state=succeeded&q=held", [], []

    def only_the_first(socket):
        sockets.append(socket)
        socket.connect_to_server() if len(sockets) == 1 else socket.close(code=1008)

    page.route_web_socket("**/live/**", only_the_first)
    page.clock.install()  # timers of the page, which can be put forward; how long a request may take is none of them
    page.goto(address)
    link(page, "Live")
    silent = True
    for path in (address, "/live/fragments/**"):
        page.route(f"**{path}", lambda route: held.append(route) if silent else route.continue_())
    shell(ENDED.format("held up"))
    while not held:  # the page asks for itself
        page.wait_for_timeout(50)
    sockets[0].close(code=1012)
    link(page, "Connecting")
    page.clock.fast_forward(6000)  # it hopes for a socket for a while, then asks
    while len(held) < 2:
        page.wait_for_timeout(50)
    page.clock.fast_forward(9000)
    link(page, "Stale")
    silent = False  # for what is asked from now on
    link(page, "Polling")
    expect(page.locator("main")).to_contain_text("held up", timeout=30_000)


def test_keys_lead_to_the_search_and_can_be_turned_off(page, shell):
    shell(ENDED.format("to be searched for"))
    page.goto("/models/new/")
    page.goto("/jobs/")
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.matches('[data-search]')")
    page.get_by_role("button", name="Turn off").click()
    page.goto("/jobs/")
    page.keyboard.press("/")
    assert not page.evaluate("() => document.activeElement.matches('[data-search]')")
    page.get_by_role("button", name="Turn on").click()


def test_a_theme_is_kept_without_a_flash(page):
    page.goto("/models/")
    page.locator("details.menu summary").click()
    page.get_by_role("button", name="Dark").click()
    expect(page).to_have_url(re.compile("/models/$"))
    assert page.locator("html").get_attribute("data-theme") == "dark"
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == ground
    page.locator("details.menu summary").click()
    page.get_by_role("button", name="System").click()
    assert page.locator("html").get_attribute("data-theme") is None
    assert page.wrong == []


def test_without_scripts_a_page_offers_to_reload_and_hides_what_only_scripts_do(chromium, signed_in, studio, sleepy):
    context = chromium.new_context(storage_state=signed_in, base_url=studio.url, java_script_enabled=False)
    page = context.new_page()
    page.goto(sleepy("without scripts"))
    expect(page.get_by_role("link", name="Reload for news")).to_be_visible()
    expect(page.get_by_text("Connecting")).to_be_hidden()
    expect(page.get_by_role("button", name="Copy")).to_have_count(0)
    page.locator("summary", has_text="Cancel").click()
    expect(page.get_by_role("button", name="Cancel job")).to_be_visible()
    context.close()


@pytest.mark.parametrize(
    "path",
    [
        "/", "/models/", "/datasets/", "/datasets/new/", "/tokenizations/", "/trainings/", "/saes/", "/jobs/",
        "/operations/", "/nothing/",
    ],
)  # fmt: skip
def test_no_page_scrolls_sideways_and_each_is_quiet(page, path):
    page.goto(path)
    over = {}
    for width in (360, 800, 1440):
        page.set_viewport_size({"width": width, "height": 740})
        over[width] = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert all(pixels <= 0 for pixels in over.values()), over
    assert path == "/nothing/" or page.wrong == []
