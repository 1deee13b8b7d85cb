"""From YAML and flags to an experiment and its runs, and from their settings to the records of functions.

What needs JAX (`build`, `environment`) is imported by itself.
"""

from jaxddpg.config.load import dump, parse, read, validate
from jaxddpg.config.reader import ConfigError, Leaf, as_mapping, by_last_part, command, first_line, leaves, text
from jaxddpg.config.schema import schema
from jaxddpg.config.stored import (
    SWEEP,
    all_settings,
    check_output,
    check_unaltered,
    fixed_settings,
    mutable_settings,
    read_changed,
    read_run,
    read_run_or_sweep,
)
from jaxddpg.config.sweep import MemberPlan, Plan, RunPlan, resolve, short_names, values_at, warnings_of, with_values

__all__ = [
    "SWEEP",
    "ConfigError",
    "Leaf",
    "MemberPlan",
    "Plan",
    "RunPlan",
    "all_settings",
    "as_mapping",
    "by_last_part",
    "check_output",
    "check_unaltered",
    "command",
    "dump",
    "first_line",
    "fixed_settings",
    "leaves",
    "mutable_settings",
    "parse",
    "read",
    "read_changed",
    "read_run",
    "read_run_or_sweep",
    "resolve",
    "schema",
    "short_names",
    "text",
    "validate",
    "values_at",
    "warnings_of",
    "with_values",
]
