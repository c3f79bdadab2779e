"""Tokens from the command line and over HTTP: made, looked into, revoked."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import httpx2
import pytest

from mesh.core import tokens
from mesh.core.keyring import Keyring
from tests.acceptance.conftest import Place
from tests.acceptance.test_coordinator import start
from tests.conftest import SECRET
from tests.tokens import bearer, token
from tests.waiting import wait_until

RING = Keyring([SECRET])
WHO = ("--agent-id", "test", "--agent-type", "worker")


def made(place: Place, *words: str) -> str:
    done = place.call("auth", *WHO, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def inspected(
    place: Place, *words: str, stdin: str = "", **environ: str | None
) -> tuple[int, dict[str, Any]]:
    done = place.call("token", "inspect", "-o", "json", *words, stdin=stdin.encode(), **environ)
    return done.returncode, json.loads(done.stdout)


def test_a_token_as_the_contract_has_it(place: Place) -> None:
    text = made(place)
    claims = tokens.verify("api", text, RING, now_s=time.time())
    assert (claims.subject, claims.agent_type, claims.namespaces) == ("test", "worker", (place.namespace,))
    assert claims.expires_at - claims.issued_at == 3600 and claims.capabilities is None
    assert made(place) != text


def test_everything_that_it_can_say(place: Place) -> None:
    words = ("--join", "--all-namespaces", "--capabilities", "ocr, gpu", "--ttl", "30m", "-o", "json")
    row = json.loads(made(place, *words))
    claims = tokens.verify("join", row["token"], RING, now_s=time.time())
    assert claims.capabilities == ("ocr", "gpu") and claims.expires_at - claims.issued_at == 1800
    shown = {
        name: row[name] for name in ("kind", "subject", "agent_type", "namespaces", "capabilities", "jti")
    }
    assert shown == {
        "kind": "join", "subject": "test", "agent_type": "worker", "namespaces": ["*"],
        "capabilities": ["ocr", "gpu"], "jti": claims.jti,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("3600", 3600), ("90s", 90), ("12h", 43_200), ("366d", 366 * 86_400)]
)
def test_times(place: Place, ttl: str, seconds: int) -> None:
    claims = tokens.verify("api", made(place, "--ttl", ttl), RING, now_s=time.time())
    assert claims.expires_at - claims.issued_at == seconds


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--agent-id and --agent-type"),
        (("--agent-id", "a"), "--agent-id and --agent-type"),
        ((*WHO, "--ttl", "soon"), "is not a time like"),
        ((*WHO, "--ttl", "0"), "lives for 1 to"),
        ((*WHO, "--ttl", "367d"), "lives for 1 to"),
        (("--agent-id", "a b", "--agent-type", "worker"), "not a valid subject"),
        ((*WHO, "--capabilities", "a/b"), "not a valid capability"),
    ],
)
def test_what_is_wrong_is_said(place: Place, words: tuple[str, ...], says: str) -> None:
    done = place.call("auth", *words)
    assert (done.returncode, done.stdout) == (2, "") and says in done.stderr


def test_without_the_secret_nobody_makes_one(place: Place) -> None:
    done = place.call("auth", *WHO, MESH_JWT_SECRET=None)
    assert done.returncode == 2 and "MESH_JWT_SECRET is not set" in done.stderr


def test_looking_into_one(place: Place) -> None:
    text = made(place)
    code, row = inspected(place, text)
    assert (code, row["valid"], row["why"], row["kind"], row["kid"]) == (0, True, None, "api", RING.kids[0])
    assert row["claims"]["sub"] == "test"
    assert inspected(place, stdin=f"{text}\n") == inspected(place, "-", stdin=text) == (code, row)
    people = place.call("token", "inspect", text)
    assert people.returncode == 0 and "expires" in people.stdout and SECRET not in people.stdout


def test_why_one_is_not_valid(place: Place) -> None:
    text = made(place)
    changed = text[:-2] + ("AA" if not text.endswith("AA") else "BA")
    other = "0" * 3 + SECRET[3:]
    for code, row, why in (
        (*inspected(place, changed), "signature"),
        (*inspected(place, text, MESH_JWT_SECRET=other), "key that is not known"),
        (*inspected(place, text, MESH_JWT_SECRET=None), "could not be verified"),
        (*inspected(place, "eyJ.eyJ.x"), "not a token"),
        (*inspected(place, "\x1b[31m.a.b"), "not a token"),
    ):
        assert code == 4 and not row["valid"] and why in row["why"], row


def revoked(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return place.call("token", "revoke", *words)


def test_revoking_by_text_by_jti_and_by_subject(place: Place) -> None:
    by_text, by_jti, kept = (made(place) for _ in range(3))
    assert revoked(place, by_text).returncode == 0
    jti = tokens.verify("api", by_jti, RING, now_s=time.time()).jti
    assert jti.isalnum()  # never taken for an option
    assert revoked(place, jti).stdout.strip() == f"revoked: token {jti}"
    for text in (by_text, by_jti):
        assert inspected(place, text)[1]["why"] == "it was revoked"
    assert inspected(place, kept)[0] == 0
    words = ("auth", "--agent-id", f"s-{place.namespace}", "--agent-type", "worker")
    text = place.call(*words).stdout.strip()
    assert revoked(place, "--subject", f"s-{place.namespace}").returncode == 0
    assert inspected(place, text)[1]["why"] == "it was revoked"
    assert inspected(place, kept)[0] == 0
    assert [
        key
        for key in place.mesh.store.client.execute("ZRANGE", "mesh:{mesh}:revoked", 0, -1)
        if by_text.encode() in key
    ] == []


@pytest.mark.parametrize(
    "words", [(), ("a.b.c",), ("short",), ("a" * 20, "--subject", "x"), ("--subject", "a b")]
)
def test_what_cannot_be_revoked(place: Place, words: tuple[str, ...]) -> None:
    assert revoked(place, *words).returncode == 2


# -- over HTTP


def test_issued_and_revoked_over_http(place: Place) -> None:
    urls = [start(place, name)[1] for name in ("one", "two")]
    tasks = f"/v1/namespaces/{place.namespace}/tasks"
    with httpx2.Client(timeout=30) as http:

        def issue(headers: dict[str, str], **body: Any) -> httpx2.Response:
            body = {"subject": "billing", "agent_type": "producer", "namespaces": [place.namespace]} | body
            return http.post(f"{urls[0]}/v1/tokens", json=body, headers=headers)

        def status(url: str, text: str) -> int:
            return http.get(url + tasks, headers={"Authorization": f"Bearer {text}"}).status_code

        def revoke(text: str, headers: dict[str, str]) -> int:
            return http.post(f"{urls[0]}/v1/tokens:revoke", json={"token": text}, headers=headers).status_code

        admin = bearer("admin", "ann", [place.namespace])
        answer = issue(admin, ttl_s=60)
        row = answer.json()
        assert answer.status_code == 201 and answer.headers["cache-control"] == "no-store"
        claims = tokens.verify("api", row["token"], RING, now_s=time.time())
        assert (claims.jti, claims.subject, claims.agent_type) == (row["jti"], "billing", "producer")
        assert claims.expires_at - claims.issued_at == 60
        assert [status(url, row["token"]) for url in urls] == [200, 200]

        # nobody gets more than he has
        assert issue(admin, namespaces=["elsewhere"]).status_code == 404
        assert issue(admin, namespaces=["*"]).status_code == 403
        assert issue(bearer("operator", "olaf", [place.namespace])).status_code == 403
        narrow = {"Authorization": f"Bearer {made(place, '--agent-type', 'admin', '--capabilities', 'ocr')}"}
        assert issue(narrow, kind="join").status_code == 403
        assert issue(narrow, kind="join", capabilities=["ocr", "gpu"]).status_code == 403
        assert issue(narrow, kind="join", capabilities=["ocr"]).status_code == 201
        assert issue(admin, ttl_s=0).status_code == issue(admin, agent_type="a b").status_code == 422
        assert issue(admin, namespaces=["A B"]).status_code in (404, 422)
        assert issue({}).status_code == revoke(row["token"], {}) == 401

        assert revoke(row["token"], bearer("operator", "olaf", [place.namespace])) == 403
        assert revoke("short", admin) == revoke(row["token"][:-4], admin) == 422
        assert revoke(row["token"], admin) == 200
        assert status(urls[0], row["token"]) == 401, "at once where it was told"
        begun = time.monotonic()
        wait_until(lambda: status(urls[1], row["token"]) == 401, 10, "the other coordinator to hear of it")
        assert time.monotonic() - begun < 5  # 2 s, and room for a busy machine

        mine = token("viewer", f"v-{place.namespace}", [place.namespace])
        assert status(urls[0], mine) == 200
        assert revoked(place, "--subject", f"v-{place.namespace}").returncode == 0
        for url in urls:
            wait_until(lambda url=url: status(url, mine) == 401, 10, "it to hear of it")  # type: ignore[misc]


@pytest.mark.ci
def test_a_token_is_revoked_and_recorded_where_it_counts(place: Place) -> None:
    url = start(place, "one")[1]
    home, other, third = place.namespace, f"{place.namespace}-b", f"{place.namespace}-c"
    with httpx2.Client(timeout=30) as http:

        def ask(headers: dict[str, str], method: str, path: str, body: Any = None) -> int:
            return http.request(method, f"{url}/v1/tokens{path}", json=body, headers=headers).status_code

        def valid(text: str) -> bool:
            return inspected(place, text)[0] == 0

        def recorded(*spaces: str) -> set[tuple[str, str, bool]]:
            """(action, namespace, allowed) of what the mesh's administrator reads of these namespaces."""
            found = http.get(f"{url}/v1/audit?limit=1000", headers=bearer("admin", "root", ["*"])).json()[
                "entries"
            ]
            return {(e["action"], e["namespace"], e["allowed"]) for e in found if e["namespace"] in spaces}

        of_both, of_all = bearer("admin", "bea", [other, third]), bearer("admin", "root", ["*"])
        of_other = bearer("admin", "ann", [other])
        text = token("viewer", "v", [other, third])
        jti = tokens.verify("api", text, RING, now_s=time.time()).jti

        body = {"subject": "x", "agent_type": "viewer", "namespaces": [other, third]}
        assert ask(of_both, "POST", "", body) == 201
        assert ask(of_other, "POST", ":revoke", {"token": text}) == 404, (
            "it is for a namespace that is not his"
        )
        assert ask(of_both, "DELETE", f"/{jti}") == 403, "a jti may be anybody's"
        assert ask(of_both, "POST", ":revoke", {"token": token("viewer", "v", ["*"])}) == 403
        assert valid(text)
        assert ask(of_both, "POST", ":revoke", {"token": text}) == 200
        assert not valid(text)
        everywhere = token("viewer", f"all-{home}", ["*"])
        assert ask(of_all, "POST", ":revoke", {"token": everywhere}) == 200 and not valid(everywhere)
        by_jti = token("viewer", "w", [third])
        jti = tokens.verify("api", by_jti, RING, now_s=time.time()).jti
        assert ask(of_all, "DELETE", f"/{jti}") == 200 and not valid(by_jti)

        expected = {
            (verb, space, True) for verb in ("issue token", "revoke token") for space in (other, third)
        }
        wait_until(lambda: expected <= recorded(other, third), 10, "the audit log to be written")
        assert ("revoke token", "*", True) in recorded("*") and ("revoke token", "*", False) in recorded("*")
        assert recorded(home) == set()
