import sys
from pathlib import Path

# As when they are run: scripts see the modules beside them.
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
