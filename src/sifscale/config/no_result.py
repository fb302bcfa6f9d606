"""Which keys of a run's configuration change what comes out of it."""

from __future__ import annotations

# Where, how fast and whether a run works, and how it is shown: keys, and sections with a dot at their end.
NO_RESULT = (
    "paths.",
    "dask.",
    "tracking.",
    "resume",
    "check",
    "again",
    "trainer.progress",
    "trainer.checkpoint_minutes",
    "trainer.threads",
)


def changes_result(key: str) -> bool:
    """Whether a key, with its sections as in ``trainer.epochs``, can change a run's results."""
    return key not in NO_RESULT and not any(name.endswith(".") and key.startswith(name) for name in NO_RESULT)
