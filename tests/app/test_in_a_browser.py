"""The page in Chromium: skipped where there is no browser, driver, or selenium."""

import shutil
import threading
import time

import cv2
import numpy as np
import pytest

from ea_psmnet.app import engine as engine_module
from ea_psmnet.app.server import serve

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver"),
]


@pytest.fixture
def address(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "_EXAMPLE", (48, 64))
    server = serve(engine, "127.0.0.1", 0, 10**6)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def users(address):
    """Two browsers with the page."""
    browsers = []
    for _ in range(2):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu",
                         "--disable-dev-shm-usage", "--window-size=1400,1400"):  # fmt: skip
            options.add_argument(argument)
        service = webdriver.ChromeService(DRIVER)
        browsers.append(webdriver.Chrome(options=options, service=service))
        browsers[-1].get(address)
    yield browsers
    for browser in browsers:
        browser.quit()


def find(browser, name):
    return browser.find_element("css selector", name)


def message(browser):
    """The final message, once there is one."""
    for _ in range(600):
        text = find(browser, "#message").text
        if text and "…" not in text:
            return text
        time.sleep(0.1)
    raise AssertionError("no answer")


def colours(browser, canvas):
    """Standard deviation of a canvas's pixels."""
    return browser.execute_script(
        f"const c = document.querySelector('{canvas}');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0, s = 0, q = 0; for (let i = 0; i < d.length; i += 4)"
        "{ n++; s += d[i]; q += d[i] * d[i]; } return Math.sqrt(q / n - (s / n) ** 2);"
    )


def test_two_users_upload_see_and_read(users, tmp_path):
    one, two = users
    for side in ("left", "right"):
        image = np.random.default_rng(0).integers(0, 256, (40, 72, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{side}.png"), image)
        find(one, f"#{side}").send_keys(str(tmp_path / f"{side}.png"))
    find(one, "[name=focal]").send_keys("70")
    find(one, "[name=baseline]").send_keys("0.5")
    find(one, "#predict").click()
    find(two, "#example").click()
    assert message(one).startswith("Predicted in")
    assert message(two).startswith("Predicted in")
    assert "72 x 40 px" in find(one, "#summary").text
    assert "64 x 48 px" in find(two, "#summary").text
    for browser in users:
        assert colours(browser, "#map") > 1
        assert colours(browser, "#bar") > 30
    assert [tab.text for tab in one.find_elements("css selector", "#tabs button")][:2] == [
        "Disparity",
        "Depth",
    ]
    webdriver.ActionChains(one).move_to_element(find(one, "#map")).perform()
    assert "disparity" in find(one, "#value").text
    assert " m" in find(one, "#value").text
    assert "px, near" in find(one, "#high").text
    errors = [log for log in one.get_log("browser") if log["level"] == "SEVERE"]
    assert errors == []


def test_the_cloud_turns(users):
    browser = users[0]
    find(browser, "#example").click()
    message(browser)
    cloud = find(browser, "#cloud")
    before = browser.execute_script("return arguments[0].toDataURL()", cloud)
    browser.execute_script("arguments[0].scrollIntoView()", cloud)
    chain = webdriver.ActionChains(browser).click_and_hold(cloud)
    chain.move_by_offset(-80, 20).release().perform()
    time.sleep(0.5)
    assert browser.execute_script("return arguments[0].toDataURL()", cloud) != before


def test_a_wrong_file_is_told(users, tmp_path):
    (tmp_path / "left.png").write_bytes(b"no image")
    for side in ("left", "right"):
        find(users[0], f"#{side}").send_keys(str(tmp_path / "left.png"))
    find(users[0], "#predict").click()
    assert message(users[0]).startswith("left.png: damaged, or not an image")
    assert not find(users[0], "#result").is_displayed()
