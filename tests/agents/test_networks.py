"""Networks against what is said of them: orthogonal weights of known gains, seeds, and a forward pass written out.

Orthogonality is asked of each weight matrix (W W^T = gain^2 I, or W^T W where there are more rows than columns). A
forward pass is done once more with the weights and plain products.
"""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from agents.networks import ActorCritic, Network, NetworkConfig, polyak_update

FLAT, BOARD = (5,), (2, 6, 7)
SHAPES = [FLAT, BOARD]
IDS = ["dense", "conv"]


def looked_at(obs_shape: tuple[int, ...], rows: int = 9) -> Tensor:
    return torch.rand(rows, *obs_shape, generator=torch.Generator().manual_seed(8)) * 2 - 1


def layers(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def gain_of(weight: Tensor) -> float:
    """The g of an orthogonal weight: W W^T = g^2 I, or W^T W where W has more rows than columns."""
    matrix = weight.detach().flatten(1).double()
    small = matrix @ matrix.T if len(matrix) <= matrix[0].numel() else matrix.T @ matrix
    gain = small.diagonal().mean().sqrt().item()
    torch.testing.assert_close(small, gain**2 * torch.eye(len(small)).double(), rtol=0, atol=1e-5 * gain**2)
    return gain


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(one.equal(other) for one, other in pairs)


@pytest.mark.parametrize("hidden", [(16,), (16, 8), (3, 40)])
def test_dense_layers_are_orthogonal_of_gain_root_2_and_the_head_of_its_own(hidden: tuple[int, ...]) -> None:
    network = Network(NetworkConfig(hidden=hidden), FLAT, 4, seed=1)
    found = layers(network)
    assert [layer.in_features for layer in found] == [5, *hidden]
    assert [layer.out_features for layer in found] == [*hidden, 4]
    assert [gain_of(layer.weight) for layer in found] == pytest.approx([math.sqrt(2)] * len(hidden) + [0.01], rel=1e-5)
    assert all((layer.bias == 0).all() for layer in found)
    loud = Network(NetworkConfig(hidden=hidden), FLAT, 4, seed=1, gain=3.0)
    assert gain_of(loud.head.weight) == pytest.approx(3.0, rel=1e-5)


def test_convolutions_are_orthogonal_of_gain_root_2() -> None:
    network = Network(NetworkConfig(hidden=(24,)), BOARD, 4, seed=1)
    found = layers(network)
    assert [type(layer) for layer in found] == [nn.Conv2d, nn.Conv2d, nn.Linear, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in found] == [(16, 2, 3, 3), (32, 16, 3, 3), (24, 32 * 3 * 4), (4, 24)]
    assert [gain_of(layer.weight) for layer in found] == pytest.approx([math.sqrt(2)] * 3 + [0.01], rel=1e-5)
    assert all((layer.bias == 0).all() for layer in found)


@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_a_student_s_policy_begins_without_a_preference_and_its_value_head_has_gain_1(obs_shape: tuple) -> None:
    network = ActorCritic(NetworkConfig(hidden=(32,)), obs_shape, 4, seed=1)
    logits, _ = network(looked_at(obs_shape))
    assert (logits.softmax(1) - 0.25).abs().max() < 0.02
    assert gain_of(network.policy.head.weight) == pytest.approx(0.01, rel=1e-5)
    value_head = network.value if obs_shape == BOARD else network.value.head
    assert gain_of(value_head.weight) == pytest.approx(1.0, rel=1e-5)
    assert (value_head.bias == 0).all()


@pytest.mark.parametrize(("activation", "bend"), [("relu", lambda x: x.clamp(min=0)), ("tanh", torch.tanh)])
def test_a_dense_network_is_its_products_and_its_activation(activation: str, bend: Callable) -> None:
    told = NetworkConfig(network="mlp", hidden=(7, 6), activation=activation)
    network = Network(told, BOARD, 3, seed=2, gain=1.0)
    obs = looked_at(BOARD)
    first, second, head = (layer.weight for layer in layers(network))
    expected = bend(bend(obs.flatten(1) @ first.T) @ second.T) @ head.T
    torch.testing.assert_close(network(obs), expected)


def test_a_convolutional_network_is_its_sums_over_neighbours() -> None:
    network = Network(NetworkConfig(hidden=(7,)), (1, 5, 6), 3, seed=2, gain=1.0)
    first, second, middle, head = (layer.weight for layer in layers(network))

    def convolve(picture: Tensor, weight: Tensor, stride: int) -> Tensor:
        rows, columns = picture.shape[1:]
        edged = torch.zeros(len(picture), rows + 2, columns + 2)
        edged[:, 1:-1, 1:-1] = picture
        cells = [
            [
                (weight * edged[:, row : row + 3, column : column + 3]).sum((1, 2, 3))
                for column in range(0, columns, stride)
            ]
            for row in range(0, rows, stride)
        ]
        return torch.stack([torch.stack(row, 1) for row in cells], 1).clamp(min=0)

    obs = looked_at((1, 5, 6), rows=3)
    seen = torch.stack([convolve(convolve(picture, first, 1), second, 2).flatten() for picture in obs])
    torch.testing.assert_close(network(obs), (seen @ middle.T).clamp(min=0) @ head.T)


@pytest.mark.parametrize(
    ("told", "obs_shape", "conv"),
    [
        ("auto", (2, 6, 7), True),
        ("auto", (1, 5, 5), True),
        ("auto", (2, 4, 9), False),
        ("auto", (2, 9, 4), False),
        ("auto", (3,), False),
        ("auto", (6, 7), False),
        ("mlp", (2, 6, 7), False),
        ("conv", (2, 6, 7), True),
        ("conv", (2, 3, 1), True),
    ],
)
def test_boards_of_five_rows_and_columns_are_seen_with_convolutions(told: str, obs_shape: tuple, conv: bool) -> None:
    config = NetworkConfig(network=told, hidden=(8,))
    network, both = Network(config, obs_shape, 3, seed=0), ActorCritic(config, obs_shape, 3, seed=0)
    assert any(isinstance(layer, nn.Conv2d) for layer in network.modules()) == conv
    assert any(isinstance(layer, nn.Conv2d) for layer in both.modules()) == conv
    obs = looked_at(obs_shape)
    logits, value = both(obs)
    assert network(obs).shape == logits.shape == (9, 3)
    assert value.shape == (9,)


@pytest.mark.parametrize("obs_shape", [(5,), (6, 7)])
def test_convolutions_of_flat_observations_are_refused(obs_shape: tuple) -> None:
    for make in (Network, ActorCritic):
        with pytest.raises(ValueError, match=r"--network conv wants .*channels, rows, columns.*not of \("):
            make(NetworkConfig(network="conv"), obs_shape, 3, seed=0)


@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_one_seed_is_one_network_and_another_seed_another(obs_shape: tuple) -> None:
    config = NetworkConfig(hidden=(8, 8))
    for make in (Network, ActorCritic):
        one, again, other = (make(config, obs_shape, 3, seed) for seed in (5, 5, 6))
        assert same(one, again)
        for ours, theirs in zip(layers(one), layers(other), strict=True):
            assert not ours.weight.allclose(theirs.weight)


@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_parts_of_one_student_begin_differently(obs_shape: tuple) -> None:
    config = NetworkConfig(hidden=(8, 8))
    one, again, other = (Network(config, obs_shape, 3, seed=5, part=part) for part in (1, 1, 2))
    assert same(one, again)
    for ours, theirs in zip(layers(one), layers(other), strict=True):
        assert not ours.weight.allclose(theirs.weight)
    # no part of one seed is another part of a seed nearby
    for seed, part in ((4, 0), (4, 2), (6, 0), (6, 1), (7, 1)):
        assert not one.head.weight.allclose(Network(config, obs_shape, 3, seed, part=part).head.weight)


def test_a_dense_policy_and_its_value_share_nothing_and_begin_differently() -> None:
    network = ActorCritic(NetworkConfig(hidden=(8, 8)), FLAT, 3, seed=5)
    for ours, theirs in zip(layers(network.policy.body), layers(network.value.body), strict=True):
        assert not ours.weight.allclose(theirs.weight)
    obs = looked_at(FLAT)
    before = [output.clone() for output in network(obs)]
    with torch.no_grad():
        for parameter in network.value.parameters():
            parameter += 0.1
    logits, value = network(obs)
    assert logits.equal(before[0])
    assert not value.allclose(before[1])


def test_a_convolutional_policy_and_its_value_share_all_but_their_heads() -> None:
    network = ActorCritic(NetworkConfig(hidden=(8,)), BOARD, 3, seed=5)
    assert len(layers(network)) == 2 + 1 + 2
    obs = looked_at(BOARD)
    before = [output.clone() for output in network(obs)]
    with torch.no_grad():
        network.value.weight += 0.1
    logits, value = network(obs)
    assert logits.equal(before[0])
    assert not value.allclose(before[1])
    with torch.no_grad():
        for parameter in network.policy.body.parameters():
            parameter += 0.1
    assert not network(obs)[0].allclose(logits)
    assert not network(obs)[1].allclose(value)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_to_judge_is_to_see_the_value_alone(obs_shape: tuple, bfloat16: bool) -> None:
    network = ActorCritic(NetworkConfig(hidden=(32,), bfloat16=bfloat16), obs_shape, 3, seed=5)
    obs = looked_at(obs_shape)
    judged = network.judge(obs)
    assert judged.equal(network(obs)[1])
    assert judged.dtype == torch.float32
    assert judged.std() > 0.01, "positions differ in value"


@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_bfloat16_is_close_to_float32_but_rounded_and_comes_out_as_float32(obs_shape: tuple) -> None:
    exact, rounded = (
        ActorCritic(NetworkConfig(hidden=(32,), bfloat16=how), obs_shape, 3, seed=5) for how in (False, True)
    )
    assert same(exact, rounded), "the weights are float32 in both"
    with torch.no_grad():
        for network in (exact, rounded):
            network.policy.head.weight *= 100
    obs = looked_at(obs_shape)
    for ours, theirs in zip(rounded(obs), exact(obs), strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert not ours.equal(theirs)
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)
    single = Network(NetworkConfig(hidden=(32,), bfloat16=True), obs_shape, 3, seed=5, gain=1.0)
    plain = Network(NetworkConfig(hidden=(32,)), obs_shape, 3, seed=5, gain=1.0)
    assert single(obs).dtype == torch.float32
    assert not single(obs).equal(plain(obs))
    torch.testing.assert_close(single(obs), plain(obs), rtol=0.03, atol=0.03)
    assert all(parameter.dtype == torch.float32 for parameter in rounded.parameters())


@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_making_a_network_neither_uses_nor_changes_everybody_s_random_numbers(obs_shape: tuple) -> None:
    config = NetworkConfig(hidden=(8,))
    made = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        made.append(ActorCritic(config, obs_shape, 3, seed=5))
        made.append(Network(config, obs_shape, 3, seed=5))
        assert torch.random.get_rng_state().equal(before)
    assert same(made[0], made[2])
    assert same(made[1], made[3])


@pytest.mark.parametrize("share", [0.0, 0.005, 0.5, 1.0])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_target_goes_its_share_of_the_way(share: float, as_tensor: bool) -> None:
    config = NetworkConfig(hidden=(8,))
    target, source = (Network(config, FLAT, 3, seed) for seed in (0, 1))
    before, aim = copy.deepcopy(target), copy.deepcopy(source)
    polyak_update(target, source, torch.tensor(share) if as_tensor else share)
    assert same(source, aim)
    for new, old, there in zip(target.parameters(), before.parameters(), aim.parameters(), strict=True):
        torch.testing.assert_close(new, (1 - share) * old + share * there)
        assert new.requires_grad
    assert same(target, before) == (share == 0)
    assert same(target, aim) == (share == 1)


@pytest.mark.parametrize("hidden", [(), (8, 0)])
def test_a_network_without_layers_or_units_is_refused(hidden: tuple[int, ...]) -> None:
    NetworkConfig(hidden=(8,)).check(16)
    with pytest.raises(ValueError, match="there must be a layer"):
        NetworkConfig(hidden=hidden).check(16)
