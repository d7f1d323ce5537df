"""``python -m d2kd.benchmark``."""

from .run import main

if __name__ == "__main__":
    main()
