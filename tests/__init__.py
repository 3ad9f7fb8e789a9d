import os
from pathlib import Path

# One cache, and the agent's way of building: else each of the tests, and the soak, would compile Go's library anew.
os.environ.setdefault("GOCACHE", str(Path(__file__).parent.parent / "build" / "go-cache"))
os.environ.setdefault("GOFLAGS", "-trimpath")
