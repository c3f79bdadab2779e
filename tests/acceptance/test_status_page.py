"""The coordinator's status page, as a person sees it in a browser: a real coordinator, real agents, real failures."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mesh.client import Handle
from mesh.core.states import TERMINAL
from mesh.store.embedded import free_port
from tests.acceptance.conftest import Place, Running, make_place
from tests.acceptance.test_coordinator import start
from tests.tokens import token
from tests.waiting import wait_until

pytestmark = pytest.mark.xdist_group("status-page")  # one mesh and one window are enough
MARKUP = "<img src=x onerror=document.title='owned'>"
TASKS = """
import os
from mesh import task

@task("fine")
def fine(payload):
    return payload

@task("broken", retries=0)
def broken(payload):
    raise ValueError(payload)

@task("flaky", retry_delay_s=0.3)
def flaky(payload):
    if not os.path.exists(payload):
        open(payload, "w").close()
        raise OSError("the disk was asleep")
    return "awake"
"""
SOON_S = 20
PICTURE = Path(__file__).parents[2] / "docs/images/status-page.png"


@dataclass
class Site:
    """A mesh, and its page in a window."""

    place: Place
    coordinator: Running
    url: str
    window: webdriver.Chrome

    def open(self, *, agent_type: str = "viewer", **asked: str) -> None:
        """The page with a token of that type in the tab already."""
        self.window.get(f"{self.url}/page/icon.svg")
        found = json.dumps(token(agent_type, "looker", [self.place.namespace]))
        self.window.execute_script(f"sessionStorage.setItem('mesh-token', {found})")
        self.window.get(f"{self.url}/#{'&'.join(f'{name}={value}' for name, value in asked.items())}")

    def text(self, where: str) -> str:
        """What can be read there."""
        try:
            return "\n".join(one.text for one in self.window.find_elements(By.CSS_SELECTOR, where))
        except StaleElementReferenceException:  # the page has just drawn itself anew
            return ""

    def see(self, where: str, *words: str) -> str:
        """Wait until all the words can be read there; all that can."""
        said = f"{words} in {where}"
        try:
            wait_until(lambda: all(word in self.text(where) for word in words), SOON_S, said)
        except AssertionError as error:
            raise AssertionError(f"{error}; there is: {self.text('body')}") from None
        return self.text(where)

    def press(self, *keys: str) -> None:
        """Wherever the focus is."""
        for key in keys:
            self.window.switch_to.active_element.send_keys(key)

    def focus(self) -> dict[str, Any]:
        """Of the element that has the focus: its id and text."""
        found: dict[str, Any] = self.window.execute_script(
            "const one = document.activeElement; return {id: one.id, text: one.textContent}"
        )
        return found

    def fail(self, message: str = "no such luck") -> Handle:
        handle = self.place.mesh.submit("broken", message, labels={"note": "<b>bold</b>"})
        wait_until(lambda: handle.status() in TERMINAL, SOON_S, "it to fail")
        return handle


@pytest.fixture(scope="module")
def site(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, browser: webdriver.Chrome
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    with make_place(redis_url, f"page-{uuid.uuid4().hex[:8]}", folder) as place:
        (folder / "tasks.py").write_text(TASKS)
        coordinator, url = start(place, "c1", "--port", str(free_port()))
        words = ("-I", "tasks", "--capabilities", "fine,broken,flaky", "--pool", "solo", "--region", "eu")
        agents = [
            place.start("deploy", "--agent-id", name, "--agent-name", MARKUP, *words) for name in ("w1", "w2")
        ]
        for name, agent in zip(("w1", "w2"), agents, strict=True):
            place.wait_for(agent, lambda name=name: place.pid_of(name), f"agent {name} to join")
        yield Site(place, coordinator, url, browser)


@pytest.fixture(autouse=True)
def _scripts_have_nothing_to_complain_of(site: Site) -> Iterator[None]:
    """Neither an error nor a violation of the policy; refused requests are told by the network, not by scripts."""
    site.window.get_log("browser")
    yield
    said = [one for one in site.window.get_log("browser") if one["source"] != "network"]
    assert said == []


def test_programs_get_links_and_people_the_page(site: Site) -> None:
    links = httpx2.get(f"{site.url}/").json()
    assert (
        links["namespace"] == site.place.namespace
        and links["links"]["queues"] == f"/v1/namespaces/{site.place.namespace}/queues"
    )
    page = httpx2.get(f"{site.url}/", headers={"accept": "text/html,*/*;q=0.8"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policies = page.headers.get_list("content-security-policy")
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policies[0] and "require-trusted-types-for 'script'" in policies[0]
    assert "://" not in page.text and "<style" not in page.text and " style=" not in page.text
    missing = httpx2.get(f"{site.url}/page/..%2Fapp.py")
    assert missing.status_code == 404 and "default-src 'none'; frame-ancestors" in str(missing.headers)


def test_it_asks_for_a_token_and_shows_the_mesh(site: Site) -> None:
    window = site.window
    window.get(f"{site.url}/page/icon.svg")
    window.execute_script("sessionStorage.clear()")
    window.get(site.url)
    site.see("#enter", "Who are you?", "mesh auth")
    wait_until(lambda: site.focus()["id"] == "token", SOON_S, "the focus")
    assert "w1" not in site.text("body")
    site.press("two words", Keys.ENTER)
    site.see("#refusal", "A token is one word")
    site.press(token(secret="x" * 40), Keys.ENTER)
    assert "Paste another one." in site.see("#refusal", "missing or not valid")
    site.press(token("viewer", "looker", [site.place.namespace]), Keys.ENTER)
    site.see("#agents tbody", "w1", "w2", "healthy", "eu")
    site.see("#capabilities tbody", "broken", "fine", "flaky", "2 of 2")
    site.see("#totals", "Healthy agents\n2 of 2", "Free slots\n2 of 2")
    site.see("#connection", "Live")
    assert "eyJ" not in window.current_url and "eyJ" not in window.page_source
    window.refresh()
    site.see("#agents tbody", "w1")
    window.find_element(By.ID, "leave").click()
    site.see("#enter", "Who are you?")
    window.refresh()
    site.see("#enter", "Who are you?")


@pytest.mark.ci
def test_what_fails_appears_by_itself(site: Site) -> None:
    site.open()
    site.see("#connection", "Live")
    site.see(
        "#throughput .legend", "/s"
    )  # it has looked at the counts before anything waits: only a difference is drawn
    site.window.execute_script("window.mine = true")
    handles = site.place.mesh.submit_many("fine", range(20))
    failed = site.fail("no such luck")
    row = site.see("#failures tbody", failed.id, "no such luck")
    assert "broken" in row and "dead lettered" in row and site.window.execute_script("return window.mine")
    wait_until(lambda: all(one.status() in TERMINAL for one in handles), SOON_S, "all to end")
    site.see("#queues tbody", "fine 0 – 0 0 20 0")
    points = (
        "return document.querySelectorAll('#throughput polyline.succeeded, #waits polyline.average').length"
    )
    wait_until(lambda: site.window.execute_script(points) == 2, SOON_S, "both charts")


@pytest.mark.ci
def test_one_task_and_its_attempts(site: Site) -> None:
    flaky = site.place.mesh.submit("flaky", str(site.place.folder / "marker"))
    assert flaky.result(timeout_s=SOON_S) == "awake"
    site.open(ns=site.place.namespace, task=flaky.id)
    site.see("#task", f"Task {flaky.id}", "succeeded", "Type\nflaky", "It has ended: succeeded")
    first, second = (
        site.see("#task tbody", "the disk was asleep").replace("\n", " ").split("the disk was asleep")
    )
    assert first.startswith("1 w") and " failed " in first
    assert second.strip().startswith("2 w") and " succeeded " in second
    ran = site.window.find_elements(By.CSS_SELECTOR, "#task tbody rect.bad, #task tbody rect.good")
    places = [one.rect for one in ran]
    assert len(places) == 2 and places[0]["x"] + places[0]["width"] <= places[1]["x"]
    site.window.find_element(By.ID, "close").click()
    wait_until(lambda: not site.text("#task"), SOON_S, "it to close")
    site.open(task="nothing")
    site.see("#task", "There is no task 'nothing'")


@pytest.mark.ci
def test_it_works_without_a_mouse(site: Site) -> None:
    failed = site.fail()
    site.open()
    site.see("#failures tbody", failed.id)
    body = site.window.find_element(By.TAG_NAME, "body")
    body.send_keys("/")
    assert site.focus()["id"] == "filter"
    site.press(failed.id[:13])
    wait_until(
        lambda: failed.id in site.text("#failures") and "w1" not in site.text("#agents"), SOON_S, "the filter"
    )
    for _ in range(12):
        if site.focus()["text"] == failed.id:
            break
        site.press(Keys.TAB)
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert site.focus()["text"] == failed.id and site.window.execute_script(outline) == "solid"
    site.press(Keys.ENTER)
    wait_until(lambda: site.focus() == {"id": "task-title", "text": f"Task {failed.id}"}, SOON_S, "the task")
    site.see("#task tbody", "no such luck")
    site.press(Keys.ESCAPE)
    wait_until(lambda: site.focus()["text"] == failed.id, SOON_S, "the focus to come back")
    seen = set()
    for _ in range(20):
        site.press(Keys.TAB)
        seen.add(site.focus()["id"])
    assert {"namespace", "task-id", "filter", "pause", "leave"} <= seen


@pytest.mark.ci
def test_names_are_text(site: Site) -> None:
    failed = site.fail(MARKUP)
    site.open(task=failed.id)
    site.see("#failures tbody", MARKUP)
    site.see("#task tbody", MARKUP)
    assert "note=<b>bold</b>" in site.text("#task")
    assert site.window.find_elements(By.CSS_SELECTOR, "img, main b") == []
    assert "owned" not in site.window.title


def test_who_may_not_is_told_what_is_missing(site: Site) -> None:
    site.open(agent_type="producer")
    for one in ("#capabilities", "#queues"):
        site.see(one, "looker may not: ")
    site.see("#connection", "looker may not: ")
    site.open(agent_type="viewer", ns="elsewhere")
    site.see("#queues", "There is no namespace 'elsewhere'")


@pytest.mark.ci
def test_it_comes_back_with_its_coordinator(site: Site) -> None:
    site.open()
    site.see("#connection", "Live")
    site.coordinator.kill()
    site.see("#connection", "Connection lost: trying again")
    port = site.url.rpartition(":")[2]
    site.coordinator, _ = start(site.place, "c1", "--port", port)
    site.see("#connection", "Live")
    failed = site.fail()
    site.see("#failures tbody", failed.id)


HOLD_BACK = """
const ask = window.fetch;
window.held = [];
window.fetch = async (path, options) => {
  if (!/state=|dead-letters/.test(path)) return ask(path, options);
  const answer = await ask(path, options);
  const whole = new Response(await answer.text(), answer);
  await new Promise((go) => window.held.push(go));
  return whole;
};
window.letGo = () => { window.fetch = ask; window.held.forEach((go) => go()); };
"""


@pytest.mark.ci
def test_pause(site: Site) -> None:
    """Nothing changes any more, not even by answers that were under way."""
    site.open()
    site.see("#connection", "Live")
    site.window.execute_script(HOLD_BACK)
    failed = site.fail()
    wait_until(lambda: site.window.execute_script("return held.length") >= 3, SOON_S, "it to ask")
    site.window.find_element(By.ID, "pause").click()
    site.see("#connection", "Paused.")
    site.window.execute_async_script("letGo(); setTimeout(arguments[0], 0)")
    also = site.fail()
    assert not {failed.id, also.id} & set(site.text("#failures").split())
    site.window.find_element(By.ID, "pause").click()
    for one in (failed, also):
        site.see("#failures tbody", one.id)


@pytest.mark.skipif("DOCS_PICTURES" not in os.environ, reason="DOCS_PICTURES is not set")
@pytest.mark.timeout(300)
def test_pictures(site: Site) -> None:
    """For docs/, and of other sizes and colours into the folder that the variable names."""
    mesh, window = site.place.mesh, site.window
    mesh.submit_many("nobody", range(7), unsatisfiable="accept")
    flaky = mesh.submit("flaky", str(site.place.folder / "again"))
    failed = site.fail("the invoice has no number")
    folder = Path(os.environ["DOCS_PICTURES"])
    for scheme in ("light", "dark"):
        window.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        for size in ((1440, 900), (1024, 700)):
            window.set_window_size(*size)
            site.open()
            for number in range(1, 6):
                mesh.submit_many("fine", range(number * 10))
                count = "return (document.querySelector('#throughput polyline')?.getAttribute('points') ?? '').split(' ').length"
                wait_until(
                    lambda number=number, count=count: window.execute_script(count) > number,
                    SOON_S,
                    "a point",
                )
            window.save_screenshot(folder / f"{scheme}-{size[0]}.png")
            if (scheme, size) == ("light", (1440, 900)):
                PICTURE.parent.mkdir(exist_ok=True)
                window.save_screenshot(PICTURE)
            window.execute_script(f"location.hash = 'task={flaky.id}'")
            site.see("#task tbody", "asleep")
            window.save_screenshot(folder / f"{scheme}-{size[0]}-task.png")
    assert failed.status() in TERMINAL
