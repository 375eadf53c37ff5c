"""The options of guidance: schedules, and what is refused."""

import math
from pathlib import Path

import pytest

from agents.guidance import METHODS, GuidanceConfig, find_method
from agents.guidance.distill import Distill


def test_strength_goes_from_start_to_end_and_stays() -> None:
    config = GuidanceConfig("distill", guidance_start=10.0, guidance_end=0.1, guidance_fraction=0.25)
    assert [config.strength_at(share, Distill) for share in (0.0, 0.125, 0.25, 0.9)] == pytest.approx(
        [10.0, 5.05, 0.1, 0.1]
    )
    assert GuidanceConfig("distill", guidance_fraction=0.0).strength_at(0.0, Distill) == 0.0
    assert GuidanceConfig("blend").strength_at(0.0, METHODS["blend"]) == 0.9
    assert GuidanceConfig("demonstrate").strength_at(1.0, METHODS["demonstrate"]) == 1.0


@pytest.mark.parametrize(
    ("config", "algo", "message"),
    [
        (GuidanceConfig("distil"), "ppo", "did you mean 'distill'"),
        (GuidanceConfig("blend"), "dqn", "is for ppo and a2c, not for dqn"),
        (GuidanceConfig("demonstrate"), "ppo", "is for dqn, not for ppo"),
        (GuidanceConfig("kl", guidance_end=-1.0), "ppo", "guidance_end is -1"),
        (GuidanceConfig("kl", guidance_fraction=math.nan), "ppo", "guidance_fraction is nan"),
        (GuidanceConfig("blend", guidance_start=2.0), "ppo", "with blend it must be at most 1"),
        (GuidanceConfig("modulate-a", guidance_end=1.5), "dqn", "with modulate-a it must be at most 1"),
        (GuidanceConfig("override", guidance_start=0.1), "dqn", "guidance override has no strength: leave out"),
        (GuidanceConfig("hint", guidance_fraction=0.1), "dqn", "guidance hint has no strength: leave out"),
        (GuidanceConfig("modulate", episodes=1), "dqn", "episodes is 1"),
        (GuidanceConfig("modulate", reward_scale=-1.0), "dqn", "reward_scale is -1"),
    ],
)
def test_config_check_with_impossible_options_raises(config: GuidanceConfig, algo: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check(algo)


@pytest.mark.parametrize(
    ("name", "strength"),
    [("distill", 9.0), ("demonstrate", 2.0), ("blend", 1.0), ("modulate-r", 3.0), ("modulate-d", 9.0)],
)
def test_config_check_with_a_possible_strength_passes(name: str, strength: float) -> None:
    GuidanceConfig(name, guidance_start=strength, guidance_end=strength).check(METHODS[name].students[0])


@pytest.mark.parametrize("name", METHODS)
def test_make_hands_over_scale_discount_and_env_copies(name: str) -> None:
    method = GuidanceConfig(name, reward_scale=0.7).make(METHODS[name].students[0], False, "cpu", 3, 0.8)
    assert type(method) is METHODS[name]
    assert (method.reward_scale, method.gamma, method.has_policy, float(method.strength)) == (0.7, 0.8, False, 0.0)
    if name == "shape":
        assert method.potential.shape == (3,)


@pytest.mark.parametrize("name", METHODS)
def test_env_copies_are_left_alone_by_methods_that_act_on_advice_under_trust(name: str) -> None:
    algo = METHODS[name].students[0]
    for trust in ("gap", "none"):
        alone = GuidanceConfig(name, trust=trust).make(algo, False, "cpu", 6, 0.9).alone  # type: ignore[arg-type]
        expected = [True] * 6
        if name == "margin":
            expected = [True, False] * 3
        elif name in ("blend", "mask", "demonstrate") and trust == "gap":
            expected = [True, False, False, False, True, False]
        assert alone.tolist() == expected


def test_method_of_your_own_is_found_by_module_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_guidance.py").write_text(
        "from agents.guidance import Guidance\nnumber = 3\nclass Sure(Guidance):\n    students = ('ppo',)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_method("own_guidance:Sure", "ppo").__name__ == "Sure"
    for name, algo, said in (
        ("own_guidance:Sure", "dqn", "is for ppo, not for dqn"),
        ("own_guidance:number", "ppo", "must be a subclass of agents.guidance.Guidance"),
        ("own_guidance:Unsure", "ppo", "has no attribute 'Unsure'"),
        ("no_such_module:Sure", "ppo", "No module named 'no_such_module'"),
    ):
        with pytest.raises(ValueError, match=said):
            find_method(name, algo)
