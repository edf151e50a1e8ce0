"""A differentiable face identity loss for diffusion training.

>>> face = facegrad.FaceIdentityLoss({"face_align_mode": "kps"}, vae=pipe.vae)  # doctest: +SKIP
>>> loss, report = face(x_t=x_t, prediction=v, t=t, references=pictures, data_types=kinds)  # doctest: +SKIP
>>> (mse + loss).backward()  # doctest: +SKIP

Messages of the library (skipped samples, fallbacks) go to the logger ``facegrad``.
"""

from ._library import FacegradError, build_info, live, version
from .evaluate import ArcFaceLoss, EmbeddedFace, Evaluator, FaceLossWrapper
from .graph import Graph
from .identity import FaceIdentityLoss
from .loss import FaceLoss
from .models import Detector, Face, Recogniser
from .modules import DifferentiableFaceLoss, DifferentiableFaceLossWrapper
from .report import Alignment, Decoded, Located, Outcome, Report, Sample
from .sampler import sampler_step
from .vae import Vae

__all__ = [
    "Alignment",
    "ArcFaceLoss",
    "Decoded",
    "Detector",
    "DifferentiableFaceLoss",
    "DifferentiableFaceLossWrapper",
    "EmbeddedFace",
    "Evaluator",
    "Face",
    "FaceIdentityLoss",
    "FaceLoss",
    "FaceLossWrapper",
    "FacegradError",
    "Graph",
    "Located",
    "Outcome",
    "Recogniser",
    "Report",
    "Sample",
    "Vae",
    "build_info",
    "live",
    "sampler_step",
    "version",
]
__version__ = "0.1.0"
