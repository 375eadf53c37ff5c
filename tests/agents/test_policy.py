"""Masking, sampling and entropies against Python floats; sampled actions are counted."""

import math
from functools import partial

import pytest
import torch

from agents.policy import (
    MASKED_LOGIT,
    TEMPERATURE,
    action_probs,
    entropy,
    gather_action,
    masked_argmax,
    masked_log_softmax,
    normalized_entropy,
    sample_action,
)
from tests.helpers.policy_losses import entropy_by_definition, log_probs_by_definition, random_batch

LARGEST_UNIFORM = 1 - 2.0**-24


def test_masked_argmax_returns_the_largest_legal_value() -> None:
    values = torch.tensor([[1.0, 9.0, 3.0], [-5.0, -1.0, -9.0], [0.0, 0.0, 0.0], [1.0, -9.0, 3.0]])
    action_mask = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 0]]).bool()
    assert masked_argmax(values, action_mask).tolist() == [2, 0, 1, 1]
    assert values[0, 1] == 9, "the values are not modified"


def test_gather_action_returns_each_row_s_own_and_refuses_another_shape() -> None:
    scores = torch.arange(6.0).view(3, 2)
    assert gather_action(scores, torch.tensor([1, 0, 1])).tolist() == [1, 2, 5]
    with pytest.raises(AssertionError, match="one action a row"):
        gather_action(scores, torch.tensor([[1], [0], [1]]))


def test_masked_log_softmax_is_the_softmax_of_legal_logits() -> None:
    network, batch = random_batch()
    log_probs = masked_log_softmax(network.logits, batch.action_mask)
    expected = torch.tensor(log_probs_by_definition(network.logits.tolist(), batch.action_mask.tolist()))
    torch.testing.assert_close(log_probs.exp(), expected.exp())
    assert log_probs.isfinite().all()
    assert (log_probs[~batch.action_mask] < MASKED_LOGIT / 2).all()


def test_entropy_of_a_masked_policy_is_that_of_its_legal_actions() -> None:
    action_mask = torch.tensor([[True, True, False, False], [False, True, False, False], [True, True, True, True]])
    logits = torch.tensor([[1.0, 1.0, 9.0, -9.0], [0.3, -2.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = entropy(masked_log_softmax(logits, action_mask))
    torch.testing.assert_close(found, torch.tensor([math.log(2), 0.0, math.log(4)]))
    random, batch = random_batch()
    expected = map(entropy_by_definition, log_probs_by_definition(random.logits.tolist(), batch.action_mask.tolist()))
    found = entropy(masked_log_softmax(random.logits, batch.action_mask))
    torch.testing.assert_close(found, torch.tensor(list(expected)))


def test_normalized_entropy_is_a_share_of_the_largest_that_is_possible() -> None:
    action_mask = torch.tensor(
        [[True, True, True, True], [True, True, False, False], [True] * 4, [False, True, False, False]]
    )
    probs = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [0.7, 0.3, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    third = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3)) / math.log(4)
    assert normalized_entropy(probs, action_mask).tolist() == pytest.approx([1.0, 1.0, third, 0.0])


@pytest.mark.parametrize("has_policy", [True, False])
def test_action_probs_are_the_policy_s_or_a_softmax_of_action_values(has_policy: bool) -> None:
    network, batch = random_batch()
    scores = network.logits.detach()
    scaled = scores if has_policy else scores / TEMPERATURE
    given = masked_log_softmax(scores, batch.action_mask) if has_policy else scores
    expected = torch.tensor(log_probs_by_definition(scaled.tolist(), batch.action_mask.tolist())).exp()
    torch.testing.assert_close(action_probs(given, batch.action_mask, has_policy), expected)


def test_sample_action_draws_legal_actions_by_their_probabilities_and_illegal_ones_never() -> None:
    rows, logits = 40_000, torch.tensor([2.0, 9.0, 0.0, -1.0, 1.0, 8.0])
    action_mask = torch.tensor([True, False, True, True, True, False])
    u = (torch.rand(rows, 6, generator=torch.Generator().manual_seed(4)) * 2**24).floor() / 2**24
    log_probs = masked_log_softmax(logits.expand(rows, -1), action_mask.expand(rows, -1))
    sampled = sample_action(log_probs, action_mask.expand(rows, -1), u)
    assert sampled.shape == (rows,)
    assert sampled.dtype == torch.int64
    bound = math.sqrt(math.log(2 / 1e-9) / (2 * rows))  # Hoeffding: one in a billion deviates further
    for action, log_prob in enumerate(log_probs_by_definition([logits.tolist()], [action_mask.tolist()])[0]):
        share = (sampled == action).float().mean().item()
        assert abs(share - math.exp(log_prob)) < bound
        assert (share == 0) == (not action_mask[action])


def test_sample_action_keeps_probabilities_of_one_in_a_thousand() -> None:
    rows = 200_000
    logits = torch.tensor([1.0, 1e-3, 4e-3]).log().expand(rows, -1)
    action_mask = torch.ones(rows, 3, dtype=torch.bool)
    u = torch.rand(rows, 3, generator=torch.Generator().manual_seed(4))
    counts = sample_action(masked_log_softmax(logits, action_mask), action_mask, u).bincount(minlength=3).tolist()
    for count, share in zip(counts[1:], (1e-3 / 1.005, 4e-3 / 1.005), strict=True):
        assert abs(count - rows * share) < 6 * math.sqrt(rows * share)


@pytest.mark.parametrize("everywhere", [0.0, 2.0**-24, 0.5, 1 - 2.0**-23, LARGEST_UNIFORM])
def test_sample_action_with_uniforms_at_their_ends_is_legal(everywhere: float) -> None:
    draw = partial(torch.rand, generator=torch.Generator().manual_seed(5))
    action_mask = draw(500, 6) < 0.3
    action_mask[torch.arange(500), (draw(500) * 6).long()] = True
    for scale in (0.0, 1.0, 1e4):
        log_probs = masked_log_softmax((draw(500, 6) - 0.5) * scale, action_mask)
        sampled = sample_action(log_probs, action_mask, torch.full((500, 6), everywhere))
        assert action_mask[torch.arange(500), sampled].all()
        if everywhere < 0.9:  # the same noise for all: the likeliest wins
            assert log_probs.gather(1, sampled[:, None])[:, 0].equal(log_probs.max(1).values)
        mixed = torch.where(draw(500, 6) < 0.5, everywhere, draw(500, 6))
        assert action_mask[torch.arange(500), sample_action(log_probs, action_mask, mixed)].all()


def test_sample_action_with_the_largest_uniform_at_an_illegal_action_is_legal() -> None:
    action_mask = torch.tensor([[False, True, True]])
    log_probs = masked_log_softmax(torch.tensor([[50.0, 0.0, 0.0]]), action_mask)
    for u in ([LARGEST_UNIFORM, 0.0, 0.0], [LARGEST_UNIFORM, 0.5, 0.9], [LARGEST_UNIFORM] * 3):
        assert sample_action(log_probs, action_mask, torch.tensor([u])).item() in (1, 2)


def test_sample_action_with_log_probs_that_are_not_masked_is_legal() -> None:
    action_mask = (torch.arange(300)[:, None] + torch.arange(4)) % 3 != 0
    log_probs = torch.where(action_mask, -9.0, 0.0)
    sampled = sample_action(log_probs, action_mask, torch.rand(300, 4, generator=torch.Generator().manual_seed(6)))
    assert action_mask[torch.arange(300), sampled].all()


def test_sample_action_never_draws_a_probability_of_e_to_the_minus_60() -> None:
    """Drawn once, its ratio may overflow when the policy has moved."""
    action_mask = torch.ones(1, 2, dtype=torch.bool)
    log_probs = masked_log_softmax(torch.tensor([[30.0, -30.0]]), action_mask)
    for u in (0.5, LARGEST_UNIFORM):
        assert sample_action(log_probs, action_mask, torch.tensor([[u, LARGEST_UNIFORM]])).item() == 0
