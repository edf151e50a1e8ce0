"""The face loss in the trainers people use: :class:`TrainerFace`, configured by the section ``face_loss`` of a YAML file
and called with a trainer's own tensors; :class:`FaceTerm` below it for a loop of one's own; :class:`Rollout` for the same
loss on what the model makes of noise; and one small module for each trainer, which puts the call where the trainer computes
its loss. None of them needs a fork, and none is imported before it is asked for::

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
