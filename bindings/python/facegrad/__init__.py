"""A differentiable face identity loss for diffusion training.

>>> face = facegrad.FaceIdentityLoss({"face_align_mode": "kps"}, vae=pipe.vae)  # doctest: +SKIP
>>> loss, report = face(x_t=x_t, prediction=v, t=t, references=pictures, data_types=kinds)  # doctest: +SKIP
>>> (mse + loss).backward()  # doctest: +SKIP

Messages of the library (skipped samples, fallbacks) go to the logger ``facegrad``.
"""

from . import _abi, _part

if not _part.building():
    from ._library import FacegradError, build_info, live, version
    from .evaluate import EmbeddedFace, Evaluator
    from .graph import Graph
    from .identity import FaceIdentityLoss
    from .iresnet import IResNet, iresnet50, iresnet100
    from .loss import FaceLoss
    from .models import Detector, Face, Recogniser
    from .modules import DifferentiableFaceLoss, DifferentiableFaceLossWrapper
    from .report import Alignment, Decoded, Details, Located, Outcome, Report, Sample
    from .sampler import sampler_step
    from .score import ArcFaceLoss, FaceLossWrapper
    from .vae import Vae

__all__ = [
    "Alignment",
    "ArcFaceLoss",
    "Decoded",
    "Details",
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
    "IResNet",
    "Located",
    "Outcome",
    "Recogniser",
    "Report",
    "Sample",
    "Vae",
    "build_info",
    "iresnet50",
    "iresnet100",
    "live",
    "sampler_step",
    "version",
]
__version__ = _abi.VERSION
