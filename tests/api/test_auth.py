"""Who asks is known, or nobody is: JWTs and forgeries, published keys, personal tokens, logins, names and pages."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from flowledger.api import auth, keys
from flowledger.api.auth import Verifier
from flowledger.api.hosts import allowed_hosts, require_safe_bind
from flowledger.database.session import Claims
from flowledger.errors import InvalidInput, KeysUnavailable, NotAuthenticated
from flowledger.settings import Settings
from tests.api.serving import SECRET, Served, served, signed
from tests.ledger.law import ALICE, BOB

ISSUER, AUDIENCE = "https://id.example/auth", "flowledger"
HERE = {"iss": ISSUER, "aud": AUDIENCE}

RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


@pytest.fixture(scope="module")
def api(postgres) -> Iterator[Served]:
    """HS256, an issuer and an audience; logins are taken, as under `flowledger up`."""
    with served(postgres, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, has_login=True) as running:
        yield running


def whose(api: Served, token: str) -> Any:
    """The answer to a question that anybody who is known may ask."""
    with api.as_(token) as client:
        return client.get("/api/v1/tokens")


def refused(answer: Any) -> str:
    """Why nobody is known. Whatever was sent, the answer is a problem, and tells how to come better."""
    assert answer.status_code == 401, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    problem = answer.json()
    assert problem["code"] == "not_authenticated"
    assert "flowledger tokens create" in problem["remedy"]
    return str(problem["title"])


# -- JWTs -------------------------------------------------------------------------------------------------------------


def test_a_good_token_is_taken(api):
    assert whose(api, signed(ALICE, **HERE)).status_code == 200
    assert whose(api, signed(ALICE, role="service_role", **HERE)).status_code == 200
    assert whose(api, signed(ALICE, iss=ISSUER, aud=["other", AUDIENCE])).status_code == 200


def part(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def forged(payload: Any, header: Any = None, key: bytes = SECRET.encode()) -> str:
    """A token whose parts read as they are given, rightly signed by HS256 whatever they say."""
    signing = f"{part(header or {'alg': 'HS256', 'typ': 'JWT'})}.{part(payload)}"
    signature = hmac.new(key, signing.encode(), hashlib.sha256).digest()
    return f"{signing}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def good(**more: Any) -> dict[str, Any]:
    return {"sub": str(ALICE), "exp": int(time.time()) + 60, **HERE, **more}


def without(name: str) -> dict[str, Any]:
    return {known: value for known, value in good().items() if known != name}


def said_twice(name: str, value: str) -> str:
    return json.dumps(good())[:-1] + f', "{name}": "{value}"}}'


def test_the_forger_makes_good_tokens_so_that_only_the_fault_is_refused(api):
    assert whose(api, forged(good())).status_code == 200


FORGERIES: dict[str, tuple[Any, str]] = {
    "no algorithm": (lambda: f"{part({'alg': 'none'})}.{part(good())}.", "neither a JWT"),
    "no algorithm, with a signature": (lambda: forged(good(), {"alg": "none"}), "alg"),
    "no algorithm, in other letters": (lambda: forged(good(), {"alg": "NonE"}), "alg"),
    "another algorithm": (lambda: jwt.encode(good(), SECRET * 2, algorithm="HS512"), "alg"),
    "another kind of key": (lambda: jwt.encode(good(), RSA_KEY, algorithm="RS256"), "alg"),
    "a list of algorithms": (lambda: forged(good(), {"alg": ["HS256"]}), "alg"),
    "another secret": (lambda: forged(good(), key=b"x" * 40), "signature"),
    "an empty secret": (lambda: forged(good(), key=b""), "signature"),
    "a changed payload": (lambda: ".".join(swapped(forged(good()), part(good(role="service_role")))), "signature"),
    "a key of its own": (lambda: forged(good(), {"alg": "HS256", "jwk": {"kty": "oct", "k": part("x")}}, b"x"), "sign"),
    "a place of its own for keys": (lambda: forged(good(), {"alg": "HS256", "jku": "http://x.example"}, b"x"), "sign"),
    "an extension": (lambda: forged(good(), {"alg": "HS256", "crit": ["exp"], "exp": 1}), "crit"),
    "a detached payload": (lambda: forged(good(), {"alg": "HS256", "b64": False, "crit": ["b64"]}), "crit"),
    "a path as key id": (lambda: forged(good(), {"alg": "HS256", "kid": "/dev/null"}, b""), "signature"),
    "a number as key id": (lambda: forged(good(), {"alg": "HS256", "kid": 1}), "kid"),
    "a huge key id": (lambda: forged(good(), {"alg": "HS256", "kid": "k" * 257}), "kid"),
    "an algorithm that stands twice": (lambda: forged(good(), '{"alg": "none", "alg": "HS256"}'), "twice"),
    "no expiry": (lambda: forged(without("exp")), "exp"),
    "expired": (lambda: forged(good(exp=int(time.time()) - 11)), "expired"),
    "expiry as text": (lambda: forged(good(exp=str(int(time.time()) + 60))), "exp"),
    "expiry true": (lambda: forged(good(exp=True)), "exp"),
    "expiry beyond all numbers": (lambda: forged(json.dumps(without("exp"))[:-1] + ', "exp": 1e999}'), "exp"),
    "expiry that is no JSON": (lambda: forged(json.dumps(without("exp"))[:-1] + ', "exp": Infinity}'), "read"),
    "not valid yet": (lambda: forged(good(nbf=int(time.time()) + 60)), "nbf"),
    "made tomorrow": (lambda: forged(good(iat=int(time.time()) + 86_400)), "iat"),
    "no issuer": (lambda: forged(without("iss")), "iss"),
    "another issuer": (lambda: forged(good(iss=f"{ISSUER}/")), "iss"),
    "issuers in a list": (lambda: forged(good(iss=[ISSUER])), "iss"),
    "no audience": (lambda: forged(without("aud")), "aud"),
    "another audience": (lambda: forged(good(aud="flowledger-other")), "aud"),
    "an audience that contains it": (lambda: forged(good(aud=f"x{AUDIENCE}")), "aud"),
    "no audience in a list": (lambda: forged(good(aud=[])), "aud"),
    "no subject": (lambda: forged(without("sub")), "sub"),
    "an empty subject": (lambda: forged(good(sub="")), "sub"),
    "a subject that is no UUID": (lambda: forged(good(sub="admin")), "sub"),
    "a subject with more behind it": (lambda: forged(good(sub=f"{ALICE}' or true --")), "sub"),
    "a subject in braces": (lambda: forged(good(sub=f"{{{ALICE}}}")), "sub"),
    "a subject with a line behind it": (lambda: forged(good(sub=f"{ALICE}\n")), "sub"),
    "a subject as a list": (lambda: forged(good(sub=[str(ALICE)])), "sub"),
    "a subject that stands twice": (lambda: forged(said_twice("sub", str(BOB))), "twice"),
    "a role that stands twice": (lambda: forged(said_twice("role", "a")[:-1] + ', "role": "b"}'), "twice"),
    "two keys that read the same": (lambda: forged(json.dumps(good())[:-1] + r', "\u0073ub": "x"}'), "twice"),
    "the owner's role": (lambda: forged(good(role="flowledger")), "role"),
    "a superuser": (lambda: forged(good(role="postgres")), "role"),
    "nobody's role": (lambda: forged(good(role="anon")), "role"),
    "a role as a list": (lambda: forged(good(role=["service_role"])), "role"),
    "no role at all": (lambda: forged(good(role=None)), "role"),
    "a role in other letters": (lambda: forged(good(role="SERVICE_ROLE")), "role"),
    "a payload that is a list": (lambda: forged([1]), "object"),
    "a payload that is text": (lambda: forged("no json"), "read"),
    "a payload nested too deeply": (lambda: forged("[" * 3000 + "]" * 3000), "read"),
    "a number with too many digits": (lambda: forged(json.dumps(good())[:-1] + ', "x": ' + "1" * 5000 + "}"), "read"),
    "bytes that are no text": (lambda: f"{part({'alg': 'HS256'})}.gICA.gICA", "signature"),
    "a huge token": (lambda: forged(good(x="x" * 8192)), "8,192 bytes"),
    "two parts": (lambda: ".".join(forged(good()).split(".")[:2]), "neither a JWT"),
    "four parts": (lambda: forged(good()) + ".x", "neither a JWT"),
    "signs that are not base64": (lambda: forged(good()) + "=", "neither a JWT"),
    "no token": (lambda: "x", "neither a JWT"),
}


def swapped(token: str, payload: str) -> list[str]:
    header, _, signature = token.split(".")
    return [header, payload, signature]


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_token_makes_nobody(api, forgery):
    make, why = FORGERIES[forgery]
    assert why in refused(whose(api, make()))


def test_ten_seconds_of_difference_between_clocks_are_forgiven(api):
    now = int(time.time())
    assert whose(api, forged(good(exp=now - 5, nbf=now + 5, iat=now + 5))).status_code == 200


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("", "Bearer TOKEN"),
        ("Bearer", "Bearer TOKEN"),
        ("Basic YTpi", "Bearer TOKEN"),
        ("Bearer a b", "neither a JWT"),
        ("Bearer fl_", "unknown"),
        ("Bearer fl_' or true --", "unknown"),
    ],
)
def test_an_authorization_that_is_none_makes_nobody(api, header, why):
    with api.as_(Authorization=header) as client:
        assert why in refused(client.get("/api/v1/tokens"))


def test_two_authorizations_make_nobody(api):
    both = [("Authorization", f"Bearer {signed(ALICE, **HERE)}"), ("Authorization", f"Bearer {signed(BOB, **HERE)}")]
    with api.as_() as client:
        assert "Bearer TOKEN" in refused(client.get("/api/v1/tokens", headers=both))


def test_nobody_gets_nothing(api):
    with api.as_() as client:
        assert "no bearer token" in refused(client.get("/api/v1/tokens"))


async def test_postgres_is_told_user_and_role_and_nothing_else_that_a_token_says(api, postgres):
    claims = await Verifier(Settings(jwt_secret=SECRET)).claims(signed(ALICE, app_metadata={"role": "x"}, email="a"))
    assert claims == Claims(ALICE)


async def test_a_token_for_an_audience_is_refused_where_none_is_configured():
    with pytest.raises(NotAuthenticated, match="jwt_audience"):
        await Verifier(Settings(jwt_secret=SECRET)).claims(signed(ALICE, aud="somebody-else"))


async def test_the_role_may_stand_in_another_claim():
    verifier = Verifier(Settings(jwt_secret=SECRET, jwt_role_claim="https://id.example/role"))
    operator = signed(ALICE, **{"https://id.example/role": "service_role", "role": "authenticated"})
    assert (await verifier.claims(operator)).is_operator
    assert not (await verifier.claims(signed(ALICE, role="service_role"))).is_operator


async def test_without_a_key_no_jwt_is_taken():
    with pytest.raises(NotAuthenticated, match="no key"):
        await Verifier(Settings()).claims(signed(ALICE))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"jwt_secret": "short"}, "jwt_secret"),
        ({"jwt_secret": "x" * 31}, "jwt_secret"),
        ({"jwt_secret": PUBLIC_PEM.decode()}, "jwt_secret"),
        ({"jwt_secret": SECRET, "jwt_algorithm": "RS256"}, "jwt_algorithm"),
        ({"jwt_secret": SECRET, "jwks_url": "https://id.example/keys"}, "jwks_url"),
        ({"jwks_url": "https://id.example/keys", "jwt_algorithm": "HS256"}, "jwt_algorithm"),
        ({"jwks_url": "http://id.example/keys"}, "jwks_url"),
        ({"jwks_url": "file:///etc/passwd"}, "jwks_url"),
        ({"jwks_file": "nowhere.json"}, "jwks_file"),
    ],
)
def test_a_key_that_is_weak_or_contradicts_another_is_refused_at_the_start(settings, field):
    with pytest.raises(InvalidInput) as refusal:
        Verifier(Settings(**settings))
    assert refusal.value.field == f"setting {field}"
    assert refusal.value.remedy or field == "jwks_file"


def test_an_algorithm_that_is_not_known_is_no_setting():
    with pytest.raises(ValueError, match="jwt_algorithm"):
        Settings(jwt_algorithm="none")


# -- Published keys ---------------------------------------------------------------------------------------------------


def jwk(key: Any, kid: str | None = "one", **more: Any) -> dict[str, Any]:
    kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), **({} if kid is None else {"kid": kid}), **more}


class Publisher:
    """A real HTTP server that publishes keys. `answers` is what it says, `asked` how often it was asked."""

    def __init__(self) -> None:
        self.answers: bytes | int = b""
        self.asked = 0
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.asked += 1
                status, body = (
                    (publisher.answers, b"") if isinstance(publisher.answers, int) else (200, publisher.answers)
                )
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"

    def publish(self, *published: dict[str, Any]) -> None:
        self.answers = json.dumps({"keys": published}).encode()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    thread = threading.Thread(target=publisher.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield publisher
    publisher.server.shutdown()
    publisher.server.server_close()
    thread.join()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """What the keys' ages are judged by."""
    clock = Clock()
    ours = keys.Published.__init__
    monkeypatch.setattr(keys.Published, "__init__", lambda self, *given: ours(self, *given, clock=clock))
    return clock


def by(key: Any, kid: str | None = "one", user: UUID = ALICE, **claims: Any) -> str:
    algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    return signed(user, key=key, algorithm=algorithm, headers=None if kid is None else {"kid": kid}, **claims)


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, None), (RSA_KEY, "RS256"), (EC_KEY, "ES256")])
async def test_a_published_key_is_believed(publisher, key, algorithm):
    publisher.publish(jwk(key))
    verifier = Verifier(Settings(jwks_url=publisher.url, jwt_algorithm=algorithm))
    assert (await verifier.claims(by(key))).user == ALICE
    assert (await verifier.claims(by(key, kid=None))).user == ALICE
    assert publisher.asked == 1


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_a_public_key_is_no_secret_to_sign_with(publisher, algorithm):
    publisher.publish(jwk(RSA_KEY), jwk(EC_KEY, "two"))
    verifier = Verifier(Settings(jwks_url=publisher.url, jwt_algorithm=algorithm))
    for key in (PUBLIC_PEM, json.dumps(jwk(RSA_KEY)).encode()):
        confused = forged({"sub": str(ALICE), "exp": int(time.time()) + 60}, {"alg": "HS256", "kid": "one"}, key)
        with pytest.raises(NotAuthenticated, match="alg"):
            await verifier.claims(confused)
        pretending = forged({"sub": str(ALICE), "exp": int(time.time()) + 60}, {"alg": algorithm}, key)
        with pytest.raises(NotAuthenticated):
            await verifier.claims(pretending)


async def test_a_key_of_somebody_else_is_not_believed_under_a_known_name(publisher):
    publisher.publish(jwk(RSA_KEY))
    with pytest.raises(NotAuthenticated, match="signature"):
        await Verifier(Settings(jwks_url=publisher.url)).claims(by(OTHER_RSA_KEY))


async def test_a_key_that_is_new_is_fetched_when_it_is_first_met_and_one_that_is_gone_is_forgotten(publisher, clock):
    publisher.publish(jwk(RSA_KEY))
    verifier = Verifier(Settings(jwks_url=publisher.url))
    await verifier.claims(by(RSA_KEY))
    publisher.publish(jwk(OTHER_RSA_KEY, "two"))
    clock.now += 31
    assert (await verifier.claims(by(OTHER_RSA_KEY, "two", BOB))).user == BOB
    with pytest.raises(NotAuthenticated, match="kid"):
        await verifier.claims(by(RSA_KEY))
    assert publisher.asked == 2


async def test_a_revoked_key_is_believed_for_ten_minutes_at_most(publisher, clock):
    publisher.publish(jwk(RSA_KEY), jwk(OTHER_RSA_KEY, "two"))
    verifier = Verifier(Settings(jwks_url=publisher.url))
    await verifier.claims(by(OTHER_RSA_KEY, "two"))
    publisher.publish(jwk(RSA_KEY))
    clock.now += 601
    with pytest.raises(NotAuthenticated, match="kid"):
        await verifier.claims(by(OTHER_RSA_KEY, "two"))


async def test_unknown_names_of_keys_make_nobody_ask_more_than_twice_a_minute(publisher, clock):
    publisher.publish(jwk(RSA_KEY))
    verifier = Verifier(Settings(jwks_url=publisher.url))
    for second in range(60):
        clock.now = 1000.0 + second
        with pytest.raises(NotAuthenticated):
            await verifier.claims(by(OTHER_RSA_KEY, f"key-{second}"))
    assert publisher.asked == 2


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (500, "answers 500"),
        (302, "answers 302"),
        (b"no json", "no JSON object"),
        (b"[]", "no JSON object"),
        (b'{"keys": {}}', "no list"),
        (b'{"keys": []}', "no public key"),
        (b'{"keys": [null, 1, {}]}', "no public key"),
        (b"x" * (keys.MOST_SET_BYTES + 1), "larger"),
        (b'{"keys":' + b"[" * 100_000, "no JSON object"),
    ],
)
async def test_a_publisher_that_answers_rubbish_is_told_and_nobody_is_believed(publisher, answer, why):
    publisher.answers = answer
    with pytest.raises(KeysUnavailable, match=why):
        await Verifier(Settings(jwks_url=publisher.url)).claims(by(RSA_KEY))


async def test_keys_are_good_for_an_hour_without_their_publisher(publisher, clock):
    publisher.publish(jwk(RSA_KEY))
    verifier = Verifier(Settings(jwks_url=publisher.url))
    await verifier.claims(by(RSA_KEY))
    publisher.answers = 503
    clock.now += 3599
    assert (await verifier.claims(by(RSA_KEY))).user == ALICE
    clock.now += 31
    with pytest.raises(KeysUnavailable):
        await verifier.claims(by(RSA_KEY))
    publisher.publish(jwk(RSA_KEY))
    clock.now += 31
    assert (await verifier.claims(by(RSA_KEY))).user == ALICE


async def test_only_public_signing_keys_of_the_algorithm_that_are_strong_enough_are_believed(publisher):
    weak = rsa.generate_private_key(65537, 1024)
    private = {**RSAAlgorithm.to_jwk(OTHER_RSA_KEY, as_dict=True), "kid": "private"}
    publisher.publish(
        jwk(RSA_KEY),
        jwk(weak, "weak"),
        private,
        jwk(OTHER_RSA_KEY, "encrypting", use="enc"),
        jwk(OTHER_RSA_KEY, "other-algorithm", alg="RS512"),
        jwk(EC_KEY, "other-kind"),
        {"kty": "oct", "k": part("x" * 32), "kid": "secret"},
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "broken"},
    )
    verifier = Verifier(Settings(jwks_url=publisher.url))
    assert (await verifier.claims(by(RSA_KEY))).user == ALICE
    for kid in ("weak", "private", "encrypting", "other-algorithm", "other-kind", "secret", "broken"):
        with pytest.raises(NotAuthenticated, match="kid"):
            await verifier.claims(by(OTHER_RSA_KEY, kid))


async def test_two_keys_of_one_name_are_no_set(publisher):
    publisher.publish(jwk(RSA_KEY), jwk(OTHER_RSA_KEY))
    with pytest.raises(KeysUnavailable, match="one name"):
        await Verifier(Settings(jwks_url=publisher.url)).claims(by(RSA_KEY))


async def test_a_file_of_keys_is_read_again(tmp_path, clock):
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [jwk(RSA_KEY)]}))
    verifier = Verifier(Settings(jwks_file=file))
    await verifier.claims(by(RSA_KEY))
    file.write_text(json.dumps({"keys": [jwk(OTHER_RSA_KEY, "two")]}))
    clock.now += 31
    assert (await verifier.claims(by(OTHER_RSA_KEY, "two"))).user == ALICE
    file.unlink()
    clock.now += 3601
    with pytest.raises(KeysUnavailable):
        await verifier.claims(by(OTHER_RSA_KEY, "two"))


def test_the_api_answers_503_while_it_cannot_have_the_keys_and_200_when_it_can(postgres, publisher, monkeypatch):
    monkeypatch.setattr(keys, "_BETWEEN_FETCHES_SECONDS", 0)
    publisher.answers = 500
    with served(postgres, jwt_secret=None, jwks_url=publisher.url) as api:
        answer = whose(api, by(RSA_KEY))
        assert (answer.status_code, answer.json()["code"]) == (503, "keys_unavailable")
        assert answer.headers["retry-after"]
        publisher.publish(jwk(RSA_KEY))
        assert whose(api, by(RSA_KEY)).status_code == 200


# -- Personal tokens --------------------------------------------------------------------------------------------------


def made(api: Served, user: UUID = ALICE, role: str = "authenticated", **asked: Any) -> dict[str, Any]:
    with api.as_(signed(user, role=role, **HERE)) as client:
        answer = client.post("/api/v1/tokens", json={"name": "ci", **asked})
        assert answer.status_code == 201, answer.text
        token: dict[str, Any] = answer.json()
        return token


def test_a_token_is_shown_once_and_kept_as_a_digest(api, database):
    token = made(api)
    assert token["token"].startswith(token["hint"])
    assert len(token["token"]) == 46
    with psycopg.connect(database.url("flowledger")) as owner:
        stored = owner.execute("select tokens::text, sha256 from flowledger.tokens as tokens").fetchone()
    assert stored is not None
    assert token["token"][10:] not in stored[0]
    assert stored[1] == hashlib.sha256(token["token"].encode()).digest()
    with api.as_(signed(ALICE, **HERE)) as client:
        listed = client.get("/api/v1/tokens").json()
    assert listed == [{name: value for name, value in token.items() if name != "token"}]


def test_a_token_speaks_for_its_user_until_it_is_revoked(api, database):
    token = made(api)
    with api.as_(token["token"]) as bearer:
        assert [one["id"] for one in bearer.get("/api/v1/tokens").json()] == [token["id"]]
        assert bearer.get("/api/v1/tokens").json()[0]["last_used_at"]
        assert bearer.delete(f"/api/v1/tokens/{token['id']}").status_code == 204
        assert "revoked" in refused(bearer.get("/api/v1/tokens"))


def test_a_token_ends_when_it_expires_and_frees_its_name(api, database):
    token = made(api, expires_in_days=1)
    with psycopg.connect(database.url("flowledger"), autocommit=True) as owner:
        owner.execute("update flowledger.tokens set created_at = now() - interval '2 days', expires_at = now()")
    assert "expired" in refused(whose(api, token["token"]))
    assert made(api)["id"] != token["id"]


def test_users_see_and_revoke_their_own_tokens_only(api, database):
    token = made(api, user=ALICE)
    with api.as_(signed(BOB, **HERE)) as bob:
        assert bob.get("/api/v1/tokens").json() == []
        answer = bob.delete(f"/api/v1/tokens/{token['id']}")
        assert (answer.status_code, answer.json()["code"]) == (404, "token_not_found")
    with api.as_(signed(BOB, role="service_role", **HERE)) as operator:
        assert operator.get("/api/v1/tokens").json() == []
        assert operator.delete(f"/api/v1/tokens/{token['id']}").status_code == 404
    assert whose(api, token["token"]).status_code == 200


def test_a_token_that_reads_changes_nothing(api, database):
    token = made(api, scopes=["read"])
    with api.as_(token["token"]) as reader:
        assert reader.get("/api/v1/tokens").status_code == 200
        for answer in (
            reader.post("/api/v1/tokens", json={"name": "more"}),
            reader.delete(f"/api/v1/tokens/{token['id']}"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "scope_refused")
            assert "read" in answer.json()["title"]
            assert "--scope run" in answer.json()["remedy"]


async def test_a_token_that_reads_can_neither_start_nor_cancel_whatever_the_endpoint_does(api, database):
    """Postgres itself refuses: its transactions are read-only."""
    from flowledger.database.session import Database
    from flowledger.errors import PermissionRefused

    with psycopg.connect(database.url("flowledger_worker"), autocommit=True) as worker:
        worker.execute("select flowledger.remember_flow('FLOW', 'Flow', '', '{}', '')")
    reader = Claims(ALICE, read_only=True)
    async with Database(database.url("flowledger_api"), most_connections=1) as ledger:
        for statement in (
            b"select flowledger.kickoff('FLOW', '{}')",
            b"select flowledger.cancel(gen_random_uuid(), null)",
            b"insert into crewai_flow_executions (flow_id, execution_key) select id, 'X' from crewai_flows",
        ):
            with pytest.raises(PermissionRefused, match="read-only"):
                async with ledger.session(reader) as session:
                    await session.execute(statement)
        async with ledger.session(Claims(ALICE)) as session:
            await session.execute(b"select flowledger.kickoff('FLOW', '{}')")


def test_a_token_makes_no_other_token(api, database):
    with api.as_(made(api)["token"]) as bearer:
        answer = bearer.post("/api/v1/tokens", json={"name": "another"})
        assert (answer.status_code, answer.json()["code"]) == (403, "permission_refused")


def test_only_operators_make_tokens_that_operate(api, database):
    with api.as_(signed(ALICE, **HERE)) as user:
        answer = user.post("/api/v1/tokens", json={"name": "root", "scopes": ["operate"]})
        assert (answer.status_code, answer.json()["code"]) == (403, "permission_refused")
    token = made(api, role="service_role", scopes=["operate"])
    assert whose(api, token["token"]).status_code == 200


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"name": ""},
        {"name": "n" * 101},
        {"name": "a\nb"},
        {"name": "a\u0000b"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["admin"]},
        {"name": "x", "expires_in_days": 0},
        {"name": "x", "expires_in_days": 10**9},
        {"name": "x", "user_id": str(BOB)},
    ],
)
def test_a_token_that_cannot_be_made_is_a_problem_that_names_the_field(api, database, asked):
    with api.as_(signed(ALICE, **HERE)) as client:
        answer = client.post("/api/v1/tokens", json=asked)
    assert answer.status_code == 422
    assert answer.json().get("field") or answer.json()["faults"][0]["field"]


def test_a_name_is_taken_once_and_a_hundred_tokens_are_enough(api, database):
    made(api)
    with api.as_(signed(ALICE, **HERE)) as client:
        again = client.post("/api/v1/tokens", json={"name": "ci"})
        assert (again.status_code, again.json()["field"]) == (422, "name")
        for number in range(99):
            assert client.post("/api/v1/tokens", json={"name": f"n{number}"}).status_code == 201
        full = client.post("/api/v1/tokens", json={"name": "one-more"})
        assert (full.status_code, "100" in full.json()["title"]) == (422, True)


# -- The local login --------------------------------------------------------------------------------------------------


def a_link(database, user: UUID = ALICE) -> str:
    """As `flowledger up` prints it."""
    secret = "a-link-of-the-tests"
    with psycopg.connect(database.url("flowledger"), autocommit=True) as owner:
        owner.execute("select flowledger.open_login(%s, sha256(%s))", [user, secret.encode()])
    return f"/login?link={secret}"


def test_a_link_lets_a_browser_in_once(api, database):
    link = a_link(database)
    with api.as_() as browser:
        entered = browser.get(link)
        assert entered.status_code == 303
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "link" not in entered.headers["location"]
        assert browser.get("/api/v1/tokens").status_code == 200
    with api.as_() as another:
        assert "opened before" in refused(another.get(link))


def test_a_link_is_good_for_ten_minutes(api, database):
    link = a_link(database)
    with psycopg.connect(database.url("flowledger"), autocommit=True) as owner:
        left = owner.execute(
            "select link_expires_at - now() <= interval '10 minutes' from flowledger.logins"
        ).fetchone()
        assert left == (True,)
        owner.execute("update flowledger.logins set link_expires_at = clock_timestamp()")
    with api.as_() as browser:
        assert "too old" in refused(browser.get(link))


@contextmanager
def signed_in(api: Served, database: Any) -> Iterator[Any]:
    with api.as_() as browser:
        browser.get(a_link(database))
        yield browser


def test_a_login_ends_when_the_person_leaves(api, database):
    with signed_in(api, database) as browser:
        cookies = dict(browser.cookies)
        assert browser.delete("/login", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 204
        assert refused(browser.get("/api/v1/tokens"))
        with api.as_(Cookie="; ".join(f"{name}={value}" for name, value in cookies.items())) as thief:
            assert "ended" in refused(thief.get("/api/v1/tokens"))


def test_a_login_is_taken_by_flowledger_up_only(postgres, database):
    link = a_link(database)
    with served(postgres) as production, production.as_() as browser:
        assert browser.get(link).status_code == 404


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Origin": "{own}"}, 201),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "{own}"}, 201),
        ({}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://{host}"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "{own}"}, 403),
    ],
)
def test_a_login_changes_things_for_our_own_pages_only(api, database, headers, expected):
    host = api.url.removeprefix("http://")
    given = {name: value.format(own=api.url, host=host) for name, value in headers.items()}
    with signed_in(api, database) as browser:
        answer = browser.post("/api/v1/tokens", json={"name": "from-a-page"}, headers=given)
        assert answer.status_code == expected, answer.text
        if expected == 403:
            assert answer.json()["code"] == "origin_refused"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": "http://evil.example"}, 403),
    ],
)
def test_a_login_is_not_read_by_pages_of_others(api, database, headers, expected):
    with signed_in(api, database) as browser:
        assert browser.get("/api/v1/tokens", headers=headers).status_code == expected


def test_a_bearer_token_needs_no_origin(api, database):
    with api.as_(signed(ALICE, **HERE), Origin="https://app.example") as client:
        assert client.post("/api/v1/tokens", json={"name": "x"}).status_code == 201


# -- Names and addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:8700", "[::1]:8700", "localhost."])
def test_the_local_default_answers_to_names_of_this_machine(api, host):
    with api.as_(Host=host) as client:
        assert client.get("/api/v1/health").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8700", "", "[evil]", "0.0.0.0"]
)
def test_it_answers_to_no_other_name(api, host):
    with api.as_(signed(ALICE, **HERE), Host=host) as client:
        answer = client.get("/api/v1/tokens")
        assert (answer.status_code, answer.json()["code"]) == (421, "host_refused")


def test_names_that_are_allowed_are_answered_to(postgres):
    with served(postgres, allowed_hosts="flows.example, Other.Example") as api:
        for host, expected in (("flows.example", 200), ("other.example:443", 200), ("third.example", 421)):
            with api.as_(Host=host) as client:
                assert client.get("/api/v1/health").status_code == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "flows.example"])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(InvalidInput, match="can be reached by others"):
        require_safe_bind(Settings(server_host=host))
    require_safe_bind(Settings(server_host=host, jwt_secret=SECRET))


def test_a_public_address_without_names_answers_to_any():
    assert allowed_hosts(Settings(server_host="0.0.0.0")) is None
    assert allowed_hosts(Settings(server_host="127.0.0.2")) >= {"127.0.0.2", "localhost"}


def test_the_verifier_knows_its_limits():
    assert auth.ROLES == ("authenticated", "service_role")
    assert auth.MOST_BYTES == 8192
