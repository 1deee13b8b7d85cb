"""Reads an experiment from YAML and flags, checks it, and writes it back. Needs no JAX.

There is one way in: flags are laid over the file, then every value is read by its declared type, then the rules are
checked. All faults are found before any is reported.
"""

import dataclasses
import difflib
import functools
import operator
import re
import sys
import types
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxddpg import axes, settings
from jaxddpg.config import notation
from jaxddpg.envs import registry as known
from jaxddpg.settings import Experiment, Member

_PARAMETERS = "environment.parameters."
_SMALLEST, _LARGEST = 2.0**-126, 2.0**128 - 2.0**104
"""The size of a float in a compiled program: of 32 bits, and a smaller one may count as 0 there."""
_hints = functools.cache(typing.get_type_hints)


class ConfigError(ValueError):
    """Bad input, as a list of clear sentences."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def first_line(error: Exception) -> str:
    """What another library says is wrong, as part of a sentence."""
    return str(error).split("\n")[0][:200]


def read(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a YAML file, with values from `overrides` ("agent.tau": "0.01") laid over it.

    Raises:
        ConfigError: with all faults at once.
    """
    if not isinstance(path, str | Path):
        raise ConfigError([f"an experiment is loaded from a YAML file, not from {text(path)}; give the file's path"])
    path = Path(path)
    if path.is_dir():
        raise ConfigError([f"{path} is a directory; name a YAML file in it"])
    try:
        with path.open() as file:  # whose name YAML's errors then tell
            content = notation.load(file)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=3, cutoff=0.3)
        hint = f"; {path.parent} holds {', '.join(near)}" if near else ""
        raise ConfigError([f"there is no file {path}{hint}"]) from None
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None
    except notation.Error as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split()).rstrip(' ^')}"]) from None
    if not isinstance(content, dict | types.NoneType):
        raise ConfigError([f"{path} must hold sections such as `agent:`, not {content!r}"])
    return parse(content or {}, overrides)


def parse(content: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Experiment:
    """As `read`, from nested mappings. Numbers and arrays may be those of NumPy or JAX."""
    faults: dict[str, str] = {}  # by the path of the setting
    experiment = _section(Experiment, _overlay(_built_in(content), _decoded(overrides or {})), "", faults)
    experiment = dataclasses.replace(
        experiment,
        environment=_environment(experiment.environment, faults),
        population=_population(experiment.population, faults),
    )
    sentences = [*faults.values(), *_broken_rules(experiment, "", set(faults))]
    if sentences:
        raise ConfigError(sentences)
    if experiment.population.sweep:
        variants(experiment)
    return experiment


def variants(experiment: Experiment) -> list[Experiment]:
    """An experiment without axes for each variant of the swept settings, in the order of the members.

    Raises:
        ConfigError: with the faults of all variants, each once.
    """
    population = experiment.population
    if not population.sweep:
        return [experiment]
    found, faults = [], dict[str, None]()
    for values in population.variants():
        try:
            found.append(variant(experiment, values))
        except ConfigError as error:
            faults |= dict.fromkeys(error.faults)
    if not faults:
        counted = Counter(text(told(one, population.sweep)) for one in found)
        faults = dict.fromkeys(
            f"the variant {same} is named twice; name it once" for same, times in counted.items() if times > 1
        )
    if not faults and population.combine == "random" and len(found) < population.num_draws:
        faults = {f"there are only {len(found)} different variants to draw, not {population.num_draws}": None}
    if faults:
        raise ConfigError([f"population.sweep: {fault}" for fault in faults])
    return found


def cautions(experiment: Experiment) -> list[str]:
    """What is allowed but hardly meant, in sentences; in a sweep, of the first variant that it concerns."""
    each = [variant.cautions() for variant in variants(experiment)]
    concerned = [found for found in each if found]
    where = f"in {len(concerned)} of {len(each)} variants, the first of which says: " if len(each) > 1 else ""
    return [f"{where}{sentence}" for sentence in (concerned or [[]])[0]]


def variant(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """An experiment without axes that has these values of settings, by dotted path; ConfigError where it may not."""
    return parse(_overlay(as_mapping(experiment) | {"population": {}}, values))


def swept(experiment: Experiment) -> list[dict[str, Any]]:
    """The values of the swept settings, by dotted path, of each variant, as they stand in YAML."""
    return [told(variant, experiment.population.sweep) for variant in variants(experiment)]


def told(experiment: Experiment, paths: Iterable[str]) -> dict[str, Any]:
    """The values of those settings, by dotted path, that an experiment without axes has."""
    parameters = {_PARAMETERS + name: value for name, value in experiment.environment.parameters.items()}
    every = dict(_flat(experiment)) | parameters
    return {path: every[path] for path in paths if path in every}


def brief(paths: Iterable[str]) -> dict[str, str]:
    """The last parts of dotted paths by the paths themselves; a path keeps its sections where others end as it does."""
    last = {path: path.rpartition(".")[2] for path in paths}
    return {path: name if [*last.values()].count(name) == 1 else path for path, name in last.items()}


def identities(experiment: Experiment) -> list[dict[str, Any]]:
    """What tells each member from the others: its number, its seed, and what is swept."""
    population = experiment.population
    each = [
        # As text a number that is not finite can stand in JSON.
        {path: f"{value}" if value in (inf, -inf) else value for path, value in values.items()}
        for values in swept(experiment)
        for _ in range(population.num_seeds)
    ]
    return [
        {"member": member, "seed": seed} | values
        for member, (values, seed) in enumerate(zip(each, population.seeds(), strict=True))
    ]


def programs(experiment: Experiment) -> dict[str, Experiment]:
    """The experiments, of one compiled program each, into which a sweep falls: one, without a name, where all that is
    swept are traced numbers, else one for each combination of the other values, such as "0_agent.batch_size=64"."""
    scalars, every = _traced(), swept(experiment)

    def is_traced(path: str) -> bool:
        is_parameter = path.startswith(_PARAMETERS)
        return path in scalars or (is_parameter and all(isinstance(values[path], float) for values in every))

    shaping = [path for path in every[0] if not is_traced(path)]
    groups = dict[str, list[dict[str, Any]]]()
    for values in every:
        groups.setdefault(text({path: values[path] for path in shaping}), []).append(values)
    if not shaping:
        return {"": experiment}
    content, found = as_mapping(experiment), dict[str, Experiment]()
    for number, group in enumerate(groups.values()):
        # The number tells apart what has one name; a name of more than 255 letters is none to a file system.
        name = f"{number}_{_name({path: group[0][path] for path in shaping})}"[:120]
        lists = {path: [values[path] for values in group] for path in group[0]}
        population = content["population"] | {"sweep": lists, "combine": "zip", "num_draws": 1}
        # The program is made from the settings, which have to say what all its variants share.
        shared = {path: group[0][path] for path in shaping}
        found[name] = parse(_overlay(content | {"population": population}, shared))
    return found if len(found) > 1 else {"": found.popitem()[1]}


def _traced() -> set[str]:
    """The settings that a compiled program takes as input; beside them the floats among an environment's parameters."""
    return {leaf.path for leaf in leaves(Member) if leaf.field.type is settings.Scalar}


def _name(values: Mapping[str, Any]) -> str:
    """Values as the name of a directory."""
    plain = {path: re.sub(r"[^a-zA-Z0-9_.+-]+", "-", text(value).strip("[]{}")) for path, value in values.items()}
    return ",".join(f"{path}={value}" for path, value in plain.items())


SWEEP = "sweep.yaml"
"""In the directory of a sweep that falls into several runs, each in a directory of its own below it."""
HARMLESS = ("training.num_epochs", "population.placement", "population.on_divergence", "checkpoint.", "reporting.")
"""Settings that do not alter what is learned up to an epoch, or placement by no more than rounding."""


def of_run(directory: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a run directory."""
    if (directory / SWEEP).is_file():
        raise ConfigError([f"{directory} holds a sweep of several runs; name one of the directories in it"])
    if not (directory / "config.yaml").is_file():
        why = "there is no config.yaml in it" if directory.exists() else "there is no such directory"
        raise ConfigError([f"{directory} holds no run: {why}"])
    return read(directory / "config.yaml", overrides)


def whole(directory: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of the directory of a run, or of a sweep that fell into several."""
    several = directory / SWEEP
    return read(several, overrides) if several.is_file() else of_run(directory, overrides)


def check_output(path: Path) -> None:
    """ConfigError where a file cannot be written, before what takes long begins; leaves nothing behind."""
    file = path.resolve()  # what a link leads to, which stays
    there = file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        raise ConfigError([f"--output {path} cannot be written: {error.strerror}; name another"]) from error
    if not there:
        file.unlink()


def extended(directory: Path, overrides: Mapping[str, Any]) -> tuple[Experiment, dict[str, list[Any]]]:
    """The experiment of a run or a sweep with changes, and the settings that differ with both values, as in YAML.

    Raises:
        ConfigError: a change is faulty, or would alter what has been learned.
    """
    before, after = whole(directory), whole(directory, overrides)
    check_unaltered(learning(before), after)
    old = dict(_flat(before))
    return after, {path: [old.get(path), value] for path, value in _flat(after) if old.get(path) != value}


def harmless(experiment: Experiment) -> dict[str, Any]:
    """The settings that do not, likewise."""
    return {path: value for path, value in _flat(experiment) if path.startswith(_harmless(experiment))}


def learning(experiment: Experiment) -> dict[str, Any]:
    """The settings that alter what is learned, by dotted path, as they stand in YAML."""
    return {path: value for path, value in _flat(experiment) if not path.startswith(_harmless(experiment))}


def _harmless(experiment: Experiment) -> tuple[str, ...]:
    """Where members are selected, rounding may decide who is."""
    selecting = experiment.population.selection.method != "none"
    return tuple(path for path in HARMLESS if not (selecting and path == "population.placement"))


def check_unaltered(before: Mapping[str, Any], experiment: Experiment) -> None:
    """ConfigError where an experiment is not the one that `learning` told `before`."""
    after = learning(experiment)
    faults = [
        f"{path} is {text(after.get(path))}, but {text(old)} in this run, which cannot change; train a new one"
        for path, old in before.items()
        if after.get(path) != old
    ]
    if faults:
        raise ConfigError(faults)


def checked(experiment: Experiment) -> Experiment:
    """An experiment made or changed in Python, read as if from a file; ConfigError unless it obeys every rule."""
    if not isinstance(experiment, Experiment):
        raise ConfigError([f"an experiment is needed, not {text(experiment)}; read one with jaxddpg.load(PATH)"])
    return parse(as_mapping(experiment))


class Leaf(NamedTuple):
    """A setting and where it stands."""

    path: str
    field: dataclasses.Field
    alternative: str
    """The tag of the alternative that has it, such as ddpg; empty where there is no choice."""


@functools.cache
def leaves(section: Any = Experiment, prefix: str = "", alternative: str = "") -> tuple[Leaf, ...]:
    """Every setting with its dotted path; where a section has alternatives, the settings of each."""
    found = list[Leaf]()
    for field in dataclasses.fields(section):
        alternatives = _alternatives(_kind(section, field.name))
        for tag, kind in alternatives.items():
            found += leaves(kind, f"{prefix}{field.name}.", tag or alternative)
        if not alternatives:
            found.append(Leaf(prefix + field.name, field, alternative))
    return tuple(found)


def by_last_part() -> dict[str, list[str]]:
    """The dotted paths of settings by their last parts, such as tau."""
    found = dict[str, list[str]]()
    for path in dict.fromkeys(leaf.path for leaf in leaves()):
        found.setdefault(path.rpartition(".")[2], []).append(path)
    return found


def as_mapping(section: Any) -> dict[str, Any]:
    """Nested dicts of plain values, as they stand in YAML."""
    return {field.name: _plain(getattr(section, field.name)) for field in dataclasses.fields(section)}


def _flat(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of an experiment by its dotted path."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, _plain(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_mapping(value)
    if isinstance(value, Fraction):
        return str(value) if value.denominator > 1 else value.numerator
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


def text(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    return notation.dump(_plain(value))


def dump(section: Any, indent: str = "") -> str:
    """Complete YAML that `read` reads back, each setting with its meaning as a comment."""
    lines = []
    for field in dataclasses.fields(section):
        value, meaning = getattr(section, field.name), field.metadata["meaning"]
        if dataclasses.is_dataclass(value):
            lines.append(f"{indent}{field.name}:  # {meaning}\n" + dump(value, indent + "  "))
        else:
            lines.append(f"{indent}{field.name}: {text(value)}  # {meaning}\n")
    return "".join(lines)


def _decoded(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values that flags spell in YAML."""
    texts = {leaf.path for leaf in leaves() if leaf.field.type is str}
    found = {}
    for path, given in overrides.items():
        try:
            found[path] = notation.load(given) if isinstance(given, str) and path not in texts else _built_in(given)
        except notation.Error:
            found[path] = given
    return found


def _built_in(value: Any) -> Any:
    """A value in Python's own types, as YAML would give it, where it has numbers or arrays of NumPy or JAX."""
    if isinstance(value, Mapping):
        return {name: _built_in(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [_built_in(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _overlay(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The content with values laid over it: first whole sections, then the settings in them."""
    merged, paths = dict(content), [leaf.path for leaf in leaves()]
    for path, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        # What lies below a setting that holds names with values, such as population.sweep, is one name.
        above = next((leaf for leaf in paths if path.startswith(f"{leaf}.")), "")
        *sections, name = [*above.split("."), path.removeprefix(f"{above}.")] if above else path.split(".")
        place = merged
        for section in sections:
            inner = place.get(section)
            if not isinstance(inner, Mapping | types.NoneType):
                break  # a fault, found when the section is read
            place[section] = dict(inner or {})
            place = place[section]
        else:
            place[name] = value
    return merged


@functools.cache
def _alternatives(kind: Any) -> dict[str, type]:
    """The settings classes that a section may have, by tag, the default first; empty for a plain setting."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return {_tag(kind)[1]: kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


@functools.cache
def _tag(kind: Any) -> tuple[str, str]:
    """The setting that tells a section from its alternatives, the one with a single choice, and that choice."""
    for name, declared in _hints(kind).items():
        if typing.get_origin(declared) is Literal and len(choices := typing.get_args(declared)) == 1:
            return name, choices[0]
    return "", ""


def _alternative(alternatives: dict[str, type], content: Any, path: str, faults: dict[str, str]) -> Any:
    """One of several settings classes from a mapping, chosen by its tag."""
    default = next(iter(alternatives))
    tag, _ = _tag(alternatives[default])
    choice = content.get(tag, default) if isinstance(content, Mapping) else default
    if choice not in [*alternatives]:
        choices = ", ".join(alternatives)
        # A fault of the whole section: no rule can be applied to settings of an unknown kind.
        faults[path.removesuffix(".")] = (
            f"{path}{tag} is {text(choice)}, but must be one of {choices} (default {default})"
        )
        return alternatives[default]()
    if isinstance(content, Mapping):
        for name, given in content.items():
            inner = isinstance(given, Mapping)
            having = [
                value
                for value, kind in alternatives.items()
                if name in _hints(kind) and (not inner or _alternatives(_kind(kind, name)))
            ]
            if having and choice not in having:
                faults[path + name] = (
                    f"{path}{name} is a {'section' if inner else 'setting'} of {tag} {' or '.join(having)}, but "
                    f"{path}{tag} is {choice}; leave it out, or replace the section: --{path.removesuffix('.')} "
                    f"'{{{tag}: {choice}}}'"
                )
        content = {name: value for name, value in content.items() if path + str(name) not in faults}
    return _section(alternatives[choice], content, path, faults)


def _section(kind: Any, content: Any, path: str, faults: dict[str, str]) -> Any:
    """A settings dataclass from a mapping; a faulty setting keeps its default so that reading can go on."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        section, (name, equals, value) = path.rstrip("."), str(content).partition("=")
        hint = f"; did you mean --{path}{name} {value}?" if equals and name in fields else ""
        faults[section] = f"{section} must be a section with settings below it, not {text(content)}{hint}"
        return kind()
    values = {}
    for name, value in content.items():
        if name not in fields:
            here = [leaf.path for leaf in leaves(kind, path)]
            if f"{path}{name}" in here:  # with dots, as on the command line
                section, _, last = f"{path}{name}".rpartition(".")
                faults[f"{path}{name}"] = f"{path}{name} has dots; write {last} into the section {section}"
                continue
            faults[f"{path}{name}"] = f"{path}{name} is not a setting{_suggestion(str(name), path, here)}"
            continue
        field_kind = _kind(kind, name)
        if alternatives := _alternatives(field_kind):
            values[name] = _alternative(alternatives, value, f"{path}{name}.", faults)
            continue
        try:
            values[name] = _value(field_kind, value, fields[name])
        except ValueError as error:
            default = fields[name].default
            hint = "" if default is dataclasses.MISSING else f" (default {text(default)})"
            faults[f"{path}{name}"] = f"{path}{name} is {text(value)}, but must be {error}{hint}"
    return kind(**values)


def _value(kind: Any, value: Any, field: dataclasses.Field) -> Any:
    """A value by its declared type and rule; ValueError ends the sentence "... is X, but must be"."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not (value or field.default == ()):
            raise ValueError(f"a list of {'' if field.default == () else 'one or more '}numbers, such as [64, 64]")
        return tuple(_value(typing.get_args(kind)[0], entry, field) for entry in value)
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError("names with values, {name: value, ...}")
        return dict(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise ValueError("a string")
        return value
    number = _number(kind, value)
    holds = {
        "at least": lambda bound: number >= bound,
        "greater than": lambda bound: number > bound,
        "at most": lambda bound: number <= bound,
    }
    rule = field.metadata["rule"]
    if not all(holds[words](bound) for words, bound in rule.items()):
        raise ValueError(" and ".join(f"{words} {bound}" for words, bound in rule.items()))
    if abs(number) == inf and number != field.default:
        raise ValueError("a finite number")
    return number


def _number(kind: type, value: Any) -> Any:
    """A float, int or Fraction; a text that spells a number, such as inf, is that number."""
    words = {
        float: "a number",
        int: "a whole number",
        Fraction: "a whole number k, or 1/k for one update every k vector steps",
    }[kind]
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction) or not str(value).isascii():
        raise ValueError(words)
    try:
        if kind is float:
            number: Any = float(value)
        else:
            # 1e9 is a number, but 1e999999999 must not be written out.
            exponent = "e" in str(value).lower()
            number = Fraction(min(float(value), 2.0**31) if exponent else str(value))
            if kind is int:
                number = int(number) if number.denominator == 1 else None
            elif 1 not in (number.numerator, number.denominator):
                number = None
    except (ValueError, ZeroDivisionError, OverflowError):
        number = None
    if number is None or number != number:
        raise ValueError(words + (" in decimal digits" if isinstance(value, str) and kind is not Fraction else ""))
    if kind is float and 0 < abs(number) < inf and not _SMALLEST <= abs(number) <= _LARGEST:
        raise ValueError("0, or from 1.2e-38 to 3.4e38 in size, as 32-bit floats are")
    if kind is not float and number >= 2**31:
        raise ValueError(f"{words} below 2^31")
    return number


def _is_plain(value: Any) -> bool:
    """Whether YAML can hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | types.NoneType)


def _kind(section: Any, name: str) -> Any:
    """The declared type of a field; a `Scalar` is a float here."""
    return _hints(section)[name]


def _suggestion(name: str, path: str, here: list[str]) -> str:
    """The end of a sentence that says that there is no such name at this path: the nearest that there is, or all.

    `here` are the dotted paths below this one.
    """
    names = list(dict.fromkeys(leaf.removeprefix(path).split(".")[0] for leaf in here))
    known = list(dict.fromkeys(here + [leaf.path for leaf in leaves() if not leaf.path.startswith(path)]))
    near = [leaf for leaf in known if leaf.split(".")[-1] == name]
    near = near or [path + match for match in difflib.get_close_matches(name, names, n=1, cutoff=0.5)]
    near = near or difflib.get_close_matches(path + name, known, n=1, cutoff=0.85)
    section = path.rstrip(".") or "an experiment"
    return f"; did you mean {' or '.join(near)}?" if near else f"; {section} has {', '.join(names)}"


def _broken_rules(section: Any, path: str, faulty: set[str]) -> Iterator[str]:
    """The rules between settings that do not hold; those about a setting already found faulty are left out."""
    for holds, names, words in section.rules() if hasattr(section, "rules") else ():
        paths = [path + name for name in names]
        if not holds and not any(p == fault or p.startswith(f"{fault}.") for p in paths for fault in faulty):
            yield f"{paths[0]} is {text(operator.attrgetter(names[0])(section))}, {words}"
    for field in dataclasses.fields(section):
        inner = getattr(section, field.name)
        if dataclasses.is_dataclass(inner):
            yield from _broken_rules(inner, f"{path}{field.name}.", faulty)


def _population(population: settings.Population, faults: dict[str, str]) -> settings.Population:
    """The population with those axes that have a form and a setting to sweep; their values are looked at later."""
    here = [leaf.path for leaf in leaves(Member) if typing.get_origin(leaf.field.type) is not Mapping]
    sound, method = {}, population.selection.method
    tags = [leaf.path for leaf in leaves(Member) if leaf.alternative and leaf.field.default == leaf.alternative]
    for path, axis in population.sweep.items():
        place = f"population.sweep.{path}"
        if path in tags:
            faults[place] = (
                f"{place} decides which settings there are, so it cannot be swept; make a sweep for each value"
            )
            continue
        if path not in here and not str(path).startswith(_PARAMETERS):
            section, dot, name = str(path).rpartition(".")
            below = [leaf for leaf in here if leaf.startswith(section + dot)]
            if inside := [leaf for leaf in here if leaf.startswith(f"{path}.")]:
                faults[place] = f"{place} is a section; name a setting in it, such as {inside[-1]}"
                continue
            hint = _suggestion(name, section + dot, below) if below else _suggestion(str(path), "", here)
            faults[place] = f"{place} is no setting of a member{hint}"
            continue
        if method != "none" and (path not in _traced() or path.startswith("environment.")):
            faults[place] = (
                f"{place} cannot be swept where members are selected, population.selection.method {method}: they must "
                "share one environment and one program; make a run of each value"
            )
            continue
        try:
            axes.check(axis)
            sound[path] = axis
        except ValueError as error:
            faults[place] = f"{place} is {text(axis)}, but must be {error}"
    return dataclasses.replace(population, sweep=sound)


def _environment(environment: settings.Environment, faults: dict[str, str]) -> settings.Environment:
    """The environment with its parameters by their declared types, as far as that is known without importing it."""
    name = environment.name
    declared: Mapping[str, type] | None = None
    if name in known.CONTINUOUS:
        declared = known.CONTINUOUS[name].parameters
    elif name in known.DISCRETE:
        suitable = ", ".join(known.CONTINUOUS)
        faults["environment.name"] = (
            f"environment.name is {name}, which has discrete actions, but deterministic policies need continuous ones; "
            f"try {suitable}"
        )
    # One of the user's own is known to its module, or to the gymnax that his program has imported.
    elif ":" not in name and not ("gymnax" in sys.modules and name in sys.modules["gymnax"].registered_envs):
        near = difflib.get_close_matches(name, known.CONTINUOUS, n=2, cutoff=0.4)
        question = f"did you mean {' or '.join(near)}?" if near else f"try {', '.join(known.CONTINUOUS)}."
        faults["environment.name"] = (
            f"environment.name is {text(name)}, which is neither of gymnax nor ours; {question} One of your own is "
            "named package.module:factory"
        )
    parameters = {}
    for parameter, value in environment.parameters.items():
        path = f"environment.parameters.{parameter}"
        kind = float if declared is None else declared.get(parameter)
        if kind is None:
            here = [f"environment.parameters.{declared_name}" for declared_name in declared or ()]
            suggestion = _suggestion(str(parameter), "environment.parameters.", here)
            faults[path] = f"{path} is not a parameter{suggestion}"
        elif (kind is bool) != isinstance(value, bool) and declared is not None:
            faults[path] = f"{path} is {text(value)}, but must be {'true or false' if kind is bool else 'a number'}"
        elif declared is None and not isinstance(value, float):
            if not _is_plain(value):
                faults[path] = (
                    f"{path} is {text(value)}, but must be a number, a string, true or false, or a list of these"
                )
            parameters[parameter] = value
        else:
            try:
                parameters[parameter] = value if kind is bool else _number(kind, value)
            except ValueError as error:
                faults[path] = f"{path} is {text(value)}, but must be {error}"
    return dataclasses.replace(environment, parameters=parameters)
