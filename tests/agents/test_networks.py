"""Networks against their specification: orthogonal weights of known gains, seeds, and a forward pass written out.

Orthogonality is checked on each weight matrix (W W^T = gain^2 I, or W^T W where there are more rows than columns). A
forward pass is done once more with the weights and plain products.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.networks import ActorCritic, Network, NetworkConfig, polyak_update
from tests.helpers.students import uniforms

FLAT, BOARD = (5,), (2, 6, 7)
SHAPES = [FLAT, BOARD]
IDS = ["dense", "conv"]


def observations(obs_shape: tuple[int, ...], rows: int = 9) -> Tensor:
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
def test_dense_layers_are_orthogonal_of_gain_root_2_and_the_head_of_its_own_gain(hidden: tuple[int, ...]) -> None:
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
def test_actor_critic_starts_near_the_uniform_policy_and_with_a_value_head_of_gain_1(obs_shape: tuple) -> None:
    network = ActorCritic(NetworkConfig(hidden=(32,)), obs_shape, 4, seed=1)
    logits, _ = network(observations(obs_shape))
    assert (logits.softmax(1) - 0.25).abs().max() < 0.02
    assert gain_of(network.policy.head.weight) == pytest.approx(0.01, rel=1e-5)
    value_head = network.value if obs_shape == BOARD else network.value.head
    assert gain_of(value_head.weight) == pytest.approx(1.0, rel=1e-5)
    assert (value_head.bias == 0).all()


@pytest.mark.parametrize(("activation", "function"), [("relu", lambda x: x.clamp(min=0)), ("tanh", torch.tanh)])
def test_dense_network_equals_its_matrix_products_and_activation(activation: str, function: Callable) -> None:
    config = NetworkConfig(network="mlp", hidden=(7, 6), activation=activation)
    network = Network(config, BOARD, 3, seed=2, gain=1.0)
    obs = observations(BOARD)
    first, second, head = (layer.weight for layer in layers(network))
    expected = function(function(obs.flatten(1) @ first.T) @ second.T) @ head.T
    torch.testing.assert_close(network(obs), expected)


def test_convolutional_network_equals_its_sums_over_neighbours() -> None:
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

    obs = observations((1, 5, 6), rows=3)
    seen = torch.stack([convolve(convolve(picture, first, 1), second, 2).flatten() for picture in obs])
    torch.testing.assert_close(network(obs), (seen @ middle.T).clamp(min=0) @ head.T)


@pytest.mark.parametrize(
    ("network_type", "obs_shape", "conv"),
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
def test_network_auto_uses_convolutions_from_five_rows_and_columns_on(
    network_type: str, obs_shape: tuple, conv: bool
) -> None:
    config = NetworkConfig(network=network_type, hidden=(8,))
    network, both = Network(config, obs_shape, 3, seed=0), ActorCritic(config, obs_shape, 3, seed=0)
    assert any(isinstance(layer, nn.Conv2d) for layer in network.modules()) == conv
    assert any(isinstance(layer, nn.Conv2d) for layer in both.modules()) == conv
    obs = observations(obs_shape)
    logits, value = both(obs)
    assert network(obs).shape == logits.shape == (9, 3)
    assert value.shape == (9,)


@pytest.mark.parametrize("obs_shape", [(5,), (6, 7)])
def test_network_conv_with_flat_observations_raises(obs_shape: tuple) -> None:
    for make in (Network, ActorCritic):
        with pytest.raises(ValueError, match=r"--network conv requires .*channels, rows, columns.*not of \("):
            make(NetworkConfig(network="conv"), obs_shape, 3, seed=0)


@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_network_seed_decides_its_weights(obs_shape: tuple) -> None:
    config = NetworkConfig(hidden=(8, 8))
    for make in (Network, ActorCritic):
        one, again, other = (make(config, obs_shape, 3, seed) for seed in (5, 5, 6))
        assert same(one, again)
        for ours, theirs in zip(layers(one), layers(other), strict=True):
            assert not ours.weight.allclose(theirs.weight)


@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_network_parts_of_one_seed_start_with_different_weights(obs_shape: tuple) -> None:
    config = NetworkConfig(hidden=(8, 8))
    one, again, other = (Network(config, obs_shape, 3, seed=5, part=part) for part in (1, 1, 2))
    assert same(one, again)
    for ours, theirs in zip(layers(one), layers(other), strict=True):
        assert not ours.weight.allclose(theirs.weight)
    # no part of one seed is another part of a seed nearby
    for seed, part in ((4, 0), (4, 2), (6, 0), (6, 1), (7, 1)):
        assert not one.head.weight.allclose(Network(config, obs_shape, 3, seed, part=part).head.weight)


def test_dense_actor_critic_shares_nothing_and_starts_with_different_weights() -> None:
    network = ActorCritic(NetworkConfig(hidden=(8, 8)), FLAT, 3, seed=5)
    for ours, theirs in zip(layers(network.policy.body), layers(network.value.body), strict=True):
        assert not ours.weight.allclose(theirs.weight)
    obs = observations(FLAT)
    before = [output.clone() for output in network(obs)]
    with torch.no_grad():
        for parameter in network.value.parameters():
            parameter += 0.1
    logits, value = network(obs)
    assert logits.equal(before[0])
    assert not value.allclose(before[1])


def test_convolutional_actor_critic_shares_all_but_its_heads() -> None:
    network = ActorCritic(NetworkConfig(hidden=(8,)), BOARD, 3, seed=5)
    assert len(layers(network)) == 2 + 1 + 2
    obs = observations(BOARD)
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
def test_get_value_equals_the_value_of_forward(obs_shape: tuple, bfloat16: bool) -> None:
    network = ActorCritic(NetworkConfig(hidden=(32,), bfloat16=bfloat16), obs_shape, 3, seed=5)
    obs = observations(obs_shape)
    value = network.get_value(obs)
    assert value.equal(network(obs)[1])
    assert value.dtype == torch.float32
    assert value.std() > 0.01, "states differ in value"


@pytest.mark.parametrize("obs_shape", SHAPES, ids=IDS)
def test_bfloat16_is_close_to_float32_and_returns_float32(obs_shape: tuple) -> None:
    exact, rounded = (
        ActorCritic(NetworkConfig(hidden=(32,), bfloat16=how), obs_shape, 3, seed=5) for how in (False, True)
    )
    assert same(exact, rounded), "the weights are float32 in both"
    with torch.no_grad():
        for network in (exact, rounded):
            network.policy.head.weight *= 100
    obs = observations(obs_shape)
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
def test_network_init_neither_uses_nor_changes_the_global_generator(obs_shape: tuple) -> None:
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
def test_polyak_update_goes_its_share_of_the_way(share: float, as_tensor: bool) -> None:
    config = NetworkConfig(hidden=(8,))
    target, source = (Network(config, FLAT, 3, seed) for seed in (0, 1))
    before, goal = copy.deepcopy(target), copy.deepcopy(source)
    polyak_update(target, source, torch.tensor(share) if as_tensor else share)
    assert same(source, goal)
    for new, old, there in zip(target.parameters(), before.parameters(), goal.parameters(), strict=True):
        torch.testing.assert_close(new, (1 - share) * old + share * there)
        assert new.requires_grad
    assert same(target, before) == (share == 0)
    assert same(target, goal) == (share == 1)


@pytest.mark.parametrize("hidden", [(), (8, 0)])
def test_config_check_without_layers_or_units_raises(hidden: tuple[int, ...]) -> None:
    NetworkConfig(hidden=(8,)).check(16)
    with pytest.raises(ValueError, match="there must be a layer"):
        NetworkConfig(hidden=hidden).check(16)


@pytest.mark.parametrize("shape", [(3,), (2, 6, 7)])
@pytest.mark.parametrize("network", ["mlp", "auto"])
def test_extra_inputs_are_as_if_appended_to_the_first_dense_layer_s_inputs(
    network: Any, shape: tuple[int, ...]
) -> None:
    config, obs, extra = NetworkConfig(network, hidden=(16,)), uniforms(15, 7, *shape), uniforms(16, 7, 4)
    plain, both = (Network(config, shape, 3, seed=1, gain=1.0, extra_inputs=number) for number in (0, 4))
    assert both(obs, extra).equal(plain(obs)), "their weights start at 0"
    nn.init.normal_(both.extra_inputs.weight)
    assert both(obs).equal(plain(obs))
    assert both(obs, torch.zeros_like(extra)).equal(plain(obs))
    features = obs
    for layer in both.body:
        if isinstance(layer, nn.Linear):
            weight = torch.cat([layer.weight, both.extra_inputs.weight], 1)
            features = nn.functional.linear(torch.cat([features, extra], 1), weight, layer.bias)
        else:
            features = layer(features)
    torch.testing.assert_close(both(obs, extra), both.head(features))
    assert not both(obs, extra).allclose(plain(obs))
    actor_critic = ActorCritic(config, shape, 3, seed=1, extra_inputs=4)
    before = actor_critic(obs, extra)
    for module in actor_critic.modules():
        if isinstance(module, Network):
            nn.init.normal_(module.extra_inputs.weight)
    for old, new in zip(before, actor_critic(obs, extra), strict=True):
        assert not old.allclose(new), "policy and value have them both"
