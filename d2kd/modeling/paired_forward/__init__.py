# Copyright (c) the d2kd authors. Licensed under the Apache License 2.0.
"""How a student and its teacher are run on one batch, a function per detector family."""
