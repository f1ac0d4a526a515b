import sys
from pathlib import Path

import mmpatchmix.registry  # noqa: F401  (prepares the stack)

sys.path.insert(0, str(Path(__file__).parent))
