"""The documentation pages in a real browser, served by a real process."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.process import Service

KEY = "key_tenant_a"
HTTP = build_opener(ProxyHandler({}))
MOVING = (ElementClickInterceptedException, ElementNotInteractableException, StaleElementReferenceException)
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1400,1000",
    # whatever a page or the browser asks for, nothing but the server is there to be reached
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Browser:
    """A browser that remembers what its pages asked for."""

    def __init__(self, driver: webdriver.Chrome, origin: str) -> None:
        self.driver = driver
        self.origin = origin

    def open(self, path: str) -> None:
        self.driver.get(self.origin + path)

    def see(self, css: str) -> WebElement:
        """The element, once it is visible."""
        return self._find(By.CSS_SELECTOR, css)

    def value(self, css: str) -> str:
        """What stands in the field."""
        return str(self.see(css).get_property("value"))

    def see_text(self, tag: str, text: str) -> WebElement:
        """The element that says just `text`, once it is visible."""
        return self._find(By.XPATH, f'//{tag}[normalize-space()="{text}"]')

    def click(self, css: str) -> None:
        self._click(By.CSS_SELECTOR, css)

    def click_text(self, tag: str, text: str) -> None:
        self._click(By.XPATH, f'//{tag}[normalize-space()="{text}"]')

    def unfold(self, group: str, entry: str) -> None:
        """Opens a group of a menu, whose last group may be unfolding still: a click where this one was hits another then."""

        def is_open(driver: webdriver.Chrome) -> bool:
            self.click_text("li", group)
            with suppress(TimeoutException):
                return bool(self._wait(1).until(visible))
            return False

        visible = expected_conditions.visibility_of_element_located((By.XPATH, f'//li//span[normalize-space()="{entry}"]'))
        self._wait().until(is_open, f"{group} does not open")

    def _find(self, by: str, what: str) -> WebElement:
        visible = expected_conditions.visibility_of_element_located((by, what))
        return self._wait().until(visible, f"{what} is not visible")

    def _click(self, by: str, what: str) -> None:
        def clicked(driver: webdriver.Chrome) -> bool:
            driver.find_element(by, what).click()
            return True

        self._wait().until(clicked, f"{what} can't be clicked")

    def _wait(self, seconds: float = 10) -> WebDriverWait[webdriver.Chrome]:
        return WebDriverWait(self.driver, seconds, poll_frequency=0.05, ignored_exceptions=MOVING)

    def leave(self) -> None:
        """Hides the page, which is when telemetry sends what it has gathered."""
        self.driver.minimize_window()
        time.sleep(0.5)

    def requests(self) -> list[str]:
        """The URL of every request since the last call."""
        urls = []
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                urls.append(event["params"]["request"]["url"])
            elif event["method"] == "Network.webSocketCreated":
                urls.append(event["params"]["url"])
        return urls

    def errors(self) -> list[str]:
        """What the console shows as errors since the last call; what the page's policy blocks is among them."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def check_nothing_left_the_server(self, path: str) -> None:
        self.leave()
        asked = self.requests()
        assert {self.origin + path, f"{self.origin}/openapi.json"} <= set(asked)
        assert [url for url in asked if not url.startswith((f"{self.origin}/", "data:", "blob:"))] == []
        assert self.errors() == []


@pytest.fixture(scope="session")
def programs() -> tuple[str, str]:
    """Where the browser and its driver are."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium and driver:
        return chromium, driver
    reason = "There is no browser to test with: install Debian's chromium and chromium-driver."
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def origin(programs: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server process listens; it has one tool and one agent, both with the id 1."""
    folder = tmp_path_factory.mktemp("server")
    with Service(folder / "x.db") as server:
        url = server.origin
        _post(f"{url}/tools", {"name": "search", "description": "Search the web"})
        _post(f"{url}/agents", {"name": "runner", "role": "Assistant", "description": "Runs errands", "tool_ids": [1]})
        yield url


def _post(url: str, body: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json", "X-API-Key": KEY}
    with HTTP.open(Request(url, json.dumps(body).encode(), headers), timeout=10) as answer:
        assert answer.status == 201


@pytest.fixture(params=[False, True], ids=["held by its policy", "with its policy ignored"])
def browser(
    programs: tuple[str, str],
    origin: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Browser]:
    """A browser with a fresh profile.

    What a page's policy blocks is an error in the console, but not always a request; with the policy ignored it is one.
    """
    chromium, driver_path = programs
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SE_OFFLINE", "true")
    monkeypatch.setenv("SE_AVOID_STATS", "true")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver_path))
    try:
        driver.get("about:blank")
        driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": request.param})
        opened = Browser(driver, origin)
        opened.requests()  # the browser's own start page
        yield opened
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def spec(origin: str) -> dict[str, Any]:
    with HTTP.open(f"{origin}/openapi.json", timeout=10) as answer:
        served: dict[str, Any] = json.load(answer)
    return served


RUN_AGENT = '.opblock:has([data-path="/agents/{agent_id}/run"])'


def test_swagger_ui_remembers_the_key_and_runs_an_agent(browser: Browser, spec: dict[str, Any]) -> None:
    browser.open("/docs")
    browser.click(".auth-wrapper .authorize.unlocked")
    browser.see(".modal-ux input").send_keys(KEY)
    browser.click(".modal-ux .authorize")
    browser.click(".modal-ux .btn-done")

    browser.driver.refresh()
    browser.see(".auth-wrapper .authorize.locked")

    browser.click(f"{RUN_AGENT} .opblock-summary-control")
    browser.click(f"{RUN_AGENT} .try-out__btn")
    example = spec["components"]["examples"]["RunInput"]["value"]
    assert json.loads(browser.value(f"{RUN_AGENT} textarea")) == example
    assert browser.value(f"{RUN_AGENT} input[placeholder=agent_id]") == "1"

    browser.click(f"{RUN_AGENT} .execute")
    assert browser.see(f"{RUN_AGENT} .live-responses-table tbody .response-col_status").text == "200"
    answer = browser.see(f"{RUN_AGENT} .live-responses-table tbody .response-col_description .microlight").text
    assert '"status": "completed"' in answer
    assert json.loads(answer)["task"] == example["task"]
    browser.check_nothing_left_the_server("/docs")


def test_redoc_shows_every_operation(browser: Browser, spec: dict[str, Any]) -> None:
    browser.open("/redoc")
    browser.see_text("h1", f"{spec['info']['title']} ({spec['info']['version']})")
    operations = [operation for item in spec["paths"].values() for operation in item.values() if "tags" in operation]
    for tag in spec["tags"]:
        summaries = [operation["summary"] for operation in operations if tag["name"] in operation["tags"]]
        browser.unfold(tag["name"], summaries[0])
        for summary in summaries:
            browser.see_text("li//span", summary)
    browser.click_text("li", "agents")
    browser.click_text("li//span", "Run an agent")
    browser.see_text("h2", "Run an agent")
    browser.check_nothing_left_the_server("/redoc")
