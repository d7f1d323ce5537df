# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Every configuration key that d2kd adds to Detectron2's, declared once."""

from typing import Any

from detectron2.config import CfgNode as CN

from .detectors import DETECTORS
from .timm import add_timm_config

__all__ = ["LOSS_NAMES", "OPTIMIZERS", "SCHEDULES", "add_d2kd_config", "get_value"]

LOSS_NAMES = ("feature", "cls", "reg")
COCO_EVALUATORS = ("pycocotools", "faster_coco_eval", "detectron2")
BAD_IMAGES = ("stop", "skip")
PROPOSALS = ("student", "union")
PRECISIONS = ("student", "float32", "bfloat16", "float16")
CACHE_DTYPES = ("bfloat16", "float16", "float32")
LOG_WRITERS = ("wandb", "mlflow")
LAYOUTS = ("auto", "channels_first", "channels_last")
OPTIMIZERS = ("SGD", "ADAMW")
BALANCES = ("none", "gradient")
SCHEDULES = ("constant", "linear", "cosine", "step")


def add_d2kd_config(cfg: CN) -> None:
    """Add d2kd's keys with their defaults to a Detectron2 config.

    ``MODEL`` and the other keys of Detectron2 describe the student. Where a comment says "our
    default", no paper publishes the value.
    """
    # Datasets declared without Python: name -> {FORMAT, ANNOTATIONS, IMAGES, SPLIT, CLASSES};
    # see datasets/README.md.
    cfg.DATASETS.CUSTOM = CN(new_allowed=True)
    # What to do in training with an image that cannot be read: "stop" with an error that names
    # it, or "skip": another image takes its place, and a warning counts the skipped images.
    cfg.DATALOADER.BAD_IMAGES = "stop"
    # "SGD" as Detectron2 builds it, or "ADAMW" over the same parameter groups.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Batches of IMS_PER_BATCH images whose gradients are averaged for one optimizer step, which is
    # one iteration. BASE_LR is not scaled: set it for IMS_PER_BATCH * ACCUMULATE_STEPS images.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Train although the file of MODEL.WEIGHTS holds nothing of the student, or less than half of
    # its backbone, which otherwise stops the training before its first step.
    cfg.MODEL.ALLOW_UNMATCHED_WEIGHTS = False
    _add_test_keys(cfg.TEST)
    cfg.LOG = CN()
    # Where metrics are sent beside Detectron2's console, metrics.json and TensorBoard: any of
    # LOG_WRITERS, whose packages must be installed. Their environment variables set the rest
    # (docs/training.md).
    cfg.LOG.WRITERS = []
    # MODEL.FCOS, MODEL.GFL, and the nodes of detectors of your own.
    for row in DETECTORS.values():
        row.add_config(cfg)
    add_timm_config(cfg)
    cfg.DISTILL = CN()
    # False trains the student alone, bit-equal to stock Detectron2.
    cfg.DISTILL.ENABLED = False
    # The distillation losses to compute; any of LOSS_NAMES.
    cfg.DISTILL.LOSSES = ["feature", "cls", "reg"]
    # The proposals that a two-stage student is trained on: its own ("student"), or these together
    # with the teacher's ("union"). TAR lets both "interflow" without saying how; "student" is our
    # default.
    cfg.DISTILL.PROPOSALS = "student"
    # Of a dense detector, how many of the last convolutions of the teacher's head the student's
    # head features go through before they are compared (CrossKD: 1 of 4, on FCOS 2); 0: none, the
    # student's own predictions are compared. Both heads need the same width and depth.
    cfg.DISTILL.CROSS_HEAD = 0
    # With several processes, True divides the distillation losses by the mean over processes of
    # positives and mask sums, which gives the gradients of the joined batch. False divides by each
    # process's own, as FRS's released code and most detection losses do (docs/processes.md).
    cfg.DISTILL.REDUCE_NORMALIZERS = False
    _add_gradient_keys(cfg.DISTILL)
    _add_network_keys(cfg.DISTILL)
    _add_schedule_keys(cfg.DISTILL)
    _add_loss_keys(cfg.DISTILL)
    _add_mask_and_distance_keys(cfg.DISTILL)


def _add_gradient_keys(node: CN) -> None:
    # Iterations between two measurements of the losses' gradients at the maps of the student's
    # backbone: the norm of each distillation loss's relative to the detection losses', and the
    # cosine of the two (docs/weights.md). 0: none. A measurement takes a quarter of a step. Under
    # BALANCE "gradient" each of its measurements is logged instead.
    node.LOG_GRADIENTS = 0
    # "none": a loss counts by its WEIGHT. "gradient": by its SHARE. Every BALANCE_PERIOD iterations
    # the gradients are measured, and each loss is scaled so that the norm of its gradient is
    # SHARE times the schedule's factor times that of the detection losses.
    node.BALANCE = "none"
    node.BALANCE_PERIOD = 20


def _add_test_keys(node: CN) -> None:
    # The program that computes COCO's metrics: "pycocotools"; "faster_coco_eval" (extra "eval"), or
    # "detectron2", its compiled extension. All give the same values (docs/training.md).
    node.COCO_EVALUATOR = "pycocotools"
    # The metric by which model_best.pth is chosen, higher is better: "bbox/AP"; of several test
    # sets "SET/bbox/AP". It is compared after every evaluation (TEST.EVAL_PERIOD) and after the
    # last step. "" writes no model_best.pth.
    node.BEST_METRIC = ""
    # End the training when so many evaluations in a row were not better than the best one by
    # BEST_METRIC; 0 trains to SOLVER.MAX_ITER.
    node.STOP_AFTER = 0


def _add_network_keys(node: CN) -> None:
    node.TEACHER = CN()
    # The path of a yaml, a name in d2kd's model zoo ("coco/teacher/gfl_R_101_FPN_2x.yaml") or in
    # Detectron2's ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"), looked up in this order. A
    # ".py" is a LazyConfig file, whose code is run (docs/lazyconfig.md).
    node.TEACHER.CONFIG_FILE = ""
    # A path, URL, detectron2:// or d2kd:// address; "" is Detectron2's checkpoint of CONFIG_FILE,
    # or the train.init_checkpoint of a LazyConfig file.
    node.TEACHER.WEIGHTS = ""
    # The names of the teacher's classes by index, compared with the student's. [] takes them from
    # its checkpoint or else from the sets of its config.
    node.TEACHER.CLASSES = []
    # The precision of the teacher: "student" (half under SOLVER.AMP, as the student), "float32",
    # "bfloat16" or "float16". Its outputs reach the losses in float32 (docs/precision.md).
    node.TEACHER.PRECISION = "student"
    # The memory layout of the teacher's maps: "channels_first", "channels_last", or "auto", which
    # is channels_last on a CPU, where it takes 0.8 of the time. Values change by rounding alone.
    node.TEACHER.LAYOUT = "auto"
    # Run the teacher's backbone through torch.compile. On a CPU it then takes half of the time, but
    # compiling takes a minute at the start and for new image sizes, and needs a C++ compiler.
    node.TEACHER.COMPILE = False
    # Keep what the teacher computes for each image and do not compute it again: "" (off), "memory"
    # (of each process), or a folder, which runs share: "./cache" (docs/cache.md). Images may be
    # resized and flipped, which makes few variants of them, but not cropped.
    node.TEACHER.CACHE = ""
    # In which it is kept: "bfloat16", "float16" or "float32"; the losses get float32.
    node.TEACHER.CACHE_DTYPE = "bfloat16"
    # GiB that it may take, of each process for "memory"; 0 is half of what is free at the start.
    node.TEACHER.CACHE_GIB = 0.0
    node.STUDENT = CN()
    # Module prefixes ("backbone.fpn", "proposal_generator", "roi_heads"): the student starts from
    # the teacher's weights of these modules wherever names and shapes agree. It also works with
    # ENABLED False, so that a baseline can have the same start.
    node.STUDENT.INHERIT = []


def _add_schedule_keys(node: CN) -> None:
    # A factor that depends on the iteration scales all distillation losses.
    node.SCHEDULE = CN()
    # "constant"; "linear" from 1 to 0 (TAR's decay); "cosine" from 1 to 0; "step".
    node.SCHEDULE.NAME = "linear"
    # Iterations over which the factor rises linearly from 0; FRS: 500.
    node.SCHEDULE.WARMUP_ITERS = 0
    # "step" only: the fractions of the training at which the factor is multiplied by GAMMA. Both
    # are our defaults.
    node.SCHEDULE.STEPS = (0.667, 0.889)
    node.SCHEDULE.GAMMA = 0.1


def _add_loss_keys(node: CN) -> None:
    node.FEATURE = CN()
    # TAR publishes no weight; 1.0 is our default and includes the paper's factor 1/2. FRS's weight
    # depends on the detector; SSIM's is 2 or 4.
    node.FEATURE.WEIGHT = 1.0
    # Read by BALANCE "gradient", in which WEIGHT cancels out. No paper has one: the shares are our
    # defaults. SSIM does better with 6 (MODEL_ZOO.md).
    node.FEATURE.SHARE = 1.0
    # Feature levels to distil; [] is every level of the student's backbone.
    node.FEATURE.LEVELS = []
    # Where features are compared: "uniform", "gaussian" (TAR), "richness" (FRS), or a registered
    # mask of your own.
    node.FEATURE.MASK = "gaussian"
    # How they are compared: "squared" (TAR, FRS), "absolute", "ssim", "pearson" (PKD), "channel_kl"
    # (CWD), or a registered distance of your own.
    node.FEATURE.DISTANCE = "squared"
    # Average the channels ("mean") or sum them, as FRS does ("sum").
    node.FEATURE.CHANNELS = "mean"
    # The layer from the student's to the teacher's channels: "auto" (1x1 where they differ),
    # "none", "1x1", or "3x3" on every level (FRS).
    node.FEATURE.ADAPTER = "auto"

    node.CLS = CN()
    node.CLS.WEIGHT = 1.0
    node.CLS.SHARE = 0.3
    # "positives": soft labels on the positive regions (TAR). The name of a mask: soft labels at all
    # locations of the dense head, weighted by the mask (FRS: "richness", BCKD: "uniform").
    node.CLS.WHERE = "positives"
    # "cross_entropy" (soft targets) or "kl", in the binary form for sigmoid heads; "quality_focal"
    # (BCKD, CrossKD) for sigmoid heads alone.
    node.CLS.DISTANCE = "cross_entropy"
    node.CLS.TEMPERATURE = 1.0
    # What "quality_focal" at all locations is divided by: the number of positives ("positives"),
    # or their summed centerness ("centerness", CrossKD's release on FCOS).
    node.CLS.NORMALIZER = "positives"

    node.REG = CN()
    node.REG.WEIGHT = 1.0
    node.REG.SHARE = 0.3
    # "positives": boxes of the positive regions (TAR, LD). Else boxes of all anchors or points of a
    # dense detector, weighted by how much the class scores differ ("disagreement", BCKD), or by the
    # teacher's best class score ("teacher_score", CrossKD).
    node.REG.WHERE = "positives"
    # The student learns the teacher's box on a positive region only if that box has a higher IoU
    # with the ground truth than the student's box ("student"), or than the region itself
    # ("proposal"); "none": always, which WHERE other than "positives" needs. TAR's abstract leaves
    # the comparison open, and the only digest of the paper that names it has "proposal"; "student"
    # is our default.
    node.REG.GATE = "student"
    # "box_loss": the detector's own box loss; "giou" (one minus GIoU) or "iou" (minus the logarithm
    # of IoU) of decoded boxes; "distribution_kl" (LD): on GFL's box-edge distributions.
    node.REG.DISTANCE = "box_loss"
    # "distribution_kl" only; 10 in LD, 1 in CrossKD.
    node.REG.TEMPERATURE = 10.0
    # What the sum over all anchors is divided by: the number of positives ("positives"), their
    # summed centerness ("centerness", CrossKD's release on FCOS), or the anchors' summed weights
    # ("weights", CrossKD's release on GFL).
    node.REG.NORMALIZER = "positives"


def _add_mask_and_distance_keys(node: CN) -> None:
    # The parameters of a mask or distance, under its name in upper case. New names are allowed: a
    # registered function of your own gets what is set here.
    node.MASKS = CN(new_allowed=True)
    node.MASKS.GAUSSIAN = CN()
    # exp(-x^2 / (SIGMA2 (w/2)^2)); with 2, the mask is 0.61 at the middle of a box's edge.
    node.MASKS.GAUSSIAN.SIGMA2 = 2.0
    # A box marks "all" levels (our default), or only the level of its size ("own").
    node.MASKS.GAUSSIAN.LEVELS = "all"
    node.DISTANCES = CN(new_allowed=True)
    node.DISTANCES.CHANNEL_KL = CN()
    node.DISTANCES.CHANNEL_KL.TEMPERATURE = 1.0
    node.DISTANCES.SSIM = CN()
    # Side of the Gaussian window in feature cells, and its standard deviation.
    node.DISTANCES.SSIM.WINDOW = 11
    node.DISTANCES.SSIM.SIGMA = 1.5
    # Exponents of luminance, contrast and structure.
    node.DISTANCES.SSIM.ALPHA = 1.0
    node.DISTANCES.SSIM.BETA = 1.0
    node.DISTANCES.SSIM.GAMMA = 1.0
    # C1 = (K1 RANGE)^2, C2 = (K2 RANGE)^2, C3 = C2 / 2.
    node.DISTANCES.SSIM.K1 = 0.01
    node.DISTANCES.SSIM.K2 = 0.03
    node.DISTANCES.SSIM.RANGE = 1.0
    # Both maps are min-max scaled to [0, 1] per "image_channel" (our default), "image" or "level";
    # "none" does not scale.
    node.DISTANCES.SSIM.SCALING = "image_channel"


def get_value(cfg: CN, key: str) -> Any:
    """The value of a dotted key; None where this version of Detectron2 has no such key."""
    for part in key.split("."):
        cfg = cfg.get(part) if cfg is not None else None
    return cfg
