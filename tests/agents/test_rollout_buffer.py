"""The rollout buffer against a plain list of what was added."""

import pytest
import torch
from torch import Tensor

from agents.guidance.base import EMPTY
from agents.rollout_buffer import Batch, RolloutBuffer
from envs.base import Spec
from tests.helpers.students import uniforms

T, N, A = 5, 3, 4
SPEC = Spec("none", 1, (2,), A, num_reset_uniforms=0, num_step_uniforms=0, time_limit=None)
COLUMNS = {
    "obs": ((2,), torch.float32),
    "action_mask": ((A,), torch.bool),
    "action": ((), torch.int64),
    "log_prob": ((), torch.float32),
    "value": ((), torch.float32),
    "reward": ((), torch.float32),
    "terminated": ((), torch.bool),
    "truncated": ((), torch.bool),
    "next_value": ((), torch.float32),
}
STORED_ADVICE = {"advice": ((A,), torch.float32), "followed": ((), torch.bool), "bonus": ((), torch.float32)}


def random_columns(at: int, kinds: dict) -> dict[str, Tensor]:
    """Return one time step's columns, (N, …) each, different at each `at`."""
    columns = {}
    for number, (name, (shape, dtype)) in enumerate(kinds.items()):
        values = uniforms(100 * at + number, N, *shape)
        columns[name] = values < 0.5 if dtype == torch.bool else (values * 4).to(dtype)
    return columns


@pytest.mark.parametrize("stores_advice", [False, True])
def test_rollout_buffer_batch_holds_the_rows_that_were_added(stores_advice: bool) -> None:
    buffer = RolloutBuffer(T, N, SPEC, "cpu", stores_advice)
    kinds = COLUMNS | (STORED_ADVICE if stores_advice else {})
    added = [random_columns(at, kinds) for at in range(T)]
    for at, columns in enumerate(added):
        assert buffer.pos == at
        buffer.add(**columns)
    buffer.advantage.copy_(uniforms(1, T, N))
    buffer.returns.copy_(uniforms(2, T, N))
    rows = torch.tensor([14, 0, 7, 7])
    batch = buffer.batch(rows)
    for name, column in zip(Batch._fields, batch, strict=True):
        if name in STORED_ADVICE and not stores_advice:
            assert column is EMPTY
            continue
        for at, row in enumerate(rows.tolist()):
            kept = getattr(buffer, name) if name in ("advantage", "returns") else None
            expected = added[row // N][name][row % N] if kept is None else kept[row // N, row % N]
            assert column[at].equal(expected), name
        if name not in ("advantage", "returns"):
            assert column.dtype == kinds[name][1], name


def test_rollout_buffer_starts_at_the_first_row_again_and_never_moves() -> None:
    buffer = RolloutBuffer(T, N, SPEC, "cpu", True)
    addresses = {name: tensor.data_ptr() for name, tensor in vars(buffer).items() if isinstance(tensor, Tensor)}
    assert len(set(addresses.values())) == len(addresses), "no two columns share memory"
    for turn in range(2):
        for at in range(T):
            buffer.add(**random_columns(10 * turn + at, COLUMNS | STORED_ADVICE))
        for at in range(T):
            for name, values in random_columns(10 * turn + at, COLUMNS | STORED_ADVICE).items():
                assert getattr(buffer, name)[at].equal(values), name
        buffer.pos.zero_()
    after = {name: tensor.data_ptr() for name, tensor in vars(buffer).items() if isinstance(tensor, Tensor)}
    assert after == addresses


def test_rollout_buffer_without_stored_advice_takes_no_memory_for_it() -> None:
    assert RolloutBuffer(T, N, SPEC, "cpu", False).advice.numel() == 0
