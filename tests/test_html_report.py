"""The page in a real browser: charts and pictures are seen in both colour schemes, tables sort, nothing is fetched."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sifscale.comparison_figures import curves, forest
from sifscale.html_report import Grid, PageSection, Part, TableRow, chart, page, picture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>document.title = 'broken'</script> $\\frac{1} _ <b>"


def tiny_page() -> str:
    points = [("_first", 0.1, 0.0, 0.2), (EVIL, -0.1, float("nan"), float("nan"))]
    charts = [
        chart(lambda: forest(points, f"RMSE less that of {EVIL} (m-2)", 0.0), f"alt {EVIL}", "caption"),
        chart(lambda: curves({EVIL: ([0, 1], [2.0, 1.0], [1.5, 0.5], [2.5, 1.5])}, "loss"), "curve", "caption"),
    ]
    rows = [TableRow(cells) for cells in ([EVIL, "+0.0300", "10"], ["b", "-0.0200", "9"], ["c", "-", "1,000"])]
    buffer = BytesIO()
    Figure(figsize=(2, 2)).savefig(buffer, format="png")
    parts = [
        Part("Numbers", [EVIL], charts, [Grid("Scores", ["arm", "difference", "n"], rows, EVIL)]),
        Part("Pictures", pictures=[picture(buffer.getvalue(), EVIL, EVIL)]),
    ]
    return page(EVIL, EVIL, [PageSection(0, EVIL, [EVIL], parts)], EVIL)


def test_whatever_names_hold_is_text_on_the_page() -> None:
    text = tiny_page()
    assert text.count("<script>") == text.count("</script>") == 1 and "<b>" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium of the system")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_charts_sorts_tables_and_asks_the_network_for_nothing(tmp_path: Path, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = tmp_path / "comparison.html"
    path.write_text(tiny_page(), encoding="utf-8")
    said: list[str] = []
    asked: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 900})
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        for image in tab.locator("img").all():
            image.scroll_into_view_if_needed()
        tab.wait_for_function("[...document.images].every(image => image.complete)")
        images = tab.evaluate("[...document.images].map(i => [i.naturalWidth, i.currentSrc.slice(0, 14), i.alt])")
        assert len(images) == 3 and all(width > 0 and alt for width, _, alt in images)
        dark = tab.evaluate("document.images[0].currentSrc === document.querySelector('source').srcset")
        assert dark == (scheme == "dark")
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
        tab.get_by_role("button", name="difference").click()
        assert tab.locator("tbody td:nth-child(2)").all_inner_texts() == ["-0.0200", "+0.0300", "-"]
        tab.get_by_role("button", name="n", exact=False).last.click()
        tab.get_by_role("button", name="n", exact=False).last.click()
        assert tab.locator("tbody td:nth-child(3)").all_inner_texts() == ["1,000", "10", "9"]
        assert tab.title() == " ".join(EVIL.split())
        tab.screenshot(path=str(tmp_path / f"comparison_{scheme}.png"), full_page=True)
        browser.close()
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
