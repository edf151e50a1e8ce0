"""The method's configuration: translates its keys, as a trainer's YAML has them, into those of the library."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ._library import build_info, log
from .config_file import read_mapping

#: How the method's keys begin, by which a misspelt one is noticed among a trainer's own.
_OURS = ("use_face", "face_", "arcface_", "use_multiscale", "multiscale_", "use_t_aware")

#: The method's weights of the cosine distances of a recogniser's levels.
LEVELS: dict[str, float] = {"layer1": 0.1, "layer2": 0.2, "layer3": 0.3, "layer4": 0.4, "embedding": 1.0}

#: Keys that are the method's alone.
_METHOD = ("arcface_root", "use_t_aware_weighting", "use_multiscale_face_loss", "multiscale_layer_weights")


def read_config(path: str | bytes | os.PathLike[Any]) -> dict[str, Any]:
    """The loss's keys in a YAML or JSON file: those in its section ``model`` where there is one, else those at its top.

    Raises:
        ValueError: a key begins like the method's keys and is not known; the text names the nearest known key. Also
            for the reasons that :func:`facegrad.config_file.read_mapping` names
    """
    file = os.fsdecode(path)
    content = read_mapping(file)
    section = content["model"] if isinstance(content.get("model"), dict) else content
    known = _known()
    check_keys((key for key in section if str(key).startswith(_OURS)), known, f"{file}: ")
    ours = {key: value for key, value in section.items() if key in known}
    log.info("%s: the face loss reads %s; the other %d keys are the trainer's", file, ", ".join(ours) or "nothing", len(section) - len(ours))
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

    Raises:
        ValueError: a key is unknown, or keys contradict each other
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        # Before any model is looked for: a misspelt key is the nearer cause.
        check_keys(config, _known())
        keys = dict(config)
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
        if self.score:
            # InsightFace's score aligns by landmarks, whatever the loss would do.
            keys["face_loss_type"], keys["face_align_mode"] = "differentiable", "kps"
        self.keys: dict[str, Any] = keys


def layer_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """The weights by level: the given ones, or the method's for None."""
    if weights is None:
        return dict(LEVELS)
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"multiscale_layer_weights: expected weights by level, such as {LEVELS}, got {weights!r}")
    return {str(name): float(weight) for name, weight in weights.items()}


def _flag(keys: dict[str, Any], name: str, default: bool = False) -> bool:
    value = keys.pop(name, None)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value!r}")
    return value
