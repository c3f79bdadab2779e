"""Tokens: what is issued verifies, and every attack that is known on JSON Web Tokens is refused, with one answer.

Tests named `test_rfc8725_...` follow that document (JSON Web Token best current practices) section by section.
"""

import base64
import contextlib
import json
import secrets
import warnings
import zlib
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import tokens
from mesh.core.keyring import Keyring
from mesh.errors import Invalid, Unauthenticated

NOW = 1_800_000_000
SECRET, OTHER = secrets.token_hex(32), secrets.token_hex(32)
RING = Keyring([SECRET])
(KID,) = RING.kids
PUBLIC = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
JTI = "j" * 22
TASK: dict[str, Any] = {"submit": ["data-*"], "public_key": PUBLIC}
KINDS = list(tokens.KINDS)


def issued(kind: str = "api", ring: Keyring = RING, **changed: Any) -> str:
    """A token of `kind`, valid at NOW, with some arguments changed."""
    given: dict[str, Any] = {
        "subject": "w1",
        "agent_type": "worker",
        "namespaces": ["production"],
        "ttl_s": 3600,
        "now_s": NOW,
        "jti": JTI,
    }
    given |= TASK if kind == "task" else {}
    return tokens.issue(kind, ring, ring.kids[0], **(given | changed))


def b64(data: bytes | str | Any) -> str:
    """Base64url of bytes, of a text, or of anything else as JSON."""
    if not isinstance(data, bytes | str):
        data = json.dumps(data, separators=(",", ":"))
    data = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parts(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token, unverified."""
    head, body, _ = text.split(".")
    return tuple(json.loads(base64.urlsafe_b64decode(part + "===")) for part in (head, body))  # type: ignore[return-value]


def forged(
    header: Any = None,
    claims: Any = None,
    *,
    kind: str = "api",
    key: bytes | None = None,
    algorithm: str | None = None,
) -> str:
    """A token with this header and these claims (texts as they are), *rightly signed*: so nothing but them can be refused."""
    good_header, good_claims = parts(issued(kind))
    row = tokens.KINDS[kind]
    first, second = (
        b64(good_header if header is None else header),
        b64(good_claims if claims is None else claims),
    )
    signing = (first + "." + second).encode()
    key = RING.key(KID, row.purpose) if key is None else key
    if (algorithm or row.algorithm) == "EdDSA":
        return f"{first}.{second}.{b64(Ed25519PrivateKey.from_private_bytes(key).sign(signing))}"
    made = jwt.get_algorithm_by_name(algorithm or row.algorithm)
    return f"{first}.{second}.{b64(made.sign(signing, made.prepare_key(key)))}"


def with_header(kind: str = "api", **changed: Any) -> str:
    return forged({**parts(issued(kind))[0], **changed}, kind=kind)


def with_claims(kind: str = "api", **changed: Any) -> str:
    return forged(claims={**parts(issued(kind))[1], **changed}, kind=kind)


def refused(text: Any, kind: str = "api", keys: Any = RING, now_s: float = NOW) -> str:
    """The reason for which `verify` refuses it; the sentence is the same for all."""
    with pytest.raises(Unauthenticated) as raised:
        tokens.verify(kind, text, keys, now_s=now_s)
    assert raised.value.message == Unauthenticated.sentence and raised.value.reason
    return raised.value.reason


# -- what is right


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_issued_says_the_same_when_it_is_verified(kind: str) -> None:
    claims = tokens.verify(kind, issued(kind), RING, now_s=NOW)
    assert claims == tokens.Claims(
        kind=kind,
        kid=KID,
        jti=JTI,
        subject="w1",
        agent_type="worker",
        namespaces=("production",),
        capabilities=None,
        submit=("data-*",) if kind == "task" else None,
        public_key=PUBLIC if kind == "task" else None,
        issued_at=NOW,
        not_before=NOW,
        expires_at=NOW + 3600,
    )
    assert claims.covers("production") and not claims.covers("staging")


def test_a_token_for_every_namespace_and_with_limited_capabilities() -> None:
    claims = tokens.verify(
        "join", issued("join", namespaces=["*"], capabilities=["ocr", "gpu"]), RING, now_s=NOW
    )
    assert claims.covers("anything") and claims.capabilities == ("ocr", "gpu")
    assert tokens.verify("join", issued("join", capabilities=[]), RING, now_s=NOW).capabilities == ()


def test_task_certificates_need_the_public_key_only() -> None:
    public = tokens.certifying_keys(RING)
    assert tokens.verify("task", issued("task"), public, now_s=NOW).public_key == PUBLIC
    refused(issued("task"), "task", keys={KID: PUBLIC})
    refused(issued("task"), "task", keys={})


def test_both_secrets_of_a_rotation_are_believed() -> None:
    both, new = Keyring([SECRET, OTHER]), Keyring([OTHER])
    for ring in (RING, new):
        assert tokens.verify("api", issued(ring=ring), both, now_s=NOW).kid == ring.kids[0]
    assert "key that is not known" in refused(issued(), keys=new)


def test_the_header_has_three_members_and_the_ordinary_library_reads_it() -> None:
    header, _ = parts(issued())
    assert header == {"alg": "HS256", "typ": "mesh-api+jwt", "kid": KID}
    key = RING.key(KID, tokens.KINDS["api"].purpose)
    options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
    read = jwt.decode(issued(), key, ["HS256"], options, audience="agent-mesh:api", issuer="agent-mesh")
    assert read["sub"] == "w1"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"ttl_s": 0}, "1 to"),
        ({"ttl_s": 367 * 86_400}, "1 to"),
        ({"subject": "a b"}, "valid subject"),
        ({"agent_type": ""}, "valid agent type"),
        ({"namespaces": []}, "namespaces"),
        ({"namespaces": ["Production"]}, "valid namespace"),
        ({"namespaces": ["*", "production"]}, "namespaces"),
        ({"namespaces": ["a", "a"]}, "namespaces"),
        ({"capabilities": ["a b"]}, "valid capability"),
        ({"capabilities": [f"c{n}" for n in range(257)]}, "capabilities"),
        ({"namespaces": [f"n{n}-{'x' * 50}" for n in range(256)]}, "characters"),
        ({"jti": "short"}, "jti"),
        ({"submit": ["a"]}, "claims that its kind"),
        ({"public_key": PUBLIC}, "claims that its kind"),
    ],
)
def test_nothing_is_issued_that_would_not_verify(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        issued(**changed)


@pytest.mark.parametrize(
    "changed", [{"submit": None}, {"public_key": None}, {"ttl_s": 86_401}, {"public_key": b"x"}]
)
def test_no_certificate_without_its_limits(changed: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        issued("task", **changed)


# -- RFC 8725, section 2 (threats) and 3 (practices)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", None])
def test_rfc8725_2_1_and_3_2_no_algorithm_is_no_signature(kind: str, name: str | None) -> None:
    header, claims = parts(issued(kind))
    bare = f"{b64({**header, 'alg': name})}.{b64(claims)}."
    assert refused(bare, kind) == "it is not the text of a token"
    assert "not signed by" in refused(bare + issued(kind).split(".")[2], kind)
    assert "not signed by" in refused(with_header(kind, alg=name), kind)


def test_rfc8725_2_1_and_3_1_the_public_key_is_no_hmac_secret() -> None:
    """Algorithm confusion: the certificates' public key is known to every agent; used as an HMAC key it must sign nothing."""
    public = tokens.certifying_keys(RING)[KID]
    header, claims = parts(issued("task"))
    for secret in (public, public.hex().encode(), b64(public).encode()):
        text = forged({**header, "alg": "HS256"}, claims, kind="task", key=secret, algorithm="HS256")
        assert (
            refused(text, "task") == refused(text, "task", keys={KID: public}) == "it is not signed by EdDSA"
        )
        text = forged(None, None, kind="api", key=secret)
        assert refused(text, "api") == "its signature is not right"


@pytest.mark.parametrize(
    "name", ["HS384", "HS512", "RS256", "ES256", "PS256", "EdDSA", "Ed25519", "hs256", "HS256 ", 7, ["HS256"]]
)
def test_rfc8725_3_1_one_algorithm_a_kind(name: Any) -> None:
    assert "not signed by HS256" in refused(with_header(alg=name))
    if name in ("HS384", "HS512"):
        text = forged({**parts(issued())[0], "alg": name}, algorithm=name)
        assert "not signed by HS256" in refused(text)


def test_rfc8725_2_2_and_3_5_keys_that_can_be_guessed_sign_nothing() -> None:
    for weak in (b"", b"secret", b"your-256-bit-secret", SECRET.encode(), bytes.fromhex(SECRET), bytes(32)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyJWT's about short keys
            text = forged(key=weak or b"\0")
        assert refused(text) == "its signature is not right"


def test_rfc8725_2_3_compressed_and_encrypted_forms_are_no_tokens() -> None:
    header, claims = parts(issued())
    packed = forged({**header, "zip": "DEF"}, None)
    assert "other members" in refused(packed)
    assert "not a JSON object" in refused(forged(None, zlib.compress(json.dumps(claims).encode())))
    five = ".".join(
        [b64({"alg": "dir", "enc": "A256GCM"}), "", b64(b"i" * 12), b64(b"c" * 99), b64(b"t" * 16)]
    )
    assert refused(five) == "it is not the text of a token"


def test_rfc8725_2_5_and_3_4_no_low_order_key_signs() -> None:
    """Small-order points as key or as signature's point R verify for some Ed25519 libraries."""
    for point in (bytes(32), b"\1" + bytes(31), bytes([0xEC] + [0xFF] * 30 + [0x7F])):
        head, body, _ = issued("task").split(".")
        assert refused(f"{head}.{body}.{b64(point + bytes(32))}", "task") == "its signature is not right"


@pytest.mark.parametrize(
    "text",
    ["\ud800", "é.é.é", "ａ.ａ.ａ", "a.b.c\n", " a.b.c", "a.b.c ", "Bearer a.b.c", "a.b", "a.b.c.d", ""],
)
def test_rfc8725_2_6_and_3_7_one_encoding_of_the_text(text: str) -> None:
    assert refused(text) == "it is not the text of a token"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "latin-1"])
def test_rfc8725_2_6_and_3_7_json_in_utf8_only(encoding: str) -> None:
    header, claims = parts(issued())
    assert refused(forged(json.dumps({**header, "kid": "é"}, ensure_ascii=False).encode(encoding, "ignore")))
    assert refused(
        forged(None, json.dumps({**claims, "sub": "é+"}, ensure_ascii=False).encode(encoding, "ignore"))
    )


def test_rfc8725_2_7_and_3_9_an_audience_is_one_and_ours() -> None:
    for wrong in (
        "agent-mesh:join",
        "agent-mesh",
        "",
        None,
        7,
        ["agent-mesh:api"],
        ["agent-mesh:api", "other"],
        {"a": 1},
    ):
        assert "not meant for" in refused(with_claims(aud=wrong))


def test_rfc8725_3_8_the_issuer_is_ours_and_the_subject_a_name() -> None:
    for wrong in ("agent-mesh ", "Agent-Mesh", "https://agent-mesh", "", None, ["agent-mesh"]):
        assert "issuer" in refused(with_claims(iss=wrong))
    for wrong in ("", "a b", "../w1", "w1\x00", "w1\n", "\ud800", "x" * 64, None, 7, ["w1"], {"$ne": ""}):
        assert "claim sub" in refused(with_claims(sub=wrong))


ODD_KIDS: list[Any] = [
    "../../../../dev/null",
    "/proc/sys/kernel/randomize_va_space",
    "x' UNION SELECT 'secret' -- ",
    "$(id)",
    "http://169.254.169.254/key",
    "",
    None,
    0,
    [],
    {},
    True,
    KID.upper() + " ",
    KID + "\0",
    KID[:7],
    "\ud800",
    "k" * 300,
]


@pytest.mark.parametrize("kid", ODD_KIDS, ids=range(len(ODD_KIDS)))  # names alike in every process
def test_rfc8725_2_9_and_3_10_the_key_id_is_looked_up_exactly(kid: Any) -> None:
    assert refused(with_header(kid=kid))
    assert refused(forged({**parts(issued())[0], "kid": kid}, key=b"\0" * 32))


@pytest.mark.parametrize(
    "member",
    [
        {"jku": "https://evil.example/keys.json"},
        {"x5u": "https://evil.example/cert.pem"},
        {"x5c": ["MII"]},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": False},
        {"b64": True},
        {"cty": "JWT"},
        {"x5t": "a"},
        {"enc": "A256GCM"},
        {"": 1},
    ],
)
def test_rfc8725_3_10_nothing_in_the_header_says_how_to_verify(member: dict[str, Any]) -> None:
    assert "other members" in refused(with_header(**member))
    header = {**parts(issued())[0]}
    del header["typ"]
    assert "other members" in refused(forged({**header, **member}))


@pytest.mark.parametrize("given", KINDS)
@pytest.mark.parametrize("asked", KINDS)
def test_rfc8725_2_8_and_3_12_no_kind_passes_for_another(given: str, asked: str) -> None:
    if given == asked:
        tokens.verify(asked, issued(given), RING, now_s=NOW)
        return
    assert "not of type" in refused(issued(given), asked)
    claims = parts(issued(asked))[1]
    header = {**parts(issued(asked))[0], "alg": tokens.KINDS[given].algorithm}
    relabelled = forged(header, claims, kind=given)  # all says `asked`; the key is that of `given`
    assert refused(relabelled, asked) in (
        "its signature is not right",
        f"it is not signed by {tokens.KINDS[asked].algorithm}",
    )
    assert "not meant for" in refused(
        forged(parts(issued(asked))[0], {**claims, "aud": tokens.KINDS[given].audience}, kind=asked), asked
    )


def test_rfc8725_3_11_explicit_typing() -> None:
    for typ in (
        "JWT",
        "mesh-api+JWT",
        "application/mesh-api+jwt",
        "mesh-api+jwt ",
        "",
        None,
        1,
        ["mesh-api+jwt"],
    ):
        assert "not of type" in refused(with_header(typ=typ))
    header = parts(issued())[0]
    del header["typ"]
    assert "other members" in refused(forged(header))


def test_a_token_inside_a_token_is_none() -> None:
    assert "not a JSON object" in refused(forged(None, issued()))
    assert "not a JSON object" in refused(forged(None, json.dumps(issued())))
    assert "other members" in refused(forged({**parts(issued())[0], "cty": "JWT"}, issued()))


# -- the text


def test_one_spelling_only() -> None:
    good = issued()
    tokens.verify("api", good, RING, now_s=NOW)
    head, body, signature = good.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    neighbour = (
        signature[:-1] + last[last.index(signature[-1]) + 1]
    )  # 32 bytes leave two bits of the last letter unused
    assert base64.urlsafe_b64decode(neighbour + "=") == base64.urlsafe_b64decode(signature + "=")
    for other in (
        good + "=",
        f"{head}=.{body}.{signature}",
        f"{head}.{body}=.{signature}",
        f"{head}.{body}.{neighbour}",
        good.replace("-", "+").replace("_", "/") if {"-", "_"} & set(good) else good + "/",
        f"{head}.{body}.{signature}A",
        f"{head}.{body}.",
        f"{head}.{body}.{signature}.",
        f"{head}\n.{body}.{signature}",
        good + "\n",
    ):
        assert refused(other)


def test_length_is_bounded_before_anything_is_read() -> None:
    assert refused("a" * 10_000_000) == "it is not the text of a token"
    assert refused(f"{'a' * 600}.a.a") == "it is not the text of a token"
    for wrong in (None, 7, b"a.b.c", [issued()], issued().encode()):
        assert refused(wrong) == "it is not the text of a token"


def test_names_that_come_twice_are_refused_at_any_depth() -> None:
    header, claims = (json.dumps(one)[:-1] for one in parts(issued()))
    assert "each name once" in refused(forged(header + ', "alg": "HS256"}'))
    assert "each name once" in refused(forged(header + ', "\\u0061lg": "none"}'))
    assert "each name once" in refused(forged(None, claims + ', "sub": "admin"}'))
    assert "each name once" in refused(forged(None, claims + ', "cnf": {"jwk": 1, "jwk": 2}}'))


@pytest.mark.parametrize(
    "body",
    ["[" * 4000, '{"a":' * 1000, "null", "[]", '"x"', "7", "", "{", "{}x", "NaN", '{"exp": NaN}', "\ufeff{}"],
)
def test_what_is_no_json_object_is_refused(body: str) -> None:
    assert refused(forged(None, body))
    assert refused(forged(body))


# -- the claims


@pytest.mark.parametrize("kind", KINDS)
def test_each_claim_is_required(kind: str) -> None:
    good = parts(issued(kind))[1]
    for name in good:
        assert name in refused(forged(claims={k: v for k, v in good.items() if k != name}, kind=kind), kind)


def test_unknown_claims_are_refused() -> None:
    for name in ("admin", "scope", "roles", "submit", "cnf", "EXP", "__proto__", "\ud800"):
        assert "claims that its kind does not have" in refused(with_claims(**{name: True}))


@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
@pytest.mark.parametrize(
    "value",
    [
        str(NOW),
        float(NOW),
        NOW + 0.5,
        True,
        False,
        None,
        [],
        {},
        -1,
        -NOW,
        10**18,
        10**400,
        2**63,
        "9" * 50,
        "never",
    ],
)
def test_times_are_whole_seconds(name: str, value: Any) -> None:
    assert refused(with_claims(**{name: value}))


@pytest.mark.parametrize(
    "text", ["1e400", "-1e400", "Infinity", "-Infinity", "NaN", "9" * 5000, "1.8e9", "0x7fffffff"]
)
def test_odd_numbers_are_no_times(text: str) -> None:
    body = json.dumps(parts(issued())[1]).replace(f'"exp": {NOW + 3600}', f'"exp": {text}')
    assert refused(forged(None, body))


def test_times_count() -> None:
    assert refused(issued(), now_s=NOW + 3600) == refused(issued(), now_s=NOW + 10**8) == "it has expired"
    tokens.verify("api", issued(), RING, now_s=NOW + 3599.9)
    assert refused(issued(), now_s=NOW - 31) == "it is not valid yet"
    tokens.verify("api", issued(), RING, now_s=NOW - 30)
    assert refused(with_claims(nbf=NOW + 60)) == "it is not valid yet"
    for times in (
        {"iat": NOW + 60, "nbf": NOW},
        {"exp": NOW - 1, "iat": NOW - 1, "nbf": NOW - 1},
        {"exp": NOW + 367 * 86_400},
        {"iat": NOW - 366 * 86_400, "nbf": NOW},
        {"iat": 0, "nbf": 0},
    ):
        assert "times are in disorder" in refused(with_claims(**times))
    assert "live longer" in refused(with_claims("task", exp=NOW + 86_401), "task")


@pytest.mark.parametrize(
    "value",
    [
        [],
        ["*", "a"],
        ["a", "a"],
        ["A"],
        [""],
        ["a b"],
        [7],
        [["a"]],
        "production",
        "*",
        None,
        {},
        True,
        ["a"] * 300,
        ["\ud800"],
    ],
)
def test_namespaces_are_a_list_of_names(value: Any) -> None:
    assert "namespaces" in refused(with_claims(namespaces=value))


@pytest.mark.parametrize("name", ["jti", "agent_type", "capabilities"])
@pytest.mark.parametrize("value", ["", "a b", None, 7, {}, ["a b"], [None], "\ud800", "x" * 100, True])
def test_other_claims_are_names(name: str, value: Any) -> None:
    assert name in refused(with_claims(**{name: value}))


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"jwk": None},
        {"jkt": "a"},
        {"jwk": {"kty": "OKP", "crv": "Ed25519"}},
        {"jwk": {"kty": "OKP", "crv": "X25519", "x": b64(PUBLIC)}},
        {"jwk": {"kty": "oct", "crv": "Ed25519", "x": b64(PUBLIC)}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(PUBLIC[:31])}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(PUBLIC) + "="}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": 7}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "\ud800"}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(PUBLIC), "d": b64(PUBLIC)}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": b64(PUBLIC)}, "jku": "https://evil.example"},
    ],
)
def test_a_certificate_confirms_one_public_key(value: Any) -> None:
    assert refused(with_claims("task", cnf=value), "task")


@pytest.mark.parametrize("value", [None, "a", [""], ["a b"], ["a\n"], ["\ud800"], ["a", "a"], [7]])
def test_a_certificate_names_types_in_patterns(value: Any) -> None:
    assert "submit" in refused(with_claims("task", submit=value), "task")
    assert tokens.verify("task", with_claims("task", submit=[]), RING, now_s=NOW).submit == ()


# -- changed and thrown together


@pytest.mark.parametrize("kind", KINDS)
def test_every_changed_letter_is_seen(kind: str) -> None:
    good = issued(kind)
    for place in range(len(good)):
        assert refused(good[:place] + ("A" if good[place] != "A" else "B") + good[place + 1 :], kind)
        assert refused(good[:place] + good[place + 1 :], kind)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from([KID, "HS256", "agent-mesh"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def never_anything_else(text: Any, kind: str) -> None:
    with contextlib.suppress(Unauthenticated):
        tokens.verify(kind, text, RING, now_s=NOW)
    assert tokens.unverified(text)[0] in (None, *KINDS)


@given(
    st.text(st.characters()) | st.from_regex(r"[A-Za-z0-9_=-]*\.[A-Za-z0-9_=-]*\.[A-Za-z0-9_=-]*"),
    st.sampled_from(KINDS),
)
def test_no_text_raises_anything_else(text: str, kind: str) -> None:
    never_anything_else(text, kind)


@given(_JSON, _JSON, st.sampled_from(KINDS))
def test_no_header_and_no_body_raises_anything_else(header: Any, claims: Any, kind: str) -> None:
    never_anything_else(forged(header, claims, kind=kind), kind)


@given(st.data(), st.sampled_from(KINDS))
def test_no_claim_raises_anything_else(data: st.DataObject, kind: str) -> None:
    header, claims = parts(issued(kind))
    for part in (header, claims):
        for name in data.draw(st.sets(st.sampled_from(sorted(part)), max_size=3)):
            part[name] = data.draw(_JSON)
    never_anything_else(forged(header, claims, kind=kind), kind)
    never_anything_else(forged(None, claims, kind=kind), kind)


def test_who_inspects_a_token_sees_what_it_says() -> None:
    for kind in KINDS:
        assert tokens.unverified(issued(kind)) == (kind, *parts(issued(kind)))
    for text in ("", "a.b.c", "\ud800", forged("[]"), forged(None, "7"), "a" * 100_000):
        assert tokens.unverified(text) == (None, {}, {})
    assert tokens.unverified(with_header(typ="JWT"))[0] is None
