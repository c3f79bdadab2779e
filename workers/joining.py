"""An agent that was given only a join token and where coordinators are: it registers there, and is told all else.

It joins before anything connects to Redis. From then on a native thread renews what it was given, tells coordinators that it is
there, and asks at once when Redis does not know its user any more (Redis forgets users when it restarts). While no coordinator
answers, the agent works on; when coordinators and Redis both refuse it, it ends: it has been cut off.
"""

from __future__ import annotations

import _thread
import base64
import dataclasses
import logging
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from ..bus.holdings import Wake
from ..client.bearer import Bearer
from ..client.calls import UNANSWERED, Caller, Endpoints
from ..core.envelopes import TaskKeys
from ..errors import Conflict, Invalid, MeshError, Refused
from ..settings import Settings, tell
from ..store import credentials, signing
from ..store.credentials import Credentials
from ..store.redis_users import hashed
from ..store.signing import AgentSigner
from ..telemetry import redacting
from .beat import start_native_thread

logger = logging.getLogger(__name__)
_POLL_S = 0.5
_SLACK_S = 2.0  # beyond a lease: so long a former life of the same id may seem to be there
_MOST_UNNAMED = 1000
_AGAIN_S = (0.5, 10.0)  # after a call that failed: the first pause, the longest
_LEAVE_MS = 3_000  # for the farewell: what is not heard runs out by itself
_NOPERM_S = 30.0  # what a task may not do is no reason to ask again and again


class _JoinBearer(Bearer):
    """The join token as it is now: a file may have been given a new one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, None)
        self._given = settings.join_token

    def headers(self) -> dict[str, str]:
        """Of each request."""
        try:
            token = Settings.load().join_token or self._given
        except Invalid:
            token = self._given
        return {"authorization": f"Bearer {token}"}


class Joining:
    """One agent's standing with the coordinators of its namespace."""

    def __init__(self, settings: Settings, capabilities: tuple[str, ...]) -> None:
        self.settings, self.capabilities = settings, capabilities
        self.agent_id = settings.agent_id or ""
        self.kids: tuple[str, ...] = ()
        self.trouble = ""  # what is wrong, for /health
        self.on_cut_off: Callable[[str], None] = lambda why: None
        self.on_usurped: Callable[[], None] = lambda: None
        self.on_kids: Callable[[tuple[str, ...]], None] = lambda kids: None
        self._signer = AgentSigner(settings.namespace)
        self._caller = self._new_caller(settings)
        self._wake = Wake()
        self._life, self._url = "", ""
        self._credentials: Credentials | None = None
        self._renew_at = self._ends_at = 0.0
        self._refused_at: float | None = None  # when Redis has refused the credentials that it has now
        self._asked_at = float("-inf")  # about rights that it lacks
        self._stopping = False
        self._left = _thread.allocate_lock()

    @staticmethod
    def _new_caller(settings: Settings) -> Caller:
        return Caller(settings, _JoinBearer(settings), Endpoints(settings.coordinator_urls))

    def _path(self, agent_id: str = "", more: str = "") -> str:
        path = f"/v1/namespaces/{quote(self.settings.namespace, safe='')}/agents"
        return f"{path}/{quote(agent_id, safe='')}{more}" if agent_id else path

    def _says(self) -> dict[str, Any]:
        public = base64.urlsafe_b64encode(self._signer.public_key).rstrip(b"=").decode()
        return {"capabilities": list(self.capabilities), "public_key": public}

    # -- joining

    def join(self) -> Settings:
        """Register; the settings with what was told. Raises what the coordinator says, or that none answers."""
        answer = self._join_as(self.agent_id) if self.agent_id else self._join_unnamed()
        self.agent_id, self._life = answer["id"], answer["life"]
        try:
            return self._begin(answer)
        except BaseException:
            self.leave()
            raise

    def _begin(self, answer: Mapping[str, Any]) -> Settings:
        granted = answer["granted"]
        self._url = granted["redis"]["url"]
        self._take(answer)
        logger.info(
            "joined as %s over HTTP: access to Redis of its %s, until %s",
            self.agent_id,
            "own" if granted["redis"]["reach"] == "own" else "coordinator (shared)",
            answer["expires_at"],
        )
        settings = tell(self.settings, redis_url=self._url, agent_type=granted["agent_type"])
        return dataclasses.replace(settings, agent_id=self.agent_id)

    def _join_as(self, agent_id: str) -> Any:
        """A former life of this id, if it was killed, seems to be there until its lease has ended."""
        until = time.monotonic() + self.settings.lease_ms / 1000 + _SLACK_S
        while True:
            try:
                return self._post(agent_id)
            except Conflict:
                if time.monotonic() > until:
                    raise
            time.sleep(_POLL_S)

    def _join_unnamed(self) -> Any:
        host = socket.gethostname().partition(".")[0]
        for number in range(1, _MOST_UNNAMED):
            try:
                return self._post(f"{host}-{number}")
            except Conflict:
                continue
        raise Conflict(f"{_MOST_UNNAMED} unnamed agents run on {host}: give this one an id with --agent-id.")

    def _post(self, agent_id: str) -> Any:
        try:
            return self._caller.call(
                "POST", self._path(), msgspec.json.encode({"id": agent_id, **self._says()})
            )
        except Refused as error:
            if self.settings.agent_capabilities:
                raise
            said = str(error).rstrip(".")
            raise Refused(f"{said}; --capabilities (AGENT_CAPABILITIES) names which to offer.") from None

    def _take(self, answer: Mapping[str, Any]) -> None:
        """Use what was granted from now on."""
        now, life_s = time.monotonic(), float(answer["expires_in_s"])
        self._ends_at, granted = now + life_s, answer["granted"]
        if granted is None:
            return
        self._renew_at = now + life_s / 2
        login = granted["redis"]
        redacting.keep(login["password"])
        if self._credentials is not None:
            self._credentials.set(login["username"], login["password"])
        elif login["password"] is not None:
            self._credentials = Credentials(login["username"], login["password"])
            self._credentials.on_refused = self._refused
            credentials.use(self._url, self._credentials)
        self._signer.certified(granted["certificate"])
        signing.become(self.settings.namespace, self._signer, TaskKeys.from_json(granted["task_keys"]))
        self.kids = tuple(granted["kids"])
        self.on_kids(self.kids)

    @property
    def proof(self) -> dict[str, str]:
        """Field of its record that shows coordinators whose record it is."""
        return {"life": hashed(self._life)}

    # -- staying

    def start(self) -> None:
        """The pool runs: threads may."""
        # Connections of its own, under gevent in another hub than the one that joined; and one that hangs must not hold it up.
        patience_ms = min(self.settings.transport_timeout_ms, self.settings.lease_ms)
        self._caller.close()
        self._caller = self._new_caller(dataclasses.replace(self.settings, transport_timeout_ms=patience_ms))
        start_native_thread(self._run)

    def _refused(self, code: str) -> None:
        """In any thread, and in forked children: Redis has refused the credentials, or (NOPERM) what was done with them."""
        if code != "NOPERM":
            self._refused_at = self._refused_at or time.monotonic()
        elif time.monotonic() - self._asked_at < _NOPERM_S:
            return
        self._asked_at = time.monotonic()
        self._wake.set()

    def _run(self) -> None:
        pause_s, failures = self._until_next(), 0
        while True:
            refused = bool(select.select([self._wake.reader], [], [], pause_s)[0])
            self._wake.clear()
            if self._stopping:
                return
            try:
                well = self._beat(refused)
            except Exception:
                logger.exception("heartbeat to the coordinator")
                well = False
            failures = 0 if well else failures + 1
            first, longest = _AGAIN_S
            pause_s = self._until_next() if well else min(longest, first * 2 ** min(failures, 10))
            if refused:
                time.sleep(0.1)  # many connections are refused at the same moment

    def _until_next(self) -> float:
        life_s = max(0.0, self._renew_at - time.monotonic())
        return max(0.1, min(self.settings.heartbeat_interval_ms / 1000, life_s))

    def _beat(self, refused: bool) -> bool:
        """One heartbeat; whether it was answered well."""
        now = time.monotonic()
        password = self._credentials.current[1] if self._credentials is not None else None
        body = {
            **self._says(),
            "life": self._life,
            "kids": list(self.kids),
            "password_hash": None if password is None else hashed(password),
            "refused": refused or self._refused_at is not None,
            "renew": now >= self._renew_at,
        }
        path = self._path(self.agent_id, "/heartbeat")
        try:
            answer = self._caller.call("PUT", path, msgspec.json.encode(body), patient=False)
        except UNANSWERED as error:
            self._in_trouble(f"no coordinator answers: {error}")
            return False
        except Conflict as error:
            logger.critical("%s", error)
            self._stopping = True
            self.on_usurped()
            return False
        except MeshError as error:
            self._in_trouble(f"coordinators refuse it: {error}")
            if self._refused_at is not None:
                self._stopping = self._left.acquire(False)  # nothing is left to give back
                self.on_cut_off(str(error))
            return False
        self._take(answer)
        self._refused_at = None
        if self.trouble:
            logger.info("a coordinator answers again: credentials are good until %s", answer["expires_at"])
        self.trouble = ""
        return True

    def _in_trouble(self, why: str) -> None:
        left_s = self._ends_at - time.monotonic()
        end = (
            f"what it was given is good for {left_s:.0f} s more"
            if left_s > 0
            else "what it was given has ended"
        )
        if not self.trouble:
            logger.warning("%s; %s", why, end)
        self.trouble = f"{why}; {end}"

    # -- leaving

    def leave(self) -> None:
        """Give back what it was given: the last that it does, Redis hears nothing of it any more. Never raises."""
        if not self._left.acquire(False):
            return
        self._stopping = True
        self._wake.set()
        caller = self._new_caller(dataclasses.replace(self.settings, transport_timeout_ms=_LEAVE_MS))
        try:
            path = self._path(self.agent_id, f"?life={quote(self._life, safe='')}")
            caller.call("DELETE", path, patient=False)
        except MeshError as error:
            logger.warning("left without saying so to a coordinator: %s", error)
        finally:
            caller.close()
