"""The life cycle: the table's own rules, and that `check` lets through exactly what the table says."""

import itertools

import pytest
from celery import states as celery_states

from mesh.core.states import (
    CELERY_STATUS,
    HELD,
    LIVE,
    RULES,
    TERMINAL,
    WAITING,
    IllegalMove,
    State,
    Verb,
    celery_status,
    check,
)


def test_every_state_is_waiting_held_or_terminal_and_only_one_of_them() -> None:
    assert set(State) == WAITING | HELD | TERMINAL
    assert len(WAITING) + len(HELD) + len(TERMINAL) == len(State)
    assert set(State) - TERMINAL == LIVE


def test_every_verb_has_a_rule_with_a_meaning_and_a_target() -> None:
    assert set(RULES) == set(Verb)
    assert [verb for verb, rule in RULES.items() if not rule.meaning or not rule.targets] == []


def test_only_a_new_run_leads_back_from_an_ended_task() -> None:
    assert {verb for verb, rule in RULES.items() if rule.sources & TERMINAL} == {Verb.RESUBMIT, Verb.REPLAY}


def test_whoever_must_show_a_fence_holds_the_task() -> None:
    assert [verb for verb, rule in RULES.items() if rule.fenced and not rule.sources <= HELD] == []


def test_what_somebody_holds_ends_by_his_fence_or_by_a_cancellation_or_with_him() -> None:
    """An outcome from outside, an expiry or a second lease must not touch a held task; its total deadline may."""
    unfenced = {verb for verb, rule in RULES.items() if rule.sources & HELD and not rule.fenced}
    assert unfenced == {Verb.CANCEL, Verb.REAP, Verb.RESTORE, Verb.REVISE, Verb.TIME_OUT}


def test_every_state_can_be_reached_and_every_live_one_can_end() -> None:
    edges = {
        (source, target) for rule in RULES.values() for source in rule.sources for target in rule.targets
    }
    reached = set(RULES[Verb.SUBMIT].targets)
    while new := {target for source, target in edges if source in reached} - reached:
        reached |= new
    assert reached == set(State)
    assert {source for source, target in edges if target in TERMINAL} >= LIVE


@pytest.mark.parametrize("verb", Verb)
def test_check_lets_through_what_the_table_says_and_nothing_else(verb: Verb) -> None:
    rule = RULES[verb]
    from_nothing = verb in (Verb.SUBMIT, Verb.CONCLUDE)
    for source, target in itertools.product([None, *State], State):
        legal = target in rule.targets and (from_nothing if source is None else source in rule.sources)
        if legal:
            check(verb, source, target)
        else:
            with pytest.raises(
                IllegalMove, match=f"{verb} does not lead from {source or 'nothing'} to {target}"
            ):
                check(verb, source, target)


def test_each_state_has_a_word_of_celerys_that_is_final_exactly_if_the_state_is() -> None:
    assert set(CELERY_STATUS) == set(State)
    for state, word in CELERY_STATUS.items():
        assert word in celery_states.ALL_STATES
        assert (word in celery_states.READY_STATES) == (state in TERMINAL)


def test_a_failed_attempt_that_waits_for_its_next_shows_as_retry() -> None:
    assert celery_status(State.SCHEDULED, failures=1) == "RETRY"
    assert celery_status(State.SCHEDULED) == "PENDING"
    assert celery_status(State.QUEUED, failures=1) == "PENDING"
