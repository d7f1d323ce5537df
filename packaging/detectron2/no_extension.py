# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""What stands in for ``detectron2._C`` in the pure-Python build."""


class _NoExtension:
    """An object without operators: asking it for one says why there is none."""

    def __getattr__(self, name):
        raise ImportError(
            f"detectron2._C.{name} is not available: this pure-Python build of Detectron2 has no "
            "compiled extension. Install Detectron2 as its install page says to use this operator."
        )


_C = _NoExtension()
