"""The report of a profile in a browser, at three widths, by day and by night."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import WIDTHS, too_wide


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
