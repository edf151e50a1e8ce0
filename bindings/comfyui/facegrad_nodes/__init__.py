"""facegrad's nodes for ComfyUI."""

from . import host
from .chain import DecodeOnTape, FaceLossOnTape, GradientOfLoss, PredictX0, UnpackLatent
from .faces import AlignedFaceCrops, DetectFaces, FaceReference, FaceSimilarity, LoadFaceReference, SaveFaceReference
from .loaders import LoadFaceDetector, LoadFacePack, LoadFaceRecogniser, VaeForFaceLoss
from .training import FaceIdentityLoss, FaceLossLog

_NODES = {
    LoadFacePack: "Load Face Pack",
    LoadFaceDetector: "Load Face Detector",
    LoadFaceRecogniser: "Load Face Recogniser",
    VaeForFaceLoss: "VAE for Face Loss",
    LoadFaceReference: "Load Face Reference",
    FaceReference: "Face Reference",
    SaveFaceReference: "Save Face Reference",
    DetectFaces: "Detect Faces",
    AlignedFaceCrops: "Aligned Face Crops",
    FaceSimilarity: "Face Similarity",
    FaceIdentityLoss: "Face Identity Loss",
    FaceLossLog: "Face Loss Log",
    PredictX0: "Predict x0",
    UnpackLatent: "Unpack Latent",
    DecodeOnTape: "Decode (with gradient)",
    FaceLossOnTape: "Face Loss (with gradient)",
    GradientOfLoss: "Gradient of Loss",
}

#: The ids that saved graphs hold; they never change.
NODE_CLASS_MAPPINGS = {f"Facegrad{node.__name__}": node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {f"Facegrad{node.__name__}": name for node, name in _NODES.items()}

host.add_folders()
