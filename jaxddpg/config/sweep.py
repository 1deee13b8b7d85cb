"""From the settings of an experiment to the members of its runs. Resolved plans are not parsed again."""

import dataclasses
import functools
import itertools
import math
import operator
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

from jaxddpg import settings
from jaxddpg.config import axes
from jaxddpg.config.arguments import read_environment
from jaxddpg.config.reader import (
    NAMED_BY_USER,
    ConfigError,
    alternatives_of,
    broken_rules,
    invalid,
    kind_of,
    leaves,
    plain,
    read_value,
    suggest,
    text,
)
from jaxddpg.settings import Experiment, Member


class MemberPlan(NamedTuple):
    """One member of a run."""

    settings: Experiment
    """without a sweep"""
    seed: int
    swept: Mapping[str, Any]
    """The swept settings by dotted path, with this member's values as YAML writes them."""


class RunPlan(NamedTuple):
    """One run: the members that one compiled program trains."""

    name: str
    """of its directory below that of a sweep of several runs; empty where it is the only one"""
    experiment: Experiment
    """as its `config.yaml` says it"""
    members: Sequence[MemberPlan]
    """variant by variant, each with all its seeds"""
    position: int = 0
    """among the runs of a sweep"""
    num_runs: int = 1
    """of the sweep"""

    @property
    def variants(self) -> Sequence[MemberPlan]:
        """The first member of each variant."""
        return self.members[:: self.experiment.population.num_seeds]

    @property
    def selects(self) -> bool:
        """Whether members are replaced or stopped in favor of others."""
        return self.experiment.population.selects

    def identities(self) -> list[dict[str, Any]]:
        """What distinguishes each member: its number, its seed, and its swept settings."""
        return [
            # As text a number that is not finite can stand in JSON.
            {"member": number, "seed": member.seed}
            | {path: f"{value}" if value in (inf, -inf) else value for path, value in member.swept.items()}
            for number, member in enumerate(self.members)
        ]


class Plan(NamedTuple):
    """An experiment and the runs that it needs, one for each compiled program."""

    experiment: Experiment
    runs: Sequence[RunPlan]

    @property
    def num_members(self) -> int:
        """of all runs"""
        return sum(len(run.members) for run in self.runs)

    def run(self) -> RunPlan:
        """The only run; ConfigError where there are several."""
        if len(self.runs) > 1:
            raise ConfigError(
                [
                    f"the settings in population.sweep need {len(self.runs)} compiled programs, but a run has one; use "
                    "`jaxddpg sweep`, which runs one for each"
                ]
            )
        return self.runs[0]


def resolve(experiment: Experiment) -> Plan:
    """The runs of an experiment, one where all that is swept are traced numbers, else one for each combination of the
    other values, named such as "0_agent.batch_size=64".

    Raises:
        ConfigError: with the errors of all variants, each once.
    """
    population, swept = experiment.population, _variants(experiment)
    # Members that may replace one another must not share a seed.
    number = population.num_seeds * (len(swept) if population.selects else 1)
    seeds = itertools.cycle(range(population.seed, population.seed + number))
    members = [
        MemberPlan(variant, next(seeds), values) for variant, values in swept for _ in range(population.num_seeds)
    ]
    every = [values for _, values in swept]
    shaping = [path for path in every[0] if not _is_traced(path, every)]
    groups = dict[str, list[MemberPlan]]()
    for member in members:
        groups.setdefault(repr([member.swept[path] for path in shaping]), []).append(member)
    runs = [RunPlan("", experiment, group, index, len(groups)) for index, group in enumerate(groups.values())]
    if shaping:
        runs = [_with_program(run, shaping) for run in runs]
    return Plan(experiment, runs)


def _with_program(run: RunPlan, shaping: Sequence[str]) -> RunPlan:
    """A run with the values of the `shaping` settings that its members share, from which its program is made, and with
    the name that it has as one of several."""
    variants, population = run.variants, run.experiment.population
    shared = {path: variants[0].swept[path] for path in shaping}
    lists = {path: [variant.swept[path] for variant in variants] for path in variants[0].swept}
    population = dataclasses.replace(population, sweep=lists, combine="zip", num_draws=1)
    experiment = dataclasses.replace(with_values(run.experiment, shared), population=population)
    # The index distinguishes runs of one name, which is cut because file systems allow 255 letters.
    name = f"{run.position}_{_name(shared)}"[:120] if run.num_runs > 1 else ""
    return run._replace(name=name, experiment=experiment)


def _variants(experiment: Experiment) -> list[tuple[Experiment, dict[str, Any]]]:
    """An experiment without a sweep for each variant, with its values of the swept settings."""
    population, alone = experiment.population, dataclasses.replace(experiment, population=settings.Population())
    if not population.sweep:
        return [(alone, {})]
    found, errors = dict[str, tuple[Experiment, dict[str, Any]]](), dict[str, None]()
    for values in axes.variants(population.sweep, population.combine, population.num_draws, population.draw_seed):
        try:
            variant = with_values(alone, values)
        except ConfigError as error:
            errors |= dict.fromkeys(error.errors)
            continue
        read = values_at(variant, population.sweep)
        if repr(read) in found:
            errors[f"the variant {text(read)} occurs twice; remove the duplicate"] = None
        found[repr(read)] = variant, read
    if not errors and population.combine == "random" and len(found) < population.num_draws:
        errors = {f"only {len(found)} distinct variants could be drawn, not {population.num_draws}": None}
    if errors:
        raise ConfigError([f"population.sweep: {error}" for error in errors])
    return [*found.values()]


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """An experiment that has these values of settings, by dotted path.

    Raises:
        ConfigError: a value breaks a rule, or there is no such setting.
    """
    errors = dict[str, str]()
    for path, value in values.items():
        experiment = _replaced(experiment, "", path, value, errors)
    if any(path.startswith("environment.") for path in values):
        experiment = dataclasses.replace(experiment, environment=read_environment(experiment.environment, errors))
    if sentences := [*errors.values(), *broken_rules(experiment, "", {*errors})]:
        raise ConfigError(sentences)
    return experiment


def _replaced(section: Any, above: str, path: str, value: Any, errors: dict[str, str]) -> Any:
    """A section with the value of a setting, whose dotted path follows that of the section, `above`."""
    name, _, below = path.partition(".")
    fields = {field.name: field for field in dataclasses.fields(section)}
    if name not in fields:
        here = [leaf.path for leaf in leaves(section.__class__, above)]
        errors[above + name] = f"{above}{name} is not a setting{suggest(name, above, here)}"
        return section
    inner, kind = getattr(section, name), kind_of(section.__class__, name)
    if alternatives_of(kind):
        return dataclasses.replace(section, **{name: _replaced(inner, f"{above}{name}.", below, value, errors)})
    if isinstance(inner, Mapping):
        return dataclasses.replace(section, **{name: {**inner, below: value}})
    try:
        return dataclasses.replace(section, **{name: read_value(kind, value, fields[name])})
    except ValueError as error:
        errors[above + name] = invalid(above + name, value, fields[name], error)
        return section


def values_at(experiment: Experiment, paths: Iterable[str]) -> dict[str, Any]:
    """The values of those settings, by dotted path, that an experiment has, as YAML writes them."""
    found = dict[str, Any]()
    for path in paths:
        with suppress(AttributeError, KeyError):  # a setting of an alternative that was not chosen
            if path.startswith(NAMED_BY_USER):
                section, mapping, name = path.split(".", 2)
                found[path] = operator.attrgetter(f"{section}.{mapping}")(experiment)[name]
            else:
                found[path] = plain(operator.attrgetter(path)(experiment))
    return found


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last parts of dotted paths by the paths themselves; a path keeps its sections where others end alike."""
    last = {path: path.rpartition(".")[2] for path in paths}
    return {path: name if [*last.values()].count(name) == 1 else path for path, name in last.items()}


def warnings_of(run: RunPlan) -> list[str]:
    """Warnings about probably unintended settings; in a sweep, for the first affected variant."""
    each = [variant.settings.cautions() for variant in run.variants]
    concerned = [found for found in each if found]
    where = f"in {len(concerned)} of {len(each)} variants, the first of which says: " if len(each) > 1 else ""
    return [f"{where}{sentence}" for sentence in (concerned or [[]])[0]]


def _is_traced(path: str, variants: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a compiled program takes a setting as input, as it does floats among a user's arguments."""
    of_floats = path.startswith(NAMED_BY_USER) and all(isinstance(values[path], float) for values in variants)
    return path in traced() or of_floats


@functools.cache
def traced() -> frozenset[str]:
    """The dotted paths of the settings that a compiled program takes as input."""
    return frozenset(leaf.path for leaf in leaves(Member) if leaf.field.type is settings.Scalar)


def _name(values: Mapping[str, Any]) -> str:
    """Values as the name of a directory."""
    plain = {path: re.sub(r"[^a-zA-Z0-9_.+-]+", "-", text(value).strip("[]{}")) for path, value in values.items()}
    return ",".join(f"{path}={value}" for path, value in plain.items())


def check_axes(population: settings.Population, errors: dict[str, str]) -> settings.Population:
    """The population with those axes of its sweep that have a form and a setting; their values are read later."""
    valid = dict[str, Any]()
    for path, axis in population.sweep.items():
        place = f"population.sweep.{path}"
        if error := _unsuitable(str(path), population):
            errors[place] = f"{place} {error}"
            continue
        try:
            axes.check(axis)
            valid[path] = axis
        except ValueError as error:
            errors[place] = f"{place} is {text(axis)}, but must be {error}"
    return dataclasses.replace(population, sweep=valid)


def _unsuitable(path: str, population: settings.Population) -> str:
    """Why a setting cannot be swept, as an error fragment; empty if it can."""
    tags = [leaf.path for leaf in leaves(Member) if leaf.alternative and leaf.field.default == leaf.alternative]
    here = [leaf.path for leaf in leaves(Member) if typing.get_origin(leaf.field.type) is not Mapping]
    if path in tags:
        return "determines which settings exist, so it cannot be swept; run one sweep per value"
    if path not in here and not path.startswith(NAMED_BY_USER):
        section, dot, name = path.rpartition(".")
        if inside := [leaf for leaf in here if leaf.startswith(f"{path}.")]:
            return f"is a section; name a setting in it, such as {inside[-1]}"
        below = [leaf for leaf in here if leaf.startswith(section + dot)]
        hint = suggest(name, section + dot, below) if below else suggest(path, "", here)
        return f"is not a member setting{hint}"
    if population.selects and (path not in traced() or path.startswith("environment.")):
        return (
            f"cannot be swept where members are selected, population.selection.method {population.selection.method}: "
            "all members must share one environment and one program; run each value separately"
        )
    return ""


def broken_axes(population: settings.Population) -> list[str]:
    """What is wrong between the axes of a sweep, or between it and the other settings of a population."""
    ranges = [path for path, axis in population.sweep.items() if axes.is_range(axis)]
    lengths = {path: len(axes.points(axis)) for path, axis in population.sweep.items() if path not in ranges}
    errors, combine = [], f"population.combine is {population.combine}"
    product = math.prod(lengths.values())
    if ranges and population.combine != "random":
        are = "are ranges" if len(ranges) > 1 else "is a range"
        errors.append(f"{combine}, but {' and '.join(ranges)} {are}; use combine: random, or list values")
    if population.combine == "zip" and len({*lengths.values()}) > 1:
        listed = ", ".join(f"{path} {length}" for path, length in lengths.items())
        errors.append(f"{combine}, which requires axes of equal length, but they have {listed}")
    if population.combine == "grid" and product > settings.MAX_VARIANTS:
        errors.append(
            f"{combine}, which makes {product} variants, but at most {settings.MAX_VARIANTS} can be swept at once; "
            "name fewer values"
        )
    counts = {"random": population.num_draws, "zip": min(lengths.values(), default=1), "grid": product}
    members = population.num_seeds * (counts[population.combine] if population.sweep else 1)
    if not errors and members > settings.MAX_MEMBERS:
        errors.append(
            f"population.num_seeds is {population.num_seeds}, and {members // population.num_seeds} variants make "
            f"{members} members, but at most {settings.MAX_MEMBERS} are allowed"
        )
    if not errors and population.selects and members == 1:
        errors.append(
            f"population.selection.method is {population.selection.method}, but there is only one member; use more "
            "population.num_seeds, or a sweep"
        )
    return errors
