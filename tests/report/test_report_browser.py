"""The report in a browser: no request, no complaint, no sideways scrolling on a phone."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from run_folders import STAGES, Page, make_run
from secateur.report.build import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("quic", "background-networking", "component-update", "sync", "gpu")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{part}" for part in QUIET)]
FLAGS += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000", "--dump-dom"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("finished"))
    build(folder)
    return folder


@pytest.fixture
def server(finished: Path) -> Iterator[tuple[str, list[str]]]:
    """The run folder on a local port, and the list of paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args) -> None:
            super().__init__(*args, directory=str(finished))

        def log_message(self, *args) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()


def browse(address: str, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The document after loading, and what the browser wrote to its console."""
    outside = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    command = [str(CHROMIUM), *FLAGS, outside, f"--user-data-dir={profile}", *flags, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def test_a_browser_shows_it_without_a_request_or_a_complaint(finished: Path, server, tmp_path: Path) -> None:
    base, asked = server
    shown, console = browse(f"{base}/report.html", tmp_path)
    assert console == []
    assert asked == ["/report.html"]
    cells = {cell for row in Page(shown).rows for cell in row}
    for stage in STAGES:
        assert {repr(value) for key, value in stage.items() if key != "stage"} <= cells
    # the same net catches a page that does ask for something
    spoilt = (finished / "report.html").read_text("utf-8").replace("<main>", '<main><img src="other.png"><script>1</script>', 1)
    (finished / "spoilt.html").write_text(spoilt, "utf-8")
    _, console = browse(f"{base}/spoilt.html", tmp_path)
    assert len(console) == 2


def test_a_phone_does_not_scroll_sideways(finished: Path, server, tmp_path: Path) -> None:
    """A frame of 390 pixels tells how wide its content wants to be; for that alone its policy is lifted."""
    base, _ = server
    told = "<script>onload = () => parent.postMessage([innerWidth, document.documentElement.scrollWidth].join(), '*')</script>"
    free = (
        re.sub(r"<meta http-equiv[^>]*>", "", (finished / "report.html").read_text("utf-8"))
        .replace("</body>", f"{told}</body>")
        .replace("<details>", "<details open>")
    )
    (finished / "free.html").write_text(free, "utf-8")
    frame_of = '<iframe src="free.html" style="width:390px;height:800px;border:0"></iframe><p id="told"></p>'
    hear = "<script>addEventListener('message', e => document.getElementById('told').textContent = 'wide ' + e.data)</script>"
    (finished / "phone.html").write_text(hear + frame_of, "utf-8")
    shown, _ = browse(f"{base}/phone.html", tmp_path)
    inner, wanted = map(int, re.search(r"wide (\d+),(\d+)", shown).groups())
    assert inner == 390
    assert wanted <= inner
