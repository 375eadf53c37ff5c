"""Serve toy models with tokenizers and chat templates of each kind by real vLLM, and ask them, by their folders alone.

`python -m tests.integration.serve_kinds` writes results/model_kinds.json. A user's own model lies in such a folder: no
entry in models.toml, and no template written by hand. The servers run eagerly, since that starts them soonest.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import cpu_name
from tests.helpers.llm_tutors import VIEW, failures, positions
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import serving
from tests.helpers.tokenizer_kinds import write_model
from training.config import versions
from tutors.llm.api import CompletionsAPI
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import fill_template, find_model
from tutors.llm.pool import EndpointPool
from tutors.llm.server import running_server
from tutors.llm.text_generation import TextGeneration
from tutors.llm.tutor import VllmTutor

SERVED = (  # tokenizer and template
    ("byte-level", "thinking switched"),
    ("tiktoken", "blank lines"),
    ("sentencepiece", "no system role"),
    ("sentencepiece without a prefix", "thinking begun"),
    ("letters after a space only", "chatml"),
)
STEPS = 256  # of the run that is trained


def main() -> None:
    """Serve and ask each, and write what was found."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as parent:
        for number, (kind, template) in enumerate(SERVED):
            folder = Path(parent) / str(number)
            write_model(kind, template, folder)
            rows.append({"tokenizer": kind, "template": template} | ask(folder))
            print(rows[-1], flush=True)
    command = "python -m tests.integration.serve_kinds"
    found = {"command": command, "machine": versions() | {"cpu": cpu_name()}, "rows": rows}
    (ROOT / "results" / "model_kinds.json").write_text(json.dumps(found, indent=2) + "\n")


def ask(folder: Path) -> dict[str, Any]:
    """Serve the model of a folder, ask it in both modes, train with it, and return what was found."""
    with serving() as free:
        url = free.url
    model = find_model(str(folder))
    with (
        running_server(replace(model, serve=("--enforce-eager",)), url, 0, folder / "vllm.log", print),
        closing(EndpointPool([url])) as pool,
    ):
        state = positions(20)
        tutor = VllmTutor(VIEW, model, pool, LabelLogprobs(VIEW, min_mass=0.0))
        advice = tutor.advise(state)
        served = pool.endpoints[0].served
        assert served is not None
        assert isinstance(served.api, CompletionsAPI), "it is asked by chat"
        assert tutor.model.has_special_tokens
        words = VIEW.render(state)[0]
        ours = {"prompt": fill_template(tutor.model.template, words), "add_special_tokens": False}
        theirs = {"messages": [{"role": "user", "content": words}], "add_generation_prompt": True}
        read = [pool.run(pool.clients[0].post("/tokenize", {"model": served.name} | one)) for one in (ours, theirs)]
        texts = VllmTutor(VIEW, model, pool, TextGeneration(VIEW, False, max_tokens=8, samples=2, max_tries=2))
        texts.advise(state)
        return {
            "labels": tutor.model.before_label + " ".join(served.api.label_ids),
            "distinct": len(set(served.api.label_ids.values())),
            "prompt_end": tutor.model.answer_template.partition("{words}")[2],
            "is_as_rendered": read[0]["tokens"] == read[1]["tokens"],
            "asked": len(advice.valid),
            "answered": int(advice.valid.sum()),
            "texts": texts.stats["asked"],
            "no_text": failures(texts),
            "run": train(folder, url),
        }


def train(folder: Path, url: str) -> dict[str, Any]:
    """Train with the model as a user would, and return what the run's summary says of its tutor."""
    run = folder / "run"
    flags = f"--algo dqn --env connect4 --total-steps {STEPS} --num-envs 16 --min-label-mass 0"
    command = [sys.executable, "train.py", *flags.split(), "--tutor", str(folder), "--tutor-url", url]
    done = subprocess.run([*command, "--run-dir", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())["tutor"]
    return summary


if __name__ == "__main__":
    main()
