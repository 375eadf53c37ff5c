"""Blackjack against Gymnasium's, step by step with the same cards; cards against counting ranks; and the exact
values against the known optimum, against a recursion over whole hands of cards, and against playing.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cache

import pytest
import torch
from gymnasium.envs.toy_text import blackjack as reference
from torch import Tensor

from envs.base import State, VecEnv
from envs.blackjack import HIT, STICK, Blackjack, best_sum, cards, dealer_hand, gymnasium_obs, is_natural
from envs.blackjack_exact import CELLS, best_policy, optimum, value_of, value_of_greedy
from envs.rng import ENV_STREAM, EXPLORATION_STREAM, CounterRNG

Hand = tuple[int, ...]

RULES = {
    "sab": {"sab": True},
    "sab, natural": {"sab": True, "natural": True},  # Gymnasium: natural is then ignored
    "plain": {"sab": False},
    "natural": {"sab": False, "natural": True},
}
every_rules = pytest.mark.parametrize("rules", RULES.values(), ids=list(RULES))

GAMES_PLAYED = 12_000
SIMULATED = 200_000
ALMOST_ONE = 1 - 2.0**-24

WEIGHTS = {card: 4 if card == 10 else 1 for card in range(1, 11)}  # ranks of thirteen


def triple_luck() -> Tensor:
    """One number of luck in the middle of each of the 13**3 triples of ranks, (2197,)."""
    return (torch.arange(13**3) + 0.5) / 13**3


LUCK_OF = {tuple(drawn): u for drawn, u in zip(cards(triple_luck()[:, None]).tolist(), triple_luck(), strict=True)}


def luck_of(*drawn: int) -> Tensor:
    """Luck (1, C) with which `cards` draws these, and aces after them."""
    padded = [*drawn, *[1] * (-len(drawn) % 3)]
    return torch.stack([LUCK_OF[tuple(padded[k : k + 3])] for k in range(0, len(padded), 3)])[None]


def dealt(open_card: int, first: int, second: int) -> State:
    return Blackjack().reset(luck_of(open_card, first, second))


def stick(rules: dict[str, bool], open_card: int, mine: Hand, *drawn: int) -> float:
    """What sticking pays when the student holds `mine` and the dealer draws these after the open card."""
    game = Blackjack(**rules)
    state = dealt(open_card, *mine[:2])
    for card in mine[2:]:
        state, reward, over = game.step(state, torch.tensor([HIT]), luck_of(card, *[1] * 11))
        assert (reward.item(), over.item()) == (0, False)
    _, reward, over = game.step(state, torch.tensor([STICK]), luck_of(*drawn, *[10] * (12 - len(drawn))))
    assert over.item()
    return reward.item()


def planes(total: int, open_card: int, usable: int) -> list[float]:
    """The observation that Gymnasium's three numbers stand for."""
    one_of = [[float(total == k) for k in range(4, 22)], [float(open_card == k) for k in range(1, 11)]]
    return [*itertools.chain(*one_of), float(usable)]


def way_to_end(player: list[int], dealer: list[int], action: int) -> str:
    """What happened, from Gymnasium's cards."""
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
def test_random_hands_go_step_by_step_as_in_gymnasium(rules: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours plays all hands first; Gymnasium's env is then given the cards that ours drew."""
    deck: Iterator[int] = iter(())
    monkeypatch.setattr(reference, "draw_card", lambda _: next(deck))
    game, chance = Blackjack(**rules), torch.Generator().manual_seed(len(rules))
    hits = torch.tensor([0.05, 0.5, 0.9])[torch.arange(GAMES_PLAYED) % 3]  # to stick with naturals, and to go bust
    u = torch.rand(GAMES_PLAYED, 1, generator=chance)
    state = game.reset(u)
    deal = cards(u).tolist()
    first = state
    turns = []
    over = torch.zeros(GAMES_PLAYED, dtype=torch.bool)
    while not over.all():
        u = torch.rand(GAMES_PLAYED, 4, generator=chance)
        action = (torch.rand(GAMES_PLAYED, generator=chance) < hits).long()
        state, reward, terminated = game.step(state, action, u)
        obs, action_mask = game.observe(state)
        assert action_mask.all()
        shown = (action, cards(u), reward, terminated, gymnasium_obs(state), obs)
        turns.append([column.tolist() for column in shown])
        over |= terminated
    env = reference.BlackjackEnv(**rules)
    ends: Counter[str] = Counter()
    first_raw, first_obs = gymnasium_obs(first).tolist(), game.observe(first)[0].tolist()
    for row in range(GAMES_PLAYED):
        open_card, *mine = deal[row]
        deck = iter([open_card, 0, *mine])  # the hidden card, 0, is known when the student sticks
        seen, _ = env.reset()
        assert list(seen) == first_raw[row]
        assert planes(*seen) == first_obs[row]
        for actions, drawn, rewards, terminations, raws, observations in turns:
            action = actions[row]
            if action == STICK:
                env.dealer[1] = drawn[row][0]
            deck = iter(drawn[row][action == STICK :])
            seen, reward, terminated, _, _ = env.step(action)
            assert rewards[row] == reward, f"{env.player} against {env.dealer}"
            assert terminations[row] == terminated
            assert raws[row] == list(seen)
            assert observations[row] == planes(*seen)
            if terminated:
                ends[way_to_end(env.player, env.dealer, action)] += 1
                break
        else:
            pytest.fail(f"hand {row} has no end")
    assert sum(ends.values()) == GAMES_PLAYED
    common = ("bust", "win", "lose", "draw", "dealer bust", "natural wins", "dealer's natural")
    assert all(ends[way] > 100 for way in common), ends
    rare = ("natural against 21", "both natural", "dealer's natural against 21")
    assert all(ends[way] >= 5 for way in rare), ends
    assert len(ends) == 10


def test_the_higher_sum_wins_and_equal_sums_pay_nothing() -> None:
    for rules in RULES.values():
        assert stick(rules, 10, (10, 9), 8) == 1
        assert stick(rules, 10, (10, 8), 9) == -1
        assert stick(rules, 10, (10, 8), 8) == 0
        assert stick(rules, 10, (2, 2), 6, 10) == 1  # the dealer stands on 17 and not on 16
        assert stick(rules, 10, (10, 8), 7, 4) == 1  # and draws no more on a hard 17
        assert stick(rules, 6, (10, 8), 1, 4) == 1  # nor on a soft one
        assert stick(rules, 6, (10, 8), 10, 5) == -1
        assert stick(rules, 10, (1, 2, 8), 10) == 1  # an ace counts as 11 for both
        assert stick(rules, 1, (10, 10), 9) == 0
        assert stick(rules, 1, (10, 10), 5, 10, 5) == -1  # until it would be beyond 21


@pytest.mark.parametrize(
    ("rules", "against_21", "against_20", "against_natural"),
    [("sab", 1, 1, 0), ("sab, natural", 1, 1, 0), ("plain", 0, 1, 0), ("natural", 0, 1.5, 0)],
)
def test_what_a_natural_pays(rules: str, against_21: float, against_20: float, against_natural: float) -> None:
    for natural in ((1, 10), (10, 1)):
        assert stick(RULES[rules], 7, natural, 7, 7) == against_21
        assert stick(RULES[rules], 1, natural, 5, 5) == against_21
        assert stick(RULES[rules], 10, natural, 2, 9) == against_21
        assert stick(RULES[rules], 10, natural, 10) == against_20
        assert stick(RULES[rules], 10, natural, 6, 10) == against_20  # the dealer goes bust
        assert stick(RULES[rules], 10, natural, 1) == against_natural
        assert stick(RULES[rules], 1, natural, 10) == against_natural


@every_rules
def test_a_21_of_three_cards_is_no_natural(rules: dict[str, bool]) -> None:
    for mine in ((1, 10, 10), (10, 10, 1), (1, 4, 6), (7, 7, 7), (10, 5, 6)):
        assert stick(rules, 7, mine, 7, 7) == 0
        assert stick(rules, 10, mine, 10) == 1


@every_rules
def test_a_dealers_natural_is_a_21_like_others_but_for_a_natural(rules: dict[str, bool]) -> None:
    for open_card, hidden in ((1, 10), (10, 1)):
        assert stick(rules, open_card, (7, 7, 7), hidden) == 0
        assert stick(rules, open_card, (10, 10), hidden) == -1


@every_rules
def test_a_natural_that_is_hit_is_none_any_more(rules: dict[str, bool]) -> None:
    state = dealt(10, 1, 10)
    assert is_natural(state).tolist() == [True]
    after, reward, over = Blackjack(**rules).step(state, torch.tensor([HIT]), luck_of(10, *[1] * 11))
    assert (reward.item(), over.item(), gymnasium_obs(after).tolist()) == (0, False, [[21, 10, 0]])
    assert is_natural(after).tolist() == [False]
    after, _, _ = Blackjack(**rules).step(state, torch.tensor([HIT]), luck_of(1, *[1] * 11))
    assert gymnasium_obs(after).tolist() == [[12, 10, 0]]


def test_only_an_ace_and_a_ten_are_a_natural() -> None:
    for first, second in itertools.product(range(1, 11), repeat=2):
        assert is_natural(dealt(5, first, second)).tolist() == [{first, second} == {1, 10}]


def test_a_hit_takes_the_first_card_and_a_stick_hides_it() -> None:
    state = dealt(9, 2, 3)
    for card in range(1, 11):
        u = luck_of(card, *[7] * 11)
        hit, _, _ = Blackjack().step(state, torch.tensor([HIT]), u)
        assert gymnasium_obs(hit).tolist() == [[16, 9, 1] if card == 1 else [5 + card, 9, 0]]
        stuck, _, _ = Blackjack().step(state, torch.tensor([STICK]), u)
        assert gymnasium_obs(stuck).tolist() == [[5, 9, 0]]


def test_every_triple_of_ranks_is_one_part_in_2197_of_luck() -> None:
    drawn = Counter(tuple(row) for row in cards(triple_luck()[:, None]).tolist())
    triples = itertools.product(WEIGHTS, repeat=3)
    assert drawn == {triple: WEIGHTS[triple[0]] * WEIGHTS[triple[1]] * WEIGHTS[triple[2]] for triple in triples}


def test_every_rank_has_one_chance_in_thirteen_over_all_numbers_of_luck() -> None:
    """Of the 2**24 numbers that `CounterRNG` can draw, a part in 2197 holds 7636 or 7637."""
    counts = torch.zeros(3, 11, dtype=torch.int64)
    for start in range(0, 2**24, 2**20):
        u = torch.arange(start, start + 2**20) * 2.0**-24
        for place, drawn in enumerate(cards(u[:, None]).unbind(1)):
            counts[place] += drawn.bincount(minlength=11)
    expected = torch.tensor([0.0, *[weight * 2**24 / 13 for weight in WEIGHTS.values()]])
    assert (counts - expected).abs().max() < 4 * 13**2  # at most one number too many or too few for each part


def test_cards_draws_three_cards_from_each_number_in_order() -> None:
    u = torch.rand(500, 4, generator=torch.Generator().manual_seed(1))
    drawn = cards(u)
    assert drawn.shape == (500, 12)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn, torch.cat([cards(u[:, [k]]) for k in range(4)], 1))
    assert len({tuple(row) for row in drawn.tolist()}) == 500


@pytest.mark.parametrize("u", [0.0, 2.0**-24, 0.5, ALMOST_ONE])
def test_no_luck_is_too_high_or_too_low_for_a_card(u: float) -> None:
    drawn = cards(torch.full((1, 4), u))
    assert 1 <= drawn.min() <= drawn.max() <= 10
    state = Blackjack().reset(torch.full((1, 1), u))
    for action in (HIT, STICK):
        _, reward, _ = Blackjack().step(state, torch.tensor([action]), torch.full((1, 4), u))
        assert abs(reward.item()) <= 1


def test_the_hands_of_env_are_those_of_its_luck() -> None:
    """Column 0 deals, columns 1 to 4 are for playing, and the first deal of all is that of step 1, by reset."""
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


def test_an_observation_shows_one_sum_one_open_card_and_whether_an_ace_is_usable() -> None:
    state = Blackjack().reset(triple_luck()[:, None])
    obs, action_mask = Blackjack().observe(state)
    assert obs.shape == (13**3, 29) == (13**3, *Blackjack().spec.obs_shape)
    assert obs.dtype == torch.float32
    assert action_mask.shape == (13**3, Blackjack().spec.num_actions) == (13**3, 2)
    assert action_mask.all()
    assert ((obs == 0) | (obs == 1)).all()
    assert (obs[:, :18].sum(1) == 1).all()
    assert (obs[:, 18:28].sum(1) == 1).all()
    assert obs.any(0).all()  # each of the 29 occurs


def test_a_sum_beyond_21_is_shown_as_none() -> None:
    beyond = []
    for card in range(2, 11):
        state, reward, over = Blackjack().step(dealt(4, 10, 10), torch.tensor([HIT]), luck_of(card, *[1] * 11))
        assert (reward.item(), over.item()) == (-1, True)
        beyond.append(Blackjack().observe(state)[0][0].tolist())
        assert gymnasium_obs(state).tolist() == [[20 + card, 4, 0]]
    assert beyond == [planes(22, 4, 0)] * 9


def test_the_clock_never_ends_a_hand() -> None:
    assert Blackjack().spec.time_limit is None


@cache
def longest(total: int, ace: bool) -> int:
    """How many cards a dealer with this hand can come to draw."""
    if reference.sum_hand([1, total - 1] if ace else [total]) >= 17:
        return 0
    return 1 + max(longest(total + card, ace or card == 1) for card in WEIGHTS)


def test_a_dealer_never_needs_more_than_eleven_cards() -> None:
    assert max(longest(card, card == 1) for card in WEIGHTS) == 11


def test_the_longest_hand_of_a_dealer_is_played_to_its_end() -> None:
    hand = [1, 1, 1, 1, 1, 1, 6, 1, 1, 1, 1, 1]
    assert all(reference.sum_hand(hand[:held]) < 17 for held in range(1, 12))
    assert reference.sum_hand(hand) == 17
    total, ace = dealer_hand(torch.tensor([1]), torch.tensor([hand[1:]]))
    assert (total.item(), ace.item()) == (17, hand.count(1))
    for rules in RULES.values():
        assert stick(rules, 1, (8, 10), *hand[1:]) == 1
        assert stick(rules, 1, (7, 10), *hand[1:]) == 0
        assert stick(rules, 1, (6, 10), *hand[1:]) == -1


def test_a_dealer_draws_to_17_as_with_a_list_of_cards() -> None:
    """Mostly low cards, so that hands of every length occur."""
    chance = torch.Generator().manual_seed(3)
    highest = torch.tensor([2, 3, 10])[torch.arange(6000) % 3, None]
    hands = 1 + (torch.rand(6000, 12, generator=chance) * highest).long()
    hands[::4] = 1
    for late in range(4, 8):
        hands[4 * late :: 40, late] = 6
    hands[::24, 10] = 2
    total, ace = dealer_hand(hands[:, 0], hands[:, 1:])
    lengths: Counter[int] = Counter()
    for row, drawn in enumerate(hands.tolist()):
        held = next(n for n in range(1, 13) if reference.sum_hand(drawn[:n]) >= 17)
        assert (total[row].item(), ace[row].item()) == (sum(drawn[:held]), drawn[:held].count(1))
        lengths[held] += 1
    assert set(lengths) == set(range(2, 13)), lengths


def test_an_ace_is_11_where_that_is_not_beyond_21() -> None:
    for low in ([1], [1, 5], [1, 10], [1, 5, 5], [1, 1], [1, 1, 10], [5, 6], [10, 10, 1], [10, 10, 2]):
        best = best_sum(torch.tensor([sum(low)]), torch.tensor([1 in low]))
        assert best.tolist() == [reference.sum_hand(low)]


def random_policy(seed: int) -> Tensor:
    """A table of chances to hit, multiples of 1/8 that a float holds exactly; 0 and 1 among them."""
    return torch.randint(0, 9, CELLS, generator=torch.Generator().manual_seed(seed)).double() / 8


def hit_below(total: int) -> Tensor:
    """The policy that looks at the sum alone."""
    return (torch.arange(CELLS[0]) < total).double()[:, None, None].expand(CELLS)


@cache
def dealer_ends_by_hand(hand: Hand) -> dict[Hand, Fraction]:
    """The chances of the hands that a dealer who holds `hand` ends with, the order of cards dropped."""
    if reference.sum_hand(list(hand)) >= 17:
        return {hand: Fraction(1)}
    ends: dict[Hand, Fraction] = {}
    for card, weight in WEIGHTS.items():
        for end, chance in dealer_ends_by_hand(tuple(sorted((*hand, card)))).items():
            ends[end] = ends.get(end, Fraction(0)) + Fraction(weight, 13) * chance
    return ends


@cache
def hands_of_the_student() -> dict[Hand, int]:
    """The number of every hand of two or more cards that is not beyond 21; the order of cards is dropped."""
    hands = list(itertools.combinations_with_replacement(WEIGHTS, 2))
    for hand in hands:
        hands += [(*hand, card) for card in WEIGHTS if card >= hand[-1] and sum(hand) + card <= 21]
    return {hand: number for number, hand in enumerate(hands)}


@cache
def cells_of_the_hands() -> tuple[Tensor, Tensor]:
    """Sum and usable ace of every hand."""
    hands = [list(hand) for hand in hands_of_the_student()]
    both = ([reference.sum_hand(hand) for hand in hands], [reference.usable_ace(hand) for hand in hands])
    return torch.tensor(both[0]), torch.tensor(both[1])


@cache
def hands_after_a_card() -> tuple[Tensor, Tensor]:
    """The number of the hand that each card makes of a hand, the last number being bust; and the hands' cards' sum."""
    numbers = hands_of_the_student()
    after = [[numbers.get(tuple(sorted((*hand, card))), len(numbers)) for card in WEIGHTS] for hand in numbers]
    return torch.tensor(after), torch.tensor([sum(hand) for hand in numbers])


@cache
def dealer_scores(open_card: int) -> Counter[tuple[int, bool]]:
    """The chances of the dealer's (score, whether it is a natural), exact."""
    scores: Counter[tuple[int, bool]] = Counter()
    for hand, chance in dealer_ends_by_hand((open_card,)).items():
        scores[reference.score(list(hand)), reference.is_natural(list(hand))] += chance
    return scores


def stick_by_hand(rules: dict[str, bool]) -> Tensor:
    """What sticking is worth with every hand, by the open card, (hands, 10): by the rules of Gymnasium's env."""
    sab, natural = rules["sab"], rules.get("natural", False)

    @cache
    def worth(open_card: int, score: int, is_nat: bool) -> float:
        total = Fraction(0)
        for (theirs, dealer_natural), chance in dealer_scores(open_card).items():
            reward: Fraction | int = (score > theirs) - (score < theirs)
            if sab and is_nat and not dealer_natural:
                reward = 1
            elif natural and not sab and is_nat and reward == 1:
                reward = Fraction(3, 2)
            total += chance * reward
        return float(total)

    held = [(reference.sum_hand(list(hand)), reference.is_natural(list(hand))) for hand in hands_of_the_student()]
    return torch.tensor([[worth(card, *it) for card in WEIGHTS] for it in held], dtype=torch.float64)


def values_by_hand(rules: dict[str, bool], policy: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """What sticking and hitting are worth with every hand (hands, 10), and a hand yet to be dealt.

    Without a policy: under the best one.
    """
    (after, low), (total, ace) = hands_after_a_card(), cells_of_the_hands()
    weights = torch.tensor([*WEIGHTS.values()], dtype=torch.float64)
    stuck = stick_by_hand(rules)
    hit = torch.zeros_like(stuck)
    value = torch.full((len(stuck) + 1, 10), -1.0, dtype=torch.float64)
    for cards_sum in range(21, 1, -1):  # a card always makes more of it
        rows = low == cards_sum
        hit[rows] = (value[after[rows]] * weights[:, None]).sum(1) / 13
        if policy is None:
            value[:-1][rows] = torch.maximum(stuck[rows], hit[rows])
        else:
            chance = policy[total[rows], 1:, ace[rows]]
            value[:-1][rows] = chance * hit[rows] + (1 - chance) * stuck[rows]
    numbers = hands_of_the_student()
    deals = itertools.product(WEIGHTS, repeat=2)
    worth = sum(WEIGHTS[a] * WEIGHTS[b] * value[numbers[min(a, b), max(a, b)]] for a, b in deals)
    return stuck, hit, (worth @ weights).item() / 13**3


@every_rules
def test_the_exact_values_are_those_of_a_recursion_over_whole_hands(rules: dict[str, bool]) -> None:
    """Chances add up in another order, so to 1e-12."""
    assert len(hands_of_the_student()) == 3072
    game, (total, ace) = Blackjack(**rules), cells_of_the_hands()
    best = optimum(game)
    stuck, hit, hand = values_by_hand(rules, None)
    assert best.hand == pytest.approx(hand, abs=1e-12)
    assert (best.hit[total, 1:, ace] - hit).abs().max() < 1e-12
    more = torch.tensor([len(held) > 2 for held in hands_of_the_student()])  # naturals have a value of their own
    assert (best.stick[total, 1:, ace] - stuck)[more].abs().max() < 1e-12
    for seed in range(3):
        policy = random_policy(seed)
        assert value_of(game, policy) == pytest.approx(values_by_hand(rules, policy)[2], abs=1e-12)


@pytest.mark.parametrize(
    ("rules", "value"),
    [("sab", -0.043113), ("sab, natural", -0.043113), ("plain", -0.046556), ("natural", -0.025729)],
)
def test_the_best_policy_is_worth_what_is_known(rules: str, value: float) -> None:
    game = Blackjack(**RULES[rules])
    assert optimum(game).hand == pytest.approx(value, abs=5.1e-7)
    assert value_of(game, best_policy(game)) == pytest.approx(optimum(game).hand, abs=1e-12)


@pytest.mark.parametrize(
    ("policy", "value"),
    [(hit_below(0), -0.18292), (hit_below(17), -0.07585), (torch.full(CELLS, 0.5), -0.39417)],
    ids=["always sticks", "hits below 17", "uniform"],
)
def test_simple_policies_are_worth_what_is_known(policy: Tensor, value: float) -> None:
    assert value_of(Blackjack(), policy) == pytest.approx(value, abs=5.1e-6)


@every_rules
def test_the_best_policy_is_that_of_sutton_and_barto(rules: dict[str, bool]) -> None:
    """Their figure 5.2: h hits, s sticks, from 21 down to the lowest sum; the dealer's A 2 3 4 5 6 7 8 9 10."""
    usable = ["ssssssssss"] * 3 + ["hsssssssh" + "h"] + ["h" * 10] * 6
    hard = ["ssssssssss"] * 5 + ["hssssshhhh"] * 4 + ["hhhssshhhh"] + ["h" * 10] * 8
    policy = best_policy(Blackjack(**rules))
    assert policy.shape == CELLS
    assert ((policy == 0) | (policy == 1)).all()
    signs = [["sh"[int(cell)] for cell in row] for row in policy[:, 1:].flatten(1).tolist()]
    assert ["".join(signs[total][1::2]) for total in range(21, 11, -1)] == usable
    assert ["".join(signs[total][::2]) for total in range(21, 3, -1)] == hard


def test_no_policy_is_better_than_the_best() -> None:
    game = Blackjack()
    best, at_best = best_policy(game), optimum(game).hand
    for total, open_card, ace in ((16, 10, 0), (12, 4, 0), (18, 9, 1), (17, 6, 1), (11, 1, 0), (21, 5, 1)):
        other = best.clone()
        other[total, open_card, ace] = 1 - other[total, open_card, ace]
        assert value_of(game, other) < at_best - 1e-7


def test_a_policy_is_not_modified_and_may_be_float32() -> None:
    policy = random_policy(1).float()
    before = policy.clone()
    assert value_of(Blackjack(), policy) == value_of(Blackjack(), policy.double())
    assert torch.equal(policy, before)


@pytest.mark.parametrize("rules", ["sab", "natural"])
def test_playing_a_policy_gives_on_average_what_the_table_says(rules: str) -> None:
    """The first hand of each of 200,000 games, to 5 standard errors, 0.01."""
    game = Blackjack(**RULES[rules])
    env, policy = VecEnv(game, SIMULATED, seed=2), random_policy(7)
    rng = CounterRNG(2, torch.arange(SIMULATED), EXPLORATION_STREAM)
    env.reset()
    total_reward, playing = torch.zeros(SIMULATED), torch.ones(SIMULATED, dtype=torch.bool)
    for turn in itertools.count():
        chance = policy[gymnasium_obs(env.state).unbind(1)]
        step = env.step((rng.uniform(turn, 1)[:, 0] < chance).long())
        total_reward += step.reward * playing
        playing &= ~step.terminated
        if not playing.any():
            break
    error = total_reward.std().item() / SIMULATED**0.5
    assert 0.0019 < error < 0.0023
    assert abs(total_reward.double().mean().item() - value_of(game, policy)) < 5 * error


@pytest.mark.parametrize("who", ["best", "always sticks", "hits below 17"])
def test_the_exact_value_of_a_student_is_that_of_the_table_it_plays(who: str) -> None:
    game = Blackjack()
    below_17 = (torch.arange(CELLS[0]) < 17)[:, None, None].expand(CELLS).double()
    policy = {"best": best_policy(game), "always sticks": torch.zeros(CELLS), "hits below 17": below_17}[who]

    def greedy(obs: Tensor, action_mask: Tensor) -> Tensor:
        assert action_mask.all()
        total, open_card, usable = obs[:, :18].argmax(1) + 4, obs[:, 18:28].argmax(1) + 1, obs[:, 28].long()
        return policy[total, open_card, usable].long()

    assert value_of_greedy(game, greedy) == pytest.approx(value_of(game, policy), abs=1e-12)
