"""Policies: every cell of the shipped table, nothing that no row grants, and a file's mistakes by line."""

import dataclasses
import json
from collections.abc import Collection
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.policies import (
    ACTIONS,
    ADMINISTERED,
    DEFAULT_POLICIES,
    Object,
    decide,
    matches,
    parse,
)
from mesh.errors import Invalid
from mesh.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Who:
    agent_type: str
    subject: str = "me"
    namespaces: Collection[str] = ("here",)
    capabilities: Collection[str] | None = None


# By hand: role, action, what; then of its own and of another's here, of its own and of another's elsewhere.
CELLS = """
worker    register    ocr           yes yes no no
worker    submit      ocr           yes yes no no
worker    read        -             yes yes no no
worker    cancel      -             yes no  no no
worker    drain       -             yes no  no no
worker    administer  audit         no  no  no no
worker    administer  dead-letters  no  no  no no
worker    administer  restore       no  no  no no
worker    administer  tokens        no  no  no no
producer  register    ocr           no  no  no no
producer  submit      ocr           yes yes no no
producer  read        -             yes no  no no
producer  cancel      -             yes no  no no
producer  drain       -             no  no  no no
producer  administer  audit         no  no  no no
producer  administer  dead-letters  no  no  no no
producer  administer  restore       no  no  no no
producer  administer  tokens        no  no  no no
viewer    register    ocr           no  no  no no
viewer    submit      ocr           no  no  no no
viewer    read        -             yes yes no no
viewer    cancel      -             no  no  no no
viewer    drain       -             no  no  no no
viewer    administer  audit         no  no  no no
viewer    administer  dead-letters  no  no  no no
viewer    administer  restore       no  no  no no
viewer    administer  tokens        no  no  no no
operator  register    ocr           no  no  no no
operator  submit      ocr           yes yes no no
operator  read        -             yes yes no no
operator  cancel      -             yes yes no no
operator  drain       -             yes yes no no
operator  administer  audit         yes yes no no
operator  administer  dead-letters  yes yes no no
operator  administer  restore       no  no  no no
operator  administer  tokens        no  no  no no
admin     register    ocr           yes yes no no
admin     submit      ocr           yes yes no no
admin     read        -             yes yes no no
admin     cancel      -             yes yes no no
admin     drain       -             yes yes no no
admin     administer  audit         yes yes no no
admin     administer  dead-letters  yes yes no no
admin     administer  restore       yes yes no no
admin     administer  tokens        yes yes no no
stranger  register    ocr           no  no  no no
stranger  submit      ocr           no  no  no no
stranger  read        -             no  no  no no
stranger  cancel      -             no  no  no no
stranger  drain       -             no  no  no no
stranger  administer  audit         no  no  no no
stranger  administer  dead-letters  no  no  no no
stranger  administer  restore       no  no  no no
stranger  administer  tokens        no  no  no no
"""
ROWS = [line.split() for line in CELLS.split("\n") if line]
PLACES = [(owner, namespace) for namespace in ("here", "elsewhere") for owner in ("me", "another")]
SHIPPED = Settings().policies


@pytest.mark.parametrize(
    ("role", "action", "what", "place", "expected"),
    [(*row[:3], place, word) for row in ROWS for place, word in zip(PLACES, row[3:], strict=True)],
)
def test_every_cell_of_the_shipped_table(
    role: str, action: str, what: str, place: tuple[str, str], expected: str
) -> None:
    owner, namespace = place
    asked = Object(namespace=namespace, name="" if what == "-" else what, owner=owner)
    decision = decide(SHIPPED, Who(agent_type=role), action, asked)
    assert decision.allowed == (expected == "yes"), decision.why
    if decision.allowed:
        assert f"row '{role}', '*' (the shipped table:" in decision.why
    elif namespace == "elsewhere":
        assert decision.why == "the token is for namespaces here, not for 'elsewhere'"
    else:
        missing = {"-": "own" if owner == "me" else "any"}.get(what, what)
        assert decision.why == f"no row for agent type '{role}' in namespace 'here' grants {action} {missing}"


def test_the_table_by_hand_is_complete() -> None:
    roles = {*json.loads(DEFAULT_POLICIES.read_text()), "stranger"}
    what = {action: ("ocr",) if action in ("register", "submit") else ("-",) for action in ACTIONS}
    what["administer"] = ADMINISTERED
    wanted = {(role, action, one) for role in roles for action in ACTIONS for one in what[action]}
    assert {tuple(row[:3]) for row in ROWS} == wanted and len(ROWS) == len(wanted)


def test_a_thing_of_nobody_is_nobodys_own() -> None:
    for action in ("read", "cancel", "drain"):
        asked = Object(namespace="here")
        assert not decide(SHIPPED, Who(agent_type="producer", subject=""), action, asked).allowed


def test_a_token_for_all_namespaces_and_one_for_some_capabilities() -> None:
    everywhere = Who(agent_type="worker", namespaces=["*"], capabilities=["ocr"])
    assert decide(SHIPPED, everywhere, "register", Object(namespace="there", name="ocr")).allowed
    refused = decide(SHIPPED, everywhere, "register", Object(namespace="there", name="gpu"))
    assert refused.why == "the token is for capabilities ocr, not for 'gpu'"
    assert decide(SHIPPED, everywhere, "submit", Object(namespace="there", name="gpu")).allowed


def test_rows_add_up_and_the_more_special_takes_nothing_away() -> None:
    text = """{"w*": {"*": {"read": "own"}}, "worker": {"prod*": {"submit": ["report-*"]}, "prod": {"read": "any"}}}"""
    table = parse(text, "p.json")
    who = Who(agent_type="worker", namespaces=["*"])

    def may(action: str, namespace: str, name: str = "", owner: str | None = None) -> bool:
        return decide(table, who, action, Object(namespace=namespace, name=name, owner=owner)).allowed

    assert may("read", "prod") and may("read", "test", owner="me") and not may("read", "test")
    assert may("submit", "production", "report-x") and not may("submit", "test", "report-x")
    assert not may("submit", "prod", "report") and not may("submit", "prod", "")
    assert table.patterns("worker", "prod", "submit") == ("report-*",)
    assert not decide(table, who, "own", Object(namespace="prod", name="own")).allowed  # no such action


def test_patterns_are_exact_names_prefixes_or_all() -> None:
    assert matches(["a*"], "a") and matches(["a*"], "abc") and matches(["*"], "x") and matches(["a"], "a")
    assert not matches(["a"], "ab") and not matches(["a*"], "ba") and not matches([], "a")


NAMES = st.sampled_from(["a", "ab", "b", "worker", "here", "there", "x.y"])
PATTERNS = NAMES | NAMES.map(lambda name: name + "*") | st.just("*")
SPACES = st.sampled_from(["a", "ab", "here", "there", "he*", "*"])
RIGHTS = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.lists(PATTERNS, max_size=3) for name in ("register", "submit")},
        "administer": st.lists(st.sampled_from([*ADMINISTERED, "*"]), max_size=2),
        **{name: st.sampled_from(["own", "any"]) for name in ("read", "cancel", "drain")},
    },
)
TABLES = st.dictionaries(PATTERNS, st.dictionaries(SPACES, RIGHTS, max_size=3), max_size=3)


def fits(pattern: str, name: str) -> bool:
    """In other words than the program's."""
    return pattern in ("*", name) or (pattern[-1:] == "*" and name[: len(pattern) - 1] + "*" == pattern)


@given(
    table=TABLES,
    who=st.builds(
        Who,
        agent_type=NAMES,
        subject=NAMES,
        namespaces=st.lists(SPACES.filter(lambda one: "*" not in one) | st.just("*"), max_size=2),
        capabilities=st.none() | st.lists(NAMES, max_size=2),
    ),
    action=st.sampled_from([*ACTIONS, "why", "", "rows"]),
    asked=st.builds(
        Object,
        namespace=SPACES.filter(lambda one: "*" not in one),
        name=NAMES | st.just(""),
        owner=st.none() | NAMES,
    ),
)
def test_nothing_is_allowed_that_no_row_grants(table: object, who: Who, action: str, asked: Object) -> None:
    decision = decide(parse(json.dumps(table), "p.json"), who, action, asked)
    assert decision.why
    assert isinstance(table, dict)
    granting = [
        rights[action]
        for kind, spaces in table.items()
        for space, rights in spaces.items()
        if action in rights and fits(kind, who.agent_type) and fits(space, asked.namespace)
    ]
    if action in ("read", "cancel", "drain"):
        granted = "any" in granting or ("own" in granting and asked.owner == who.subject)
    else:
        granted = asked.name != "" and any(fits(one, asked.name) for some in granting for one in some)
    inside = asked.namespace in who.namespaces or "*" in who.namespaces
    limited = action == "register" and who.capabilities is not None and asked.name not in who.capabilities
    assert decision.allowed == (granted and inside and not limited)


WRONG = [
    ("", "line 1: the end of the file stands where a JSON value should be."),
    ("[]", "line 1: the file must be an object of agent types."),
    ('{\n "worker": 1}', "line 2: agent type 'worker' must be an object of namespaces."),
    ('{"worker": {\n"*": []}}', "line 2: 'worker', '*' must be an object of rights."),
    ('{"w*r": {}}', "line 1: 'w*r' is no pattern of agent types: write a name, prefix* or *."),
    ('{"": {}}', "line 1: '' is no pattern"),
    ('{"w": {"Prod": {}}}', "'Prod' is no pattern of namespaces"),
    ('{"w": {"*": {\n\n"raed": "any"}}}', "line 3: unknown right 'raed'; there are register, submit, read,"),
    ('{"w": {"*": {"read":\n "all"}}}', 'line 2: read must be "own" or "any" (leave it out for neither).'),
    ('{"w": {"*": {"read": true}}}', 'read must be "own" or "any"'),
    ('{"w": {"*": {"read": ["any"]}}}', 'read must be "own" or "any"'),
    ('{"w": {"*": {"submit": "*"}}}', 'submit must be a list of patterns, for example ["*"].'),
    ('{"w": {"*": {"submit": ["a",\n\n 1]}}}', "line 3: submit must be a list of patterns, which are texts."),
    ('{"w": {"*": {"submit": ["?"]}}}', "'?' is no pattern of task types"),
    ('{"w": {"*": {"submit": ["**"]}}}', "'**' is no pattern of task types"),
    ('{"w": {"*": {"register": ["a+b"]}}}', "'a+b' is no pattern of capabilities"),
    ('{"w": {"*": {"administer": ["token"]}}}', "administer takes audit, dead-letters, restore, tokens or *"),
    ('{"w": {"*": {"why": 1}}}', "why must be a text."),
    ('{"w": {},\n"x": {},\n"w": {}}', "line 3: key 'w' stands here a second time; keep one."),
    ('{"w": {"*": {"read": "own",\n"read": "any"}}}', "line 2: key 'read' stands here a second time"),
    ('{"w": {}}\n{}', "line 2: something follows the end of the JSON value; remove it."),
    ('{"w": {}\n"x": {}}', 'line 2: a comma, or the closing "}", is missing.'),
    ('{"w": {"*": {"submit": ["a"\n"b"]}}}', 'line 2: a comma, or the closing "]", is missing.'),
    ('{"w" {}}', "line 1: a colon is missing behind 'w'."),
    ('{"w": {},}', 'line 1: a key in double quotes, or the closing "}", is missing.'),
    ('{"w": {"*": {"why": "a\nb"}}}', "line 1: a text is not closed on its line, or holds a wrong escape."),
    ('{"w": NaN}', "line 1: 'N' stands where a JSON value should be."),
    ("// why\n{}", "line 1: '/' stands where a JSON value should be."),
    ("[" * 1000, "nested more than 20 deep."),
    ('{"w": {"*": {"raed": 1}},\n"x": 5,\n"y": }', "line 1: unknown right 'raed'"),  # the first of three
    ('{"w": {"*": {}},\n"x": }\n', "line 2: '}' stands where a JSON value should be."),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_a_wrong_file_is_refused_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse(text, "policies.json")
    assert str(refused.value).startswith("policies.json, line ") and sentence in str(refused.value)
    assert str(refused.value).count("\n") == 0


@given(st.text(alphabet='{}[]":,*ab \n01e-\\', max_size=60) | st.text(max_size=30))
def test_any_text_is_a_table_or_one_sentence(text: str) -> None:
    said = ""
    try:
        parse(text, "p")
        json.loads(text)
    except Invalid as error:
        said = str(error)
    assert not said or said.startswith("p, line ")


@pytest.mark.parametrize(
    "table", [dict(product(["a"], [{}])), {"a": {"*": {"why": "é\n\t\U0001f600", "submit": []}}}]
)
def test_what_json_writes_is_read(table: object) -> None:
    assert parse(json.dumps(table, indent=2), "p").source == "p"


def test_the_file_that_the_settings_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "policies.json"
    with pytest.raises(Invalid, match=r"Cannot read the policy file .*policies.json \(No such file"):
        _ = Settings(policy_file=str(path)).policies
    path.write_text('{"a": {"*": {"read": "any"}}}')
    assert [row.where for row in Settings(policy_file=str(path)).policies.rows] == [f"{path}:1"]


def test_the_table_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    table = parse(page.partition("```json\n")[2].partition("```")[0], "policies.json")
    billing = Who(agent_type="billing", namespaces=["prod"])
    allowed = decide(table, billing, "submit", Object(namespace="prod", name="invoice-daily"))
    refused = decide(table, billing, "cancel", Object(namespace="prod"))
    assert f"allowed: {allowed.why}." in page and f"refused: {refused.why}." in page
