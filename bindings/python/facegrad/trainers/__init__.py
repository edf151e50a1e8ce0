"""The face loss in common trainers.

- :class:`TrainerFace` is configured by the section ``face_loss`` of a YAML file and called with a trainer's own tensors.
- :class:`FaceTerm` below it is for a training loop of your own.
- :class:`Rollout` computes the same loss on images that the model makes from noise.
- One small module per trainer puts the call where that trainer computes its loss. No trainer is edited, and a module is
  imported only when its trainer runs.

::

    python -m facegrad train SCRIPT --face face.yaml …
    from facegrad.trainers import TrainerFace

docs/trainers.md has the lines for each trainer.
"""

from .convention import Convention, ConventionError, fit
from .face import TrainerFace
from .rollout import Rollout, RolloutReport
from .section import Section, read_section
from .term import FaceTerm, noisy_latents, person_types

__all__ = [
    "Convention",
    "ConventionError",
    "FaceTerm",
    "Rollout",
    "RolloutReport",
    "Section",
    "TrainerFace",
    "fit",
    "noisy_latents",
    "person_types",
    "read_section",
]
