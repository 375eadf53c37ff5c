"""Our Adam against PyTorch's Adam behind PyTorch's clipping of the gradient's norm, step by step."""

import copy

import pytest
import torch
from torch import Tensor, nn

from agents.adam import Adam
from tests.helpers.students import save_and_load

STEPS = 50


def small_network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(network: nn.Module, number: int) -> Tensor:
    """Another batch at each step; the error is a hundred times as large in every third."""
    generator = torch.Generator().manual_seed(number)
    obs, target = torch.randn(16, 4, generator=generator), torch.randn(16, 3, generator=generator)
    return (network(obs) - target).square().mean() * (100 if number % 3 == 0 else 1)


def learning_rate_of(number: int) -> float:
    return 1e-2 * (1 - number / STEPS)


def assert_equal_weights(ours: nn.Module, theirs: nn.Module) -> None:
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(("max_grad_norm", "clipping"), [(0.05, "always"), (5.0, "sometimes"), (1e6, "never")])
def test_adam_step_equals_pytorch_s_for_50_steps(max_grad_norm: float, clipping: str, as_tensor: bool) -> None:
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
    assert {"always": all(clipped), "sometimes": len(set(clipped)) == 2, "never": not any(clipped)}[clipping]


def test_adam_first_step_moves_every_weight_by_the_learning_rate() -> None:
    network = small_network()
    before = copy.deepcopy(network)
    loss = loss_of(network, 1)
    grads = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    Adam(network, 1e6).step(loss, 0.01)
    for new, old, grad in zip(network.parameters(), before.parameters(), grads, strict=True):
        torch.testing.assert_close(new, old - 0.01 * grad.sign(), rtol=0, atol=2e-5)


def test_adam_step_with_learning_rate_0_moves_nothing() -> None:
    network = small_network()
    before = copy.deepcopy(network)
    adam = Adam(network, 1.0)
    for number in range(3):
        adam.step(loss_of(network, number), torch.tensor(0.0))
    assert all(new.equal(old) for new, old in zip(network.parameters(), before.parameters(), strict=True))


def test_adam_step_keeps_weights_in_place_and_without_gradient() -> None:
    network = small_network()
    places = [parameter.data_ptr() for parameter in network.parameters()]
    norm = Adam(network, 1.0).step(loss_of(network, 0), 0.01)
    assert [parameter.data_ptr() for parameter in network.parameters()] == places
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not norm.requires_grad


def test_adam_resumed_from_a_checkpoint_is_the_unbroken_run() -> None:
    whole, part = small_network(), small_network()
    first, second = Adam(whole, 1.0), Adam(part, 1.0)
    for number in range(10):
        first.step(loss_of(whole, number), 0.01)
        second.step(loss_of(part, number), 0.01)
    saved = save_and_load({"network": part.state_dict(), "optimizer": second.state_dict()})
    second.step(loss_of(part, 99), 0.01)  # what happens after saving is not in the file

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
