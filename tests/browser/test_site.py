"""The project page: made by `make site`, whole by itself, its links lead somewhere, its leaderboard can be sorted."""

import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from conftest import too_wide

from atr.system import places


class Links(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.links, self.loaded, self.names = [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.names |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in ("script", "img", "link") and (address := attributes.get("src") or attributes.get("href")):
            self.loaded.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "site"
    command = ["make", "-o", ".venv/.site", "site", f"SITE={folder}", f"PY={sys.executable}"]
    done = subprocess.run(command, cwd=places.PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_links_lead_to_what_is_there_and_nothing_comes_from_another_host(site):
    pages = {page: Links(page) for page in site.rglob("*.html")}
    assert len([page for page in pages if page.parent.name == "notebooks"]) > 25
    assert site / "api" / "atr.html" in pages and site / "reports" / "demo" / "index.html" in pages
    assert "Corpus" in pages[site / "api" / "atr.html"].names
    for page, found in pages.items():
        for address in found.loaded:
            assert urlsplit(address).scheme in ("", "data"), (page, address)
        for address in found.links + found.loaded:
            parts = urlsplit(address)
            if parts.scheme or address.startswith("#") or "/api/" in page.as_posix():
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.exists(), (page, address)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].names, (page, address)


def test_the_leaderboard_is_sorted_by_the_heading_that_is_clicked(site, open_page):
    page = open_page(1300, False)
    page.goto((site / "docs" / "leaderboard.html").as_uri())
    table = page.locator("article table").first
    names = table.locator("thead th").all_text_contents()
    place = names.index("a2t R@10") + 1
    before = table.locator(f"tbody td:nth-child({place})").all_text_contents()
    for turn in (True, False):
        table.locator(f"thead th:nth-child({place}) button").click()
        shown = table.locator(f"tbody td:nth-child({place})").all_text_contents()
        assert sorted(shown) == sorted(before)
        numbers = [float(text) for text in shown if text.strip() != "—"]
        assert numbers == sorted(numbers, reverse=turn) and len(numbers) > 10


@pytest.mark.parametrize("width", [390, 1300])
def test_its_pages_fit(site, open_page, width):
    page = open_page(width, True)
    for name in ("README", "docs/leaderboard", "docs/findings", "results/reference/demo/notebooks/02_batch_size"):
        page.goto((site / f"{name}.html").as_uri())
        assert not too_wide(page), name
