"""The section ``face_loss:`` of a trainer's YAML file, which all adapters read.

docs/trainers.md lists the keys: those of the loss (docs/configuration.md) and the ones below.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .._library import build_info
from ..config_file import read_mapping
from ..method import check_keys
from .recall import KEYS as ROLLOUT_KEYS
from .recall import checked as checked_rollouts

REFERENCES = ("latents", "pictures", "persons")
LANDMARKS = ("latents", "reference", "detect", "detect_or_reference")

#: Keys of the section that are not keys of the loss.
OWN = ("recogniser", "root", "device", "references", "persons", "average", "warn_after", "rollouts")


@dataclass(frozen=True)
class Person:
    """A registered person: the pictures, and the pattern for the path or caption of samples that show the person; None: all
    samples do."""

    name: str
    pictures: tuple[str, ...]
    match: tuple[str, ...] | None


@dataclass(frozen=True)
class Section:
    """A checked section.

    Attributes:
        loss: the keys of the loss
        stated: the section's ``prediction``, where it has one; it is compared with the convention of the tensors
        min_snr: γ of ``time_weight: {min_snr: γ}``
        references: what a sample is compared with: its own clean ``latents``, the batch's ``pictures``, or ``persons``
        landmarks: where the face is in the estimate of x0: ``latents``, at its place in the clean latents, or a value of the
            loss's own key
        vae, detector, recogniser: a path, an object of keys, or None; ``vae: pixels`` for models without a VAE
        rollouts: the arguments of :class:`.rollout.Rollout`; None: no rollouts
    """

    loss: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, Any] | None = None
    min_snr: float | None = None
    references: str = "latents"
    landmarks: str = "latents"
    persons: tuple[Person, ...] = ()
    vae: Any = None
    detector: Any = None
    recogniser: Any = None
    root: str | None = None
    device: str | None = None
    average: str = "batch"
    warn_after: int = 100
    rollouts: dict[str, Any] | None = None


def read_section(source: Mapping[str, Any] | str | os.PathLike[str]) -> Section:
    """Reads and checks a section.

    Args:
        source: the path of a YAML or JSON file that has the section ``face_loss``, or the section's keys at its top; or these
            keys as a mapping

    Raises:
        ValueError: a key is unknown, where the text names the nearest known one, or a value does not fit
    """
    where = "face_loss"
    if isinstance(source, Mapping):
        content = source
    else:
        where, content = f"{source}: face_loss", read_mapping(source)
    keys = dict(content["face_loss"] if isinstance(content.get("face_loss"), Mapping) else content)
    check_keys(keys, sorted([*build_info()["loss_keys"], *OWN]), f"{where}: ")
    rollouts = _rollouts(keys.pop("rollouts", None), f"{where}: rollouts")
    persons = tuple(_person(name, value, where) for name, value in (keys.pop("persons", None) or {}).items())
    if len(persons) > 1 and any(person.match is None for person in persons):
        raise ValueError(f"{where}: with several persons, each needs `match`, patterns for the path or the caption of its pictures")
    references = _one_of(where, "references", keys.pop("references", "persons" if persons else "latents"), REFERENCES)
    if references == "persons" and not persons:
        raise ValueError(f"{where}: `references: persons` needs `persons`, names with folders of their pictures")
    if references != "persons" and persons:
        raise ValueError(f"{where}: `persons` are given, but `references` is `{references}`; leave `references` out, or `persons`")
    landmarks = _one_of(where, "landmarks", keys.pop("landmarks", "reference" if references == "pictures" else "latents"), LANDMARKS)
    if references != "pictures" and landmarks == "reference":
        landmarks = "latents"
    weight = keys.get("time_weight")
    min_snr = float(keys.pop("time_weight")["min_snr"]) if isinstance(weight, Mapping) and set(weight) == {"min_snr"} else None
    recogniser = keys.pop("recogniser", None)
    if recogniser is None and isinstance(keys.get("arcface_weights"), (str, os.PathLike)):
        recogniser = keys.pop("arcface_weights")
    stated = keys.pop("prediction", None)
    return Section(
        stated=dict(stated) if stated else None, min_snr=min_snr, references=references, landmarks=landmarks, persons=persons,
        vae=keys.pop("vae", None), detector=keys.pop("detector", None), recogniser=recogniser, root=keys.pop("root", None),
        device=keys.pop("device", None), average=_one_of(where, "average", keys.pop("average", "batch"), ("batch", "counted")),
        warn_after=int(keys.pop("warn_after", 100)), rollouts=rollouts, loss=keys,
    )  # fmt: skip


def _rollouts(given: Any, where: str) -> dict[str, Any] | None:
    if given is None or given is False:
        return None
    if given is True:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected an object with some of the keys {', '.join(sorted(ROLLOUT_KEYS))}, or true, got {given!r}")
    check_keys(given, sorted(ROLLOUT_KEYS), f"{where}: ")
    try:
        return checked_rollouts(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _person(name: str, value: Any, where: str) -> Person:
    given = value if isinstance(value, Mapping) else {"pictures": value}
    unknown = set(given) - {"pictures", "match"}
    pictures, match = given.get("pictures"), given.get("match")
    if unknown or not pictures:
        raise ValueError(f"{where}: persons: {name}: expected a folder, a list of files, or `pictures` with `match`, got {value!r}")
    listed = (pictures,) if isinstance(pictures, (str, os.PathLike)) else tuple(pictures)
    patterns = None if match is None else (match,) if isinstance(match, str) else tuple(match)
    return Person(str(name), tuple(os.fspath(path) for path in listed), patterns)


def _one_of(where: str, key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{where}: `{key}`: expected one of {', '.join(allowed)}, got {value!r}")
    return str(value)
