"""Helpers that know nothing of detectors."""
