"""What is shown of URLs, against the secrets that they hold."""

import io
import logging
import math
import re
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.table import Table

from experiments.analysis import StudyResults, claims
from experiments.report import draw, html, page
from experiments.spec import Condition, TutorSpec
from tests.helpers.llm_tutors import VIEW, connected_tutor, positions
from tests.helpers.scripted_server import serving
from tests.helpers.stores import IDENTITY, SPEC, command, put
from tests.helpers.studies import FAST, STUDY, result
from training.cli import exit_codes
from training.console import LiveProgress, PlainProgress
from tutors.base import TutorError
from tutors.display import (
    MAX_NAMES,
    markdown_text,
    picture_text,
    printable,
    printable_lines,
    printable_list,
    without_password,
)
from tutors.llm.client import Client, base_urls, credentials_of
from tutors.llm.models import find_model
from tutors.llm.server import served_models, wait_for_server
from tutors.recorded import RecordedTutor
from tutors.store import AdviceStore
from tutors.terminal import PrintableFormatter, TerminalConsole

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


EVIL = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "\x9b31m",
    "a\rb\x08\x7f",
    "\u202egnp.exe",
    "\u200b\u2028\u2029\ufeff",
    "\ud800",
    "\x00",
    "[bold red]x[/nothing]",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![seen](http://evil/pixel.png)",
    "a | b | c",
    "`code` **bold** $x^2$",
    "x" * 3_000_000,
]


@pytest.mark.parametrize("text", EVIL, ids=lambda text: repr(text)[:20])
def test_text_from_elsewhere_is_shown_printable_encodable_and_short(text: str) -> None:
    for shown in (printable(text), printable_list([text]), markdown_text(text), printable_lines(text)):
        assert shown.isprintable()
        assert shown.encode()
        assert len(shown) <= 4001
    assert printable(printable("ok")) == "ok"
    assert "<" not in markdown_text(text)
    assert "](" not in markdown_text(text)
    assert "|" not in markdown_text(text)


def test_text_that_is_harmless_is_shown_as_it_is() -> None:
    for text in ("meta-llama/Llama-3.1-8B-Instruct", "speed-up 1.20 [1.00, 1.40]", "Ärger ♠", "scripted:0.9"):
        assert printable(text) == printable_lines(text) == markdown_text(text) == picture_text(text) == text
    assert printable_lines("a\nb\tc") == "a\nb       c"
    assert printable_list(["a", "b"]) == "a, b"
    assert printable_list([]) == "nothing"
    assert printable_list(map(str, range(20))).endswith(f", {MAX_NAMES - 1} and 8 more")


@pytest.mark.parametrize("name", EVIL, ids=lambda text: repr(text)[:20])
def test_names_of_a_server_are_shown_as_text(name: str) -> None:
    with serving() as server:
        server.models = (name, *(f"model {number}" for number in range(100)))
        with pytest.raises(TutorError, match="name a served model with --tutor-model") as error:
            connected_tutor(server.url).__enter__()
        message = str(error.value)
        assert message.isprintable()
        assert len(message) < 1000
        server.models, server.roots = ("tiny",), {"tiny": name}
        with connected_tutor(server.url) as tutor:
            assert tutor.identity["tutor"].encode()
            assert len(tutor.identity["tutor"]) <= 1000
            assert tutor.advise(positions(2)).valid.all()


@pytest.mark.parametrize("name", EVIL, ids=lambda text: repr(text)[:20])
def test_names_of_a_store_are_shown_as_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / "advice.sqlite"
    for tutor in (name, "other"):
        store = AdviceStore(path, IDENTITY | {"tutor": tutor, "mode": name})
        put(store, 1)
        store.close()
    done = command("info", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) < 20_000
    assert done.stdout.replace("\n", "").isprintable()
    assert command("info", path, "--json").stdout.strip().isprintable()
    assert command("export", path).stdout.replace("\n", "").isprintable()
    with pytest.raises(ValueError, match="has answers of") as error:
        RecordedTutor(str(path), SPEC, VIEW)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("text", EVIL, ids=lambda text: repr(text)[:20])
def test_every_line_of_a_program_is_shown_as_text(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (ValueError(text), TutorError(text), OSError(2, text, text)):
        with pytest.raises(SystemExit), exit_codes():
            raise error
    PlainProgress().note(text)
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "%s", (text,), None)
    printed = capsys.readouterr()
    shown = PrintableFormatter().format(record)
    file = io.StringIO()
    console = TerminalConsole(file=file, width=100)
    console.print(text)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    live = LiveProgress(10, console=TerminalConsole(file=file, width=100))
    live.status(text)
    live.note(text)
    for output in (printed.out, printed.err, shown, file.getvalue()):
        assert output.replace("\n", "").isprintable()
        assert len(output) < 100_000


def study_of(name: str, *environments: str) -> StudyResults:
    """The results of a study whose tutor and variant have a name."""
    study = replace(
        STUDY,
        algos=("dqn",),
        envs=environments,
        tutors=(TutorSpec(name), TutorSpec("other")),
        guidance=("override",),
        reuse=(math.inf,),
        variants={name[:50]: ""},
        steps=dict.fromkeys(environments, 100),
    )
    return StudyResults(study, {one: [result(FAST, asked=1)] * 2 for one in study.conditions()})


@pytest.mark.train
def test_names_of_a_study_are_text_in_its_pictures(tmp_path: Path) -> None:
    for name in ("$\\frac{$", "_hidden", "\x00\ud800<script>](x)"):
        (picture,) = draw(study_of(name, "connect4"), tmp_path)
        assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("name", EVIL, ids=lambda text: repr(text)[:20])
def test_names_of_a_study_are_text_in_its_report(name: str, tmp_path: Path) -> None:
    results = study_of(name[:30_000], "connect4", f"gym:{name[:50]}")
    text = page(results, name, f"python -m experiments report {name}", claims(results), [])
    (tmp_path / "report.md").write_text(text, encoding="utf-8")
    assert text.replace("\n", "").isprintable()
    tags = TagsOf(html(text, []))
    assert set(tags.names) <= ALLOWED
    assert tags.sources == []
    assert tags.names.count("table") == len(re.findall(r"^\| ---", text, re.MULTILINE))
    columns = {(len(rows[0]), len(row)) for rows in tags.tables for row in rows}
    assert all(head == row for head, row in columns)


def test_html_in_the_text_of_a_report_is_text() -> None:
    text = "# A <script>alert(1)</script>\n\n<div onclick=x>\n\na <b>word</b> &amp; `<i>`\n"
    tags = TagsOf(html(text, []))
    assert set(tags.names) <= ALLOWED
    assert tags.sources == []


ALLOWED = {"html", "meta", "title", "style", "h1", "h2", "h3", "p", "code", "strong", "em", "table", "thead"}
ALLOWED |= {"tbody", "tr", "th", "td", "div", "ul", "li"}


class TagsOf(HTMLParser):
    """A page's tags, the sources of its pictures, and its tables' rows as lists of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.sources: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append(tag)
