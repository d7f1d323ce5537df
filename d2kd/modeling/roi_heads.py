# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""ROI heads that hand out what they predicted, so that nothing is computed twice.

Shape shorthand in this file:
    R: sampled proposals of one image; K: foreground classes
"""

from typing import Any

from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["SharedProposalROIHeads"]


@ROI_HEADS_REGISTRY.register()
class SharedProposalROIHeads(StandardROIHeads):
    """StandardROIHeads whose sampled proposals come back with the predictions made on them.

    The same parameters, the same state_dict and, bit for bit, the same losses. In training the
    returned proposals carry ``pred_logits`` (R, K + 1) and ``pred_deltas`` (R, 4 or 4 * K), both
    attached to the graph. d2kd reads the predictions of any ROI heads by itself; extend these where
    other parts of yours want them beside the proposals.
    """

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        if not self.training:
            return super()._forward_box(features, proposals)
        pooled = self.box_pooler(
            [features[f] for f in self.box_in_features], [x.proposal_boxes for x in proposals]
        )
        predictions = self.box_predictor(self.box_head(pooled))
        losses = self.box_predictor.losses(predictions, proposals)
        logits, deltas = (x.split([len(p) for p in proposals]) for x in predictions)
        for proposals_i, logits_i, deltas_i in zip(proposals, logits, deltas):
            proposals_i.pred_logits = logits_i
            proposals_i.pred_deltas = deltas_i
        return losses
