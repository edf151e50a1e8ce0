"""facegrad's nodes for ComfyUI."""

from typing import Any

from comfy_api.latest import ComfyExtension, io

from . import host
from .chain import DecodeOnTape, FaceLossOnTape, GradientOfLoss, PredictX0, UnpackLatent
from .examples import ExamplePictures
from .faces import AlignedFaceCrops, DetectFaces, PickFace
from .loaders import DownloadFacePack, LoadFaceDetector, LoadFacePack, LoadFaceRecogniser, VaeForFaceLoss
from .people import FaceReference, LoadFaceReference, SaveFaceReference
from .similarity import FaceSimilarity, SortBySimilarity
from .training import FaceIdentityLoss, FaceLossLog

#: Their ids are what saved graphs hold; they never change.
NODES: list[type[io.ComfyNode]] = [
    LoadFacePack,
    LoadFaceDetector,
    LoadFaceRecogniser,
    VaeForFaceLoss,
    DownloadFacePack,
    LoadFaceReference,
    FaceReference,
    SaveFaceReference,
    ExamplePictures,
    DetectFaces,
    PickFace,
    AlignedFaceCrops,
    FaceSimilarity,
    SortBySimilarity,
    FaceIdentityLoss,
    FaceLossLog,
    PredictX0,
    UnpackLatent,
    DecodeOnTape,
    FaceLossOnTape,
    GradientOfLoss,
]


class Facegrad(ComfyExtension):
    """What ComfyUI loads."""

    async def on_load(self) -> None:
        host.add_folders()

    async def get_node_list(self) -> Any:
        return NODES


async def comfy_entrypoint() -> Facegrad:
    """ComfyUI's entry."""
    return Facegrad()
