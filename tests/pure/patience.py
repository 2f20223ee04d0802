"""How long tests wait for what must happen before they call it lost: far longer than it ever takes, so that a busy
machine fails nobody. It is no claim about speed; a test that makes one counts processor time.
"""

PATIENCE_S = 300.0
"""Below pytest's own time-out, so that what was waited for is told."""
