"""A browser, pages of a chosen width and theme, a JupyterLab to open in it, and a folder for screenshots.

Chromium or Chrome is the system's; CHROMIUM names another. SCREENSHOTS names a folder to keep the screenshots in.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from atr.system import places

try:
    from playwright.sync_api import sync_playwright
except ImportError as error:
    raise pytest.UsageError("playwright is missing; make test-browser installs it and runs these tests") from error

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
WIDTHS = {"phone": 390, "tablet": 820, "desktop": 1440}


@pytest.fixture(scope="session")
def chromium():
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES), MAC if Path(MAC).is_file() else None]
    path = next(filter(None, found), None)
    if path is None:
        pytest.fail(f"no {', '.join(NAMES)} found: install one of them, or name it: CHROMIUM=<file> make test-browser")
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def keep(request, tmp_path):
    """Keeps what a page shows: `keep(page, name)`."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    test = re.sub(r"\W+", "_", request.node.name.removeprefix("test_"))[:60]

    return lambda page, name, **options: page.screenshot(path=folder / f"{test}.{name}.png", **options)


@pytest.fixture
def open_page(chromium, keep):
    """Makes a page: `open_page(width, dark)`. Its last state is kept, and its scripts must have had no error."""
    contexts, errors = [], []

    def make(width=WIDTHS["desktop"], dark=False, height=900):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield make
    for number, context in enumerate(contexts):
        keep(context.pages[0], f"end_{number}")
        context.close()
    assert not errors


def too_wide(page):
    """Whether a page has to be scrolled sideways."""
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Address of a JupyterLab without token, with settings and home of its own, on copies of the notebooks in which
    the profile is smoke.
    """
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for path in (places.PROJECT / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = cell.source.replace('profile_name = "demo"', 'profile_name = "smoke"')
        nbformat.write(notebook, folder / "notebooks" / path.name)
    settings = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    news = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(news))
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"adaptive-theme": True}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "ATR_COMMAND"} | {
        "HOME": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(places.PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    options = [f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder / 'notebooks'}", "--ServerApp.port_retries=0"]
    options += ["--no-browser", "--IdentityProvider.token=", "--ServerApp.ip=127.0.0.1", "--ServerApp.allow_root=True"]
    said = (folder / "log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=said, stderr=said)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        said.close()
