"""Detectors that Detectron2 has not as a yaml config: FCOS and GFL."""
