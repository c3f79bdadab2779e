"""The result backend: recording a result *is* ending the attempt.

State, result, lease, counters and the chord part change in one script (`settle.lua`). Where the pool shares the agent's
process, successes go to the outbox; a forked pool child settles by itself what has a result to store, and leaves the rest
to its parent's acknowledgement. Failures are always recorded at once: callbacks follow only if the record moved.
Reading and waiting are Celery's own Redis backend on our keys: the result's key is also the channel of its end.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import states
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError, Reject, SoftTimeLimitExceeded, TimeLimitExceeded
from celery.result import GroupResult, allow_join_result
from kombu.exceptions import EncodeError
from kombu.utils.json import dumps as json_dumps
from kombu.utils.json import loads as json_loads

from mesh.bus import messages, runtime
from mesh.bus.documents import one_line
from mesh.bus.holdings import Holding
from mesh.bus.messages import ATTEMPT_HEADER, part_index
from mesh.bus.opening import open_body, open_stored
from mesh.bus.publishing import TooLate, current_attempt, parent_run
from mesh.bus.results import ResultConsumer
from mesh.bus.tracing import of_request
from mesh.core.envelopes import Rejected, peel
from mesh.core.states import RECORDED, Reason, State, celery_status
from mesh.errors import StoreUnavailable
from mesh.store.connections import HEALTH_CHECK_S, stand_in
from mesh.store.signing import body_sealer
from mesh.store.store import Store
from mesh.store.tasks import Crashed, Entry, Settlement
from mesh.telemetry.tracing import continuing, current

logger = logging.getLogger(__name__)
POISON = (State.DEAD_LETTERED, "poison")
_RETRY_S = 0.5  # between tries to settle while Redis is away: the attempt's work must not be lost


def _came_too_late(exc: BaseException) -> bool:
    """Whether it would have been tried again, but after its deadline: said by `@task`, or by Celery's own retry."""
    return getattr(exc, "mesh_too_late", False) or (
        isinstance(exc, Reject) and isinstance(exc.reason, TooLate)
    )


def _reason(exc: BaseException) -> str:
    """What a record gives as the reason of a failure."""
    if _came_too_late(exc):
        return Reason.DEADLINE
    if isinstance(exc, (TimeLimitExceeded, SoftTimeLimitExceeded)):
        return Reason.ATTEMPT
    return type(exc).__name__


class Backend(RedisBackend):  # type: ignore[misc]
    """`result_backend = "mesh.bus.backend:Backend"`; the namespace is that of the app's transport."""

    ResultConsumer = ResultConsumer

    def __init__(self, app: Any = None, url: str | None = None, **kwargs: Any) -> None:
        self.namespace = app.conf.broker_transport_options.get("namespace", "default")
        self.store: Store = runtime.store_of(self.namespace)
        keys = self.store.keys
        self.task_keyprefix = keys.of("result", "")
        self.group_keyprefix = keys.of("group", "")
        self.chord_keyprefix = keys.of("chord", "")
        super().__init__(app=app, url=stand_in(self.store.settings.redis_url), **kwargs)

    def _create_client(self, **params: Any) -> Any:
        """On connections like the store's: one place knows URLs, time-outs, and what a sentinel is."""
        return self.store.client.redis_py(health_check_interval=HEALTH_CHECK_S)

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        return super(RedisBackend, self).__reduce__((), {"expires": self.expires})

    # -- ends of attempts

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """A task returned."""
        keep = bool(store_result and not (request is not None and request.ignore_result))
        chord = request is not None and request.chord
        document = b""
        if keep or chord:
            document = self._document(task_id, self.encode_result(result, state), state, None, request)
        elif runtime.holdings is None and getattr(request, ATTEMPT_HEADER, None):
            return  # a pool child without a result to store: the parent's acknowledgement ends it, in its batch
        self._end(task_id, request, State.SUCCEEDED, document, keep=keep)

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """A task failed; its chain and errbacks follow only if this was news."""
        if isinstance(exc, WorkerLostError) and getattr(request, ATTEMPT_HEADER, None):
            return  # `Request` has told the store: this is a crash, not a failure
        document = self._document(task_id, self.encode_result(exc, state), state, traceback, request)
        if self._end(
            task_id,
            request,
            self._failed_state(exc),
            document,
            keep=True,
            reason=_reason(exc),
            error=one_line(exc),
        ):
            self._after_failure(request, exc, traceback, store_result, call_errbacks, state)

    def _after_failure(
        self,
        request: Any,
        exc: BaseException,
        traceback: Any,
        store_result: bool,
        call_errbacks: bool,
        state: str,
    ) -> None:
        if request is None:
            return
        with continuing(of_request(request) if request.id else None):
            self._fail_chain(
                getattr(request, "chain", None), exc, traceback, store_result=store_result, state=state
            )
            if call_errbacks and request.errbacks:
                self._call_task_errbacks(request, exc, traceback)

    @staticmethod
    def _failed_state(exc: BaseException) -> State:
        if _reason(exc) in (Reason.ATTEMPT, Reason.DEADLINE):
            return State.TIMED_OUT
        # A task of the mesh whose retries are used up says so on the exception that it lets go, see `mesh.bus.task`.
        return State.DEAD_LETTERED if getattr(exc, "mesh_retries_used_up", False) else State.FAILED

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """A worker skipped or stopped it."""
        exc = self.exception_to_python(
            {"exc_type": "TaskRevokedError", "exc_module": "celery.exceptions", "exc_message": [reason]}
        )
        document = self._document(task_id, self.encode_result(exc, state), state, None, request)
        if (
            self._end(task_id, request, State.CANCELLED, document, keep=True, reason=str(reason))
            and request is None
        ):
            runtime.on_revoked(task_id)

    def crashed(self, holding: Holding, sentence: str) -> str:
        """A pool child died under an attempt: the state that the task is in now."""
        crashed: Crashed = self._patiently(
            lambda: self.store.tasks.crash(Entry(holding.id, holding.fence), sentence)
        )
        if crashed.chord:
            self.complete_chord(crashed.chord)
        if crashed.word == "moved" and crashed.state == State.DEAD_LETTERED:
            self.tell_of_poison([holding.id])
        return crashed.state

    def tell_of_poison(self, task_ids: list[str]) -> list[tuple[str, WorkerLostError]]:
        """Chains and error callbacks of tasks that were put aside as poison, of each run once; (id, error) of what is told.

        What Redis cannot be told now is claimed again later, see reap.lua.
        """
        told, left = [], set()
        try:
            for record in self.store.tasks.records(task_ids):
                message = self.store.tasks.message(record.id) if record is not None else None
                if record is None or message is None or (record.state, record.reason) != POISON:
                    continue
                error = WorkerLostError(record.error)
                try:  # its callbacks are about to be signed by this agent
                    message = open_stored(self.store, record.queue, record.id, message)
                except Rejected as refused:
                    logger.error("task %s: its callbacks are not published: %s", record.id, refused.detail)
                    if refused.reason is Reason.MOVED:
                        left.add(record.id)  # to an agent that has the key
                    else:
                        told.append((record.id, error))
                    continue
                with runtime.publishing_as(f"{record.id}:{record.run}"):
                    try:
                        accept = self.app.conf.accept_content
                        request = Context(messages.request_of(record.id, record.queue, message, accept))
                        self._after_failure(request, error, None, True, True, states.FAILURE)
                    except StoreUnavailable:
                        raise
                    except Exception:
                        logger.exception("task %s: its error callbacks cannot be published", record.id)
                told.append((record.id, error))
            if done := [task_id for task_id in task_ids if task_id not in left]:
                self.store.tasks.told(done)
        except StoreUnavailable as failure:
            logger.warning("the end of poisoned tasks waits for Redis: %s", failure)
        return told

    def _end(
        self,
        task_id: str,
        request: Any,
        state: State,
        document: bytes,
        *,
        keep: bool,
        reason: str = "",
        error: str = "",
    ) -> bool:
        """End the attempt, or an id that nobody holds; True unless it was refused."""
        attempt = getattr(request, ATTEMPT_HEADER, None) if request is not None else None
        if not attempt or request.id != task_id:
            word, due = self._patiently(lambda: self.store.tasks.conclude(task_id, state, document))
            if due:
                self.complete_chord(due)
            return bool(word == "moved")
        holdings = runtime.holdings
        holding = holdings.by_tag.get(f"{task_id} {attempt['fence']}") if holdings is not None else None
        if holdings is not None and holding is not None:
            settlement = holdings.settlement(holding, state, document, keep)._replace(
                reason=reason, error=error
            )
            if state is State.SUCCEEDED:
                holdings.end(holding, settlement)
                return True
            holding.seen = holding.seen or str(state)
        else:
            settlement = Settlement(task_id, attempt["fence"], state, document, keep, None, reason, error)
        words, groups = self._patiently(lambda: self.store.tasks.settle([settlement]))
        if holdings is not None and holding is not None:
            holdings.end(holding, None)
            if words[0] in RECORDED and holding.proof:
                holdings.seen.add(holding.proof)
        for group in groups:
            self.complete_chord(group)
        if words[0] not in RECORDED:
            logger.info("result of %s (attempt %s) refused: %s", task_id, attempt["fence"], words[0])
        return words[0] in RECORDED

    @staticmethod
    def _patiently(call: Any) -> Any:
        """What has been done must not be lost because Redis is away: try until it answers, whatever it says."""
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                logger.warning("a result waits for Redis: %s", error)
                time.sleep(_RETRY_S)

    # -- documents that end nothing, and everything else that Celery stores

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Celery's generic way: terminal states end, STARTED is known already, others are noted."""
        result = self.encode_result(result, state)
        if state == states.STARTED:
            return result
        document = self._document(task_id, result, state, traceback, request)
        ends = {
            states.SUCCESS: State.SUCCEEDED,
            states.FAILURE: State.FAILED,
            states.REVOKED: State.CANCELLED,
        }
        if state in ends:
            self._end(task_id, request, ends[state], document, keep=True)
        else:
            attempt = getattr(request, ATTEMPT_HEADER, None) if request is not None else None
            fence = attempt["fence"] if attempt and request.id == task_id else ""
            self.store.tasks.annotate(task_id, fence, document)
        return result

    def failure_document(self, task_id: str, exc: BaseException) -> bytes:
        """The result document of a task that ended by `exc`."""
        return self._document(task_id, self.encode_result(exc, states.FAILURE), states.FAILURE, None, None)

    def _document(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> bytes:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        encoded = self.encode(meta)
        document = encoded if isinstance(encoded, bytes) else encoded.encode()
        limit = self.store.settings.max_result_bytes
        if len(document) > limit and state == states.SUCCESS:
            raise EncodeError(
                f"The result has {len(document):,} bytes, more than the {limit:,} allowed (MESH_MAX_RESULT_BYTES): "
                "write it to a file or an object store and return where it is."
            )
        return document

    # -- reading

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        state, failures, document = self.store.tasks.outcome(str(task_id))
        if document:
            meta: dict[str, Any] = self.decode_result(document)
            return meta
        if state is None:
            return {"status": states.PENDING, "result": None}
        return {"status": celery_status(state, failures=failures), "result": None, "task_id": str(task_id)}

    def _forget(self, task_id: str) -> None:
        state, _, _ = self.store.tasks.outcome(str(task_id))
        keys = self.store.keys
        doomed = [keys.of("result", task_id)]
        if state is None or state in (State.SUCCEEDED, State.CANCELLED, State.EXPIRED):
            doomed += [keys.of("task", task_id), keys.of("message", task_id)]
        self.store.client.execute("DEL", *doomed)

    # -- chords

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """A chord is about to be published: remember its body."""
        header = self.app.GroupResult(*header_result_args)
        if any(isinstance(result, GroupResult) for result in header.results):
            header.save(backend=self)  # nested: the results' structure is needed again
        parent = parent_run(current_attempt()) or ""
        trace = current()
        if trace is not None:  # whoever completes it publishes it: it is told here where it belongs
            options = body.get("options") or {}
            named = {**trace.headers, **(options.get("headers") or {})}
            body = {**body, "options": {**options, "headers": named}}
        sealed = body_sealer(self.store)(str(header.id), json_dumps(body).encode())
        self.store.chords.arm(str(header.id), body=sealed, token=parent)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """The header's size is known once its last task is published."""
        if self.store.chords.arm(str(group_id), size=chord_size):
            self.complete_chord(str(group_id))

    def add_to_chord(self, group_id: str, result: Any) -> None:
        """One more task belongs to the header."""
        self.store.chords.grow(str(group_id))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Only for parts that were never published (a broken chain): all others are counted by the script that ends them."""
        group = getattr(request, "group", None)
        if not group:
            return
        index = part_index(getattr(request, "group_index", None), request.id)
        document = self._document(request.id, self.encode_result(result, state), state, None, None)
        if self.store.chords.part(str(group), index, document):
            self.complete_chord(str(group))

    def complete_chord(self, group_id: str) -> bool:
        """Publish the body of a chord whose header is complete, or record its failure; False if somebody else does."""
        due = self.store.chords.take(group_id)
        if due is None:
            return False
        try:
            opened = open_body(self.store, group_id, due.body)
        except Rejected as refused:
            self._refuse_body(group_id, due.body, refused)
            self.store.chords.done(group_id, due.armed)
            return True
        body = maybe_signature(json_loads(opened.decode()), app=self.app)
        with runtime.publishing_as(f"chord:{group_id}:{due.armed}"):
            try:
                results = self._chord_results(group_id, due.documents)
            except ChordError as error:
                logger.error("chord %s: %s", group_id, error)
                self.chord_error_from_stack(body, error)
            else:
                try:
                    self.app.amqp._retry_publish(body.delay, results)
                except StoreUnavailable:
                    raise  # still due: the next tick completes it
                except Exception as error:
                    logger.exception("chord %s: its body cannot be published", group_id)
                    self.chord_error_from_stack(body, ChordError(f"Callback error: {error!r}"))
        self.store.chords.done(group_id, due.armed)
        return True

    def _refuse_body(self, group_id: str, sealed: bytes, refused: Rejected) -> None:
        """Counted like a task that is refused; who waits for the body hears of it."""
        logger.error("chord %s: its body is refused: %s", group_id, refused.detail)
        try:  # read without believing it: this grants nothing
            body_id = str(json_loads(peel(sealed))["options"]["task_id"])
        except (ValueError, TypeError, LookupError, RecursionError):
            body_id = ""
        if runtime.holdings is not None:
            runtime.holdings.refusals.note(body_id or group_id, refused)
        if body_id:
            document = messages.failure(body_id, f"the body of its chord is refused: {refused.detail}")
            _, due = self._patiently(lambda: self.store.tasks.conclude(body_id, State.FAILED, document))
            if due:
                self.complete_chord(due)

    def _chord_results(self, group_id: str, documents: list[bytes]) -> list[Any]:
        results = []
        for document in documents:
            raw = json.loads(document)
            meta = self.decode_result(document)
            if raw["status"] in states.PROPAGATE_STATES:
                error = ChordError(f"Dependency {raw.get('task_id')} raised {meta['result']!r}")
                error.__cause__ = meta["result"] if isinstance(meta["result"], Exception) else None
                raise error
            results.append(meta["result"])
        header = GroupResult.restore(group_id, backend=self, app=self.app)
        if header is None:
            return results
        header.on_ready()
        with allow_join_result():
            structured: list[Any] = header.join_native(timeout=self.app.conf.result_chord_join_timeout)
        return structured

    def complete_chords(self, group_ids: list[str]) -> None:
        """`complete_chord` for several; what fails now stays due for the next tick."""
        for group_id in group_ids:
            try:
                self.complete_chord(group_id)
            except StoreUnavailable as error:
                logger.warning("chord %s waits: %s", group_id, error)
