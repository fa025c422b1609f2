"""Where counts are silent, likeness of content and the few counts there are speak louder, and the decoder's state softer.

Of a memory row whose item hardly anything ever followed, the learned vectors are made of little, and so is a state that begins there; an
item that hardly ever followed anything was hardly trained. Both are likelier to be told by their content than what everybody
meets. How much is learned on held-out items alone (models/next_item.weigh): what a model was trained on is in its counts already. Knows
nothing of memories, trees or training.

Silence is 1 / (1 + count / half), 1 where nothing was counted (models/successors.py). Shapes: K levels, B requests, P items.
"""

import torch
from torch import Tensor, nn

ROW_SCALE = 10.0
"""What rows add are numbers of several nats; learned as tenths of them, they keep pace with weights that are far smaller."""


class Silence(nn.Module):
    """The numbers, 0 at first: then nothing changes."""

    def __init__(self, levels: int, num_kinds: int, ages: int) -> None:
        super().__init__()
        self.repeat = nn.Parameter(torch.zeros(levels, num_kinds, ages), requires_grad=False)
        self.follow = nn.Parameter(torch.zeros(levels, num_kinds, ages), requires_grad=False)
        self.match = nn.Parameter(torch.zeros(levels, num_kinds, ages), requires_grad=False)
        self.soft = nn.Parameter(torch.zeros(levels), requires_grad=False)
        self.loud = nn.Parameter(torch.zeros(()), requires_grad=False)

    def hint_logits(self) -> Tensor:
        """What a row of silence 1 adds to `Decoder.hint_logits`, (2, K, kinds, ages)."""
        return ROW_SCALE * torch.stack([self.repeat, self.follow])

    def match_logits(self) -> Tensor:
        """The same of `Decoder.match_logits`, (K, kinds, ages)."""
        return ROW_SCALE * self.match

    def scale(self, level: int, silent_B: Tensor) -> Tensor:
        """By what the state's part of a level's logits is multiplied, given the silence of the newest act, (B,)."""
        return (self.soft[level] * silent_B).exp()

    def loudness(self, unmet_P: Tensor) -> Tensor:
        """By what the likeness of items is multiplied, given their own silence, (P,)."""
        return 1 + ROW_SCALE * self.loud * unmet_P
