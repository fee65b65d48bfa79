"""The report of a profile in a browser, at three widths, by day and by night: filtered, searched, folded, printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WIDTHS, too_wide
from playwright.sync_api import expect

from atr.reports import render
from atr.reports.report import gather
from atr.system import places


def atr(*words):
    command = [sys.executable, "-m", "atr", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


@pytest.fixture(scope="module")
def report(homes):
    """Address of the report of a study of one notebook."""
    if atr("report", "--help").returncode != 0:
        pytest.skip("this version has no command 'atr report'")
    for words in (["study", "01", "--profile", "smoke", "--quiet"], ["report", "--profile", "smoke"]):
        done = atr(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    return (Path(os.environ["ATR_RESULTS"]) / "smoke" / "report" / "index.html").as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_it_fits_its_pictures_are_there_and_it_can_be_read(report, open_page, keep, width, dark):
    page = open_page(width, dark)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report)
    assert page.title() and page.locator("h1").is_visible() and page.locator("table").count()
    keep(page, "top")
    keep(page, "whole", full_page=True)
    assert not too_wide(page)
    images = page.locator("img")
    for place in range(images.count()):
        images.nth(place).scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert all(url.startswith(("file:", "data:")) for url in asked)
    light = page.evaluate(
        """() => {
            const parts = color => color.match(/[\\d.]+/g).slice(0, 3).map(Number)
            const light = color => parts(color).reduce((sum, part) => sum + part) / 765
            const style = getComputedStyle(document.body)
            const canvas = getComputedStyle(document.documentElement).backgroundColor
            const own = style.backgroundColor
            return [light(own === 'rgba(0, 0, 0, 0)' ? canvas : own), light(style.color)]
        }"""
    )
    assert (light[0] < 0.25 and light[1] > 0.6) if dark else (light[0] > 0.85 and light[1] < 0.4)


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    """Address of the report of the committed results of `demo`, which has claims of all papers."""
    path = tmp_path_factory.mktemp("report") / "index.html"
    text = render.page(gather("demo", places.PROJECT / "results" / "reference" / "demo"))
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def shown(page, **data):
    """The comparisons that are shown, of one verdict, paper or direction."""
    where = "".join(f'[data-{name}="{value}"]' for name, value in data.items())
    return page.locator(f"#found tr.row{where}:visible")


def test_claims_are_filtered_and_searched(claims, open_page, keep):
    page = open_page()
    page.goto(claims)
    total = shown(page).count()
    expect(page.locator("#filters output")).to_have_text(f"{total} of {total}")
    holding = shown(page, verdict="holds").count()
    page.get_by_label("verdict").select_option("holds")
    assert 0 < holding == shown(page).count() < total
    page.get_by_label("direction").select_option("T→A")
    assert 0 < shown(page, verdict="holds", direction="T→A").count() == shown(page).count() < holding
    page.get_by_label("paper").select_option("Chao et al. 2022")  # its comparisons have no direction
    expect(shown(page)).to_have_count(0)
    expect(page.locator("#found tbody:visible")).to_have_count(0)
    page.get_by_role("button", name="all").click()
    expect(shown(page)).to_have_count(total)

    page.get_by_role("searchbox").fill("Mined  RANDOM")  # in any case, of the claim's words or the comparison's
    words = [one.lower() for one in page.locator("#found tbody.claim:visible").all_inner_texts()]
    assert 0 < len(words) < 10 and all("mined" in one and "random" in one for one in words)
    expect(page.locator("#found tbody.paper:visible")).to_have_count(1)
    keep(page, "found")
    page.get_by_role("searchbox").fill("zeppelin")
    expect(page.locator("#filters output")).to_have_text(f"0 of {total}")


def test_a_claims_figure_is_one_click_away(claims, open_page):
    page = open_page()
    page.goto(claims)
    shown(page, paper="Mei et al. 2022").first.get_by_role("link", name="figure").click()
    expect(page.locator("#f01_summary img")).to_be_in_viewport()


def test_the_contents_fold_where_the_page_is_narrow(claims, open_page, keep):
    page = open_page(WIDTHS["phone"])
    page.goto(claims)
    link = page.get_by_role("navigation").get_by_role("link", name="What was found")
    expect(link).to_be_hidden()
    page.get_by_text("Contents", exact=True).click()
    expect(link).to_be_visible()
    keep(page, "open")
    link.click()
    expect(link).to_be_hidden()
    page.set_viewport_size({"width": WIDTHS["desktop"], "height": 900})
    expect(link).to_be_visible()


def test_it_prints_with_all_columns_and_headers(claims, open_page, tmp_path):
    page = open_page(688)  # px of a page of A4 between its margins
    page.goto(claims)
    page.emulate_media(media="print")
    wide = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.ariaLabel)"
    assert page.locator(".box").evaluate_all(wide) == [] and not too_wide(page)
    heads = page.locator("#results thead").evaluate_all("all => all.map(one => getComputedStyle(one).display)")
    assert set(heads) == {"table-header-group"} and len(heads) == page.locator("#results table").count()
    assert not page.locator("#filters").is_visible() and not page.get_by_role("navigation").is_visible()
    content = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert content.startswith(b"%PDF") and content.count(b"/Type /Page\n") > 20


def test_numbers_stand_to_the_right_and_figures_suit_the_night(claims, open_page):
    day, night = open_page(), open_page(dark=True)
    for page in (day, night):
        page.goto(claims)
    number = day.locator("td.number", has_text="±").first
    assert number.evaluate("cell => getComputedStyle(cell).textAlign") == "right"
    look = "image => getComputedStyle(image).filter"
    assert day.locator("figure img").first.evaluate(look) == "none"
    assert "invert(1)" in night.locator("figure img").first.evaluate(look)
