"""Forms that are filled from templates while the text they are for is changed, and previews that take their time."""

import pytest
from playwright.sync_api import expect

MAKE = """
from mistudio.models import Team, Template
from tests import rows
team = Team.default()
model = rows.language_model(team, "shared")
for name in ("older", "newer"):
    tokens = rows.tokenization(team, f"{name}-text", language_model=model)
    rows.activation_cache(team, f"{name}-cache", tokenization=tokens)
sites = ["blocks.0.hook_z", "blocks.1.hook_resid_post"]
Template.objects.create(team=team, noun="activationcache", name="two sites", values={"sites": sites, "stored": "int8"})
Template.objects.create(team=team, noun="training", name="wide", values={"width": 4096, "lr": 0.001})
"""


@pytest.fixture(scope="module")
def made(studio):
    studio.manage("shell", "--no-imports", "--command", MAKE)


def ticked(page):
    return page.locator("#id_sites input:checked").evaluate_all("boxes => boxes.map(box => box.value)")


def choose(page, text):
    page.get_by_label("Tokenization").select_option(text)
    expect(page.locator("#plan input[name=tokenization]")).to_have_value(
        page.get_by_label("Tokenization").input_value()
    )


def test_a_template_fills_the_form_of_the_text_that_was_chosen_before(page, made):
    page.goto("/caches/new/")
    choose(page, "older-text")
    page.get_by_label("Start from a template").select_option("two sites")
    page.get_by_role("button", name="Fill in").click()
    expect(page.get_by_text("The form is filled from")).to_be_visible()
    expect(page.get_by_label("Tokenization").locator("option:checked")).to_have_text("older-text")
    assert ticked(page) == ["blocks.0.hook_z", "blocks.1.hook_resid_post"]
    assert page.wrong == []


def test_the_sites_of_a_template_stay_when_another_text_is_chosen(page, made):
    page.goto("/caches/new/")
    page.get_by_label("Start from a template").select_option("two sites")
    page.get_by_role("button", name="Fill in").click()
    expect(page.get_by_text("The form is filled from")).to_be_visible()
    page.get_by_label("blocks.0").get_by_label("hook_resid_pre").check()
    choose(page, "older-text")
    assert ticked(page) == ["blocks.0.hook_resid_pre", "blocks.0.hook_z", "blocks.1.hook_resid_post"]
    expect(page.get_by_label("Stored as")).to_have_value("int8")
    expect(page.get_by_text("The form is filled from")).to_be_visible()
    assert page.wrong == []


def test_the_enter_key_starts_the_work_and_neither_fills_in_nor_saves_a_template(page, made):
    page.goto("/trainings/new/")
    page.get_by_label("Name", exact=True).fill("started by a key")
    page.get_by_label("Width", exact=True).press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("started by a key")


def test_the_caches_that_were_ticked_and_weighed_stay_when_another_text_is_chosen(page, made):
    page.goto("/trainings/new/")  # of the newer text
    for name, weight in (("newer-cache", "3"), ("older-cache", "1")):
        page.get_by_role("checkbox", name=name).check()
        page.get_by_label(f"Weight of {name}").fill(weight)
    choose(page, "older-text")
    expect(page.get_by_role("checkbox", name="newer-cache")).to_be_checked()
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("main")).to_contain_text("from older-cache, weight 1; newer-cache, weight 3")
    assert page.wrong == []


@pytest.mark.parametrize(("motion", "moves"), [("no-preference", "asked"), ("reduce", "none")])
def test_a_preview_that_is_being_read_says_so_and_keeps_its_text_dark(motion, moves, page, made):
    page.emulate_media(reduced_motion=motion)
    held = []
    page.route("**/tokenizations/new/", lambda route: held.append(route) if is_preview(route) else route.continue_())
    page.goto("/tokenizations/new/")
    expect(page.locator("#preview").get_by_text("reading")).to_be_visible()
    style = "(style => [style.height, style.animationName])(getComputedStyle(preview, '::before'))"
    assert page.evaluate(style) == ["3px", moves]
    assert page.evaluate("[preview, ...preview.querySelectorAll('*')].every(p => getComputedStyle(p).opacity === '1')")
    for route in held:
        route.continue_()
    expect(page.locator("#preview").get_by_text("reading")).to_be_hidden()


def is_preview(route):
    return route.request.method == "POST"
