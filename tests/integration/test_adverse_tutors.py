"""The tutors of `adverse_tutors`: each does what it says."""

import pytest
import torch
from torch import Tensor

from tests.helpers.llm_tutors import VIEW, positions
from tests.integration.adverse_tutors import CELLS, KINDS, AdverseTutor, make_config
from tutors.base import Advice

STATE = positions(200)


def share_of_best(advice: Advice, rows: Tensor) -> float:
    """Return in what share of some rows the advised action is a best one."""
    values = VIEW.expert_values(STATE, 4).float().masked_fill(~VIEW.action_mask(STATE), -torch.inf)
    chosen = values.gather(1, advice.probs.argmax(1, keepdim=True))[:, 0]
    return float((chosen == values.amax(1))[rows].float().mean())


def test_tutors_are_right_where_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere = torch.ones(len(VIEW.key(STATE)), dtype=torch.bool)
    turncoat = AdverseTutor(VIEW, "turncoat", 1)
    assert share_of_best(turncoat.advise(STATE), everywhere) == 1
    monkeypatch.setattr(AdverseTutor, "progress", 0.5)
    assert share_of_best(turncoat.advise(STATE), everywhere) < 0.6
    assert share_of_best(AdverseTutor(VIEW, "wrong", 1).advise(STATE), everywhere) < 0.3
    assert not AdverseTutor(VIEW, "silent", 1).advise(STATE).valid.any()
    tenth = AdverseTutor(VIEW, "tenth", 1).advise(STATE)
    assert 0.02 < float(tenth.valid.float().mean()) < 0.2
    assert share_of_best(tenth, tenth.valid) == 1
    half = AdverseTutor(VIEW, "half", 1).advise(STATE)
    is_sure = half.probs.amax(1) > 0.85
    assert 0.3 < float(is_sure.float().mean()) < 0.7
    assert share_of_best(half, is_sure) == 1
    assert share_of_best(half, ~is_sure) < 0.6


def test_runs_are_those_of_the_cells() -> None:
    for cell in CELLS:
        for kind in ("none", *KINDS):
            make_config(cell, kind, 1, None).agent.check(64)
