"""The frozen teacher: a detector that never trains, never moves, and answers only when asked.

Shape shorthand in this file:
    N: images; C, H, W: channels, height and width of a feature level
"""

from typing import Dict, List, Optional

import torch
from torch import Tensor, nn

__all__ = ["FrozenTeacher"]


class FrozenTeacher(nn.Module):
    """A Detectron2 detector in eval mode and without gradients, whatever is done around it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        swap_channels: bool = False,
        identity: Optional[Dict[str, str]] = None,
    ):
        """
        Args:
            model: a detector with its weights loaded.
            swap_channels: the batch is read in the student's INPUT.FORMAT and the teacher's is the
                other of RGB and BGR.
            identity: "weights" and "sha256" of the file that was loaded.
        """
        super().__init__()
        self.model = model.requires_grad_(False)
        self.swap_channels = swap_channels
        self.identity = identity or {}
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in eval mode: ``train()`` of the module around this one must not reach the teacher."""
        return super().train(False)

    @torch.no_grad()
    def features(self, batch: List[dict]) -> Dict[str, Tensor]:
        """Backbone features of a batch, prepared by the teacher's own statistics and padding.

        Args:
            batch: what the data loader gave; "image" is (3, H, W) in the student's channel order.

        Returns:
            dict: level name -> (N, C, H, W).
        """
        if self.swap_channels:
            batch = [{"image": x["image"].flip(0)} for x in batch]
        images = self.model.preprocess_image(batch)
        return self.model.backbone(images.tensor)
