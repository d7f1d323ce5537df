# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""Readers of declared data sets, and the synthetic shapes."""
