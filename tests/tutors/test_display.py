"""What is shown of URLs, against the secrets that they hold."""

from base64 import b64encode

import pytest

from experiments.spec import Condition, TutorSpec
from tests.helpers.llm_tutors import connected_tutor, positions
from tests.helpers.scripted_server import serving
from tutors.base import TutorError
from tutors.display import without_password
from tutors.llm.client import Client, base_urls, credentials_of
from tutors.llm.models import find_model
from tutors.llm.server import served_models, wait_for_server

SECRET_URLS = [
    "http://me:canary@host/v1",
    "https://me:canary@host:8000",
    "https://canary@host/v1",
    "HTTP://canary@host",
    "http://me:can/canary@host",
    "http://me:can@canary@host",
    "http://me:can\ncanary@host",
    "https://host/v1?api_key=canary",
    "https://host/v1?api-key=canary&version=2",
    "https://host/v1?version=2&key=canary",
    "https://host/v1?access_token=canary",
    "https://host/v1#token=canary",
    "https://host/v1?X-Amz-Signature=canary&sig=canary",
    "https://host/?client_secret=canary",
    "postgresql://me:canary@host/advice?sslmode=require",
    "recorded:postgresql://host/advice?user=me&passwd=canary",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_secret_of_a_url_is_shown(url: str) -> None:
    shown = without_password(url)
    assert "canary" not in shown
    assert "***" in shown
    assert "host" in shown
    assert without_password(shown) == shown


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:8000", "https://host/v1beta/openai", "[::1]:8000", "postgresql://me@host/advice"),
        *("advice.sqlite", "a:b@c.sqlite", "postgresql://host/advice?sslkey=/home/me/key.pem&sslmode=require"),
        *("https://host/v1?tokens=5&keyboard=1", "monkey=1", "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_url_without_a_secret_is_shown_as_it_is(url: str) -> None:
    assert without_password(url) == url


@pytest.mark.parametrize("url", [*SECRET_URLS, "me:canary@h:80", "canary@h", "h:80@canary@x", "//me:canary@h"])
def test_refused_tutor_url_is_shown_without_its_secret(url: str) -> None:
    try:
        shown = "".join(base_urls(url))
    except ValueError as error:
        shown = str(error)
    assert "canary" not in shown
    assert "host" in shown or "a tutor's URL looks like http://127.0.0.1:8000" in shown


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("http://me:canary@host/v1", ("me", "canary")),
        ("http://me:can%2Fary%40@host", ("me", "can/ary@")),
        ("http://canary@host", ("canary", "")),
        ("http://:canary@host", ("", "canary")),
        ("http://host", ("", "")),
        ("http://me:***@host", ("", "")),  # of a run's config.json
        ("http://***@host", ("", "")),
    ],
)
def test_user_and_password_are_those_of_the_url(url: str, credentials: tuple[str, str]) -> None:
    assert credentials_of(url) == credentials
    client = Client(url)
    assert client.url == "http://host"
    expected = {"Authorization": f"Basic {b64encode(':'.join(credentials).encode()).decode()}"}
    assert client.headers == (expected if any(credentials) else {})


def test_password_and_key_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "canary-key")
    with pytest.raises(ValueError, match="only one can be sent") as error:
        Client("http://me:canary-password@host")
    assert "canary" not in str(error.value)


def test_password_of_a_url_is_sent_with_every_request_and_shown_in_no_message() -> None:
    with serving() as server:
        url = server.url.replace("//", "//me:canary@")
        with connected_tutor(url) as tutor:
            assert tutor.advise(positions(2)).valid.all()
            assert "canary" not in str(tutor.identity)
        assert served_models(url) == {"tiny": "tiny"}
        sent = {headers["Authorization"] for headers in server.headers_seen}
        assert sent == {f"Basic {b64encode(b'me:canary').decode()}"}
    shown: list[str] = []
    with pytest.raises(TutorError, match="no server answers at http://127") as error:
        wait_for_server(find_model("tiny"), url, 0.2, shown.append)
    assert "canary" not in str(error.value) + str(shown)


def test_recorded_tutor_of_a_study_is_named_without_its_password() -> None:
    tutor = TutorSpec.parse("recorded:postgresql://me:canary@host/advice")
    condition = Condition("connect4", "dqn", tutor, "override", 3)
    assert "canary" not in condition.name() + str(condition.columns())
    assert tutor.arguments() == ["--tutor", "recorded:postgresql://me:canary@host/advice"]
