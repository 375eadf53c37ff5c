"""Our Adam against PyTorch's Adam behind PyTorch's clipping of the gradient's norm, step by step."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from agents.adam import Adam

STEPS = 50


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(network: nn.Module, number: int) -> Tensor:
    """Another batch at each step; the error is a hundred times as large in every third."""
    chance = torch.Generator().manual_seed(number)
    obs, aim = torch.randn(16, 4, generator=chance), torch.randn(16, 3, generator=chance)
    return (network(obs) - aim).square().mean() * (100 if number % 3 == 0 else 1)


def learning_rate_of(number: int) -> float:
    return 1e-2 * (1 - number / STEPS)


def assert_equal_weights(ours: nn.Module, theirs: nn.Module) -> None:
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(("max_grad_norm", "cut"), [(0.05, "always"), (5.0, "sometimes"), (1e6, "never")])
def test_50_steps_are_those_of_pytorch(max_grad_norm: float, cut: str, as_tensor: bool) -> None:
    ours, theirs = small_network(), small_network()
    adam = Adam(ours, max_grad_norm)
    reference = torch.optim.Adam(theirs.parameters(), lr=1.0)
    clipped = []
    for number in range(STEPS):
        rate = learning_rate_of(number)
        norm = adam.step(loss_of(ours, number), torch.tensor(rate) if as_tensor else rate)

        reference.zero_grad()
        loss_of(theirs, number).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm)
        reference.param_groups[0]["lr"] = rate
        reference.step()

        assert norm.ndim == 0
        torch.testing.assert_close(norm, expected, rtol=1e-3, atol=1e-5)
        assert_equal_weights(ours, theirs)
        clipped.append(expected.item() > max_grad_norm)
    assert {"always": all(clipped), "sometimes": len(set(clipped)) == 2, "never": not any(clipped)}[cut]


def test_the_first_step_is_as_long_as_the_learning_rate_in_every_weight() -> None:
    network = small_network()
    before = copy.deepcopy(network)
    loss = loss_of(network, 1)
    grads = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    Adam(network, 1e6).step(loss, 0.01)
    for new, old, grad in zip(network.parameters(), before.parameters(), grads, strict=True):
        torch.testing.assert_close(new, old - 0.01 * grad.sign(), rtol=0, atol=2e-5)


def test_a_learning_rate_of_0_moves_nothing() -> None:
    network = small_network()
    before = copy.deepcopy(network)
    adam = Adam(network, 1.0)
    for number in range(3):
        adam.step(loss_of(network, number), torch.tensor(0.0))
    assert all(new.equal(old) for new, old in zip(network.parameters(), before.parameters(), strict=True))


def test_weights_stay_where_they_are_and_keep_no_gradient() -> None:
    network = small_network()
    places = [parameter.data_ptr() for parameter in network.parameters()]
    norm = Adam(network, 1.0).step(loss_of(network, 0), 0.01)
    assert [parameter.data_ptr() for parameter in network.parameters()] == places
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not norm.requires_grad


def test_a_saved_optimizer_goes_on_as_if_it_had_not_been_saved() -> None:
    whole, part = small_network(), small_network()
    first, second = Adam(whole, 1.0), Adam(part, 1.0)
    for number in range(10):
        first.step(loss_of(whole, number), 0.01)
        second.step(loss_of(part, number), 0.01)
    file = io.BytesIO()
    torch.save({"network": part.state_dict(), "optimizer": second.state_dict()}, file)
    second.step(loss_of(part, 99), 0.01)  # what happens after saving is not in the file
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    other = small_network(seed=1)
    third = Adam(other, 1.0)
    places = [tensor.data_ptr() for tensor in third.state_dict().values()]
    third.step(loss_of(other, 5), 0.01)
    other.load_state_dict(saved["network"])
    third.load_state_dict(saved["optimizer"])
    assert [tensor.data_ptr() for tensor in third.state_dict().values()] == places, "buffers never move"
    for number in range(10, 20):
        first.step(loss_of(whole, number), 0.01)
        third.step(loss_of(other, number), 0.01)
    assert all(ours.equal(theirs) for ours, theirs in zip(other.parameters(), whole.parameters(), strict=True))
    assert all(third.state_dict()[name].equal(tensor) for name, tensor in first.state_dict().items())
