"""Files sent from a real browser: killed on the way, interrupted, and without scripts."""

import hashlib
import json
import re

import pytest
from playwright.sync_api import expect

from mistudio.models.upload import CHUNK

MIB = 2**20
READY = 90_000  # ms


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Ten parts of a jsonl file."""
    path = tmp_path_factory.mktemp("files") / "large.jsonl"
    with path.open("w") as file:
        n = 0
        while file.tell() < 10 * CHUNK:
            file.write(json.dumps({"text": f"Document {n}. {'The quick brown fox jumps. ' * 400}"}) + "\n")
            n += 1
        file.truncate(10 * CHUNK - 3)
        file.seek(0, 2)
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("\n") + 1])
    return path


def opened(chromium, signed_in, studio, **options):
    context = chromium.new_context(storage_state=signed_in, base_url=studio.url, **options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.goto("/datasets/new/")
    return page


def bar(page):
    return page.locator("[data-bar]").evaluate("bar => bar.value")


def test_the_hash_of_the_page_is_that_of_everybody(page):
    page.goto("/datasets/new/")
    compute = """async ([length, step]) => {
      const { Sha256 } = await import("/static/sha256.js");
      const bytes = Uint8Array.from({ length }, (_, i) => i * 31 % 251), hash = new Sha256();
      for (let at = 0; at < length; at += step) { hash.update(bytes.subarray(at, at + step)); hash.hex(); }
      return hash.hex();
    }"""
    for length in (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 100_003):
        expected = hashlib.sha256(bytes(i * 31 % 251 for i in range(length))).hexdigest()
        assert {page.evaluate(compute, [length, step]) for step in (7, 64, 4096)} == {expected}, length


@pytest.mark.slow
def test_a_browser_closed_at_sixty_percent_goes_on_at_sixty_percent(chromium, signed_in, studio, large):
    first = opened(chromium, signed_in, studio)
    wire = first.context.new_cdp_session(first)
    wire.send("Network.enable")
    limits = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 16 * MIB}
    wire.send("Network.emulateNetworkConditions", limits)
    first.get_by_label("Or files of your own").set_input_files(large)
    first.wait_for_function("() => document.querySelector('[data-bar]')?.value >= 0.6")
    first.context.close()  # in the middle of the next part

    second = opened(chromium, signed_in, studio)
    unfinished = second.locator("section", has=second.get_by_role("heading", name="Unfinished uploads"))
    expect(unfinished).to_contain_text(re.compile(r"large\.jsonl\s+[67]\d\.\d % of"))
    offsets = []
    second.on("request", lambda r: offsets.append(int(r.headers["upload-offset"])) if r.method == "PUT" else None)
    second.get_by_label("Or files of your own").set_input_files(large)
    expect(second.locator("[data-about]")).to_contain_text("uploaded", timeout=READY)
    assert offsets[0] in (6 * CHUNK, 7 * CHUNK)
    assert offsets == list(range(offsets[0], large.stat().st_size, CHUNK)), "nothing is sent twice"
    second.get_by_role("button", name="Add dataset").click()
    expect(second.locator("main")).to_contain_text("uploaded: large.jsonl")
    expect(second.locator("main .badge").filter(has_text="Ready").first).to_be_visible(timeout=READY)
    lines = large.read_text().count("\n")
    expect(second.locator(".stats")).to_contain_text(f"{lines:,}")
    second.context.close()


@pytest.mark.slow
def test_a_lost_connection_is_tried_again_and_two_tabs_make_one_file(chromium, signed_in, studio, tmp_path):
    path = tmp_path / "two-tabs.txt"
    path.write_text("one line of many\n" * 1_000_000)
    one = opened(chromium, signed_in, studio)
    two = one.context.new_page()
    two.goto("/datasets/new/")
    parts = []

    def lose_the_second(route):
        parts.append(route)
        route.abort() if len(parts) == 2 else route.continue_()

    one.context.route("**/uploads/*/", lose_the_second)
    for page in (one, two):
        page.get_by_label("Or files of your own").set_input_files(path)
    for page in (one, two):
        expect(page.locator("[data-about]")).to_contain_text("uploaded", timeout=READY)
    pk = one.locator("input[name=uploads][type=hidden]").get_attribute("value")
    assert len(parts) > 2
    assert pk == two.locator("input[name=uploads][type=hidden]").get_attribute("value")
    said = one.evaluate(f"async () => (await fetch('/uploads/{pk}/')).json()")
    assert said["received"] == path.stat().st_size
    assert said["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    one.get_by_role("button", name="Remove").click()
    expect(one.locator(".uploading")).to_have_count(0)
    one.context.close()


def test_another_file_with_the_same_look_begins_anew(chromium, signed_in, studio, tmp_path):
    page = opened(chromium, signed_in, studio)
    begin = """async (texts) => {
      const files = texts.map((text) => new File([text], "same.txt", { lastModified: 5 }));
      const input = document.querySelector("#upload input[type=file][name]"), chosen = new DataTransfer();
      chosen.items.add(files[0]);
      input.files = chosen.files;
      input.dispatchEvent(new Event("change"));
    }"""
    head = "the same beginning\n" * 5000
    for number, end in (("1", "one"), ("2", "two")):
        page.evaluate(begin, [head + end])
        expect(page.locator("input[name=uploads][type=hidden]")).to_have_count(int(number))
    rows = page.locator("input[name=uploads][type=hidden]")
    pk = rows.nth(1).get_attribute("value")
    said = page.evaluate(f"async () => (await fetch('/uploads/{pk}/')).json()")
    assert said["sha256"] == hashlib.sha256((head + "two").encode()).hexdigest()
    page.context.close()


def test_what_is_no_text_is_refused_with_what_it_is(page, tmp_path):
    picture = tmp_path / "picture.txt"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    page.goto("/datasets/new/")
    page.get_by_label("Text column").fill("stays")
    page.get_by_label("Or files of your own").set_input_files(picture)
    expect(page.locator(".uploading .error")).to_contain_text("picture.txt is a picture")
    page.get_by_role("button", name="Add dataset").click()
    expect(page.get_by_role("status").filter(has_text="A file stopped")).to_be_visible()
    expect(page.get_by_label("Text column")).to_have_value("stays")


def test_the_dataset_is_added_when_the_files_are_here_and_a_folder_gives_its_texts_alone(page, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.exe"):
        (folder / name).write_text("line one\nline two\n")
    page.goto("/datasets/new/")
    page.locator("#id_folder").set_input_files(folder)
    page.get_by_role("button", name="Add dataset").click()
    expect(page.locator("main .badge").filter(has_text="Ready").first).to_be_visible(timeout=READY)
    expect(page.locator("main")).to_contain_text("uploaded: a.txt and 1 more")
    assert page.wrong == []


def test_without_scripts_a_small_file_goes_with_the_form(chromium, signed_in, studio, tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("one\ntwo\n")
    page = opened(chromium, signed_in, studio, java_script_enabled=False)
    expect(page.get_by_text("At most 32.0 MiB together")).to_be_visible()
    page.get_by_label("Or files of your own").set_input_files(path)
    page.get_by_role("button", name="Add dataset").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("small")
    page.context.close()
