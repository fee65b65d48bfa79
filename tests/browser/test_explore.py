"""The notebook of exploration as a reader uses it: opened, run from the menu, typed at, clicked on, listened to."""

import pytest
from playwright.sync_api import expect

from atr import get_profile

MINUTE = 60_000  # ms
CLIPS = get_profile("smoke").corpora["soundscapes"]["test"]


@pytest.fixture
def explorer(lab, open_page):
    """Opens the notebook, runs all of it and gives the page and the box of widgets; the first time trains two runs."""

    def run(**options):
        page = open_page(**options)
        page.goto(f"{lab}/lab/tree/00_explore.ipynb?reset")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=2 * MINUTE)
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=2 * MINUTE)
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
        box = page.locator(".jp-OutputArea-output > .widget-vbox").first
        box.wait_for(state="attached", timeout=8 * MINUTE)
        box.scroll_into_view_if_needed()
        expect(cards(box)).to_have_count(10, timeout=MINUTE)
        box.evaluate("element => element.scrollIntoView()")
        return page, box

    return run


def cards(box):
    return box.locator("img[alt^='spectrogram of']:visible")


def tab(box, name):
    box.locator(".lm-TabBar-tabLabel", has_text=name).click()


def test_a_reader_types_listens_and_compares(explorer, keep):
    page, box = explorer()
    keep(page, "1_opened")
    sentence = box.get_by_label("sentence")
    sentence.click()
    page.keyboard.press("Control+a")
    page.keyboard.type("a whistle, then ein Hund")
    page.keyboard.press("Enter")
    expect(box.get_by_text("No training caption has: ein, hund.")).to_be_visible(timeout=MINUTE)
    expect(cards(box)).to_have_count(10)
    assert all(cards(box).evaluate_all("images => images.map(image => image.complete && image.naturalWidth === 300)"))
    keep(page, "2_typed")

    box.get_by_title("play test-").first.click()
    player = box.locator("audio")
    expect(player).to_be_visible()
    page.wait_for_function("audio => audio.readyState > 0", arg=player.element_handle())
    assert player.evaluate("audio => audio.duration") == pytest.approx(4, abs=0.1)
    assert not player.evaluate("audio => audio.loop")
    keep(page, "3_playing")

    sentence.focus()  # and on by the keyboard alone
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(box.get_by_text("its right clip is at rank").first).to_be_visible()
    expect(box.get_by_text("✓ right clip").first).to_be_visible()
    box.get_by_label("beside it").select_option(index=2)
    expect(box.get_by_role("heading", name="compact_resnet")).to_be_visible()
    expect(cards(box).nth(19)).to_be_attached()
    keep(page, "4_compared")

    sentence.fill("")
    sentence.press("Enter")
    expect(box.get_by_text("Describe a sound in a few words, then press Enter.")).to_be_visible()
    sentence.fill("?!")
    sentence.press("Enter")
    expect(box.get_by_text("no words; describe a sound in a few").first).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)


def test_a_reader_looks_at_clips_failures_and_the_map(explorer, keep):
    page, box = explorer(dark=True)
    expect(page.locator("body[data-jp-theme-light='false']")).to_be_attached()
    tab(box, "clips")
    expect(box.get_by_role("columnheader", name="caption")).to_be_visible()
    menu = box.get_by_label("clip", exact=True)
    menu.select_option(index=3)
    name = menu.evaluate("menu => menu.selectedOptions[0].text").split(":")[0]
    expect(cards(box)).to_have_attribute("alt", f"spectrogram of {name}")
    keep(page, "1_clips")
    tab(box, "failures")
    expect(box.get_by_label("query")).to_contain_text(f"of {CLIPS}: ")
    expect(box.get_by_text("✓ right clip").locator("visible=true")).to_be_visible()
    keep(page, "2_failures")

    tab(box, "map")
    points = box.locator(".js-plotly-plot .trace").nth(1).locator(".point")
    expect(points).to_have_count(CLIPS, timeout=2 * MINUTE)
    expect(box.get_by_text("other kinds")).to_be_visible()
    canvas = box.locator(".js-plotly-plot")
    page.wait_for_function(
        "plot => plot.querySelector('.main-svg').clientWidth > 0.9 * plot.closest('.lm-TabPanel-stackedPanel, "
        ".widget-tab-contents').clientWidth",
        arg=canvas.element_handle(),
    )
    near = box.get_by_label("near to")
    near.select_option(index=7)
    expect(cards(box)).to_have_count(6)
    before = near.input_value()
    keep(page, "3_map")
    at = points.nth(2).bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    expect(box.locator(".hoverlayer .hovertext")).to_be_visible()
    page.mouse.click(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    expect(near).not_to_have_value(before)
    keep(page, "4_clicked")
