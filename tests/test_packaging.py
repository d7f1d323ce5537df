# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""The installed Detectron2 works here, the build that may have made it fails loudly, and d2kd is
packaged as pyproject.toml says.
"""

import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MapDataset, MetadataCatalog
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.datasets import load_voc_instances
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from detectron2.export import TracingAdapter
from detectron2.layers import ModulatedDeformConv, ROIAlignRotated, nms_rotated
from detectron2.layers.rotated_boxes import pairwise_iou_rotated
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer
from PIL import Image

import d2kd
from tests.common import ROOT

HEIGHT, WIDTH = 64, 96
HEADER = "# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0."
FASTER_RCNN = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


@pytest.fixture
def packaging(monkeypatch):
    """Put the build backend's folder on the path, as a PEP 517 front end does."""
    folder = Path(__file__).resolve().parents[1] / "packaging" / "detectron2"
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("backend", "edits"):
        sys.modules.pop(name, None)


def thin_model(name):
    """Build the zoo's detector with few channels, from scratch, on the CPU."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return build_model(cfg)


def tiny_batch():
    """Return two images of noise with two boxes each."""
    images = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    target = Instances((HEIGHT, WIDTH))
    target.gt_boxes = Boxes(torch.tensor([[4.0, 4, 50, 40], [30, 10, 90, 60]]))
    target.gt_classes = torch.tensor([3, 17])
    return [{"image": i, "instances": target, "height": HEIGHT, "width": WIDTH} for i in images]


def train_one_step(model):
    """Make one step of SGD; return the losses and how many parameters have moved."""
    before = [p.detach().clone() for p in model.parameters()]
    with EventStorage():
        losses = model(tiny_batch())
    sum(losses.values()).backward()
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    moved = sum(not torch.equal(p, b) for p, b in zip(model.parameters(), before))
    return losses, moved


@pytest.mark.parametrize("name", [FASTER_RCNN, RETINANET])
def test_zoo_detector_trains_and_infers(name):
    torch.manual_seed(0)
    model = thin_model(name)
    losses, moved = train_one_step(model)
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(p.grad is not None for p in model.parameters())
    assert moved > 0.5 * len(list(model.parameters()))
    with torch.no_grad():
        results = model.eval()(tiny_batch())
    found = [r["instances"] for r in results]
    assert len(found) == 2 and all(len(f) > 0 for f in found)
    assert all(f.image_size == (HEIGHT, WIDTH) for f in found)


def test_lazy_config_trains():
    cfg = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py")
    losses, moved = train_one_step(instantiate(cfg.model))
    assert moved > 0 and set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_detector_traces():
    torch.manual_seed(0)
    model = thin_model(FASTER_RCNN).eval()
    inputs = [{"image": tiny_batch()[0]["image"]}]

    def raw_boxes(model, inputs):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    adapter = TracingAdapter(model, inputs, inference_func=raw_boxes)
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        expected, got = adapter(*adapter.flattened_inputs), traced(*adapter.flattened_inputs)
    assert len(expected) == len(got) == 4
    assert all(e.shape == g.shape for e, g in zip(expected, got))


@pytest.fixture
def one_image(tmp_path):
    """Register a data set of one image with one box; yield its name."""
    name, file = "d2kd_packaging_one_image", tmp_path / "0.png"
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(file)
    box = {"bbox": [10, 10, 50, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    record = {"file_name": str(file), "height": HEIGHT, "width": WIDTH, "image_id": 0}
    DatasetCatalog.register(name, lambda: [{**record, "annotations": [box]}])
    MetadataCatalog.get(name).set(thing_classes=["a", "b"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def perfect_prediction():
    """Return the detection that matches ``one_image``."""
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor([[10.0, 10, 50, 40]]))
    found.scores = torch.tensor([0.9])
    found.pred_classes = torch.tensor([1])
    return found


def test_coco_evaluator_with_its_defaults(one_image, tmp_path):
    evaluator = COCOEvaluator(one_image, distributed=False, output_dir=str(tmp_path))
    evaluator.reset()
    evaluator.process([{"image_id": 0}], [{"instances": perfect_prediction()}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)


def test_visualizer_draws(one_image):
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn = Visualizer(blank, MetadataCatalog.get(one_image))
    assert drawn.draw_instance_predictions(perfect_prediction()).get_image().max() > 0


def test_boxes_and_masks_are_read_with_current_numpy(tmp_path):
    polygon = np.array([1.0, 1, 9, 1, 9, 9, 1, 9])
    assert polygons_to_bitmask([polygon], 10, 10).dtype == bool
    record = {"annotations": [{"category_id": 1}, {"category_id": 0, "iscrowd": 1}]}
    print_instances_class_histogram([record], ["a", "b"])
    for folder in ("ImageSets/Main", "Annotations"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("01\n02\n")
    voc = "<a><size><width>9</width><height>8</height></size></a>"
    for image in ("01", "02"):
        (tmp_path / f"Annotations/{image}.xml").write_text(voc)
    found = load_voc_instances(str(tmp_path), "train", ["a"])
    assert [r["image_id"] for r in found] == ["01", "02"]


def test_sem_seg_evaluator(tmp_path):
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    for name in ("image.png", "truth.png"):
        Image.fromarray(truth).save(tmp_path / name)
    names = {"file_name": "image.png", "sem_seg_file_name": "truth.png"}
    files = {key: str(tmp_path / name) for key, name in names.items()}
    DatasetCatalog.register("d2kd_packaging_stuff", lambda: [files])
    MetadataCatalog.get("d2kd_packaging_stuff").set(stuff_classes=["a", "b"], ignore_label=255)
    evaluator = SemSegEvaluator("d2kd_packaging_stuff", distributed=False)
    evaluator.reset()
    scores = torch.nn.functional.one_hot(torch.tensor(truth).long(), 2).permute(2, 0, 1)
    evaluator.process([files], [{"sem_seg": scores.float()}])
    DatasetCatalog.remove("d2kd_packaging_stuff")
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100.0)


def test_data_set_goes_on_after_an_image_that_fails():
    data = MapDataset(list(range(8)), lambda i: None if i == 0 else i)
    assert data[0] in range(1, 8)


def test_operator_without_extension_says_so():
    boxes = torch.tensor([[20.0, 20, 10, 6, 30]])
    calls = {
        "nms": lambda: nms_rotated(boxes, torch.ones(1), 0.5),
        "iou": lambda: pairwise_iou_rotated(boxes, boxes),
        "align": lambda: ROIAlignRotated((2, 2), 1.0, 0)(
            torch.ones(1, 1, 40, 40), torch.cat([torch.zeros(1, 1), boxes], dim=1)
        ),
    }
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        images, mask = torch.ones(1, 1, 5, 5), torch.ones(1, 9, 3, 3)
        offsets = torch.zeros(1, 18, 3, 3)
        calls["deform"] = lambda: ModulatedDeformConv(1, 1, 3)(images, offsets, mask)
        has_own_message = Path(model_zoo.__file__).parents[1].joinpath("no_extension.py").exists()
        for call in calls.values():
            with pytest.raises((ImportError, AttributeError, RuntimeError)) as error:
                call()
            assert "no compiled extension" in str(error.value) or not has_own_message
    else:
        assert calls["nms"]().tolist() == [0]
        assert calls["iou"]().item() == pytest.approx(1.0, abs=1e-4)
        assert torch.allclose(calls["align"](), torch.ones(1, 1, 2, 2))


def test_edit_replaces_its_text_everywhere(packaging, tmp_path):
    from edits import Edit, apply_edits

    (tmp_path / "a.py").write_text("np.int, np.int")
    apply_edits(tmp_path, [Edit("a.py", "np.int", "int", "why")])
    assert (tmp_path / "a.py").read_text() == "int, int"


@pytest.mark.parametrize("file, what", [("a.py", "text was not found"), ("b.py", "no such file")])
def test_edit_that_does_not_fit_fails_and_names_itself(packaging, tmp_path, file, what):
    from edits import Edit, EditError, apply_edits

    (tmp_path / "a.py").write_text("int")
    with pytest.raises(EditError, match=what) as error:
        apply_edits(tmp_path, [Edit(file, "np.int", "int", "numpy dropped it")])
    assert all(part in str(error.value) for part in (file, "'np.int'", "numpy dropped it"))


def test_other_sources_are_refused(packaging, tmp_path, monkeypatch):
    import backend

    archive = tmp_path / "sources.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="sha256"):
        backend.verify(archive)
    monkeypatch.setattr(backend, "SHA256", hashlib.sha256(b"something else").hexdigest())
    backend.verify(archive)


@pytest.mark.parametrize("has_pip", [True, False])
def test_configured_index_is_used(packaging, monkeypatch, has_pip):
    import backend

    if not has_pip:
        monkeypatch.setattr(backend.sys, "executable", "/bin/false")
    monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:1/simple")
    assert backend.pip_settings()["index-url"] == "http://localhost:1/simple"


def test_version_and_typing_marker_are_installed():
    assert importlib.metadata.version("d2kd") == d2kd.__version__
    assert (Path(d2kd.__file__).parent / "py.typed").is_file()


def fake_opencv(folder, message):
    """Import d2kd in a new process where ``import cv2`` fails with ``message``."""
    (folder / "cv2.py").write_text(f"raise ImportError({message!r})")
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]; import d2kd"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_import_without_libgl_names_the_headless_build(tmp_path):
    missing = "libGL.so.1: cannot open shared object file: No such file or directory"
    error = fake_opencv(tmp_path, missing).strip().splitlines()[-1]
    assert missing in error
    assert "pip uninstall -y opencv-python && pip install opencv-python-headless" in error


def test_other_import_errors_of_opencv_stay_as_they_are(tmp_path):
    error = fake_opencv(tmp_path, "numpy is broken").strip().splitlines()[-1]
    assert error == "ImportError: numpy is broken"


def python_files():
    """Return every Python file of the project, not what training or an environment left there."""
    folders = ("configs", "d2kd", "experiments", "packaging", "tests", "tools")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted([*ROOT.glob("*.py"), *found])


def test_every_file_starts_with_the_licence():
    assert len(python_files()) > 200
    for path in python_files():
        lines = path.read_text().splitlines()
        first = lines[1] if lines[0].startswith("#!") else lines[0]
        assert first == HEADER, f"{path.relative_to(ROOT)} does not start with {HEADER!r}"


@pytest.mark.parametrize("signature, code", [("(x)", 1), ("(x: int) -> int", 0)])
def test_mypy_fails_on_an_untyped_public_function(tmp_path, signature, code):
    pytest.importorskip("mypy")
    file = tmp_path / "module.py"
    file.write_text(f"def double{signature}:\n    return 2 * x\n")
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", file]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == code, ran.stdout
    assert ("[no-untyped-def]" in ran.stdout) == bool(code)
