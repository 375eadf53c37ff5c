"""The exact values of Blackjack against published ones, a recursion over whole hands of cards, and sampled episodes."""

import itertools
from collections import Counter
from fractions import Fraction
from functools import cache

import pytest
import torch
from gymnasium.envs.toy_text import blackjack as reference
from torch import Tensor

from envs.base import VecEnv
from envs.blackjack import Blackjack, gymnasium_obs
from envs.blackjack_exact import CELLS, best_policy, optimum, value_of, value_of_greedy
from envs.rng import EXPLORATION_STREAM, CounterRNG
from tests.helpers.blackjack_rules import CARD_WEIGHTS, RULES, Hand, every_rules

NUM_EPISODES = 200_000


def random_policy(seed: int) -> Tensor:
    """Return a table of probabilities to hit, multiples of 1/8 that a float holds exactly; 0 and 1 among them."""
    return torch.randint(0, 9, CELLS, generator=torch.Generator().manual_seed(seed)).double() / 8


def hit_below(total: int) -> Tensor:
    """Return the policy that hits below a sum."""
    return (torch.arange(CELLS[0]) < total).double()[:, None, None].expand(CELLS)


@cache
def dealer_hands(hand: Hand) -> dict[Hand, Fraction]:
    """Return the probabilities of the dealer's final hands from `hand`, each hand's cards sorted."""
    if reference.sum_hand(list(hand)) >= 17:
        return {hand: Fraction(1)}
    ends: dict[Hand, Fraction] = {}
    for card, weight in CARD_WEIGHTS.items():
        for end, prob in dealer_hands(tuple(sorted((*hand, card)))).items():
            ends[end] = ends.get(end, Fraction(0)) + Fraction(weight, 13) * prob
    return ends


@cache
def student_hands() -> dict[Hand, int]:
    """Return an index for every hand of two or more cards up to 21, each hand's cards sorted."""
    hands = list(itertools.combinations_with_replacement(CARD_WEIGHTS, 2))
    for hand in hands:
        hands += [(*hand, card) for card in CARD_WEIGHTS if card >= hand[-1] and sum(hand) + card <= 21]
    return {hand: number for number, hand in enumerate(hands)}


@cache
def cells_of_hands() -> tuple[Tensor, Tensor]:
    """Return the sum and usable ace of every hand."""
    hands = [list(hand) for hand in student_hands()]
    both = ([reference.sum_hand(hand) for hand in hands], [reference.usable_ace(hand) for hand in hands])
    return torch.tensor(both[0]), torch.tensor(both[1])


@cache
def hands_after_card() -> tuple[Tensor, Tensor]:
    """Return the index of the hand after each card, the last index being bust; and each hand's sum with aces as 1."""
    numbers = student_hands()
    after = [[numbers.get(tuple(sorted((*hand, card))), len(numbers)) for card in CARD_WEIGHTS] for hand in numbers]
    return torch.tensor(after), torch.tensor([sum(hand) for hand in numbers])


@cache
def dealer_scores(open_card: int) -> Counter[tuple[int, bool]]:
    """Return the probabilities of the dealer's (score, whether it is a natural), exact."""
    scores: Counter[tuple[int, bool]] = Counter()
    for hand, prob in dealer_hands((open_card,)).items():
        scores[reference.score(list(hand)), reference.is_natural(list(hand))] += prob
    return scores


def stick_by_hand(rules: dict[str, bool]) -> Tensor:
    """Return the value of sticking with every hand, by the open card, (hands, 10): by the rules of Gymnasium's env."""
    sab, natural = rules["sab"], rules.get("natural", False)

    @cache
    def worth(open_card: int, score: int, is_nat: bool) -> float:
        total = Fraction(0)
        for (theirs, dealer_natural), prob in dealer_scores(open_card).items():
            reward: Fraction | int = (score > theirs) - (score < theirs)
            if sab and is_nat and not dealer_natural:
                reward = 1
            elif natural and not sab and is_nat and reward == 1:
                reward = Fraction(3, 2)
            total += prob * reward
        return float(total)

    held = [(reference.sum_hand(list(hand)), reference.is_natural(list(hand))) for hand in student_hands()]
    return torch.tensor([[worth(card, *it) for card in CARD_WEIGHTS] for it in held], dtype=torch.float64)


def values_by_hand(rules: dict[str, bool], policy: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Return the values of sticking and hitting with every hand (hands, 10), and the value of an episode.

    Without a policy: under the optimal one.
    """
    (after, low), (total, ace) = hands_after_card(), cells_of_hands()
    weights = torch.tensor([*CARD_WEIGHTS.values()], dtype=torch.float64)
    stuck = stick_by_hand(rules)
    hit = torch.zeros_like(stuck)
    value = torch.full((len(stuck) + 1, 10), -1.0, dtype=torch.float64)
    for cards_sum in range(21, 1, -1):  # a card always makes more of it
        rows = low == cards_sum
        hit[rows] = (value[after[rows]] * weights[:, None]).sum(1) / 13
        if policy is None:
            value[:-1][rows] = torch.maximum(stuck[rows], hit[rows])
        else:
            prob = policy[total[rows], 1:, ace[rows]]
            value[:-1][rows] = prob * hit[rows] + (1 - prob) * stuck[rows]
    numbers = student_hands()
    first_two_cards = itertools.product(CARD_WEIGHTS, repeat=2)
    worth = sum(CARD_WEIGHTS[a] * CARD_WEIGHTS[b] * value[numbers[min(a, b), max(a, b)]] for a, b in first_two_cards)
    return stuck, hit, (worth @ weights).item() / 13**3


@every_rules
def test_exact_values_equal_recursion_over_whole_hands(rules: dict[str, bool]) -> None:
    """Probabilities are summed in another order, hence the tolerance of 1e-12."""
    assert len(student_hands()) == 3072
    game, (total, ace) = Blackjack(**rules), cells_of_hands()
    best = optimum(game)
    stuck, hit, hand = values_by_hand(rules, None)
    assert best.hand == pytest.approx(hand, abs=1e-12)
    assert (best.hit[total, 1:, ace] - hit).abs().max() < 1e-12
    more = torch.tensor([len(held) > 2 for held in student_hands()])  # naturals have a value of their own
    assert (best.stick[total, 1:, ace] - stuck)[more].abs().max() < 1e-12
    for seed in range(3):
        policy = random_policy(seed)
        assert value_of(game, policy) == pytest.approx(values_by_hand(rules, policy)[2], abs=1e-12)


@pytest.mark.parametrize(
    ("rules", "value"),
    [("sab", -0.043113), ("sab, natural", -0.043113), ("plain", -0.046556), ("natural", -0.025729)],
)
def test_optimum_equals_published_value(rules: str, value: float) -> None:
    game = Blackjack(**RULES[rules])
    assert optimum(game).hand == pytest.approx(value, abs=5.1e-7)
    assert value_of(game, best_policy(game)) == pytest.approx(optimum(game).hand, abs=1e-12)


@pytest.mark.parametrize(
    ("policy", "value"),
    [(hit_below(0), -0.18292), (hit_below(17), -0.07585), (torch.full(CELLS, 0.5), -0.39417)],
    ids=["always sticks", "hits below 17", "uniform"],
)
def test_value_of_simple_policies_equals_published_values(policy: Tensor, value: float) -> None:
    assert value_of(Blackjack(), policy) == pytest.approx(value, abs=5.1e-6)


@every_rules
def test_best_policy_equals_sutton_and_barto(rules: dict[str, bool]) -> None:
    """Their figure 5.2: h hits, s sticks, from 21 down to the lowest sum; the dealer's A 2 3 4 5 6 7 8 9 10."""
    usable = ["ssssssssss"] * 3 + ["hsssssssh" + "h"] + ["h" * 10] * 6
    hard = ["ssssssssss"] * 5 + ["hssssshhhh"] * 4 + ["hhhssshhhh"] + ["h" * 10] * 8
    policy = best_policy(Blackjack(**rules))
    assert policy.shape == CELLS
    assert ((policy == 0) | (policy == 1)).all()
    signs = [["sh"[int(cell)] for cell in row] for row in policy[:, 1:].flatten(1).tolist()]
    assert ["".join(signs[total][1::2]) for total in range(21, 11, -1)] == usable
    assert ["".join(signs[total][::2]) for total in range(21, 3, -1)] == hard


def test_changed_best_policy_is_worse() -> None:
    game = Blackjack()
    best, at_best = best_policy(game), optimum(game).hand
    for total, open_card, ace in ((16, 10, 0), (12, 4, 0), (18, 9, 1), (17, 6, 1), (11, 1, 0), (21, 5, 1)):
        other = best.clone()
        other[total, open_card, ace] = 1 - other[total, open_card, ace]
        assert value_of(game, other) < at_best - 1e-7


def test_value_of_does_not_modify_policy_and_accepts_float32() -> None:
    policy = random_policy(1).float()
    before = policy.clone()
    assert value_of(Blackjack(), policy) == value_of(Blackjack(), policy.double())
    assert torch.equal(policy, before)


@pytest.mark.parametrize("rules", ["sab", "natural"])
def test_mean_return_of_sampled_episodes_equals_value_of(rules: str) -> None:
    """The first episode of each of 200,000 env copies, to 5 standard errors, 0.01."""
    game = Blackjack(**RULES[rules])
    env, policy = VecEnv(game, NUM_EPISODES, seed=2), random_policy(7)
    rng = CounterRNG(2, torch.arange(NUM_EPISODES), EXPLORATION_STREAM)
    env.reset()
    total_reward, playing = torch.zeros(NUM_EPISODES), torch.ones(NUM_EPISODES, dtype=torch.bool)
    for turn in itertools.count():
        prob = policy[gymnasium_obs(env.state).unbind(1)]
        step = env.step((rng.uniform(turn, 1)[:, 0] < prob).long())
        total_reward += step.reward * playing
        playing &= ~step.terminated
        if not playing.any():
            break
    error = total_reward.std().item() / NUM_EPISODES**0.5
    assert 0.0019 < error < 0.0023
    assert abs(total_reward.double().mean().item() - value_of(game, policy)) < 5 * error


@pytest.mark.parametrize("who", ["best", "always sticks", "hits below 17"])
def test_value_of_greedy_equals_value_of_its_table(who: str) -> None:
    game = Blackjack()
    below_17 = (torch.arange(CELLS[0]) < 17)[:, None, None].expand(CELLS).double()
    policy = {"best": best_policy(game), "always sticks": torch.zeros(CELLS), "hits below 17": below_17}[who]

    def greedy(obs: Tensor, action_mask: Tensor) -> Tensor:
        assert action_mask.all()
        total, open_card, usable = obs[:, :18].argmax(1) + 4, obs[:, 18:28].argmax(1) + 1, obs[:, 28].long()
        return policy[total, open_card, usable].long()

    assert value_of_greedy(game, greedy) == pytest.approx(value_of(game, policy), abs=1e-12)
