"""Episode returns and lengths, summed on the device."""

import torch

from envs.base import Step


class EpisodeStats:
    """Sums the returns and lengths of the episodes that end in N env copies; nothing is read back until `pop`."""

    def __init__(self, num_envs: int, device: str | torch.device) -> None:
        self.returns = torch.zeros(num_envs, device=device)  # of the current episodes so far
        self.lengths = torch.zeros(num_envs, device=device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # of ended episodes: number, return, length

    def add(self, step: Step) -> None:
        """Count one time step of all copies."""
        self.returns += step.reward
        self.lengths += 1
        done = step.terminated | step.truncated
        self.sums += torch.stack([done, self.returns * done, self.lengths * done]).double().sum(1)
        self.returns *= ~done
        self.lengths *= ~done

    def pop(self) -> dict[str, float]:
        """Return the number of episodes that ended since the last call and, if there are any, their mean values."""
        episodes, total_return, total_length = self.sums.tolist()
        self.sums.zero_()
        if episodes == 0:
            return {"episodes": 0}
        return {"episodes": int(episodes), "return": total_return / episodes, "length": total_length / episodes}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the sums."""
        return {"returns": self.returns, "lengths": self.lengths, "sums": self.sums}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        for name, buffer in self.state_dict().items():
            buffer.copy_(state[name])
