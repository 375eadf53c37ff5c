"""Episode returns and lengths, counted on the device."""

import torch

from envs.base import Step


class EpisodeStats:
    """Adds up what N games bring; nothing is read back until `pop`."""

    def __init__(self, num_envs: int, device: str | torch.device) -> None:
        self.returns = torch.zeros(num_envs, device=device)  # of the games in play
        self.lengths = torch.zeros(num_envs, device=device)
        self.sums = torch.zeros(
            3, dtype=torch.float64, device=device
        )  # of the games that ended: number, return, length

    def add(self, after: Step) -> None:
        """Count one step of all games."""
        self.returns += after.reward
        self.lengths += 1
        ended = after.terminated | after.truncated
        self.sums += torch.stack([ended, self.returns * ended, self.lengths * ended]).double().sum(1)
        self.returns *= ~ended
        self.lengths *= ~ended

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what was counted."""
        return {"returns": self.returns, "lengths": self.lengths, "sums": self.sums}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with what `state_dict` returned."""
        for name, counted in self.state_dict().items():
            counted.copy_(state[name])

    def pop(self) -> dict[str, float]:
        """Return the number of games that ended since the last call and, if any did, their means."""
        episodes, total, steps = self.sums.tolist()
        self.sums.zero_()
        if episodes == 0:
            return {"episodes": 0}
        return {"episodes": int(episodes), "return": total / episodes, "length": steps / episodes}
