"""A command of ``compare.py``: which of its comparisons it asks for."""

from __future__ import annotations

from sifscale.config import CompareConfig


def compare(config: CompareConfig) -> None:
    """Tables of a Markdown file, a map with soundings, runs of MLflow, or tables that sweeps wrote.

    Raises ValueError, one line a fault, where there is nothing to compare.
    """
    # each with libraries of its own, which take seconds to load
    if config.readme:
        from sifscale.results import publish

        publish(config)
    elif config.soundings:
        from sifscale.soundings_check import check_map

        check_map(config)
    elif config.tables is None:
        from sifscale.run_comparison import compare_runs

        compare_runs(config)
    else:
        from sifscale.comparison import compare as compare_tables

        compare_tables(config)
