"""A differentiable face identity loss for diffusion training.

>>> loss = facegrad.DifferentiableFaceLoss("r50", "w600k_r50.onnx", device="cuda", align_mode="kps")  # doctest: +SKIP
>>> total = mse + 0.1 * loss(ref_images, gen_images)  # doctest: +SKIP

Messages of the library (skipped samples, fallbacks) go to the logger ``facegrad``.
"""

from ._library import FacegradError, build_info, live, version
from .loss import Alignment, Decoded, DifferentiableFaceLoss, FaceLoss, Located, Outcome, Report, Sample
from .models import Detector, Face, Recogniser

__all__ = [
    "Alignment",
    "Decoded",
    "Detector",
    "DifferentiableFaceLoss",
    "Face",
    "FaceLoss",
    "FacegradError",
    "Located",
    "Outcome",
    "Recogniser",
    "Report",
    "Sample",
    "build_info",
    "live",
    "version",
]
__version__ = "0.1.0"
