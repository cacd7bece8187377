"""The page in a real browser: no errors, no requests, nothing wider than the screen."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from kdcompress.report.facts import Facts
from kdcompress.report.page import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
# wrapped around the page: reports what a reader would have to scroll sideways for
PROBE = """
<script>
addEventListener("load", () => {
  const page = document.documentElement;
  const wide = [...document.querySelectorAll("main *")]
    .filter(each => !each.closest(".scroll, svg") && each.getBoundingClientRect().right > innerWidth + 1)
    .map(each => each.tagName + "." + each.className);
  const broken = [...document.images].filter(each => !each.naturalWidth).length;
  page.dataset.probe = JSON.stringify({scroll: page.scrollWidth, inner: innerWidth, wide, broken,
    dark: getComputedStyle(document.body).backgroundColor});
});
</script>
"""


def browse(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser that finds no host."""
    file = folder / "report.html"
    file.write_text(text, encoding="utf-8")
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
        *arguments, file.as_uri(),
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def console(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "dark")])
def test_page_fits_and_is_quiet(facts: Facts, tmp_path: Path, width: int, scheme: str) -> None:
    """A reader on a phone would scroll sideways, at night be blinded, or see pictures that are missing."""
    text = page(facts)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy is not None
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    # an inner frame has the exact width: the window of a browser has a least one
    inner = text.replace(policy[0], "").replace("</main>", f"</main>{PROBE}")
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    frame = (
        f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe><script>'
        "addEventListener('load', () => setTimeout(() => { document.body.dataset.found = "
        "document.querySelector('iframe').contentDocument.documentElement.dataset.probe }, 300))</script>"
    )
    done = browse(
        tmp_path, frame, "--allow-file-access-from-files", "--window-size=1400,1000", "--virtual-time-budget=3000",
        *dark, "--dump-dom",
    )  # fmt: skip
    assert console(done) == []
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    probe = json.loads(found[1].replace("&quot;", '"'))
    assert probe["inner"] == width
    assert probe["scroll"] <= width
    assert probe["wide"] == []
    assert probe["broken"] == 0
    assert probe["dark"] == ("rgb(21, 23, 26)" if scheme == "dark" else "rgb(255, 255, 255)")


def test_the_page_as_it_is(facts: Facts, tmp_path: Path) -> None:
    """The page would be blank, or blocked by its own policy."""
    picture = tmp_path / "shot.png"
    done = browse(tmp_path, page(facts), "--window-size=1280,1600", f"--screenshot={picture}")
    assert console(done) == []
    with Image.open(picture) as shot:
        assert shot.size == (1280, 1600)
        assert len(shot.convert("RGB").getcolors(2**24) or []) > 50


def test_a_request_would_be_seen(tmp_path: Path) -> None:
    """The tests above would pass for a page that loads from a server, or whose script fails."""
    broken = '<img src="https://example.com/x.png"><script>nothing_like_this()</script>'
    lines = console(browse(tmp_path, broken, "--virtual-time-budget=2000", "--dump-dom"))
    assert any("nothing_like_this" in line for line in lines)
    policed = page_policy() + '<img src="https://example.com/x.png">'
    assert any("Content Security Policy" in line for line in console(browse(tmp_path, policed, "--dump-dom")))


def page_policy() -> str:
    return '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:">'
