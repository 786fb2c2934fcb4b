"""The page in a real browser: typing, answers, no answer, errors, keyboard, teacher, key, small screens."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import httpx
import pytest
from browser_fixtures import CHROMIUM, DRIVER, HINT, browser
from export_fixtures import exported
from qa_fixtures import index_of
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from serve_fixtures import Command, command

MISSING = CHROMIUM is None or DRIVER is None
pytestmark = pytest.mark.skipif(MISSING and not os.environ.get("TMKD_REQUIRE_BROWSER"), reason=HINT)

TEXTS = {
    "copy.md": "The cp command copies a file. \U0001f600\U0001f600 Use -r for folders, which are copied whole.",
    "https://docs.example/mount": "A disk is a device. The mount command mounts it on a folder.\n\n$ mount /dev/sda1",
    "javascript:alert(1)": "<img src=x onerror=alert(1)> A disk is <b>mounted</b> here.",
    "long.md": "A disk. " + "Some disks are mounted by hand, others are not. " * 40,
}
QUESTION = "how do i mount a disk"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = index_of(tmp_path_factory.mktemp("index") / "i", TEXTS).folder
    with command("--index", str(folder), "--teacher", str(exported("mpnet") / "student"), "--stall", "5") as found:
        yield found


@pytest.fixture
def page(live: Command, tmp_path: Path) -> Iterator[Chrome]:
    with browser(tmp_path / "profile") as driver:
        driver.get(live.url)
        yield driver
        messages = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
        assert not [text for text in messages if "/ask" not in text], messages  # nothing blocked, nothing missing


def one(driver: Chrome, selector: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, selector)


def many(driver: Chrome, selector: str) -> list[WebElement]:
    return driver.find_elements(By.CSS_SELECTOR, selector)


def wait(driver: Chrome, selector: str, seconds: float = 20) -> WebElement:
    def there(found: Chrome) -> WebElement | Literal[False]:
        shown = [element for element in many(found, selector) if element.is_displayed()]
        return shown[0] if shown else False

    return WebDriverWait(driver, seconds).until(there, selector)


def ask(driver: Chrome, question: str = QUESTION) -> None:
    field = one(driver, "#question")
    field.clear()
    field.send_keys(question, Keys.ENTER)


def test_a_typed_question_is_answered_with_mark_source_score_and_times(page: Chrome, live: Command) -> None:
    ask(page)
    wait(page, ".answer")
    assert "answers, best first" in one(page, "#status").text
    texts = {
        card.find_element(By.CSS_SELECTOR, ".passage").get_property("textContent") for card in many(page, ".answer")
    }
    assert texts <= set(TEXTS.values())
    for card in many(page, ".answer"):
        mark = card.find_element(By.TAG_NAME, "mark").text
        assert mark
        assert mark in card.find_element(By.CSS_SELECTOR, ".passage").text
        assert "%" in card.find_element(By.CSS_SELECTOR, ".score").text
    times = one(page, ".timing").text
    assert all(word in times for word in ("retrieve", "rank", "mark", "total", "ms")), times
    links = {link.get_attribute("href") for link in many(page, "a.source")}
    assert links == {"https://docs.example/mount"}  # no link where the source is no web address
    assert not many(page, ".passage img")
    messages = [json.loads(line["message"])["message"] for line in page.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    requested = {one["request"]["url"] for one in sent if one["documentURL"].startswith(live.url)}
    assert f"{live.url}/ask" in requested
    assert all(url.startswith(live.url) for url in requested), requested


def test_marks_count_characters_as_people_do(page: Chrome) -> None:
    ask(page, "folders copied whole")
    wait(page, ".answer")
    marks = [mark.text for mark in many(page, "mark")]
    assert TEXTS["copy.md"] in marks  # one sentence, to its end: each smiling face counts as one
    for mark in marks:
        assert mark.strip() == mark
        assert mark[-1] in ".t1"


def test_a_question_has_an_address_and_back_works(page: Chrome, live: Command) -> None:
    ask(page)
    wait(page, ".answer")
    assert page.current_url == f"{live.url}/?q=how%20do%20i%20mount%20a%20disk"
    ask(page, "copies a file")
    WebDriverWait(page, 20).until(lambda found: "copies" in found.current_url)
    page.back()
    WebDriverWait(page, 20).until(lambda found: one(found, "#question").get_property("value") == QUESTION)
    wait(page, ".answer")
    page.get(f"{live.url}/?q=disk")
    wait(page, ".answer")


def test_nothing_typed_says_so(page: Chrome) -> None:
    ask(page, "   ")
    assert one(page, "#status").text == "Type a question first."
    assert page.switch_to.active_element.get_attribute("id") == "question"
    assert not many(page, ".answer")


def test_no_answer_says_so(page: Chrome) -> None:
    ask(page, "xyzzy")
    assert "No answer found" in wait(page, "#no-answer").text
    assert not many(page, ".answer")


def test_an_error_is_told_and_can_be_tried_again(page: Chrome, live: Command) -> None:
    wait(page, "#about")
    os.kill(live.scorer(), signal.SIGSTOP)  # it hangs, and is ended after five seconds
    ask(page)
    problem = wait(page, "#problem")
    assert "That did not work" in problem.text
    assert "Try again in 1 s" in problem.text
    live.wait_ready()
    problem.find_element(By.TAG_NAME, "button").click()
    wait(page, ".answer")
    assert not one(page, "#problem").is_displayed()


def test_the_keyboard_is_enough(page: Chrome) -> None:
    body = one(page, "body")
    one(page, "#theme").click()
    body.send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "question"
    page.switch_to.active_element.send_keys(QUESTION, Keys.ENTER)
    wait(page, ".answer")
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.switch_to.active_element.send_keys("j")
    cards = many(page, ".answer")
    assert page.switch_to.active_element == cards[1]
    page.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert page.switch_to.active_element == cards[0]
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not many(page, ".answer")
    assert one(page, "#question").get_property("value") == ""


def test_teacher_and_student_stand_side_by_side(page: Chrome) -> None:
    wait(page, "#compare-line").click()
    ask(page)
    WebDriverWait(page, 30).until(lambda found: len(many(found, ".column")) == 2)
    student, teacher = many(page, ".column")
    assert student.find_element(By.TAG_NAME, "h2").text == "Student"
    assert teacher.find_element(By.TAG_NAME, "h2").text == "Teacher"
    assert "teacher's rank 1" in student.text
    assert "student's rank 1" in teacher.text
    assert student.location["y"] == teacher.location["y"]
    assert teacher.location["x"] > student.location["x"]
    assert len(many(page, ".timing")) == 2


def test_dark_and_light_follow_the_system_and_the_button(live: Command, tmp_path: Path) -> None:
    with browser(tmp_path / "dark", dark=True) as driver:
        driver.get(live.url)
        paper = one(driver, "body").value_of_css_property("background-color")
        assert paper == "rgba(19, 23, 22, 1)"
        one(driver, "#theme").click()
        light = one(driver, "body").value_of_css_property("background-color")
        assert light != paper
        driver.refresh()
        assert one(driver, "body").value_of_css_property("background-color") == light


CONTRAST = """
const lum = (c) => {
  const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const ground = (e) => {
  while (e) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c;
    e = e.parentElement;
  }
  return 'rgb(255,255,255)';
};
const bad = [];
for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
  const [a, b] = [lum(getComputedStyle(e).color), lum(ground(e))].sort((x, y) => y - x);
  if ((a + .05) / (b + .05) < 4.5) bad.push(e.outerHTML.slice(0, 120));
}
return bad;
"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_whole_and_readable(live: Command, tmp_path: Path, dark: bool) -> None:
    with browser(tmp_path / "phone", dark=dark, size=(500, 900)) as driver:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        )
        driver.get(f"{live.url}/?q=how+do+i+mount+a+disk")
        wait(driver, ".answer")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        assert driver.execute_script(CONTRAST) == []
        for button in many(driver, "button"):
            if button.is_displayed() and button.get_attribute("class") != "more":
                assert min(button.size.values()) >= 24
        unnamed = driver.execute_script(
            "return [...document.querySelectorAll('input,button,a')].filter(e => e.checkVisibility() && "
            "!(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map(e => e.outerHTML)"
        )
        assert unnamed == []


class Proxy(ThreadingHTTPServer):
    """A reverse proxy that serves a server below /tmkd, strips that path and may name it, as Traefik does."""

    def __init__(self, url: str, named: bool) -> None:
        self.target, self.named = url, named
        super().__init__(("127.0.0.1", 0), Forward)


class Forward(BaseHTTPRequestHandler):
    """One request that is passed on; what is not below the path is not there."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        proxy = self.server
        assert isinstance(proxy, Proxy)
        path, status, content, kind = self.path, 404, b"", "text/plain"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.partition("?")[0] == "/tmkd" or path.startswith("/tmkd/"):
            given = {"Content-Type": "application/json"} | ({"X-Forwarded-Prefix": "/tmkd"} if proxy.named else {})
            rest = path.removeprefix("/tmkd")
            url = f"{proxy.target}{rest if rest.startswith('/') else f'/{rest}'}"
            answer = httpx.request(self.command, url, content=body, headers=given)
            status, content, kind = answer.status_code, answer.content, answer.headers["content-type"]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(("named", "place"), [(False, "/tmkd/"), (True, "/tmkd/"), (True, "/tmkd")])
def test_the_page_works_below_a_path_of_a_proxy(live: Command, tmp_path: Path, named: bool, place: str) -> None:
    with Proxy(live.url, named) as proxy, browser(tmp_path / "p") as driver:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{proxy.server_port}/tmkd"
        driver.get(f"http://127.0.0.1:{proxy.server_port}{place}")
        ask(driver)
        wait(driver, ".answer")
        assert driver.current_url.startswith(f"{here}{place.removeprefix('/tmkd')}?q=")
        one(driver, "nav a").click()
        wait(driver, ".route")
        assert driver.current_url == f"{here}/docs"
        assert f"curl {here}/rerank" in one(driver, "#routes").text
        one(driver, ".brand a").click()
        wait(driver, "#question")
        assert driver.current_url == f"{here}/"
        messages = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
        assert not messages
        proxy.shutdown()


def test_a_prefix_that_leads_elsewhere_is_not_written_into_the_page(live: Command) -> None:
    for given in ("//evil.example", "https://evil.example", '/a"><script>', "/a/../..//b", "/a, /b"):
        found = httpx.get(live.url, headers={"X-Forwarded-Prefix": given}).text
        assert 'href="page/style.css"' in found, given
        assert "evil" not in found
    assert 'href="/a/b/page/style.css"' in httpx.get(live.url, headers={"X-Forwarded-Prefix": "/a/b/"}).text


def test_a_key_is_asked_for_and_kept_in_the_tab(tmp_path: Path) -> None:
    folder = index_of(tmp_path / "i", TEXTS).folder
    with (
        command("--index", str(folder), environment={"TMKD_API_KEY": "open"}) as live,
        browser(tmp_path / "p") as driver,
    ):
        driver.get(live.url)
        field = wait(driver, "#key")
        field.send_keys("wrong", Keys.ENTER)
        WebDriverWait(driver, 10).until(lambda found: "not accepted" in one(found, "#status").text)
        wait(driver, "#key").send_keys("open", Keys.ENTER)
        WebDriverWait(driver, 10).until(lambda found: not one(found, "#key-form").is_displayed())
        ask(driver)
        wait(driver, ".answer")
        driver.get(f"{live.url}/docs")
        wait(driver, ".route")


def test_the_api_is_described_with_examples(page: Chrome, live: Command) -> None:
    page.get(f"{live.url}/docs")
    wait(page, ".route")
    text = one(page, "#routes").text
    for path in ("POST /rerank", "POST /v1/rerank", "POST /v2/rerank", "POST /ask", "GET /metrics"):
        assert path in text
    assert "curl" in text
    assert "at most 1,000" in text
