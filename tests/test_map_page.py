"""The page of a map in a real browser: the divider moves, dates and fields are chosen, nothing is fetched.

Screenshots are kept as `test_mlflow_ui` keeps them.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sifscale.borders import Borders
from sifscale.map_frame import Frame
from sifscale.map_page import page, superscripted

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>document.title = 'broken'</script> <b> \" '"
DARK, BRIGHT, MIDDLE = (68, 1, 84), (253, 231, 36), (33, 145, 140)  # viridis at 0, 1 and 0.5


def tiny_page(evil: str = "") -> str:
    """Two dates of 60 x 80 cells: coarse is dark, the map bright and the truth between; on the second day all dark."""
    line = np.array([[10.0, 10.0], [70.0, 50.0]])
    frame = Frame((0.0, 0.0, 80.0, 60.0), 1.0, 1.0, Borders([line], [line[::-1]]), (20.0, "20 km"), [], [])
    coarse, gap = np.zeros((15, 20)), np.ones((60, 80))
    gap[:, 70:] = np.nan
    layers = {"coarse": coarse, "map": gap, "truth": np.full((60, 80), 0.5)}
    dates = {f"2019-05-09{evil}": layers, "2019-05-25": {name: field * 0 for name, field in layers.items()}}
    return page(
        f"SIF, Here{evil}", dates, frame, (0.0, 1.0), label=f"SIF (mW m-2{evil})", provenance={"Run": f"abc{evil}"}
    )  # fmt: skip


def test_whatever_names_hold_is_text_on_the_page() -> None:
    text = tiny_page(EVIL)
    assert text.count("<script>") == text.count("</script>") == 1 and "<b>" not in text
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|https?://", text), "self-contained"


def test_images_hold_one_pixel_a_cell_and_nothing_where_there_is_no_value() -> None:
    sources = re.findall(r'src="data:image/webp;base64,([^"]+)"', tiny_page())
    images = [np.asarray(Image.open(BytesIO(base64.b64decode(source))).convert("RGBA")) for source in sources]
    assert [image.shape[:2] for image in images] == [(15, 20), (60, 80), (60, 80)] * 2
    assert (images[0][..., :3] == DARK).all() and (images[1][:, :70, :3] == BRIGHT).all()
    assert (images[1][:, :70, 3] == 255).all() and (images[1][:, 70:, 3] == 0).all()


def test_exponents_are_raised() -> None:
    assert superscripted("SIF (mW m-2 sr-1 nm-1)") == "SIF (mW m⁻² sr⁻¹ nm⁻¹)"
    assert superscripted("LST (K)") == "LST (K)"


def test_fields_that_are_not_alike_are_refused() -> None:
    frame = Frame((0.0, 0.0, 2.0, 2.0), 1.0, None, Borders([], []), None, [], [])
    field = np.zeros((2, 2))
    for dates in ({}, {"a": {"map": field}}, {"a": {"x": field, "y": field}, "b": {"x": field, "z": field}}):
        with pytest.raises(ValueError, match="same two fields"):
            page("", dates, frame, (0.0, 1.0), label="", provenance={})


def seen(tab: Any) -> NDArray[np.int64]:
    """What the stage shows at a tenth, four and six tenths and nine tenths of its width: (4, RGB)."""
    shot = np.asarray(Image.open(BytesIO(tab.locator("#stage").screenshot())).convert("RGB")).astype(int)
    row = round(0.3 * shot.shape[0])
    found: NDArray[np.int64] = shot[row, [round(share * shot.shape[1]) for share in (0.1, 0.4, 0.6, 0.94)]]
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium of the system")
def test_a_browser_moves_the_divider_and_shows_what_is_chosen(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = tmp_path / "map.html"
    path.write_text(tiny_page(), encoding="utf-8")
    screenshots = Path(os.environ.get("SIFSCALE_SCREENSHOTS", tmp_path))
    screenshots.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, missing in (("light", 217), ("dark", 74)):
            tab = browser.new_page(color_scheme=scheme, viewport={"width": 900, "height": 900})
            tab.on("console", lambda message: faults.append(message.text))
            tab.on("pageerror", lambda error: faults.append(str(error)))
            tab.on("request", lambda asked: None if asked.url.startswith("data:") else faults.append(asked.url))
            tab.goto(path.as_uri())
            tab.wait_for_function("[...document.images].every(image => image.complete)")
            colours = seen(tab)
            assert close(colours[:3], [DARK, DARK, BRIGHT]) and abs(colours[3][0] - missing) < 3, "nodata is grey"
            bar = tab.locator(".bar i").bounding_box()
            assert bar["width"] == pytest.approx(stage(tab)["width"] / 4, abs=1), "20 of 80 km"
            slider = tab.get_by_role("slider")
            for key in ("PageDown", "PageDown", "PageDown", "ArrowLeft"):
                slider.press(key)
            assert slider.input_value() == "19" and close(seen(tab)[:3], [DARK, BRIGHT, BRIGHT])
            box = stage(tab)
            tab.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 20)
            tab.mouse.down()
            tab.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 30, steps=4)
            tab.mouse.up()
            tab.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 30)
            assert abs(float(slider.input_value()) - 80) <= 1 and close(seen(tab)[:3], [DARK] * 3)
            slider.press("Home")
            tab.get_by_label("Left").select_option("map")
            assert tab.get_by_label("Right").input_value() == "coarse", "they change places"
            assert close(seen(tab)[1:3], [DARK, DARK])
            tab.get_by_label("Right").select_option("truth")
            assert close(seen(tab)[1:3], [MIDDLE, MIDDLE])
            tab.screenshot(path=str(screenshots / f"map_page_{scheme}.png"))
            tab.get_by_label("Date after").click()
            assert close(seen(tab)[1:3], [DARK, DARK]) and tab.get_by_label("Date after").is_disabled()
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
            tab.close()
        touch = browser.new_page(has_touch=True, viewport={"width": 390, "height": 800})
        touch.goto(path.as_uri())
        box = stage(touch)
        touch.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 50)
        assert abs(float(touch.get_by_role("slider").input_value()) - 25) <= 1
        assert touch.evaluate("document.documentElement.scrollWidth <= innerWidth")
        touch.screenshot(path=str(screenshots / "map_page_touch.png"))
        browser.close()
    assert faults == [path.as_uri()] * 2, "the page itself, and nothing else"


def stage(tab: Any) -> dict[str, float]:
    """Where the fields lie on the page."""
    box: dict[str, float] = tab.locator("#stage").bounding_box()
    return box


def close(found: NDArray[np.int64], expected: list[tuple[int, int, int]]) -> bool:
    return bool(np.abs(found - np.array(expected)).max() <= 6)
