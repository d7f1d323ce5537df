# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""GFL, the dense detector whose boxes are distributions.

Paper: Generalized Focal Loss (Li et al., NeurIPS 2020, arXiv 2006.04388).

Shape shorthand in this file:
    N: images; A: anchors of all levels together, one per location; H, W: size of a level
    K: foreground classes; E: bins per box edge; R: positive anchors of all images together
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils import comm
from fvcore.nn import giou_loss
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn

from .atss import atss_match
from .box_transform import StrideBoxTransform
from .head import GFLHead
from .losses import distribution_focal_loss, expected_distance, quality_focal_loss

__all__ = ["GFL"]


@META_ARCH_REGISTRY.register()
class GFL(DenseDetector):
    """Generalized Focal Loss: ATSS anchors, class scores that say the IoU, boxes by expectation."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform: StrideBoxTransform,
        num_classes: int,
        atss_topk: int = 9,
        qfl_beta: float = 2.0,
        box_reg_loss_weight: float = 2.0,
        dfl_loss_weight: float = 0.25,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        """
        Args:
            head: gives, for a list of features, the outputs of :meth:`GFLHead.forward`.
            anchor_generator: one square anchor per location.
            box2box_transform: between anchors and the distances whose bins the head predicts.
            atss_topk, qfl_beta, box_reg_loss_weight, dfl_loss_weight: see MODEL.GFL in the config.

        Other arguments mean the same as in Detectron2's RetinaNet.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.atss_topk = atss_topk
        self.qfl_beta = qfl_beta
        self.box_reg_loss_weight = box_reg_loss_weight
        self.dfl_loss_weight = dfl_loss_weight
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The constructor's arguments, from ``MODEL.GFL``."""
        node = cfg.MODEL.GFL
        backbone = build_backbone(cfg)
        output_shape = backbone.output_shape()
        strides = [output_shape[name].stride for name in node.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": GFLHead(cfg, [output_shape[name] for name in node.IN_FEATURES]),
            "head_in_features": node.IN_FEATURES,
            "anchor_generator": DefaultAnchorGenerator(
                sizes=[[node.ANCHOR_SCALE * stride] for stride in strides],
                aspect_ratios=[[1.0]],
                strides=strides,
                offset=cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
            ),
            "box2box_transform": StrideBoxTransform(node.ANCHOR_SCALE),
            "num_classes": node.NUM_CLASSES,
            "atss_topk": node.ATSS_TOPK,
            "qfl_beta": node.QFL_BETA,
            "box_reg_loss_weight": node.BBOX_REG_LOSS_WEIGHT,
            "dfl_loss_weight": node.DFL_LOSS_WEIGHT,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compute the losses from the head's predictions."""
        pred_logits, pred_bins = self._transpose(predictions)
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, pred_logits, gt_labels, pred_bins, gt_boxes)

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label every anchor of every image by ATSS, in the form of ``RetinaNet.label_anchors``.

        Args:
            anchors: a level each.
            gt_instances: an image each, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            An (A,) tensor of labels 0..K for each image, K being background (none is ignored), and
            an (A, 4) tensor of matched boxes, whose background rows mean nothing.
        """
        gt_labels, matched_gt_boxes = [], []
        for instances in gt_instances:
            matched = atss_match(anchors, instances.gt_boxes, self.atss_topk)
            # One row more, for background: it is what index -1 reads, with or without boxes.
            background = instances.gt_classes.new_full((1,), self.num_classes)
            gt_labels.append(torch.cat([instances.gt_classes, background])[matched])
            boxes = instances.gt_boxes.tensor
            matched_gt_boxes.append(torch.cat([boxes, boxes.new_zeros(1, 4)])[matched])
        return gt_labels, matched_gt_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_bins: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """The class, box and distribution losses, GFL equation 8.

        The class loss is divided by the sum over images of max(positives of the image, 1). The
        other two are averages over positives that weigh each by its best class score; the sum of
        the weights counts as at least 1, as in mmdetection (the authors' GFocal has no such
        limit). Both divisors are means over the processes.

        Args:
            anchors: a level each.
            pred_logits, pred_bins: (N, H * W, K) and (N, H * W, 4 * E) of each level.
            gt_labels, gt_boxes: what :meth:`label_anchors` returns.

        Returns:
            dict: "loss_cls", "loss_box_reg", "loss_dfl", float32 scalars.
        """
        labels = torch.stack(gt_labels)  # (N, A)
        positive = (labels != self.num_classes).nonzero(as_tuple=True)
        logits = torch.cat(pred_logits, dim=1).float()
        bins = torch.cat(pred_bins, dim=1)[positive].float().unflatten(1, (4, -1))  # (R, 4, E)
        regions = Boxes.cat(anchors).tensor[positive[1]]
        targets = torch.stack(gt_boxes)[positive]
        boxes = self.box2box_transform.apply_deltas(expected_distance(bins), regions)

        quality = torch.zeros_like(logits)
        ious = matched_pairwise_iou(Boxes(boxes.detach()), Boxes(targets))
        quality[(*positive, labels[positive])] = ious
        loss_cls = quality_focal_loss(logits, quality, self.qfl_beta).sum()
        weights = logits.detach()[positive].sigmoid().amax(dim=1)  # (R,)
        loss_box_reg = (weights * giou_loss(boxes, targets)).sum()
        distances = self.box2box_transform.get_deltas(regions, targets)
        loss_dfl = (weights * distribution_focal_loss(bins, distances).mean(dim=1)).sum()

        counts = (labels != self.num_classes).sum(dim=1).clamp(min=1)  # (N,)
        sums = torch.stack([counts.sum().to(weights.dtype), weights.sum()])
        count, weight = (differentiable_all_reduce(sums) / comm.get_world_size()).clamp(min=1)
        return {
            "loss_cls": loss_cls / count,
            "loss_box_reg": self.box_reg_loss_weight * loss_box_reg / weight,
            "loss_dfl": self.dfl_loss_weight * loss_dfl / weight,
        }

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Decode the head's predictions to the detections of each image."""
        pred_logits, pred_bins = self._transpose(predictions)
        anchors = self.anchor_generator(features)
        scores = [x.float().sigmoid() for x in pred_logits]
        deltas = [expected_distance(x.unflatten(2, (4, -1))) for x in pred_bins]
        return [
            self.inference_single_image(
                anchors, [x[i] for x in scores], [x[i] for x in deltas], size
            )
            for i, size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self,
        anchors: list[Boxes],
        scores: list[Tensor],
        deltas: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Detections of one image from (H * W, K) scores and (H * W, 4) distances of each level."""
        found = self._decode_multi_level_predictions(
            anchors,
            scores,
            deltas,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        keep = batched_nms(
            found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh
        )
        return found[keep[: self.max_detections_per_image]]

    def _transpose(self, predictions: list[list[Tensor]]) -> list[list[Tensor]]:
        return self._transpose_dense_predictions(
            predictions, [self.num_classes, 4 * self.head.num_bins]
        )
