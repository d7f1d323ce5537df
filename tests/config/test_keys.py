# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""No key of ``add_d2kd_config`` is dead: each is set by a config, or a test shows what it does."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

from d2kd.config.defaults import add_d2kd_config, get_value
from d2kd.config.load import all_keys, load_config
from d2kd.losses import DISTANCE_REGISTRY, MASK_REGISTRY
from d2kd.utils.errors import ConfigError
from tests.common import ROOT
from tests.common.tiny_dense import dense_cfg

# Checked below, each key by what it changes.
DETECTOR_NODES = ("MODEL.FCOS", "MODEL.GFL")
PARAMETER_NODES = {"DISTILL.MASKS": MASK_REGISTRY, "DISTILL.DISTANCES": DISTANCE_REGISTRY}


def _cfg():
    cfg = get_cfg()
    add_d2kd_config(cfg)
    return cfg


def _leaves(cfg, prefix=""):
    node = get_value(cfg, prefix[:-1]) if prefix else cfg
    return [k for k in all_keys(node, prefix) if not isinstance(get_value(cfg, k), CfgNode)]


def _keys_of_yaml(content, prefix=""):
    for key, value in (content or {}).items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _keys_of_yaml(value, f"{prefix}{key}.")


def _keys_of_configs():
    for path in (ROOT / "configs").rglob("*.yaml"):
        yield from _keys_of_yaml(yaml.safe_load(path.read_text()))


def _text_of_tests():
    paths = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    return "\n".join(path.read_text() for path in paths)


def test_every_key_is_set_by_a_config_or_a_test():
    cfg, stock = _cfg(), set(_leaves(get_cfg()))
    elsewhere = tuple(f"{node}." for node in (*DETECTOR_NODES, *PARAMETER_NODES))
    added = [k for k in _leaves(cfg) if k not in stock and not k.startswith(elsewhere)]
    used, text = set(_keys_of_configs()), _text_of_tests()
    assert len(added) > 20
    assert [key for key in added if key not in used and key not in text] == []


@pytest.mark.parametrize("prefix", PARAMETER_NODES)
def test_keys_of_masks_and_distances_are_their_parameters(prefix):
    """With the same defaults: a function called without a config computes the same."""
    cfg = _cfg()
    for name, node in get_value(cfg, prefix).items():
        parameters = inspect.signature(PARAMETER_NODES[prefix].get(name.lower())).parameters
        for key, value in node.items():
            assert parameters[key.lower()].default == value, f"{prefix}.{name}.{key}"


def _other(key, value):
    """Another value that a tiny detector can be built with."""
    special = {"NORM": "", "IN_FEATURES": ["p3", "p4"], "NUM_CONVS": 2, "PRIOR_PROB": 0.02}
    special.update({"BOX_PREDICTION": "scaled", "CENTERNESS_BRANCH": "cls"})
    name = key.rpartition(".")[2]
    if name in special:
        return special[name]
    return value + 1 if isinstance(value, int) else value / 2


def _construct(cfg):
    """What the detector's class is called with, its parts as text and numbers of parameters."""
    arguments = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).from_config(cfg)
    found = {}
    for name, value in arguments.items():
        found[name] = re.sub(" at 0x[0-9a-f]+", "", str(value))
        if hasattr(value, "state_dict"):
            found[name] += str([float(x.float().sum()) for x in value.state_dict().values()])
        if not hasattr(value, "forward"):
            found[name] += str(sorted(getattr(value, "__dict__", {}).items(), key=str))
    return found


@pytest.mark.parametrize(
    "key", [k for node in DETECTOR_NODES for k in _leaves(_cfg(), f"{node}.")], ids=str
)
def test_every_key_of_a_detector_changes_it(key):
    name, found = key.split(".")[1], []
    for change in (False, False, True):
        cfg = dense_cfg(name)
        if key == "MODEL.FCOS.CENTERNESS_BRANCH":
            cfg.MODEL.FCOS.BOX_PREDICTION = "exp"  # Detectron2's own head has no choice
        if change:
            cfg.merge_from_list([key, _other(key, get_value(cfg, key))])
        torch.manual_seed(0)
        found.append(_construct(cfg))
    assert found[0] == found[1] != found[2]


def test_a_lazyconfig_is_sent_to_its_own_tool(tmp_path):
    (tmp_path / "a.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="a.py is Python code, .* tools/lazyconfig_train_net.py"):
        load_config(str(tmp_path / "a.py"))
