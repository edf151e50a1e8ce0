"""Who is on a picture, in the eyes of one recogniser."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def largest_face(detector, picture: torch.Tensor):
    """(box [4], landmarks [1, 5, 2]) of the largest face in [1, 3, H, W], or None."""
    found = detector.detect(picture)[0]
    if not found:
        return None
    area = lambda f: (float(f.bbox[2]) - float(f.bbox[0])) * (float(f.bbox[3]) - float(f.bbox[1]))
    best = max(found, key=area)
    as_tensor = lambda v, *shape: torch.as_tensor(np.asarray(v), dtype=torch.float32).reshape(*shape)
    return as_tensor(best.bbox, 4), as_tensor(best.landmarks, 1, 5, 2)


class Judge:
    """Cosine similarity to a person's mean embedding. `references`: [K, 3, H, W] in [0, 1], a face in each."""

    def __init__(self, recogniser, detector, references: torch.Tensor) -> None:
        self.recogniser, self.detector = recogniser, detector
        seen = [e for e in map(self._embed, references.split(1)) if e is not None]
        if not seen:
            raise ValueError("no reference picture shows a face")
        self.target = F.normalize(torch.cat(seen).mean(0, keepdim=True))

    @torch.no_grad()
    def _embed(self, picture: torch.Tensor) -> torch.Tensor | None:
        face = largest_face(self.detector, picture)
        return None if face is None else F.normalize(self.recogniser.embed(picture, face[1]))

    def __call__(self, pictures: torch.Tensor) -> list[float]:
        """One cosine a picture, nan where the detector sees no face."""
        found = map(self._embed, pictures.split(1))
        return [float("nan") if e is None else float(e @ self.target.T) for e in found]
