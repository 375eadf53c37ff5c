"""Every method of guidance against a slow definition, row by row; without advice it is no guidance, to the bit."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import envs
from agents import AGENTS
from agents.base import UNGUIDED, Choice, Guidance, Heard, Proposal
from agents.dqn import dqn_loss
from agents.gae import gae
from agents.guidance import METHODS, GuidanceConfig
from agents.guidance.demonstrate import MARGIN, NOBODY
from agents.guidance.distill import DOUBT
from agents.guidance.mask import PLAUSIBLE
from agents.networks import ActorCritic, Network, NetworkConfig
from agents.on_policy import OnPolicy
from agents.policy import TEMPERATURE, masked_argmax, masked_log_softmax
from agents.replay_buffer import Batch
from envs.base import Step
from tests.agents.test_compile import Watcher
from tests.integration.test_query import config_of, series, tensors
from train import train
from training.checkpoint import load_checkpoint
from training.config import default_config, make_agent, make_env
from tutors import TutorConfig

ROWS, ACTIONS, GAMMA = 400, 5, 0.9
PAIRS = [(name, algo) for name, method in METHODS.items() for algo in method.students]
RUNS = [(name, algo) for name, algo in PAIRS if not METHODS[name].pauses]  # what needs no run before it


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def moment(has_policy: bool) -> tuple[Proposal, Heard, Tensor, Tensor]:
    """A student's proposal, advice in about half of the rows (some of it without doubt), what is legal, luck."""
    action_mask = draw(1, ROWS, ACTIONS) < 0.6
    action_mask[torch.arange(ROWS), (draw(2, ROWS) * ACTIONS).long()] = True
    scores = draw(3, ROWS, ACTIONS) * 2 - 1
    if has_policy:
        scores = masked_log_softmax(2 * scores, action_mask)
    advised = (draw(4, ROWS, ACTIONS) ** 3) * action_mask
    sure = torch.nn.functional.one_hot(masked_argmax(advised, action_mask), ACTIONS)
    advised = torch.where((draw(5, ROWS) < 0.3)[:, None], sure, advised / advised.sum(1, keepdim=True))
    heeded = draw(6, ROWS) < 0.5
    greedy = masked_argmax(scores, action_mask)
    action = torch.where(draw(7, ROWS) < 0.5, greedy, masked_argmax(draw(8, ROWS, ACTIONS), action_mask))
    heard = Heard(advised * heeded[:, None], heeded)
    return Proposal(action, greedy, scores, draw(9, ROWS)), heard, action_mask, draw(10, ROWS, ACTIONS + 1)


def method_of(name: str, algo: str, strength: float = 0.7) -> Guidance:
    method = GuidanceConfig(name).make(AGENTS[algo][0].has_policy, "cpu", ROWS, GAMMA)
    method.strength.fill_(strength)
    return method


def arrival(seed: int) -> Step:
    """A step's reward and ends; nothing else of it is looked at."""
    end = draw(20 + seed, ROWS)
    nothing = torch.zeros(ROWS)
    ends = (end < 0.2, (end > 0.2) & (end < 0.4))
    return Step(nothing, nothing, draw(30 + seed, ROWS), *ends, nothing, nothing, {}, {})


def chosen(name: str, algo: str, strength: float = 0.7) -> tuple[Guidance, Proposal, Heard, Tensor, Choice]:
    method = method_of(name, algo, strength)
    proposal, heard, action_mask, u = moment(method.has_policy)
    return method, proposal, heard, action_mask, method.choose(proposal, heard, action_mask, u)


@pytest.mark.parametrize(("name", "algo"), PAIRS)
def test_what_is_chosen_is_legal_and_what_is_kept_has_the_shape_that_was_told(name: str, algo: str) -> None:
    method, _, _, action_mask, choice = chosen(name, algo)
    assert action_mask.gather(1, choice.action[:, None]).all()
    told = method.extras(ACTIONS)
    assert {kind: (tuple(kept.shape[1:]), kept.dtype) for kind, kept in choice.extras.items()} == told


@pytest.mark.parametrize(("name", "algo"), PAIRS)
def test_where_nothing_is_heard_a_method_is_no_guidance_to_the_bit(name: str, algo: str) -> None:
    method = method_of(name, algo)
    proposal, heard, action_mask, u = moment(method.has_policy)
    silent = Heard(torch.zeros_like(heard.advised), torch.zeros_like(heard.heeded))
    choice = method.choose(proposal, silent, action_mask, u)
    assert choice.action.equal(proposal.action)
    assert choice.scores.equal(proposal.scores)
    scores = proposal.scores.clone().requires_grad_()
    plain = UNGUIDED.bend(scores, action_mask, {})
    ours = method.bend(scores, action_mask, choice.extras)
    numbers = draw(11, ROWS)
    assert ours.equal(plain)
    counts = method.counts(choice.extras)
    assert counts is None or counts.all()
    assert float(torch.as_tensor(method.loss(scores, action_mask, choice.extras)).detach()) == 0
    rollout = {kind: kept.view(8, 50, *kept.shape[1:]) for kind, kept in choice.extras.items()}
    assert method.advantage(numbers.view(8, 50), rollout).equal(numbers.view(8, 50))
    for moment_ in range(3):
        after = arrival(moment_)
        assert method.reward(after).equal(after.reward)
        assert method.felt(after.reward, choice.extras).equal(after.reward)
    both = [one.square().masked_fill(~action_mask, 0).sum() for one in (plain, ours)]
    both[1] = both[1] + method.loss(scores, action_mask, choice.extras)
    slopes = [torch.autograd.grad(one, scores)[0] for one in both]
    assert slopes[0].equal(slopes[1])


@pytest.mark.parametrize(("name", "algo"), PAIRS)
def test_slopes_are_those_of_what_is_learned(name: str, algo: str) -> None:
    """Of the loss and of the policy that is learned, against differences, in rows where all actions are legal."""
    method, proposal, _, action_mask, choice = chosen(name, algo)
    rows = action_mask.all(1).nonzero()[:, 0][:12]
    assert len(rows) == 12
    extras = {
        kind: kept[rows].double() if kept.is_floating_point() else kept[rows] for kind, kept in choice.extras.items()
    }
    scores = proposal.scores[rows].double().requires_grad_()
    method.strength = method.strength.double()

    def both(scores: Tensor) -> tuple[Tensor, Tensor]:
        loss = method.loss(scores, action_mask[rows], extras)
        return method.bend(scores, action_mask[rows], extras).exp(), scores.sum() * 0 + loss

    assert torch.autograd.gradcheck(both, scores)


@pytest.mark.parametrize("name", ["override", "override-corrected", "demonstrate"])
def test_override_takes_the_tutor_s_best_action_where_it_is_heeded(name: str) -> None:
    _, proposal, heard, _, choice = chosen(name, METHODS[name].students[0])
    for row in range(ROWS):
        expected = heard.advised[row].argmax() if heard.heeded[row] else proposal.action[row]
        assert choice.action[row] == expected
    assert choice.scores.equal(proposal.scores)


def test_a_corrected_override_counts_the_student_s_own_actions_alone() -> None:
    method, _, heard, _, choice = chosen("override-corrected", "ppo")
    counts = method.counts(choice.extras)
    assert counts is not None
    assert counts.equal(~heard.heeded)


@pytest.mark.parametrize("norm_adv", [True, False])
@pytest.mark.parametrize("own", [0.0, 0.1, 0.5, 1.0])
def test_a_policy_learns_from_the_moments_that_count_as_if_there_were_no_others(own: float, norm_adv: bool) -> None:
    agent, step = after_a_rollout("override-corrected", "connect4", norm_adv=norm_adv)
    agent.extras["own"].copy_(draw(1, *agent.extras["own"].shape) < own)
    kept = agent.rollout
    following = torch.cat([kept.values[1:], agent.network.judge(step.obs)[None].detach()])
    ends = (kept.terminations, kept.truncations)
    plain, _ = gae(kept.rewards, kept.values, following, *ends, agent.config.gamma, agent.config.gae_lambda)
    agent.prepare(step)
    counts = agent.extras["own"]
    assert not agent.advantages[~counts].any()
    if counts.any():
        mine = plain[counts].double()
        if norm_adv:
            mine = (mine - mine.mean()) / max(mine.std(correction=0).item(), agent.config.adv_floor)
        torch.testing.assert_close(
            agent.advantages[counts].double() * counts.double().mean(), mine, rtol=1e-4, atol=1e-4
        )


def test_with_a_clock_a_moment_s_value_is_that_of_the_next_one_with_its_hint() -> None:
    agent, step = after_a_rollout("hint", "snake", env_kwargs=("size=4", "time_limit=10"))
    kept = agent.rollout
    following = torch.cat([kept.values[1:], agent.network.judge(step.obs)[None].detach()])
    ended = kept.terminations | kept.truncations
    assert ended.any()
    assert kept.truncations.any()
    following = torch.where(ended, kept.next_values, following)
    assert not following.allclose(kept.next_values), "hints matter here"
    ends = (kept.terminations, kept.truncations)
    _, returns = gae(kept.rewards, kept.values, following, *ends, agent.config.gamma, agent.config.gae_lambda)
    agent.prepare(step)
    torch.testing.assert_close(agent.returns, returns)


def after_a_rollout(
    guidance: str, game: str, env_kwargs: tuple[str, ...] = (), **settings: Any
) -> tuple[OnPolicy, Step]:
    """A PPO student whose rollout is full, with hints that it has learned to look at, and the moment that follows."""
    config = default_config("ppo", game)
    agent_config = replace(config.agent, num_steps=32, network="mlp", **settings)
    told = {"guiding": GuidanceConfig(guidance), "tutoring": TutorConfig("scripted")}
    config = replace(config, agent=agent_config, num_envs=8, env_kwargs=env_kwargs, **told)
    env = make_env(config, "cpu")
    agent = make_agent(config, env)
    for layer in agent.network.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data += 0.1 * draw(7, *layer.weight.shape)
    step = env.reset()
    for moment_ in range(32):
        proposal = agent.act(step)
        advised = step.action_mask * draw(moment_, *step.action_mask.shape)
        advised = advised / advised.sum(1, keepdim=True)
        heard = Heard(advised, torch.ones(8, dtype=torch.bool))
        choice = agent.guidance.choose(
            proposal, heard, step.action_mask, draw(100 + moment_, 8, step.action_mask.shape[1] + 1)
        )
        if (besides := agent.guidance.see(choice.extras)) is not None:
            proposal = agent.think(step, besides)
            choice = choice._replace(action=proposal.action, scores=proposal.scores)
        after = env.step(choice.action)
        agent.observe(step, proposal, choice.action, after, choice.extras)
        step = after.as_initial()
    return agent, step


@torch.no_grad()
def test_dqn_aims_at_what_the_next_moment_is_worth_with_its_hint() -> None:
    method = METHODS["hint"](False, "cpu")
    networks = [Network(NetworkConfig("mlp", (16,)), (6,), ACTIONS, seed, besides=ACTIONS + 1) for seed in (1, 2)]
    for network in networks:
        for weight in network.parameters():
            weight.data += 0.1 * draw(3, *weight.shape)
    online, target = networks
    hints = draw(5, ROWS, ACTIONS + 1)
    action_mask = torch.ones(ROWS, ACTIONS, dtype=torch.bool)
    batch = Batch(draw(6, ROWS, 6), action_mask[:, 0].long(), draw(7, ROWS), torch.full((ROWS,), GAMMA), draw(8, ROWS, 6), action_mask, action_mask, {"hint": draw(9, ROWS, ACTIONS + 1)}, {"hint": hints})  # fmt: skip # noqa: E501
    loss, _ = dqn_loss(online, target, batch, 1e9, method)
    errors = []
    for row in range(ROWS):
        best = online(batch.next_obs[row : row + 1], hints[row : row + 1]).argmax()
        aim = batch.reward[row] + GAMMA * target(batch.next_obs[row : row + 1], hints[row : row + 1])[0, best]
        value = online(batch.obs[row : row + 1], batch.extras["hint"][row : row + 1])[0, batch.action[row]]
        errors.append(float((value - aim) ** 2) / 2)
    assert float(loss) == pytest.approx(math.fsum(errors) / ROWS, rel=1e-4)


def student(scores: Tensor, action_mask: Tensor, row: int, has_policy: bool) -> list[float]:
    """A row's policy, by its definition."""
    weights = [math.exp(score / (1 if has_policy else TEMPERATURE)) * may for score, may in zip(scores[row].tolist(), action_mask[row].tolist(), strict=True)]  # fmt: skip # noqa: E501
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("name", ["distill", "kl"])
def test_a_distance_to_the_tutor_is_added_to_the_loss(name: str, algo: str) -> None:
    method, proposal, heard, action_mask, choice = chosen(name, algo)
    assert choice.action.equal(proposal.action), "the student acts itself"
    total = 0.0
    for row in range(ROWS):
        tutor, mine = heard.advised[row].tolist(), student(proposal.scores, action_mask, row, method.has_policy)
        if not heard.heeded[row]:
            continue
        if name == "distill":
            total -= sum(p * math.log(q) for p, q in zip(tutor, mine, strict=True) if p > 0)
        else:
            doubt = DOUBT / int(action_mask[row].sum())
            total += sum(q * math.log(q / ((1 - DOUBT) * p + doubt)) for p, q in zip(tutor, mine, strict=True) if q > 0)
    scores = proposal.scores.double().requires_grad_()
    loss = method.loss(scores, action_mask, choice.extras)
    assert loss.item() == pytest.approx(0.7 * total / ROWS, rel=1e-4)
    (slope,) = torch.autograd.grad(loss, scores)
    assert slope.isfinite().all()
    assert (slope[heard.heeded].abs().sum(1) > 0).float().mean() > 0.5


def test_a_kl_regularised_value_lies_between_the_tutor_s_and_the_best() -> None:
    """The formula of distill.py; what no advice is known of keeps its own estimate, to the bit."""
    method, _, heard, action_mask, choice = chosen("kl", "dqn", 3.0)
    values, own = draw(60, ROWS, ACTIONS) * 2 - 1, draw(61, ROWS)
    found = method.future(own, values, action_mask, choice.extras)
    for row in range(ROWS):
        if not heard.heeded[row]:
            assert found[row] == own[row]
            continue
        may = action_mask[row].tolist()
        prior = [(1 - DOUBT) * p + DOUBT / sum(may) for p in heard.advised[row].tolist()]
        worth = [(p, q) for p, q, ok in zip(prior, values[row].tolist(), may, strict=True) if ok]
        assert found[row].item() == pytest.approx(
            0.3 * math.log(sum(p * math.exp(q / 0.3) for p, q in worth)), abs=1e-5
        )
        assert sum(p * q for p, q in worth) - 1e-5 <= found[row] <= max(q for _, q in worth) + 1e-5
    method.strength.fill_(1e-4)
    cold = method.future(own, values, action_mask, choice.extras)
    best = values.masked_fill(~action_mask, -torch.inf).amax(1)
    torch.testing.assert_close(cold[heard.heeded], best[heard.heeded], atol=0.01, rtol=0)
    method.strength.zero_()
    assert method.future(own, values, action_mask, choice.extras).equal(own)
    silent = {"advised": torch.zeros_like(heard.advised)}
    method.strength.fill_(3.0)
    assert method.future(own, values, action_mask, silent).equal(own)


def test_going_down_the_distance_leads_to_the_tutor() -> None:
    for name in ("distill", "kl"):
        method, _, heard, action_mask, choice = chosen(name, "ppo", 1.0)
        logits = torch.zeros(ROWS, ACTIONS, requires_grad=True)
        for _ in range(400):
            (slope,) = torch.autograd.grad(
                method.loss(masked_log_softmax(logits, action_mask), action_mask, choice.extras), logits
            )
            logits.data -= 100 * slope
        apart = (masked_log_softmax(logits, action_mask).exp() - heard.advised).abs().sum(1)[heard.heeded]
        assert apart.max() < 0.25, name


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_a_blend_is_a_mixture_by_the_tutor_s_doubt(algo: str, strength: float) -> None:
    method, proposal, heard, action_mask, choice = chosen("blend", algo, strength)
    for row in range(ROWS):
        tutor, mine = heard.advised[row].tolist(), proposal.scores[row].exp().tolist()
        if heard.heeded[row]:
            number = max(int(action_mask[row].sum()), 2)
            doubt = -sum(p * math.log(p) for p in tutor if p > 0) / math.log(number)
            weight = strength * (1 - doubt)
            mine = [weight * p + (1 - weight) * q for p, q in zip(tutor, mine, strict=True)]
        assert choice.scores[row].exp().tolist() == pytest.approx(mine, abs=1e-5)
    assert method.bend(proposal.scores, action_mask, choice.extras).equal(choice.scores), (
        "one ratio at acting and learning"
    )


@pytest.mark.parametrize("name", ["blend", "mask"])
def test_actions_are_drawn_from_the_bent_policy(name: str) -> None:
    """One position in 20,000 games."""
    method = method_of(name, "ppo", 0.6)
    games = 20_000
    action_mask = torch.tensor([[True, True, True, False]]).expand(games, -1)
    scores = masked_log_softmax(torch.tensor([[0.3, -0.5, 0.9, 0.0]]).expand(games, -1), action_mask)
    advised = torch.tensor([[0.6, 0.39, 0.01, 0.0]]).expand(games, -1)
    proposal = Proposal(action_mask.long().argmax(1), masked_argmax(scores, action_mask), scores, torch.zeros(games))
    heard = Heard(advised, torch.ones(games, dtype=torch.bool))
    choice = method.choose(proposal, heard, action_mask, draw(13, games, 5))
    bent = choice.scores.exp()
    if name == "mask":
        masked = (choice.extras["plausible"] != action_mask).any(1)
        assert masked.float().mean() == pytest.approx(0.6, abs=0.02)
        assert (choice.action[masked] != 2).all(), "a hundredth of what the best has is not plausible"
        assert choice.action[~masked].equal(proposal.action[~masked])
        choice, bent = choice._replace(action=choice.action[masked]), bent[masked]
    shares = torch.bincount(choice.action, minlength=4) / len(choice.action)
    torch.testing.assert_close(shares, bent.mean(0), atol=0.015, rtol=0)


@pytest.mark.parametrize("algo", AGENTS)
def test_a_mask_leaves_what_is_plausible(algo: str) -> None:
    method, proposal, heard, action_mask, choice = chosen("mask", algo)
    u = moment(method.has_policy)[3][:, -1]
    for row in range(ROWS):
        plausible = choice.extras["plausible"][row].tolist()
        if not heard.heeded[row] or u[row] >= 0.7:
            assert plausible == action_mask[row].tolist()
            assert choice.action[row] == proposal.action[row]
            continue
        best = max(heard.advised[row].tolist())
        expected = [bool(may) and p >= PLAUSIBLE * best for p, may in zip(heard.advised[row].tolist(), action_mask[row], strict=True)]  # fmt: skip # noqa: E501
        assert plausible == expected
        assert plausible[choice.action[row]]
        if algo == "dqn":
            worth = [value if may else -math.inf for value, may in zip(proposal.scores[row].tolist(), plausible, strict=True)]  # fmt: skip # noqa: E501
            own = int(proposal.action[row])
            assert choice.action[row] == (own if plausible[own] else worth.index(max(worth)))
        else:
            mine = [q * may for q, may in zip(proposal.scores[row].exp().tolist(), plausible, strict=True)]
            assert choice.scores[row].exp().tolist() == pytest.approx([q / sum(mine) for q in mine], abs=1e-5)
            assert method.bend(proposal.scores, action_mask, choice.extras)[row].equal(choice.scores[row])


def test_the_tutor_s_preference_is_added_to_the_advantage() -> None:
    method, proposal, heard, action_mask, choice = chosen("advantage", "a2c")
    advantages = draw(14, 8, 50)
    found = method.advantage(advantages, {"utility": choice.extras["utility"].view(8, 50)}).flatten()
    for row in range(ROWS):
        utility = (
            heard.advised[row, proposal.action[row]] - 1 / int(action_mask[row].sum()) if heard.heeded[row] else 0.0
        )
        assert found[row].item() == pytest.approx(float(advantages.flatten()[row] + 0.7 * utility), abs=1e-6)


def test_a_demonstration_keeps_the_shown_action_best() -> None:
    method, proposal, heard, action_mask, choice = chosen("demonstrate", "dqn")
    shown = [int(heard.advised[row].argmax()) if heard.heeded[row] else NOBODY for row in range(ROWS)]
    assert choice.extras["shown"].tolist() == shown
    total = 0.0
    for row, best in enumerate(shown):
        if best != NOBODY:
            rivals = [float(proposal.scores[row, action]) + MARGIN * (action != best) for action in range(ACTIONS) if action_mask[row, action]]  # fmt: skip # noqa: E501
            total += max(rivals) - float(proposal.scores[row, best])
    scores = proposal.scores.clone().requires_grad_()
    loss = method.loss(scores, action_mask, choice.extras)
    assert loss.item() == pytest.approx(0.7 * total / ROWS, rel=1e-4)
    (slope,) = torch.autograd.grad(loss, scores)
    assert (slope[~action_mask] == 0).all()


@pytest.mark.parametrize("algo", AGENTS)
def test_a_hint_is_the_advice_and_whether_there_is_any(algo: str) -> None:
    method, _, heard, _, choice = chosen("hint", algo)
    hint = method.see(choice.extras)
    assert hint is not None
    assert hint.shape == (ROWS, method.inputs(ACTIONS))
    for row in range(ROWS):
        expected = [*heard.advised[row].tolist(), 1.0] if heard.heeded[row] else [0.0] * (ACTIONS + 1)
        assert hint[row].tolist() == expected


@pytest.mark.parametrize("shape", [(3,), (2, 6, 7)])
@pytest.mark.parametrize("network", ["mlp", "auto"])
def test_what_is_told_is_as_if_appended_to_what_the_first_dense_layer_sees(
    network: Any, shape: tuple[int, ...]
) -> None:
    config, obs, told = NetworkConfig(network, hidden=(16,)), draw(15, 7, *shape), draw(16, 7, 4)
    plain, both = (Network(config, shape, 3, seed=1, gain=1.0, besides=number) for number in (0, 4))
    assert both(obs, told).equal(plain(obs)), "weights that begin at 0"
    torch.nn.init.normal_(both.besides.weight)
    assert both(obs).equal(plain(obs))
    assert both(obs, torch.zeros_like(told)).equal(plain(obs))
    seen = obs
    for layer in both.body:
        if isinstance(layer, torch.nn.Linear):
            weight = torch.cat([layer.weight, both.besides.weight], 1)
            seen = torch.nn.functional.linear(torch.cat([seen, told], 1), weight, layer.bias)
        else:
            seen = layer(seen)
    torch.testing.assert_close(both(obs, told), both.head(seen))
    assert not both(obs, told).allclose(plain(obs))
    actor = ActorCritic(config, shape, 3, seed=1, besides=4)
    before = actor(obs, told)
    for one in actor.modules():
        if isinstance(one, Network):
            torch.nn.init.normal_(one.besides.weight)
    for old, new in zip(before, actor(obs, told), strict=True):
        assert not old.allclose(new), "policy and value are both told"


@pytest.mark.parametrize("algo", AGENTS)
def test_who_is_told_something_decides_once_more_with_the_same_luck(algo: str) -> None:
    agent, step = told_agent(algo)
    first = agent.act(step)
    silent = agent.think(step, torch.zeros(64, 8))
    assert all(one.equal(other) for one, other in zip(first, silent, strict=True))
    for one in agent.network.modules():
        if isinstance(one, Network):
            torch.nn.init.normal_(one.besides.weight, std=5.0)
    told = agent.think(step, draw(17, 64, 8))
    assert not told.greedy.equal(first.greedy)
    assert not told.scores.equal(first.scores)
    assert step.action_mask.gather(1, told.action[:, None]).all()
    assert agent.steps == 1


def told_agent(algo: str) -> tuple[Any, Step]:
    """A student of Connect Four that gets hints, and the first moment of 64 games."""
    env = envs.make("connect4", 64, 1)
    config = replace(default_config(algo, "connect4"), num_envs=64, tutoring=TutorConfig("scripted"))
    return make_agent(replace(config, guiding=GuidanceConfig("hint")), env), env.reset()


@pytest.mark.parametrize("algo", AGENTS)
def test_approval_is_lent_and_paid_back(algo: str) -> None:
    """Six moments, of which each game is a list: see the formula at the head of shape.py."""
    method = method_of("shape", algo)
    potential = [0.0] * ROWS
    for turn in range(6):
        method.strength.fill_(1 - 0.1 * turn)
        proposal, heard, action_mask, u = moment(method.has_policy)
        roll = [(row + 7 * turn) % ROWS for row in range(ROWS)]
        heard = Heard(heard.advised[roll], heard.heeded[roll])
        action_mask, proposal = action_mask[roll], proposal._replace(action=proposal.action[roll])
        assert method.choose(proposal, heard, action_mask, u).action.equal(proposal.action)
        after = arrival(turn)
        felt = method.reward(after).tolist()
        for row in range(ROWS):
            approval = (1 - 0.1 * turn) * float(heard.advised[row, proposal.action[row]])
            there = 0.0 if after.terminated[row] else approval
            assert felt[row] == pytest.approx(float(after.reward[row]) + GAMMA * there - potential[row], abs=1e-6)
            potential[row] = 0.0 if after.truncated[row] else there
    assert method.potential.tolist() == pytest.approx(potential, abs=1e-6)
    again = method_of("shape", algo)
    again.load_state_dict(method.state_dict())
    assert again.potential.equal(method.potential)


def test_over_a_whole_game_approval_comes_to_nothing() -> None:
    """The discounted sum of what is added in a game that terminates is 0, whatever was approved (Ng et al. 1999)."""
    method = method_of("shape", "ppo")
    proposal, heard, action_mask, u = moment(True)
    total, ends = torch.zeros(ROWS), torch.zeros(ROWS, dtype=torch.bool)
    nothing = torch.zeros(ROWS)
    for turn in range(10):
        method.choose(proposal, heard, action_mask, u)
        done = torch.full_like(ends, turn == 9)
        after = Step(nothing, nothing, nothing, done, ends, nothing, nothing, {}, {})
        total += GAMMA**turn * method.reward(after)
        assert turn == 9 or total[heard.heeded].abs().max() > 0.1
    assert total.abs().max() < 1e-6


def test_strength_goes_from_one_number_to_the_other_and_stays() -> None:
    told = GuidanceConfig("distill", strength_from=10.0, strength_to=0.1, strength_over=0.25)
    assert [told.strength_at(share) for share in (0.0, 0.125, 0.25, 0.9)] == pytest.approx([10.0, 5.05, 0.1, 0.1])
    assert GuidanceConfig("distill", strength_over=0.0).strength_at(0.0) == 0.0
    assert GuidanceConfig("blend").strength_at(0.0) == 0.9
    assert GuidanceConfig("demonstrate").strength_at(1.0) == 1.0


@pytest.mark.parametrize(
    ("told", "algo", "message"),
    [
        (GuidanceConfig("distil"), "ppo", "did you mean 'distill'"),
        (GuidanceConfig("blend"), "dqn", "is for ppo and a2c, not for dqn"),
        (GuidanceConfig("demonstrate"), "ppo", "is for dqn, not for ppo"),
        (GuidanceConfig("kl", strength_to=-1.0), "ppo", "strength_to is -1"),
        (GuidanceConfig("kl", strength_over=math.nan), "ppo", "strength_over is nan"),
        (GuidanceConfig("blend", strength_from=2.0), "ppo", "with blend it must be at most 1"),
        (GuidanceConfig("modulate-a", strength_to=1.5), "dqn", "with modulate-a it must be at most 1"),
        (GuidanceConfig("override", strength_from=0.1), "dqn", "guidance override has no strength: leave out"),
        (GuidanceConfig("hint", strength_over=0.1), "dqn", "guidance hint has no strength: leave out"),
    ],
)
def test_what_cannot_be_done_is_refused(told: GuidanceConfig, algo: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        told.check(algo)


@pytest.mark.parametrize(
    ("name", "told"), [("distill", 9.0), ("demonstrate", 2.0), ("blend", 1.0), ("modulate-r", 3.0), ("modulate-d", 9.0)]
)
def test_a_strength_that_makes_sense_is_taken(name: str, told: float) -> None:
    GuidanceConfig(name, strength_from=told, strength_to=told).check(METHODS[name].students[0])


@pytest.mark.parametrize("name", ["modulate", "modulate-a"])
def test_modulation_leads_to_legal_actions_that_somebody_named(name: str) -> None:
    """Of findings that contradict each other nothing is left; and an illegal action is never the better one."""
    method = method_of(name, "ppo", strength=1.0)
    worth = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.1, -1.0], [0.9, -0.2, -0.1], [0.0, 0.4, 0.5]])
    action_mask = torch.tensor([[False, True, True], [False, True, True], [False, True, True], [True, True, True]])
    scores = torch.zeros(4, 3)
    proposal = Proposal(torch.full((4,), 2), torch.full((4,), 2), scores, scores[:, 0])
    choice = method.choose(proposal, Heard(worth, torch.ones(4, dtype=torch.bool)), action_mask, torch.zeros(4, 4))
    assert choice.action.tolist() == [2, 1, 2, 2]
    proposal = proposal._replace(action=torch.ones(4, dtype=torch.int64))
    choice = method.choose(proposal, Heard(worth, torch.ones(4, dtype=torch.bool)), action_mask, torch.zeros(4, 4))
    assert choice.action.tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize(("name", "algo"), PAIRS)
def test_choosing_asks_the_device_nothing(name: str, algo: str) -> None:
    method = method_of(name, algo)
    proposal, heard, action_mask, u = moment(method.has_policy)
    with Watcher():
        choice = method.choose(proposal, heard, action_mask, u)
        method.bend(proposal.scores, action_mask, choice.extras)
        method.loss(proposal.scores, action_mask, choice.extras)


def run(folder: Path, algo: str, guidance: str, **told: Any) -> list[Tensor]:
    """The weights after a small run, but those of what may be told besides."""
    config = replace(config_of(algo, "connect4", folder, **told), total_steps=1024, eval_episodes=1)
    train(replace(config, guiding=GuidanceConfig(guidance)))
    weights = load_checkpoint(folder / "checkpoints", "cpu")["agent"]["network"]
    return tensors({name: weight for name, weight in weights.items() if "besides" not in name})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    """What each student learns without a tutor."""
    return {algo: run(tmp_path_factory.mktemp(algo) / "run", algo, "none", tutor="none") for algo in AGENTS}


@pytest.mark.parametrize(("name", "algo"), RUNS)
def test_every_method_changes_what_is_learned_and_a_silent_tutor_does_not(
    name: str, algo: str, plain: dict[str, list[Tensor]], tmp_path: Path
) -> None:
    silent = run(tmp_path / "silent", algo, name, query_budget=0)
    guided = run(tmp_path / "guided", algo, name)
    assert all(one.equal(other) for one, other in zip(plain[algo], silent, strict=True))
    assert all(one.equal(other) for one, other in zip(plain[algo], guided, strict=True)) == (name == "none")
    assert all(tensor.isfinite().all() for tensor in guided)
    assert sum(series(tmp_path / "guided", "tutor/consulted")) > 250


@pytest.mark.parametrize(("algo", "name"), [("ppo", "blend"), ("dqn", "demonstrate")])
def test_compiled_guidance_is_eager_guidance(algo: str, name: str, tmp_path: Path) -> None:
    config = replace(config_of(algo, "blackjack", tmp_path), guiding=GuidanceConfig(name), total_steps=1024)
    weights = []
    for mode in ("eager", "compile"):
        train(replace(config, compile_mode=mode, run_dir=tmp_path / mode))
        weights.append(tensors(load_checkpoint(tmp_path / mode / "checkpoints", "cpu")["agent"]["network"]))
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "algo"), [("distill", "dqn"), ("mask", "ppo"), ("override", "ppo"), ("hint", "a2c")])
def test_who_fades_is_advised_everywhere_and_then_nowhere(name: str, algo: str, tmp_path: Path) -> None:
    """The others with the consult probability, to the end; and who fades with one that was told."""
    config = replace(config_of(algo, "connect4", tmp_path / "run"), guiding=GuidanceConfig(name))
    train(config)
    wanted = series(tmp_path / "run", "tutor/wanted")
    half = len(wanted) // 2
    if METHODS[name].fades:
        assert wanted == [1.0] * half + [0.0] * half
        strength = series(tmp_path / "run", "tutor/strength")
        assert strength == sorted(strength, reverse=True)
        assert (strength[0] > 0, strength[-1]) == (True, 0)
        told = replace(config, run_dir=tmp_path / "told", tutoring=replace(config.tutoring, consult_to=0.5))
        train(told)
        rarer = series(tmp_path / "told", "tutor/wanted")
        assert all(0.5 < share < 1 for share in rarer[:half])
        assert rarer[half:] == [0.0] * half
    else:
        assert all(0 < share < 1 for share in wanted)
        assert wanted[-1] == pytest.approx(0.1, abs=0.05)
