"""`python -m tutors.store` against what was put into the stores, and against a tutor that counts its questions."""

import json
import math
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import envs
from tests.helpers.paths import ROOT
from tests.helpers.stores import command
from tutors.base import Advice
from tutors.llm.endpoint import fingerprint
from tutors.llm.models import find_model
from tutors.prompts import make_view
from tutors.recorded import RecordedTutor
from tutors.store import AdviceStore, Cost, identity_of, recorded_identities
from tutors.store.json_lines import from_lines, read_all, to_lines, write_all

GAME = envs.make_game("blackjack")
VIEW = make_view(GAME)
LLAMA = identity_of(GAME.spec, VIEW, {"tutor": "meta-llama/Llama", "template": "{words}", "mode": "label"})
QWEN = identity_of(GAME.spec, VIEW, {"tutor": "Qwen", "mode": "text", "samples": 8})
COLUMNS = 'identity, key, "check", probs, label_mass, words, prompt_tokens, answer_tokens, seconds, at'


def well(*flags: str | Path) -> str:
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def keep(path: Path, identity: dict, first: int, count: int, cost: Cost = Cost(), seed: int = 0) -> Advice:  # noqa: B008
    """Put answers under the numbers from `first` on into a store."""
    probs = torch.rand(count, len(identity["labels"]), generator=torch.manual_seed(seed)).softmax(1)
    probs[0] = torch.tensor([2.0**-149, 1.0])
    advice = Advice(probs, torch.ones(count, dtype=torch.bool), torch.rand(count))
    numbers = torch.arange(first, first + count)
    store = AdviceStore(path, identity)
    words = [f'"Ärger" mit\nZeilen {number} ♠' for number in numbers.tolist()]
    store.put(torch.stack([numbers, -(2**63) + numbers], 1), advice, words, cost)
    store.close()
    return advice


def content(path: Path) -> list[tuple]:
    """All that a store holds, but for the numbers of its identities."""
    connection = sqlite3.connect(path)
    hashes = dict(connection.execute("select id, hash from identities"))
    rows = [(hashes[row[0]], *row[1:]) for row in connection.execute(f"select {COLUMNS} from answers")]
    connection.close()
    return sorted(rows)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of two tutors' answers."""
    path = tmp_path / "advice.sqlite"
    keep(path, LLAMA, 0, 12, Cost(97.25, 1.0, 0.1))
    keep(path, QWEN, 5, 3, Cost(80.0, 611.5, 2.5), seed=1)
    return path


def test_info_shows_identities_counts_and_costs(path: Path) -> None:
    llama, qwen = json.loads(well("info", path, "--json"))
    assert (llama["identity"], qwen["identity"]) == (LLAMA, QWEN)
    assert [llama[name] for name in ("answers", "prompt_tokens", "answer_tokens")] == [12, 12 * 97.25, 12]
    assert llama["seconds"] == pytest.approx(1.2)
    assert [qwen[name] for name in ("answers", "prompt_tokens", "answer_tokens", "seconds")] == [3, 240, 1834.5, 7.5]
    assert qwen["first"] == qwen["last"] > llama["last"]
    said = well("info", path)
    for piece in ("blackjack", "meta-llama", "Qwen", "1,167", "1,834", "samples"):
        assert piece in said


def test_info_calls_weights_in_a_folder_by_their_name(tmp_path: Path) -> None:
    path, weights = tmp_path / "advice.sqlite", fingerprint(find_model("tiny").model)
    assert re.fullmatch("[0-9a-f]{64}", weights)
    for tutor in (weights, "0" * 64):
        keep(path, identity_of(GAME.spec, VIEW, {"tutor": tutor, "mode": "label"}), 1, 2)
    printed = well("info", path)
    assert re.search(rf"\btiny\b.*\b{weights[:12]}\b", printed, re.DOTALL)
    assert "0" * 12 in printed, "whose name nobody knows"
    for who in ("tiny", weights, weights[:12]):  # as --tutor-model
        RecordedTutor(str(path), GAME.spec, VIEW, who).close()


def test_mistyped_command_is_refused_with_the_closest() -> None:
    done = command("inf", "advice.sqlite")
    assert done.returncode == 2
    assert "did you mean 'info'?" in done.stderr


def test_info_of_an_empty_store(tmp_path: Path) -> None:
    AdviceStore(tmp_path / "new", LLAMA).close()
    (one,) = json.loads(well("info", tmp_path / "new", "--json"))
    assert (one["answers"], one["seconds"], one["first"]) == (0, 0, None)
    assert "meta-llama" in well("info", tmp_path / "new")
    assert len(well("export", tmp_path / "new").splitlines()) == 1


def test_export_is_readable_and_imported_unchanged(path: Path, tmp_path: Path) -> None:
    text = well("export", path)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [next(iter(line)) for line in lines] == ["identity", *["words"] * 12, "identity", *["words"] * 3]
    first = lines[1]
    assert lines[0]["identity"] == LLAMA
    assert set(first["advice"]) == set(VIEW.labels)
    assert first["words"] == '"Ärger" mit\nZeilen 0 ♠'
    assert "Ärger" in text
    assert first["key"] == [0, -(2**63)]
    assert (first["prompt_tokens"], first["answer_tokens"], first["seconds"]) == (97.25, 1.0, 0.1)
    assert first["at"].startswith("20")
    assert first["at"].endswith("+00:00")
    (tmp_path / "text").write_text(text)
    assert well("import", tmp_path / "copy", tmp_path / "text") == "15 answers are new, 0 were there\n"
    assert content(tmp_path / "copy") == content(path) != []
    assert well("export", tmp_path / "copy") == text
    assert well("import", tmp_path / "copy", tmp_path / "text") == "0 answers are new, 15 were there\n"
    assert content(tmp_path / "copy") == content(path)


def test_export_of_several_batches_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutors.store.json_lines.ANSWERS_PER_BATCH", 4)
    keep(tmp_path / "a", LLAMA, 0, 12)
    keep(tmp_path / "a", QWEN, 0, 9)
    stores = [AdviceStore(tmp_path / name, LLAMA) for name in "ab"]
    lines = list(to_lines(read_all(stores[0].engine)))
    assert len(lines) == 2 + 12 + 9
    assert write_all(stores[1].engine, from_lines(lines)) == (21, 0)
    for store in stores:
        store.close()
    assert content(tmp_path / "a") == content(tmp_path / "b")


IDENTITY = {"identity": {"tutor": "somebody", "labels": ["A", "B"]}}
ANSWER = {
    "words": "what?", "advice": {"A": 0.25, "B": 0.75}, "mass": 0.5, "prompt_tokens": 1, "answer_tokens": 0,
    "seconds": 0.5, "at": "2026-11-21T12:00:00+00:00", "key": [1, 2],
}  # fmt: skip


def without(name: str) -> dict:
    return {key: value for key, value in ANSWER.items() if key != name}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([IDENTITY, ANSWER, "nonsense"], "line 3 .* Expecting value"),
        ([IDENTITY, "[" * 100_000], "line 2 "),
        ([IDENTITY, ""], "line 2 "),
        ([IDENTITY, [1]], "line 2 .* no object"),
        ([ANSWER], "line 1 .* no line before it says whose"),
        ([IDENTITY | {"identity": "me"}], "line 1 .* identity is no object"),
        ([{"identity": {"tutor": "me"}}], "line 1 .* no labels"),
        ([{"identity": {"labels": ["A", "A"]}}], "line 1 .* equal"),
        *([[IDENTITY, without(name)], f"line 2 .* it has no '{name}'"] for name in ANSWER),
        ([IDENTITY, ANSWER | {"advice": {"A": 1}}], "line 2 .* not about A, B"),
        ([IDENTITY, ANSWER | {"advice": {"A": 0.5, "B": 0.4}}], "line 2 .* add up to 0.9"),
        ([IDENTITY, ANSWER | {"advice": {"A": 1.5, "B": -0.5}}], "line 2 .* its B is -0.5"),
        ([IDENTITY, ANSWER | {"advice": {"A": True, "B": 0}}], "line 2 .* its A is True"),
        ([IDENTITY, ANSWER | {"advice": {"A": math.nan, "B": 1}}], "line 2 .* its A is nan"),
        ([IDENTITY, ANSWER | {"mass": 2}], "line 2 .* mass is 2"),
        ([IDENTITY, ANSWER | {"mass": "much"}], "line 2 .* mass is 'much'"),
        ([IDENTITY, ANSWER | {"seconds": math.inf}], "line 2 .* seconds is inf"),
        ([IDENTITY, ANSWER | {"words": 5}], "line 2 .* words"),
        ([IDENTITY, ANSWER | {"words": "\ud800"}], "line 2 "),
        ([IDENTITY, ANSWER | {"key": [1]}], "line 2 .* key"),
        ([IDENTITY, ANSWER | {"key": [1, 2**63]}], "line 2 .* key"),
        ([IDENTITY, ANSWER | {"key": [1, 2.0]}], "line 2 .* key"),
        ([IDENTITY, ANSWER | {"at": 5}], "line 2 .* time is no text"),
        ([IDENTITY, ANSWER | {"at": "yesterday"}], "line 2 .*yesterday"),
        ([IDENTITY, ANSWER | {"at": "2026-11-21T12:00:00"}], "line 2 .* zone"),
    ],
)
def test_import_refuses_a_malformed_line_and_keeps_nothing(path: Path, lines: list, said: str) -> None:
    before = content(path)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    store = AdviceStore(path, LLAMA)
    with pytest.raises(ValueError, match=said):
        write_all(store.engine, from_lines(text))
    store.close()
    assert content(path) == before


def test_import_of_a_binary_or_missing_file_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(json.dumps(IDENTITY).encode() + b"\n\xff\xfe\x00\n")
    for file, said in ((tmp_path / "bytes", "line 2"), (tmp_path / "none", "No such file"), (tmp_path, "directory")):
        done = command("import", path, file)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_merge_copies_new_answers_and_keeps_old_ones(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    keep(other, QWEN, 7, 4, Cost(1.0, 1.0, 1.0), seed=5)  # 7 is in both
    ours, theirs = content(path), content(other)
    assert well("merge", path, other) == "3 answers are new, 1 were there\n"
    assert content(path) == sorted([*ours, *(row for row in theirs if row[1] != 7)])
    assert content(other) == theirs
    assert well("merge", path, other) == "0 answers are new, 4 were there\n"
    assert well("merge", tmp_path / "new", path) == "18 answers are new, 0 were there\n"
    assert content(tmp_path / "new") == content(path)
    assert well("merge", path, path) == "0 answers are new, 18 were there\n"


def test_merge_into_a_store_in_use(path: Path, tmp_path: Path) -> None:
    keep(tmp_path / "other", LLAMA, 100, 5)
    store = AdviceStore(path, LLAMA)
    assert not store.find(torch.tensor([[100, -(2**63) + 100]])).valid.any()
    well("merge", path, tmp_path / "other")
    assert store.find(torch.tensor([[100, -(2**63) + 100]])).valid.all()
    store.close()


def test_vacuum_shrinks_the_file_and_keeps_everything(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table big (text)")
    connection.execute("insert into big values (?)", ("x" * 1_000_000,))
    connection.execute("drop table big")
    connection.commit()
    connection.close()
    before, size = content(path), path.stat().st_size
    well("vacuum", path)
    assert path.stat().st_size < size / 2
    assert content(path) == before


def test_run_directory_in_place_of_a_store_leads_to_its_store(tmp_path: Path) -> None:
    (tmp_path / "advice.sqlite").touch()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}; did you mean {tmp_path / 'advice.sqlite'}?")):
        recorded_identities(str(tmp_path))


@pytest.mark.parametrize("flags", [["info"], ["export"], ["vacuum"], ["merge", "new"]])
def test_commands_do_not_create_a_missing_store(flags: list[str], tmp_path: Path) -> None:
    done = command(flags[0], *(tmp_path / name for name in flags[1:]), tmp_path / "none.sqlite")
    assert done.returncode == 2
    assert f"there is no advice store {tmp_path / 'none.sqlite'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_info_refuses_other_files_and_leaves_them_unchanged(tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("dear diary " * 500)
    connection = sqlite3.connect(tmp_path / "cats")
    connection.execute("create table cats (name text)")
    connection.close()
    for name in ("diary", "cats"):
        before = (tmp_path / name).read_bytes()
        done = command("info", tmp_path / name)
        assert done.returncode == 2
        assert name in done.stderr
        assert "Traceback" not in done.stderr
        assert name == "cats" or (tmp_path / name).read_bytes() == before


@pytest.mark.process
def test_export_into_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    keep(tmp_path / "big", LLAMA, 0, 5000)
    both = f"{sys.executable} -m tutors.store export {tmp_path / 'big'} | head -1"
    done = subprocess.run(both, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["identity"] == LLAMA
    assert done.stderr == ""
