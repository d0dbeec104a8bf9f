"""No form of a secret gets through, wherever a text is cut or a stream is split; everything else does as it is."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from itertools import count, pairwise
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flowledger.domain.timeline import LogLine
from flowledger.runner.encode import dump, encode
from flowledger.runner.kept import BoundedLog
from flowledger.runner.redact import Redactor
from flowledger.runner.secret import secrets_of, variants

AWKWARD = "".join(["p", '"', "q\\w'", "e+r/t y%", "ü€😀", "=&<>", "~42"])
SECRET = "t0ps3cret-Zq9Xw2Lm"
KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\n"
    + "\n".join(["MIIEowIBAAKCAQEA7bq0" * 3] * 20)
    + "\nab==\n-----END RSA PRIVATE KEY-----"
)
TOKENS = {
    "OpenAI": "sk-proj-Ab3dEfGh1jKlMn0pQrSt",
    "Anthropic": "sk-ant-api03-Ab3dEfGh1jKlMn0pQrSt",
    "GitHub": "ghp_Ab3dEfGh1jKlMn0pQrStUvWxYz0123456789",
    "GitHub's longer": "github_pat_11ABCDEFG0abcdefghijkl_Mnop",
    "Slack": "xoxb-123456789012-abcdefABCDEF",
    "AWS": "AKIAIOSFODNN7EXAMPLE",
    "Google": "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "Stripe": "sk_live_Ab3dEfGh1jKlMn0pQrSt",
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "key": KEY,
}
ORDINARY = (
    "The risk-adjusted plan for task-management-in-2024-and-later is fine.",
    "A bearer of bad tidings, and basic arithmetic.",
    "See https://example.com/a/b?c=d#e, mailto:me@example.com and postgres://host/db.",
    "Keys: monkey, donkey; session over; eyJ is not enough, nor AKIA, sk- or ghp_.",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    '{"input_tokens": 123456, "path": "/usr/lib", "when": "2026-01-02T03:04:05Z"}',
    "Grüße, 你好, 😀 \x1b[31mred\x1b[0m\t|\r\n",
)


def forms_of(secret: str) -> dict[str, str]:
    """As a flow's author would come to them, beside the product's own list."""
    data = secret.encode()
    return {
        "itself": secret,
        "JSON": json.dumps(secret)[1:-1],
        "JSON in letters": json.dumps(secret, ensure_ascii=False)[1:-1],
        "JSON in JSON": json.dumps(json.dumps(secret))[3:-3],
        "repr": repr(secret)[1:-1],
        "quote": quote(secret),
        "quote all": quote(secret, safe=""),
        "quote_plus": quote_plus(secret),
        "small hex": quote(secret, safe="").replace("%2F", "%2f").replace("%2B", "%2b"),
        "hex": data.hex(),
        **{f"base64 {n}": base64.b64encode(b"x" * n + data + b"yz")[4 : -4 - n].decode() for n in range(3)},
        **{f"urlsafe {n}": base64.urlsafe_b64encode(b"x" * n + data + b"yz")[4 : -4 - n].decode() for n in range(3)},
    }


def carriers_of(secret: str) -> list[str]:
    """Texts that hold it in one way or another."""
    basic = [base64.b64encode(f"{user}:{secret}".encode()).decode() for user in ("a", "ab", "abc")]
    urlsafe = [base64.urlsafe_b64encode(f"{user}{secret}".encode()).decode() for user in ("", "a", "ab")]
    plain = [secret, repr(secret), json.dumps(secret), json.dumps(json.dumps({"k": secret})), quote(secret)]
    return [*plain, quote(secret, safe=""), quote_plus(secret), *basic, *urlsafe, secret.encode().hex()]


@pytest.fixture
def redactor() -> Redactor:
    return Redactor({"SERVICE_TOKEN": SECRET, "DB_PASSWORD": AWKWARD})


class TestByValue:
    @pytest.mark.parametrize("secret", [SECRET, AWKWARD])
    def test_no_form_of_a_secret_is_left(self, redactor: Redactor, secret: str) -> None:
        for carrier in carriers_of(secret):
            told = redactor.text(f"before {carrier} after")
            assert told.startswith("before ")
            assert told.endswith(" after")
            assert "[redacted " in told, carrier
            for how, form in forms_of(secret).items():
                assert form not in told, how

    def test_the_marker_names_the_variable(self, redactor: Redactor) -> None:
        assert redactor.text(f"key={SECRET}.") == "key=[redacted SERVICE_TOKEN]."

    def test_without_the_variable_the_same_texts_are_left_alone(self) -> None:
        """The control."""
        for carrier in carriers_of(SECRET):
            assert Redactor().text(carrier) == carrier

    @given(
        secret=st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=6, max_size=60),
        before=st.text(max_size=30),
        after=st.text(max_size=30),
    )
    @settings(max_examples=300, deadline=None)
    def test_of_any_secret_in_any_surroundings_nothing_is_left(self, secret: str, before: str, after: str) -> None:
        assume(secrets_of("X_TOKEN", secret) and secrets_of("X_TOKEN", secret)[-1] == secret)
        redactor = Redactor({"X_TOKEN": secret})
        for form in variants(secret):
            told = redactor.text(before + form + after)
            assert form not in told.replace("[redacted X_TOKEN]", "\0")
            assert redactor.suspects(json.dumps(before + form + after)), "the quick look finds it too"

    @given(text=st.text(max_size=300))
    @settings(max_examples=300)
    def test_a_text_without_secrets_is_the_very_same(self, text: str) -> None:
        redactor = Redactor({"SERVICE_TOKEN": SECRET, "DB_PASSWORD": AWKWARD})
        assert redactor.text(text) is text
        assert redactor.cut(text, 100) == text[:100]

    @pytest.mark.parametrize("text", ORDINARY)
    def test_ordinary_text_is_left_alone(self, redactor: Redactor, text: str) -> None:
        assert redactor.text(text) == text

    def test_secrets_that_overlap_leave_nothing_between_them(self) -> None:
        redactor = Redactor({"A_KEY": "alpha-bravo-1", "B_KEY": "bravo-1-charlie"})
        assert redactor.text("<alpha-bravo-1-charlie>") == "<[redacted B_KEY]>"

    def test_an_environment_that_is_no_text_is_found_however_it_is_decoded(self) -> None:
        redactor = Redactor({"RAW_KEY": os.fsdecode(b"s\xffcret-\xfe-12345")})
        assert (
            redactor.text("s\udcffcret-\udcfe-12345")
            == redactor.text("s\ufffdcret-\ufffd-12345")
            == "[redacted RAW_KEY]"
        )


class TestWhatIsASecret:
    @pytest.mark.parametrize("name", [
        "OPENAI_API_KEY", "openai_api_key", "openaiApiKey", "GITHUB_TOKEN", "CLIENT_SECRET", "DB_PASSWORD", "DB_PASSWD",
        "DBPASS_PASS", "SMTP_PASS", "AWS_SECRET_ACCESS_KEY", "GOOGLE_CREDENTIALS", "BASIC_AUTH", "PRIVATE_KEY",
        "SENTRY_DSN", "SESSION_COOKIE", "SESSION_SECRET", "STRIPE_SIGNATURE", "SLACK_WEBHOOK", "SLACK_WEBHOOK_URL",
        "APIKEY", "MYTOKEN", "AZURE_STORAGE_CONNECTION_STRING", "SECRET_TYPE", "GITHUB_PAT", "JWT", "X_AUTHORIZATION",
    ])  # fmt: skip
    def test_a_name_tells(self, name: str) -> None:
        assert secrets_of(name, SECRET) == [SECRET]

    @pytest.mark.parametrize(("name", "value"), [
        ("HOME", "/home/somebody-1"), ("MODEL", "gpt-4o-mini-2024"), ("OPENAI_MODEL_NAME", "gpt-4o-mini-2024"),
        ("SSH_AUTH_SOCK", "/tmp/ssh-x/agent.1"), ("KEY_FILE", "/etc/keys/one.pem"), ("TOKENIZERS_PARALLELISM", "false"),
        ("USE_AUTH", "true"), ("AUTH_TYPE", "oauth-2.0"), ("MAX_TOKENS", "100000"), ("SESSION_TIMEOUT", "360000"),
        ("API_KEY", "short"), ("API_KEY", "xxxxxxxx"), ("OPENAI_API_KEY", "OPENAI"), ("DB_PASSWORD", "postgres"),
        ("AUTH_URL", "https://auth.example.com/oauth2"), ("XDG_SESSION_CLASS", "background-1"),
        ("PWD", "/work/space-1"), ("DATABASE_URL", "postgres://host.example.com/db"), ("URL", "https://example.com/?page=10&size=200000"),
    ])  # fmt: skip
    def test_what_is_obviously_none_is_none(self, name: str, value: str) -> None:
        assert secrets_of(name, value) == []

    @pytest.mark.parametrize(("name", "value"), [
        ("DATABASE_URL", f"postgres://user:{SECRET}@host/db?sslmode=require"),
        ("BROKER", f"redis://:{SECRET}@host:6379/0"),
        ("CALLBACK", f"https://example.com/hook?token={SECRET}&page=2"),
        ("STORE", f"AccountName=me;AccountKey={SECRET};Suffix=net"),
        ("CONNINFO", f"host=db user=me password={SECRET} port=5432"),
        ("CONFIG", json.dumps({"user": "somebody", "auth": {"client_secret": SECRET}})),
        ("HEADERS_KEY", f"Bearer {SECRET}"),
        ("QUOTED_KEY", f'"{SECRET}"'),
    ])  # fmt: skip
    def test_a_secret_inside_a_value_is_one(self, name: str, value: str) -> None:
        assert SECRET in secrets_of(name, value)
        assert "somebody" not in secrets_of(name, value)

    def test_an_escaped_password_is_known_as_both(self) -> None:
        assert {"a%2Fb%40c-123", "a/b@c-123"} <= set(secrets_of("URL", "mysql://u:a%2Fb%40c-123@host/db"))

    @pytest.mark.parametrize("token", [token for name, token in TOKENS.items()])
    def test_a_token_is_one_whatever_its_variable_is_called(self, token: str) -> None:
        assert token in secrets_of("WHATEVER", token)

    def test_lines_of_a_long_secret_are_found_wherever_they_are_indented(self) -> None:
        redactor = Redactor({"SIGNING_KEY": "first-line-of-the-key\nsecond-line-of-the-key"})
        assert redactor.text("  first-line-of-the-key\n  second-line-of-the-key").count("[redacted SIGNING_KEY]") == 2

    def test_what_an_address_says_without_its_host_is_found(self) -> None:
        redactor = Redactor({"SLACK_WEBHOOK_URL": "https://hooks.example.com/services/T0/B0/abcdef123"})
        assert "abcdef123" not in redactor.text("Max retries exceeded with url: /services/T0/B0/abcdef123")


class TestPatterns:
    @pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
    def test_a_token_that_nobody_told_of_is_found(self, token: str) -> None:
        for text in (f"a {token} b", f"a={token}\n", json.dumps({"a": f"line\n{token}"})):
            told = Redactor().text(json.loads(text)["a"] if text.startswith("{") else text)
            assert "[redacted]" in told
            assert token not in told
            assert Redactor().suspects(text)

    def test_credentials_behind_a_scheme_and_in_an_address_are_found(self) -> None:
        told = Redactor().text("Authorization: Bearer abc.def-123; Basic dXNlcjpwYXNz=; amqp://me:pa55@host/x")
        assert told == "Authorization: Bearer [redacted]; Basic [redacted]; amqp://me:[redacted]@host/x"

    def test_a_flows_own_patterns_are_applied(self) -> None:
        redactor = Redactor(patterns=[r"KD-(\d{4})-\d{4}"])
        assert redactor.text("customer KD-1234-5678.") == "customer [redacted]."
        assert dump({"k": 'KD-1234-5678"'}, 1000, redactor)[0] == b'{"k":"[redacted]\\""}'


class TestData:
    def test_values_keys_and_numbers_are_redacted_and_the_rest_stays(self) -> None:
        redactor = Redactor({"PIN": "12345678", "A_TOKEN": SECRET})
        value = {SECRET: [SECRET, {"x": 12345678, "y": 1234567, "z": None, "b": True}], f"{SECRET}'": 1.5}
        told = redactor.data(value, numbers=True)
        assert told == {
            "[redacted A_TOKEN]": ["[redacted A_TOKEN]", {"x": "[redacted PIN]", "y": 1234567, "z": None, "b": True}],
            "[redacted A_TOKEN]'": 1.5,
        }

    def test_an_output_is_redacted_before_it_is_measured_cut_and_hashed(self, redactor: Redactor) -> None:
        clean = {"state": ["[redacted SERVICE_TOKEN]"] * 1000}
        assert dump({"state": [SECRET] * 1000}, 1024, redactor) == dump(clean, 1024, redactor)

    def test_what_encode_shortens_leaves_no_part_of_a_secret(self, redactor: Redactor) -> None:
        class Thing:
            def __repr__(self) -> str:
                return "x" * (1000 - 9) + SECRET

        encoded = json.dumps(encode({"a": Thing(), ("y" * (1000 - 11) + SECRET,): 1}, redactor)[0])
        assert SECRET[:4] not in encoded

    def test_what_stands_between_nul_is_found_as_it_is_stored(self, redactor: Redactor) -> None:
        spread = "\x00".join(SECRET)
        assert SECRET not in dump(encode(spread, redactor)[0], 1000, redactor)[0].decode()


class TestCut:
    @pytest.mark.parametrize("secret", [SECRET, AWKWARD])
    def test_a_secret_across_the_cut_leaves_no_part(self, redactor: Redactor, secret: str) -> None:
        text = "." * 50 + secret + "." * 2000
        for most in range(45, 60 + len(secret)):
            told = redactor.cut(text, most)
            assert len(told) <= most
            assert secret[:3] not in told
            assert secret[-3:] not in told

    def test_a_cut_after_many_secrets_shows_none_beyond_it(self, redactor: Redactor) -> None:
        """Markers may be shorter than what they replace; what lies beyond the cut must not move into it."""
        long = Redactor({"K_KEY": "long-secret-" + "ab1" * 200})
        text = ("long-secret-" + "ab1" * 200) * 3 + " " + ("long-secret-" + "ab1" * 100)
        assert "ab1" not in long.cut(text, 1000)

    def test_a_cut_is_as_long_as_it_may_be(self, redactor: Redactor) -> None:
        assert redactor.cut("a" * 1000, 10) == "a" * 10
        assert redactor.cut("short", 10) == "short"


class Lines:
    """A recorder that keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []

    def event(self, event: Any) -> None: ...

    def log(self, line: LogLine) -> None:
        self.lines.append(line)

    @property
    def text(self) -> str:
        return "".join(line.text for line in self.lines)


class TestStreams:
    @pytest.mark.parametrize("text", [f"a {SECRET} b\n", f"{AWKWARD}", *(f"a {t} b\n" for t in TOKENS.values()),
                                      "x Bearer abc.def-123\n", "amqp://me:pa55@host/x\n", f"é{SECRET}"])  # fmt: skip
    def test_a_split_anywhere_changes_nothing(self, redactor: Redactor, text: str) -> None:
        data = text.encode()
        for at in range(len(data) + 1):
            assert _log(redactor, [data[:at], data[at:]])[0] == redactor.text(text), data[:at]

    @given(pieces=st.lists(st.integers(0, 200), max_size=8), before=st.text(max_size=20), after=st.text(max_size=20))
    @settings(max_examples=200)
    def test_any_split_of_any_text_changes_nothing(self, pieces: list[int], before: str, after: str) -> None:
        redactor = Redactor({"A_KEY": "alpha-bravo-1", "B_KEY": "bravo-1-charlie", "C_KEY": "charlie-2"})
        text = f"{before}alpha-bravo-1-charlie-2{after}alpha-bravo".replace("\x00", "")
        data = text.encode(errors="replace")
        edges = sorted({0, len(data), *(edge for edge in pieces if edge < len(data))})
        split = [data[a:b] for a, b in pairwise(edges)]
        assert _log(redactor, split)[0] == redactor.text(data.decode())

    def test_ordinary_lines_are_written_at_once(self, redactor: Redactor) -> None:
        lines = Lines()
        log = BoundedLog("stdout", 1000, lines, redactor)
        for text in ("one\n", "two, and no end of a line", " three\n"):
            log.take(text.encode())
            assert lines.lines[-1].text == text

    def test_what_may_be_a_beginning_waits_and_is_told_at_the_end(self, redactor: Redactor) -> None:
        lines = Lines()
        log = BoundedLog("stdout", 1000, lines, redactor)
        log.take(f"half {SECRET[:7]}".encode())
        assert lines.text == "half "
        log.finish()
        assert lines.text == f"half {SECRET[:7]}"

    def test_a_secret_across_head_middle_and_tail_leaves_no_part(self, redactor: Redactor) -> None:
        for shift in range(60):
            data = ("." * shift + (SECRET + "." * 17) * 60).encode()
            told, dropped = _log(redactor, [data[at : at + 100] for at in range(0, len(data), 100)], most_bytes=600)
            assert dropped > 0
            rest = told.replace("[redacted SERVICE_TOKEN]", "").replace(f"\n... {dropped:,} bytes left out ...\n", "")
            # The marker itself may be cut.
            assert not any(SECRET[at : at + 4] in rest for at in range(len(SECRET) - 4)), rest
            assert len(told) <= 600 + 40

    def test_without_secrets_head_and_tail_are_exact(self) -> None:
        data = b"".join(b"%06d\n" % n for n in range(1000))
        told, dropped = _log(Redactor(), [data[at : at + 333] for at in range(0, len(data), 333)], most_bytes=700)
        assert told == f"{data[:350].decode()}\n... {len(data) - 700:,} bytes left out ...\n{data[-350:].decode()}"
        assert dropped == len(data) - 700

    @pytest.mark.parametrize("size", [0, 1, 349, 350, 351, 699, 700])
    def test_what_fits_is_there_in_full(self, size: int) -> None:
        data = (b"abcdefg" * 100)[:size]
        assert _log(Redactor(), [data[:200], data[200:]], most_bytes=700) == (data.decode(), 0)

    def test_lines_of_both_streams_are_numbered_together(self) -> None:
        lines, numbers = Lines(), count(1)
        streams = [BoundedLog(stream, 1000, lines, Redactor(), numbers) for stream in ("stdout", "stderr")]
        for _ in range(3):
            for log in streams:
                log.take(b"one line\n")
        assert [(line.sequence, line.stream) for line in lines.lines] == [
            (number, ("stderr", "stdout")[number % 2]) for number in range(1, 7)
        ]

    def test_bytes_that_are_no_text_and_nul_are_taken(self, redactor: Redactor) -> None:
        data = b"\xff\xfe " + SECRET.encode("utf-16-le") + b" \xc3"
        assert _log(redactor, [data])[0] == "\ufffd\ufffd [redacted SERVICE_TOKEN] \ufffd"


def _log(redactor: Redactor, pieces: list[bytes], most_bytes: int = 1 << 20) -> tuple[str, int]:
    lines = Lines()
    log = BoundedLog("stdout", most_bytes, lines, redactor)
    for piece in pieces:
        log.take(piece)
    dropped = log.finish()
    return lines.text, dropped


class TestLearning:
    def test_what_is_learnt_is_told_on_once(self) -> None:
        redactor, told = Redactor({"A_KEY": SECRET}), []
        redactor.on_learn = told.append
        redactor.learn("A_KEY", SECRET)
        redactor.learn("B_TOKEN", "another-secret-7")
        redactor.learn("C", "plain")
        assert [name for known in told for name, _ in known] == ["B_TOKEN"]
        other = Redactor()
        other.add(redactor.known)
        assert other.text(f"{SECRET} another-secret-7") == "[redacted A_KEY] [redacted B_TOKEN]"

    def test_of_many_that_are_learnt_the_last_and_the_environments_own_are_kept(self) -> None:
        redactor, other = Redactor({"A_KEY": SECRET}), Redactor()
        other.add(redactor.known)
        redactor.on_learn = other.add
        for n in range(600):
            redactor.learn("B_TOKEN", f"token-number-{n:04}")
        for either in (redactor, other):
            assert either.text(f"{SECRET} token-number-0599") == "[redacted A_KEY] [redacted B_TOKEN]"
            assert either.text("token-number-0001") == "token-number-0001"

    def test_variables_that_are_set_or_handed_on_are_heard(self) -> None:
        done = subprocess.run([sys.executable, "-c", _WATCH], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.split() == ["A_TOKEN=first-1", "B_TOKEN=second-2", "C_TOKEN=third-3"]


_WATCH = """
import os, subprocess, sys
from flowledger.runner.redact import watch
watch(lambda name, value: print(f"{name}={value}"))
os.environ["A_TOKEN"] = "first-1"
os.putenv("B_TOKEN", "second-2")
sys.stdout.flush()
subprocess.run([sys.executable, "-c", ""], env={**os.environ, "C_TOKEN": "third-3"})
"""
