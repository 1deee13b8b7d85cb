"""Printing results, and the exit code."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxddpg import config
from jaxddpg.config import Plan
from jaxddpg.report.console import print_table
from jaxddpg.report.rows import Row, describe, divergence, mean_return, number, status, swept, unmeasured
from jaxddpg.runs import distributed
from jaxddpg.runs.metrics import halted


def print_results(plan: Plan, directory: Path, summaries: Sequence[dict[str, Any]], quiet: bool, received: int) -> int:
    """Prints the results of runs, and returns the exit code; of several processes the first prints. `received` is the
    signal that ended the runs, if one did."""
    first, experiment = distributed.is_first(), plan.experiment
    members = [member for summary in summaries for member in summary["members"]]
    if not quiet and first:
        _print_returns(plan, directory, summaries, members)
    is_halted = halted(experiment, members)
    epochs = min(summary["epochs"] for summary in summaries)
    ended = len(members) == plan.num_members and epochs == experiment.training.num_epochs
    if received and not is_halted and not ended:
        resume = config.command("resume", directory)
        print(f"stopped after epoch {epochs}; to continue, run `{resume}`", file=sys.stderr)
        return 128 + received
    diverged = [member for member in members if member["diverged_by"]]
    sentences = [sentence for member in members if (sentence := unmeasured(member))]
    if first:
        for member in diverged:
            print(divergence(member), file=sys.stderr)
        for sentence in sentences:
            print(f"warning: in the last evaluation, {sentence}", file=sys.stderr)
    if is_halted:
        remedy = "lower the learning rates, set max_grad_norm, or check the environment"
        if all(member.get("diverged_in") for member in diverged):
            remedy = "check the environment, which returned non-finite values"
        print(f"error: {len(diverged)} of {len(members)} members diverged; {remedy}", file=sys.stderr)
        return 1
    return exit_code([member["final_return"] for member in members], sentences)


def _print_returns(
    plan: Plan, directory: Path, summaries: Sequence[dict[str, Any]], members: Sequence[dict[str, Any]]
) -> None:
    experiment = plan.experiment
    variants = any(summary["variants"] for summary in summaries)
    total = {
        name: sum(summary[name] for summary in summaries)
        for name in ("env_steps_total", "updates_total", "wall_seconds", "compile_seconds")
    }
    share = f" of {len(members)} of the {plan.num_members} members" if len(members) < plan.num_members else ""
    returns = np.array([member["final_return"] for member in members])
    result = f"IQM of the final returns{share} {mean_return(returns)}"
    if plan.runs[0].selects:
        # The best of several by this very measure: an independent evaluation has to measure it.
        chosen = describe(members[summaries[0]["chosen"]])
        result = f"best final member: {chosen}; run `jaxddpg evaluate` for an unbiased estimate"
    print_table(
        f"{experiment.environment.name}: {'IQM of the final returns, ' * variants}{experiment.evaluation.num_episodes} "
        "episodes of the deterministic policy per seed",
        _by_variant(summaries) if variants else _by_seed(members, summaries[0]["chosen"]),
        "\n".join(
            [
                # An IQM pooled over variants would be meaningless.
                *([] if variants else [result]),
                f"{total['env_steps_total']:,} env steps and {total['updates_total']:,} updates in "
                f"{total['wall_seconds']:.0f} s, plus {total['compile_seconds']:.1f} s of compilation",
                f"run directory: {directory}",
            ]
        ),
    )


def print_evaluation(directory: Path, rows: Sequence[Row], path: Path) -> int:
    """Prints the evaluation of a run or a sweep, which stands in a CSV, and returns the exit code."""
    returns = np.array([row["return_mean"] for row in rows if row.get("status") != "stopped"])
    first, last = min(row["epoch"] for row in rows), max(row["epoch"] for row in rows)
    epochs = f"epoch {first}" if first == last else f"epochs {first} to {last}"
    title = f"{directory}, {epochs}: {rows[0]['num_episodes']} episodes per seed"
    if swept(rows[0]) and "status" not in rows[0]:  # over all variants together an IQM would mean nothing
        print_table(title, _evaluated_variants(rows), f"each member: {path}")
    else:
        best = [row["return_mean"] for row in rows if row.get("status") == "best"]
        found_best = f"; best member during training {number(best[0])}" if best else ""
        worst = float(np.nan_to_num(returns, nan=-np.inf).min())
        print_table(title, _evaluated(rows), f"IQM {mean_return(returns)}, worst {number(worst)}{found_best}")
    sentences = [sentence for row in rows if (sentence := unmeasured(row))]
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)
    return exit_code(returns.tolist(), sentences)


def _evaluated(rows: Sequence[Row]) -> list[Row]:
    return [
        {path: config.text(value) for path, value in swept(row).items()}
        | {"seed": row["seed"], "return": "diverged" if row["diverged"] else row["return_mean"]}
        | {"std": row["return_std"]}
        | ({"status": row["status"]} if "status" in row else {})
        for row in rows
    ]


def _evaluated_variants(rows: Sequence[Row]) -> list[Row]:
    variants: dict[str, list[Row]] = {}
    for row in rows:
        variants.setdefault(repr(swept(row)), []).append(row)
    return [
        {name: config.text(swept(own[0])[path]) for path, name in config.short_names(swept(own[0])).items()}
        | {"seeds": len(own), "IQM (95% interval)": mean_return(np.array([row["return_mean"] for row in own]), "")}
        | {"diverged": sum(row["diverged"] for row in own)}
        for own in variants.values()
    ]


def exit_code(returns: Sequence[float], unmeasured: Sequence[str]) -> int:
    """The exit code of evaluations with these returns: 1, with a sentence, where none is finite, and not only because
    members diverged."""
    if not unmeasured or any(map(math.isfinite, returns)):
        return 0
    print(
        f"error: {len(unmeasured)} of {len(returns)} members have a non-finite evaluation and no other member has a "
        "return; check the environment",
        file=sys.stderr,
    )
    return 1


def _by_seed(members: Sequence[dict[str, Any]], chosen: int | None) -> list[dict[str, Any]]:
    names = config.short_names(name for name in members[0] if "." in name)
    return [
        {names[path]: config.text(member[path]) for path in names}
        | {
            "seed": member["seed"],
            "final return": "diverged" if member["diverged_by"] else member["final_return"],
            "best return": member["best_return"],
            "best epoch": member["best_epoch"],
        }
        | ({"status": "best" if index == chosen else status(member)} if "parent" in member else {})
        for index, member in enumerate(members)
    ]


def _by_variant(summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for variant in (variant for summary in summaries for variant in summary["variants"]):
        *values, iqm, (low, high) = variant.values()
        names = config.short_names([*variant][: len(values)])
        named = {name: config.text(value) for name, value in zip(names.values(), values, strict=True)}
        rows.append(named | {"IQM": iqm, "from": low, "to (95%)": high})
    if sum(len(summary["members"]) for summary in summaries) == len(rows):  # of one seed there is no interval
        rows = [{name: value for name, value in row.items() if name not in ("from", "to (95%)")} for row in rows]
    return rows
