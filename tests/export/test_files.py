# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""A file detects what stock Detectron2 detects, in every format, shape and precision."""

import onnx
import pytest
import torch
from detectron2.structures import Boxes

from d2kd.export.agreement import compare
from d2kd.export.quantization import quantize
from d2kd.export.runners import open_exported
from d2kd.export.shape import InputShape
from d2kd.export.writers import write
from d2kd.export.writers.onnx_file import OPSET
from d2kd.utils.errors import ConfigError
from tests.common.exportable import DETECTORS, SIZES, detect, exportable, noise

ANY = InputShape()
EVERY_FORMAT = [(name, ".onnx") for name in DETECTORS] + [("GFL", ".ts"), ("Mask R-CNN", ".ts")]


def agreement(name, path, batches, shape=ANY):
    """Over batches of records, between the stock detector and the file."""
    model, exported = exportable(name), open_exported(path, shape, 1)
    expected = [x for batch in batches for x in detect(model, batch)]
    found = [x["instances"] for batch in batches for x in exported(batch)]
    return compare(expected, found, 0.05, 100)


@pytest.mark.parametrize("name, ending", EVERY_FORMAT)
def test_file_equals_the_stock_detector_on_images_of_any_size(files, name, ending):
    found = agreement(name, files(name, ending), [[x] for x in noise(*SIZES)])
    assert found.detections > 60 and found.unmatched == 0
    assert found.largest_box < 0.01 and found.largest_score < 1e-4 and found.largest_mask < 0.05


@pytest.mark.parametrize("name", DETECTORS)
def test_file_equals_the_stock_detector_on_a_batch_of_several_sizes(files, name):
    found = agreement(name, files(name), [noise(*SIZES, seed=6)])
    assert found.images == 3 and found.detections > 60 and found.unmatched == 0
    assert found.largest_box < 0.01 and found.largest_score < 1e-4


def test_an_image_without_detections_gives_empty_rows(tmp_path):
    model = exportable("Mask R-CNN")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.roi_heads.box_predictor, "test_score_thresh", 0.9999)
        write(model, tmp_path / "a.onnx", InputShape(), False, {})
        (stock,) = detect(model, noise((150, 140)))
    exported = open_exported(tmp_path / "a.onnx", InputShape(), 1)
    (found,) = exported(noise((150, 140)))
    assert len(stock) == len(found["instances"]) == 0
    images, sizes = torch.zeros(1, 3, 150, 140, dtype=torch.uint8), torch.tensor([[150, 140]])
    boxes, scores, *_ = exported.run(images, sizes)
    assert boxes.shape[1] == scores.shape[1] > 0 and scores.max() == 0


def test_a_fixed_shape_takes_smaller_images_as_a_canvas_of_that_size(files):
    """Detectron2 pads to the largest image of a batch."""
    shape = InputShape(batch=2, size=(256, 288))
    path, (small, large) = files("Faster R-CNN", shape=shape), noise((150, 140), (256, 288))
    sizes = [d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [2, 3, 256, 288]
    found = agreement("Faster R-CNN", path, [[small, large]], shape)
    assert found.detections > 50 and found.unmatched == 0 and found.largest_box < 0.01
    # One image alone: the batch is filled up.
    (alone,) = open_exported(path, shape, 1)([large])
    assert len(alone["instances"]) == len(detect(exportable("Faster R-CNN"), [large])[0])
    with pytest.raises(ConfigError, match="--size 256 288 is too small: an image is 300 high"):
        open_exported(path, shape, 1)(noise((300, 100)))


def test_float16_is_half_as_large_and_near(files):
    found = agreement("Mask R-CNN", files("Mask R-CNN", half=True), [[x] for x in noise(*SIZES)])
    assert found.unmatched < 0.1 * found.detections and found.mean_score < 0.01
    sizes = [files("Mask R-CNN", half=half).stat().st_size for half in (True, False)]
    assert sizes[0] < 0.75 * sizes[1]
    # The networks alone: boxes are decoded in float32.
    nodes = onnx.load(files("Mask R-CNN", half=True)).graph.initializer
    assert onnx.TensorProto.FLOAT16 in {x.data_type for x in nodes}


def test_int8_keeps_metadata_and_the_precision_of_predictions(files, tmp_path):
    source, target = files("Faster R-CNN"), tmp_path / "int8.onnx"
    quantize(source, target, [x["image"] for x in noise(*SIZES)], InputShape())
    content = onnx.load(target)
    assert {x.key: x.value for x in content.metadata_props}["classes"] == "[]"
    quantized = {x.name for x in content.graph.initializer if x.data_type == onnx.TensorProto.INT8}
    assert any("fpn_output" in x for x in quantized)
    assert not [x for x in quantized if "cls_score" in x or "anchor_deltas" in x]
    found = agreement("Faster R-CNN", target, [[x] for x in noise(*SIZES)])
    # Of a random network, which answers rounding with more than a trained one.
    assert 0 < found.mean_score < 0.25 and found.mean_box < 2


def test_onnx_holds_its_own_operators_alone(files):
    content = onnx.load(files("Mask R-CNN"))
    assert {x.domain for x in content.graph.node} == {""}
    assert [(x.domain, x.version) for x in content.opset_import] == [("", OPSET)]
    assert {"NonMaxSuppression", "RoiAlign"} <= {x.op_type for x in content.graph.node}
    assert [x.name for x in content.graph.output] == ["boxes", "scores", "classes", "masks"]


@pytest.mark.slow
def test_a_program_of_torch_export_equals_the_stock_detector(files):
    shape = InputShape(batch=1, size=(160, 192))
    for name in DETECTORS:
        found = agreement(name, files(name, ".pt2", shape), [noise((160, 192))], shape)
        assert found.detections > 20 and found.unmatched == 0 and found.largest_box < 0.01


def test_writing_leaves_the_detector_as_it_was(tmp_path):
    model = exportable("FCOS")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    write(model, tmp_path / "a.ts", InputShape(), True, {})
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(x.requires_grad for x in model.head.parameters())


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("a.tflite", InputShape(), "must end in one of"),
        ("a.ts", InputShape(batch=1), "a .ts takes every shape"),
        ("a.pt2", InputShape(batch=1), "set --batch, e.g. to 1, and --size"),
    ],
)
def test_a_format_or_shape_that_there_is_not_is_refused(tmp_path, name, shape, message):
    with pytest.raises(ConfigError, match=message):
        write(exportable("FCOS"), tmp_path / name, shape, False, {})
    assert not list(tmp_path.iterdir())


def test_boxes_are_cut_at_the_image_and_not_at_the_canvas(files):
    (small,) = noise((150, 140))
    exported = open_exported(files("RetinaNet"), InputShape(), 1)
    alone = exported([small])[0]["instances"].pred_boxes
    assert isinstance(alone, Boxes) and alone.tensor[:, 2].max() <= 140
    assert (
        exported([small, *noise((224, 260))])[0]["instances"].pred_boxes.tensor[:, 2].max() <= 140
    )
