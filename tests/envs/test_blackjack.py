"""Blackjack against Gymnasium's, step by step with the same cards; the cards against counts of ranks."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from gymnasium.envs.toy_text import blackjack as reference
from torch import Tensor

from envs.base import State, VecEnv
from envs.blackjack import HIT, STICK, Blackjack, best_sum, cards, dealer_sum, gymnasium_obs, is_natural
from envs.rng import ENV_STREAM, CounterRNG
from tests.helpers.blackjack_rules import CARD_WEIGHTS, RULES, Hand, every_rules

NUM_EPISODES = 12_000
ALMOST_ONE = 1 - 2.0**-24


def triple_uniforms() -> Tensor:
    """Return one uniform in the middle of each of the 13**3 triples of ranks, (2197,)."""
    return (torch.arange(13**3) + 0.5) / 13**3


UNIFORM_OF = {
    tuple(drawn): u for drawn, u in zip(cards(triple_uniforms()[:, None]).tolist(), triple_uniforms(), strict=True)
}


def uniforms_for(*drawn: int) -> Tensor:
    """Return uniforms (1, C) from which `cards` draws these, and aces after them."""
    padded = [*drawn, *[1] * (-len(drawn) % 3)]
    return torch.stack([UNIFORM_OF[tuple(padded[k : k + 3])] for k in range(0, len(padded), 3)])[None]


def initial_state(open_card: int, first: int, second: int) -> State:
    return Blackjack().reset(uniforms_for(open_card, first, second))


def reward_of_sticking(rules: dict[str, bool], open_card: int, mine: Hand, *drawn: int) -> float:
    """Return the reward of sticking when the student holds `mine` and the dealer draws these after the open card."""
    game = Blackjack(**rules)
    state = initial_state(open_card, *mine[:2])
    for card in mine[2:]:
        state, reward, over = game.step(state, torch.tensor([HIT]), uniforms_for(card, *[1] * 11))
        assert (reward.item(), over.item()) == (0, False)
    _, reward, over = game.step(state, torch.tensor([STICK]), uniforms_for(*drawn, *[10] * (12 - len(drawn))))
    assert over.item()
    return reward.item()


def one_hot_obs(total: int, open_card: int, usable: int) -> list[float]:
    """Return our observation for Gymnasium's three numbers."""
    one_of = [[float(total == k) for k in range(4, 22)], [float(open_card == k) for k in range(1, 11)]]
    return [*itertools.chain(*one_of), float(usable)]


def kind_of_end(player: list[int], dealer: list[int], action: int) -> str:
    """Return how the episode ended, from Gymnasium's cards."""
    mine, theirs = reference.sum_hand(player), reference.sum_hand(dealer)
    if action == HIT:
        return "bust"
    if reference.is_natural(player):
        if reference.is_natural(dealer):
            return "both natural"
        return "natural against 21" if theirs == 21 else "natural wins"
    if reference.is_natural(dealer):
        return "dealer's natural against 21" if mine == 21 else "dealer's natural"
    if theirs > 21:
        return "dealer bust"
    return "win" if mine > theirs else "lose" if mine < theirs else "draw"


@every_rules
def test_random_episodes_equal_gymnasium_step_by_step(rules: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours runs first; Gymnasium's env is then given the cards that ours drew."""
    deck: Iterator[int] = iter(())
    monkeypatch.setattr(reference, "draw_card", lambda _: next(deck))
    game, generator = Blackjack(**rules), torch.Generator().manual_seed(len(rules))
    hits = torch.tensor([0.05, 0.5, 0.9])[torch.arange(NUM_EPISODES) % 3]  # to stick with naturals, and to go bust
    u = torch.rand(NUM_EPISODES, 1, generator=generator)
    state = game.reset(u)
    initial_cards = cards(u).tolist()
    first = state
    turns = []
    over = torch.zeros(NUM_EPISODES, dtype=torch.bool)
    while not over.all():
        u = torch.rand(NUM_EPISODES, 4, generator=generator)
        action = (torch.rand(NUM_EPISODES, generator=generator) < hits).long()
        state, reward, terminated = game.step(state, action, u)
        obs, action_mask = game.observe(state)
        assert action_mask.all()
        columns = (action, cards(u), reward, terminated, gymnasium_obs(state), obs)
        turns.append([column.tolist() for column in columns])
        over |= terminated
    env = reference.BlackjackEnv(**rules)
    ends: Counter[str] = Counter()
    first_raw, first_obs = gymnasium_obs(first).tolist(), game.observe(first)[0].tolist()
    for row in range(NUM_EPISODES):
        open_card, *mine = initial_cards[row]
        deck = iter([open_card, 0, *mine])  # the hidden card, 0, is known when the student sticks
        gym_obs, _ = env.reset()
        assert list(gym_obs) == first_raw[row]
        assert one_hot_obs(*gym_obs) == first_obs[row]
        for actions, drawn, rewards, terminations, raws, observations in turns:
            action = actions[row]
            if action == STICK:
                env.dealer[1] = drawn[row][0]
            deck = iter(drawn[row][action == STICK :])
            gym_obs, reward, terminated, _, _ = env.step(action)
            assert rewards[row] == reward, f"{env.player} against {env.dealer}"
            assert terminations[row] == terminated
            assert raws[row] == list(gym_obs)
            assert observations[row] == one_hot_obs(*gym_obs)
            if terminated:
                ends[kind_of_end(env.player, env.dealer, action)] += 1
                break
        else:
            pytest.fail(f"episode {row} does not end")
    assert sum(ends.values()) == NUM_EPISODES
    common = ("bust", "win", "lose", "draw", "dealer bust", "natural wins", "dealer's natural")
    assert all(ends[way] > 100 for way in common), ends
    rare = ("natural against 21", "both natural", "dealer's natural against 21")
    assert all(ends[way] >= 5 for way in rare), ends
    assert len(ends) == 10


def test_stick_higher_sum_wins_and_equal_sums_draw() -> None:
    for rules in RULES.values():
        assert reward_of_sticking(rules, 10, (10, 9), 8) == 1
        assert reward_of_sticking(rules, 10, (10, 8), 9) == -1
        assert reward_of_sticking(rules, 10, (10, 8), 8) == 0
        assert reward_of_sticking(rules, 10, (2, 2), 6, 10) == 1  # the dealer stands on 17 and not on 16
        assert reward_of_sticking(rules, 10, (10, 8), 7, 4) == 1  # and draws no more on a hard 17
        assert reward_of_sticking(rules, 6, (10, 8), 1, 4) == 1  # nor on a soft one
        assert reward_of_sticking(rules, 6, (10, 8), 10, 5) == -1
        assert reward_of_sticking(rules, 10, (1, 2, 8), 10) == 1  # an ace counts as 11 for both
        assert reward_of_sticking(rules, 1, (10, 10), 9) == 0
        assert reward_of_sticking(rules, 1, (10, 10), 5, 10, 5) == -1  # until it would be beyond 21


@pytest.mark.parametrize(
    ("rules", "against_21", "against_20", "against_natural"),
    [("sab", 1, 1, 0), ("sab, natural", 1, 1, 0), ("plain", 0, 1, 0), ("natural", 0, 1.5, 0)],
)
def test_natural_pays_by_rules(rules: str, against_21: float, against_20: float, against_natural: float) -> None:
    for natural in ((1, 10), (10, 1)):
        assert reward_of_sticking(RULES[rules], 7, natural, 7, 7) == against_21
        assert reward_of_sticking(RULES[rules], 1, natural, 5, 5) == against_21
        assert reward_of_sticking(RULES[rules], 10, natural, 2, 9) == against_21
        assert reward_of_sticking(RULES[rules], 10, natural, 10) == against_20
        assert reward_of_sticking(RULES[rules], 10, natural, 6, 10) == against_20  # the dealer goes bust
        assert reward_of_sticking(RULES[rules], 10, natural, 1) == against_natural
        assert reward_of_sticking(RULES[rules], 1, natural, 10) == against_natural


@every_rules
def test_21_of_three_cards_is_not_a_natural(rules: dict[str, bool]) -> None:
    for mine in ((1, 10, 10), (10, 10, 1), (1, 4, 6), (7, 7, 7), (10, 5, 6)):
        assert reward_of_sticking(rules, 7, mine, 7, 7) == 0
        assert reward_of_sticking(rules, 10, mine, 10) == 1


@every_rules
def test_dealers_natural_counts_as_21_against_other_hands(rules: dict[str, bool]) -> None:
    for open_card, hidden in ((1, 10), (10, 1)):
        assert reward_of_sticking(rules, open_card, (7, 7, 7), hidden) == 0
        assert reward_of_sticking(rules, open_card, (10, 10), hidden) == -1


@every_rules
def test_hit_natural_is_no_longer_a_natural(rules: dict[str, bool]) -> None:
    state = initial_state(10, 1, 10)
    assert is_natural(state).tolist() == [True]
    after, reward, over = Blackjack(**rules).step(state, torch.tensor([HIT]), uniforms_for(10, *[1] * 11))
    assert (reward.item(), over.item(), gymnasium_obs(after).tolist()) == (0, False, [[21, 10, 0]])
    assert is_natural(after).tolist() == [False]
    after, _, _ = Blackjack(**rules).step(state, torch.tensor([HIT]), uniforms_for(1, *[1] * 11))
    assert gymnasium_obs(after).tolist() == [[12, 10, 0]]


def test_is_natural_only_for_ace_and_ten() -> None:
    for first, second in itertools.product(range(1, 11), repeat=2):
        assert is_natural(initial_state(5, first, second)).tolist() == [{first, second} == {1, 10}]


def test_hit_takes_first_card_and_stick_none() -> None:
    state = initial_state(9, 2, 3)
    for card in range(1, 11):
        u = uniforms_for(card, *[7] * 11)
        hit, _, _ = Blackjack().step(state, torch.tensor([HIT]), u)
        assert gymnasium_obs(hit).tolist() == [[16, 9, 1] if card == 1 else [5 + card, 9, 0]]
        stuck, _, _ = Blackjack().step(state, torch.tensor([STICK]), u)
        assert gymnasium_obs(stuck).tolist() == [[5, 9, 0]]


def test_cards_each_triple_of_ranks_is_one_part_in_2197() -> None:
    drawn = Counter(tuple(row) for row in cards(triple_uniforms()[:, None]).tolist())
    triples = itertools.product(CARD_WEIGHTS, repeat=3)
    assert drawn == {triple: math.prod(CARD_WEIGHTS[card] for card in triple) for triple in triples}


def test_cards_each_rank_has_probability_one_in_thirteen() -> None:
    """Of the 2**24 uniforms that `CounterRNG` can return, each of 2197 parts holds 7636 or 7637."""
    counts = torch.zeros(3, 11, dtype=torch.int64)
    for start in range(0, 2**24, 2**20):
        u = torch.arange(start, start + 2**20) * 2.0**-24
        for place, drawn in enumerate(cards(u[:, None]).unbind(1)):
            counts[place] += drawn.bincount(minlength=11)
    expected = torch.tensor([0.0, *[weight * 2**24 / 13 for weight in CARD_WEIGHTS.values()]])
    assert (counts - expected).abs().max() < 4 * 13**2  # at most one number too many or too few for each part


def test_cards_draws_three_per_uniform_in_order() -> None:
    u = torch.rand(500, 4, generator=torch.Generator().manual_seed(1))
    drawn = cards(u)
    assert drawn.shape == (500, 12)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn, torch.cat([cards(u[:, [k]]) for k in range(4)], 1))
    assert len({tuple(row) for row in drawn.tolist()}) == 500


@pytest.mark.parametrize("u", [0.0, 2.0**-24, 0.5, ALMOST_ONE])
def test_cards_stay_in_range_at_extreme_uniforms(u: float) -> None:
    drawn = cards(torch.full((1, 4), u))
    assert 1 <= drawn.min() <= drawn.max() <= 10
    state = Blackjack().reset(torch.full((1, 1), u))
    for action in (HIT, STICK):
        _, reward, _ = Blackjack().step(state, torch.tensor([action]), torch.full((1, 4), u))
        assert abs(reward.item()) <= 1


def test_vec_env_uses_uniforms_of_its_rng() -> None:
    """Column 0 is for reset, columns 1 to 4 are for step; the first reset uses RNG step 1."""
    env = VecEnv(Blackjack(), 300, seed=5)
    rng = CounterRNG(5, torch.arange(300), ENV_STREAM)
    step = env.reset()
    for index in range(2, 30):
        before, action = env.state, torch.full((300,), index % 2)
        drawn = rng.uniform(index, 5)
        after, reward, terminated = env.game.step(before, action, drawn[:, 1:])
        fresh = env.game.observe(env.game.reset(drawn[:, :1]))[0]
        last = env.game.observe(after)[0]
        step = env.step(action)
        assert torch.equal(step.reward, reward)
        assert torch.equal(step.terminated, terminated)
        assert torch.equal(step.final_obs, last)
        assert torch.equal(step.obs, torch.where(terminated[:, None], fresh, last))
        assert not step.truncated.any()


def test_observe_is_one_hot_of_sum_open_card_and_usable_ace() -> None:
    state = Blackjack().reset(triple_uniforms()[:, None])
    obs, action_mask = Blackjack().observe(state)
    assert obs.shape == (13**3, 29) == (13**3, *Blackjack().spec.obs_shape)
    assert obs.dtype == torch.float32
    assert action_mask.shape == (13**3, Blackjack().spec.num_actions) == (13**3, 2)
    assert action_mask.all()
    assert ((obs == 0) | (obs == 1)).all()
    assert (obs[:, :18].sum(1) == 1).all()
    assert (obs[:, 18:28].sum(1) == 1).all()
    assert obs.any(0).all()  # each of the 29 occurs


def test_observe_bust_sum_is_all_zeros() -> None:
    beyond = []
    for card in range(2, 11):
        state, reward, over = Blackjack().step(
            initial_state(4, 10, 10), torch.tensor([HIT]), uniforms_for(card, *[1] * 11)
        )
        assert (reward.item(), over.item()) == (-1, True)
        beyond.append(Blackjack().observe(state)[0][0].tolist())
        assert gymnasium_obs(state).tolist() == [[20 + card, 4, 0]]
    assert beyond == [one_hot_obs(22, 4, 0)] * 9


def test_spec_has_no_time_limit() -> None:
    assert Blackjack().spec.time_limit is None


@cache
def most_cards_drawn(total: int, ace: bool) -> int:
    """Return the largest number of cards that a dealer with this hand can draw."""
    if reference.sum_hand([1, total - 1] if ace else [total]) >= 17:
        return 0
    return 1 + max(most_cards_drawn(total + card, ace or card == 1) for card in CARD_WEIGHTS)


def test_dealer_draws_at_most_eleven_cards() -> None:
    assert max(most_cards_drawn(card, card == 1) for card in CARD_WEIGHTS) == 11


def test_dealer_longest_hand_is_drawn_to_its_end() -> None:
    hand = [1, 1, 1, 1, 1, 1, 6, 1, 1, 1, 1, 1]
    assert all(reference.sum_hand(hand[:held]) < 17 for held in range(1, 12))
    assert reference.sum_hand(hand) == 17
    assert dealer_sum(torch.tensor([1]), torch.tensor([hand[1:]])).tolist() == [17]
    for rules in RULES.values():
        assert reward_of_sticking(rules, 1, (8, 10), *hand[1:]) == 1
        assert reward_of_sticking(rules, 1, (7, 10), *hand[1:]) == 0
        assert reward_of_sticking(rules, 1, (6, 10), *hand[1:]) == -1


def test_dealer_sum_equals_drawing_from_a_list() -> None:
    """Mostly low cards, so that hands of every length occur."""
    generator = torch.Generator().manual_seed(3)
    highest = torch.tensor([2, 3, 10])[torch.arange(6000) % 3, None]
    hands = 1 + (torch.rand(6000, 12, generator=generator) * highest).long()
    hands[::4] = 1
    for late in range(4, 8):
        hands[4 * late :: 40, late] = 6
    hands[::24, 10] = 2
    total = dealer_sum(hands[:, 0], hands[:, 1:])
    lengths: Counter[int] = Counter()
    for row, drawn in enumerate(hands.tolist()):
        held = next(n for n in range(1, 13) if reference.sum_hand(drawn[:n]) >= 17)
        assert total[row].item() == reference.sum_hand(drawn[:held])
        lengths[held] += 1
    assert set(lengths) == set(range(2, 13)), lengths


def test_best_sum_equals_gymnasium_sum_hand() -> None:
    for low in ([1], [1, 5], [1, 10], [1, 5, 5], [1, 1], [1, 1, 10], [5, 6], [10, 10, 1], [10, 10, 2]):
        best = best_sum(torch.tensor([sum(low)]), torch.tensor([1 in low]))
        assert best.tolist() == [reference.sum_hand(low)]
