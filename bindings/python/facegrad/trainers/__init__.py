"""The face loss in the trainers people use: :class:`FaceTerm` for a loop of one's own, :class:`Rollout` for the same loss on
what the model makes of noise, and one small module for each
trainer that has a hook for a further loss. None of them needs a fork, and none is imported before it is asked for::

    from facegrad.trainers import FaceTerm, sd_scripts

Every adapter takes ``targets``, a function from the trainer's batch to what :class:`facegrad.FaceIdentityLoss` is
told beside latents and times: ``references`` or ``reference_ids``, ``data_types``, ``landmarks``, … docs/trainers.md has
the lines to add for each trainer.
"""

from .rollout import Rollout, RolloutReport
from .term import FaceTerm, noisy_latents, person_types

__all__ = ["FaceTerm", "Rollout", "RolloutReport", "noisy_latents", "person_types"]
