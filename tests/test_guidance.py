"""What a student does with advice, row by row."""

import torch

from agents.base import Guidance, Proposal, best_legal
from tutors.guidance.override import Override

PROPOSAL = Proposal(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 3]), torch.zeros(4, 4), torch.zeros(4))
ADVISED = torch.tensor([[0.0, 0.2, 0.7, 0.1], [0.6, 0.2, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])


def test_override_takes_the_tutors_best_action_where_it_was_wanted_and_given() -> None:
    wanted = torch.tensor([True, False, True, True])
    assert Override().choose(PROPOSAL, ADVISED, wanted).tolist() == [2, 1, 2, 1]


def test_override_without_advice_is_the_student() -> None:
    everybody = torch.ones(4, dtype=torch.bool)
    assert torch.equal(Override().choose(PROPOSAL, torch.zeros(4, 4), everybody), PROPOSAL.action)


def test_no_guidance_takes_no_advice() -> None:
    everybody = torch.ones(4, dtype=torch.bool)
    assert torch.equal(Guidance().choose(PROPOSAL, ADVISED, everybody), PROPOSAL.action)


def test_the_best_legal_action_is_legal_however_bad_it_looks() -> None:
    values = torch.tensor([[9.0, -5.0, -7.0], [-3.0, 8.0, 8.5]])
    legal = torch.tensor([[False, True, True], [True, True, False]])
    assert best_legal(values, legal).tolist() == [1, 1]
