"""The report in headless Chromium, which clicks: charts within a narrow screen, tooltips, links, no script error."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_run import make_run
from test_report_checkpoints import make_written
from test_report_verdict import make_searched

from tracenas.reporting import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian's package: chromium)"),
]

WATCH = "<script>window.failures = []; addEventListener('error', (e) => failures.push(e.message));</script>"
CLICK = """<script>
addEventListener("load", async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const tip = document.querySelector(".tip");
  const read = () => (tip.style.opacity === "1" ? tip.textContent : null);
  const within = (box) => box.left >= 0 && box.right <= innerWidth;
  const results = { width: innerWidth, page: document.documentElement.scrollWidth };
  const charts = [...document.querySelectorAll("svg.chart")];
  results.charts = charts.length;
  results.outside = charts.filter((c) => !within(c.getBoundingClientRect())).map((c) => c.getAttribute("aria-label"));
  const dot = document.querySelector(".chart .dot");
  const point = (type, off = 0) => {
    const box = dot.getBoundingClientRect();
    const [clientX, clientY] = [box.x + box.width / 2 + off, box.y + box.height / 2];
    document.elementFromPoint(clientX, clientY).dispatchEvent(
      new PointerEvent(type, { clientX, clientY, bubbles: true }));
    return read();
  };
  dot.scrollIntoView({ block: "center", behavior: "instant" });
  await wait(50);
  results.hovered = point("pointermove");
  results.inside = within(tip.getBoundingClientRect());
  results.beside = point("pointermove", 6);
  document.body.dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
  results.left = read();
  results.touched = point("pointerdown");
  const chart = dot.closest("svg"), key = (name) =>
    chart.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  chart.focus({ focusVisible: true });
  results.focused = read();
  key("ArrowRight");
  results.arrow = read();
  key("Escape");
  results.escaped = read();
  chart.blur();
  scrollTo({ top: 0, behavior: "instant" });
  const link = [...document.querySelectorAll("nav a")].at(-2);
  link.click();
  await wait(200);
  results.top = document.querySelector(link.getAttribute("href")).getBoundingClientRect().top;
  results.scrolled = scrollY;
  results.errors = failures;
  parent.postMessage(JSON.stringify(results), "*");
});
</script>"""
FRAME = """<!doctype html><body><script>
addEventListener("message", ({ data }) => {
  document.body.append(Object.assign(document.createElement("pre"), { id: "results", textContent: data }));
});
</script><iframe src="report.html" width="%d" height="900" style="border: 0"></iframe></body>"""


def clicked(page: Path, width: int, *flags: str) -> dict[str, Any]:
    """What the script above found in the page, in a frame of a width (Chromium's own window is 500 at least)."""
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + WATCH, 1)
    page.write_text(text.replace("</body>", CLICK + "</body>"), encoding="utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME % width, encoding="utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    command += [
        "--window-size=1500,1000",
        "--force-prefers-reduced-motion",
        "--virtual-time-budget=5000",
        "--dump-dom",
        *flags,
        frame.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="results">(.*?)</pre>', dom)
    assert found is not None, dom[-500:]
    results: dict[str, Any] = json.loads(html.unescape(found[1]))
    return results


@pytest.mark.parametrize("width", [420, 1400])
def test_a_page_that_is_clicked(tmp_path: Path, width: int) -> None:
    found = clicked(write_report(make_run(tmp_path / "run", layers=6, iterations=4)), width)
    assert found["errors"] == [] and found["width"] == width
    assert found["charts"] >= 6 and found["outside"] == [] and found["page"] <= width
    assert re.fullmatch(r"[0-9a-f]{16}: Φ [\d.]+, loss [\d.]+, [\d.]+M", found["hovered"])
    assert found["inside"] and found["touched"] == found["hovered"] and found["beside"] is not None
    assert found["left"] is None
    assert found["focused"] and found["arrow"] and found["arrow"] != found["focused"] and found["escaped"] is None
    assert found["scrolled"] > 500 and abs(found["top"]) < 60


@pytest.mark.parametrize(("width", "flags"), [(420, ("--force-dark-mode",)), (1400, ())])
def test_a_page_of_a_front_that_is_clicked(tmp_path: Path, width: int, flags: tuple[str, ...]) -> None:
    found = clicked(write_report(make_written(tmp_path / "run")), width, *flags)
    assert found["errors"] == [] and found["outside"] == [] and found["page"] <= width
    assert re.fullmatch(r"[0-9a-f]{16}: loss [\d.]+, perplexity [\d.]+, .* parameters, .* ms", found["hovered"])
    assert found["inside"] and found["focused"] and found["arrow"] != found["focused"]


def test_a_page_that_is_clicked_without_a_comparison(tmp_path: Path) -> None:
    run = make_searched(tmp_path / "run", {"fisher": 2.7, "uniform": 2.9}, 2.6)
    found = clicked(write_report(run), 420, "--force-dark-mode")
    assert found["errors"] == [] and found["outside"] == [] and found["focused"]
