"""The method's configuration: translates its keys, as a trainer's YAML has them, into those of the library."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ._library import build_info, log
from .config_file import read_mapping

#: How the method's keys begin, by which a misspelt one is noticed among a trainer's own.
_OURS = ("use_face", "face_", "arcface_", "use_multiscale", "multiscale_", "use_t_aware")

#: How alike two keys are without case and separators, from 0 to 1, where one must be a misspelling of the other.
_ALIKE = 0.85

#: A number that YAML 1.1, which PyYAML reads, takes for a text: 1e-1.
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")

#: The method's weights of the cosine distances of a recogniser's levels.
LEVELS: dict[str, float] = {"layer1": 0.1, "layer2": 0.2, "layer3": 0.3, "layer4": 0.4, "embedding": 1.0}

#: What ``arcface_model`` may say of a recogniser's weights. It may name a pack as well.
ARCHITECTURES = ("r18", "r34", "r50", "r100", "r200")

#: Keys that are the method's alone.
_METHOD = ("arcface_root", "use_t_aware_weighting", "use_multiscale_face_loss", "multiscale_layer_weights")

#: Keys of the method that the library has too.
_NAMES = ("use_face_loss", "face_loss_weight", "face_align_mode", "face_loss_type", "arcface_weights", "arcface_model")


def read_config(path: str | bytes | os.PathLike[Any]) -> dict[str, Any]:
    """The loss's keys in a YAML or JSON file: those in its section ``model`` where there are any, else those at its top.

    Raises:
        ValueError: a key is nearly one of the method's, and the text names the one that it may mean; keys of the method are
            in two places or in another section. Also for the reasons that :func:`facegrad.config_file.read_mapping` names
    """
    file = os.fsdecode(path)
    content = _numbers(read_mapping(file))
    section = _section(file, content)
    known = _known()
    check_keys((key for key in section if _is_ours(key)), known, f"{file}: ")
    ours = {key: value for key, value in section.items() if key in known}
    log.info(
        "%s: the face loss reads %s; the other %d keys are the trainer's", file, ", ".join(ours) or "nothing", len(section) - len(ours)
    )
    return ours


def check_keys(keys: Iterable[Any], known: Collection[str], where: str = "") -> None:
    """Refuses keys that are not known.

    Args:
        keys: the keys to check
        known: the known keys
        where: the beginning of the error's text

    Raises:
        ValueError: names the first unknown key and the nearest known one
    """
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f" (did you mean `{near[0]}`?)" if near else ""
            raise ValueError(f"{where}unknown key `{key}`{hint}; known are {', '.join(known)}")


def _section(file: str, content: dict[Any, Any]) -> dict[Any, Any]:
    """The part of a file that has the method's keys: ``model``, or its top."""
    model = content["model"] if isinstance(content.get("model"), dict) else {}
    below, top = ([key for key in part if _is_ours(key)] for part in (model, content))
    if below and top:
        raise ValueError(
            f"{file}: {below[0]} is below `model` and {top[0]} at the top; write all of the loss's keys in one of the two places"
        )
    if below or top:
        return model if below else content
    for name, part in content.items():
        wrong = next((key for key in part if _is_ours(key)), None) if isinstance(part, dict) else None
        if wrong is not None:
            raise ValueError(f"{file}: {wrong} is below `{name}`; write the loss's keys below `model` or at the top")
    return model or content


def _is_ours(key: object) -> bool:
    """Whether a key is one of the method's, or can hardly be meant as another."""
    text = str(key).lower()
    return text.startswith(_OURS) or any(_alike(text, name) >= _ALIKE for name in _METHOD + _NAMES)


def _alike(one: str, other: str) -> float:
    a, b = (re.sub(r"[^a-z0-9]", "", text) for text in (one, other))
    return float(difflib.SequenceMatcher(None, a, b).ratio())


def _numbers(value: Any) -> Any:
    """What YAML holds, with the numbers that YAML 1.1 takes for texts."""
    if isinstance(value, dict):
        return {key: _numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _known() -> list[str]:
    return [*build_info()["loss_keys"], *_METHOD]


class Method:
    """The method's keys of a configuration, taken out of it.

    Args:
        config: the keys of ``facegrad_loss_new`` with the method's: ``arcface_root``, ``use_t_aware_weighting``,
            ``use_multiscale_face_loss``, ``multiscale_layer_weights``, ``face_loss_type``

    Attributes:
        keys: the keys of the library
        root: ``arcface_root``, or None
        score: whether ``face_loss_type`` is ``non_differentiable``, so that there is a value and no gradient
        pack: the pack that ``arcface_model`` names, or None

    Raises:
        ValueError: a key is unknown, or keys contradict each other
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise TypeError(f"config: expected a mapping of keys or the path of a YAML or JSON file, got {type(config).__name__}")
        # Before any model is looked for: a misspelt key is the nearer cause.
        check_keys(config, _known())
        # `key:` with nothing behind it is left out. Without an arcface_model the recogniser is not checked.
        keys = {key: value for key, value in config.items() if value is not None or key == "arcface_model"}
        self.root: str | None = keys.pop("arcface_root", None)
        if _flag(keys, "use_t_aware_weighting"):
            if keys.get("time_weight", "one_minus_t") != "one_minus_t":
                raise ValueError(
                    f"use_t_aware_weighting: true means time_weight: one_minus_t, but time_weight is {keys['time_weight']!r}; "
                    "leave one of them out"
                )
            keys["time_weight"] = "one_minus_t"
        weights = keys.pop("multiscale_layer_weights", None)
        multiscale = _flag(keys, "use_multiscale_face_loss", weights is not None)
        if multiscale:
            if "levels" in keys:
                raise ValueError("levels: says the same as use_multiscale_face_loss and multiscale_layer_weights; leave them out")
            keys["levels"] = layer_weights(weights)
        self.score = keys.get("face_loss_type") == "non_differentiable"
        if self.score and multiscale:
            raise ValueError(
                "use_multiscale_face_loss: the score of face_loss_type: non_differentiable compares embeddings alone; leave "
                "use_multiscale_face_loss and multiscale_layer_weights out, or write face_loss_type: differentiable"
            )
        #: The pack whose networks are used, where ``arcface_model`` names one.
        self.pack: str | None = None
        model = keys.get("arcface_model")
        if model is not None and model not in ARCHITECTURES:
            if keys.get("arcface_weights") is not None:
                raise ValueError(
                    f"arcface_model: expected {', '.join(ARCHITECTURES)} beside arcface_weights, got {model!r}; a pack's name stands alone"
                )
            self.pack = keys.pop("arcface_model")
        self.keys: dict[str, Any] = keys


def layer_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """The weights by level: the given ones, or the method's for None."""
    if weights is None:
        return dict(LEVELS)
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"multiscale_layer_weights: expected weights by level, such as {LEVELS}, got {weights!r}")
    for name, weight in weights.items():
        if isinstance(weight, (str, bool)) or not hasattr(weight, "__float__"):
            raise ValueError(f"multiscale_layer_weights: {name}: expected a number, got {weight!r}")
    return {str(name): float(weight) for name, weight in weights.items()}


def _flag(keys: dict[str, Any], name: str, default: bool = False) -> bool:
    value = keys.pop(name, None)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value!r}")
    return value
