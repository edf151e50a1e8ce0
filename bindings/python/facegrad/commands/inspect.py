"""Show the faces of pictures, their scores and their similarities.

The command prints a table, and writes a sheet with boxes, landmarks, aligned crops and similarities.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .._library import FacegradError
from ..evaluate import RETRY_SIZES, EmbeddedFace, Evaluator
from ..images import ImageError, image_files, read_image, shown
from ..packs import PACKS, find_pack
from ..sheet import MOST_PANELS, Mark, Panel, draw_sheet

EPILOG = """exit codes:
  0  every picture shows a face
  2  a wrong argument
  3  a picture could not be read, or there was none (the others are shown)
  4  all were read, and a picture shows no face
  5  the models or what runs them are missing
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures, or folders of them")
    parser.add_argument("--pack", default="buffalo_l", choices=list(PACKS), help="the models (default: %(default)s)")
    parser.add_argument("--root", help="the folder that the pack is in (default: ~/.insightface)")
    parser.add_argument("--detector", help="an SCRFD ONNX file instead of the pack's")
    parser.add_argument("--recogniser", help="a recogniser's ONNX file instead of the pack's")
    parser.add_argument("--det-size", type=int, nargs="+", default=[640], metavar="SIDE", help="detection sizes, merged (default: 640)")
    parser.add_argument("--no-retry", action="store_true", help="do not try smaller sizes where a picture seems to show no face")
    parser.add_argument("--min-size", type=float, default=0, metavar="PIXELS", help="leave smaller faces out")
    parser.add_argument("--engine", default="auto", choices=["auto", "ort", "torch"], help="what runs the models (default: %(default)s)")
    parser.add_argument("--provider", action="append", default=[], help="an execution provider of ONNX Runtime; may be given again")
    parser.add_argument("--sheet", default="faces.png", help="where the sheet goes (default: %(default)s); empty: nowhere")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        evaluator = _evaluator(arguments)
    except (FileNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 5
    files, unreadable = _files(arguments.images)
    looked = _Looked(evaluator, with_sheet=bool(arguments.sheet))
    width = max((len(shown(file.name)) for file in files), default=0)
    for file in files:
        try:
            marks = looked.look(file)
        except (ImageError, FacegradError, MemoryError) as error:
            print(error if isinstance(error, ImageError) else f"{shown(file)}: {error or 'out of memory'}", file=sys.stderr)
            unreadable = True
            continue
        if looked.pictures == 1:
            print(f"{'picture':{width}}  face  score   size      at")
        _print(f"{shown(file.name):{width}}", marks)
    if not looked.pictures:
        return 3
    if looked.embeddings:
        rows = torch.stack(looked.embeddings)
        similarities = rows @ rows.T
        _print_similarities(similarities)
    if arguments.sheet:
        draw_sheet(arguments.sheet, looked.panels, similarities if looked.embeddings else None)
        left_out = looked.pictures - len(looked.panels)
        print(f"\nsheet: {arguments.sheet}" + (f", without the last {left_out} of {looked.pictures} pictures" if left_out else ""))
    if unreadable:
        return 3
    return 4 if looked.faceless else 0


def _evaluator(arguments: argparse.Namespace) -> Evaluator:
    detector, recogniser = arguments.detector, arguments.recogniser
    if detector is None or recogniser is None:
        files = find_pack(arguments.pack, arguments.root)
        detector, recogniser = detector or files.detector, recogniser or files.recogniser
    return Evaluator(
        detector, recogniser, det_sizes=arguments.det_size, min_size=arguments.min_size, engine=arguments.engine,
        providers=arguments.provider, retry_sizes=() if arguments.no_retry else RETRY_SIZES,
        retry_padding=0.0 if arguments.no_retry else 0.5,
    )  # fmt: skip


def _files(paths: list[str]) -> tuple[list[Path], bool]:
    """The files of the pictures, and whether a named path has none."""
    files: list[Path] = []
    unreadable = False
    for path in paths:
        try:
            files += image_files([path])
        except ImageError as error:
            print(error, file=sys.stderr)
            unreadable = True
    return files, unreadable


class _Looked:
    """Embeddings of the pictures so far, and small copies for the sheet. One picture is in memory at a time.

    Attributes:
        pictures: how many pictures could be read
        faceless: how many of them show no face
        embeddings: the embeddings of all faces, in order
        panels: the sheet's panels of the first pictures
    """

    def __init__(self, evaluator: Evaluator, with_sheet: bool) -> None:
        self._evaluator, self._with_sheet = evaluator, with_sheet
        self.pictures = self.faceless = 0
        self.embeddings: list[torch.Tensor] = []
        self.panels: list[Panel] = []

    def look(self, file: Path) -> list[tuple[str, EmbeddedFace]]:
        """The faces of a picture with their names."""
        image = read_image(file)
        faces = self._evaluator.faces(image[None])[0]
        named = [(str(len(self.embeddings) + at + 1), face) for at, face in enumerate(faces)]
        if self._with_sheet and len(self.panels) < MOST_PANELS:
            crops = self._evaluator.align(image[None], [faces])
            marks = [Mark(face, crop.cpu(), name, f"score {face.score:.2f}") for (name, face), crop in zip(named, crops)]
            self.panels.append(Panel.small(shown(file.name), image, marks))
        self.pictures += 1
        self.faceless += not faces
        self.embeddings += [face.embedding for face in faces]
        return named


def _print(title: str, faces: list[tuple[str, EmbeddedFace]]) -> None:
    if not faces:
        print(f"{title}     –  no face was found")
    for name, face in faces:
        x1, y1, x2, y2 = face.bbox
        print(f"{title}  {name:>4}  {face.score:.3f}  {x2 - x1:4.0f}×{y2 - y1:<4.0f}  {x1:.0f},{y1:.0f}")


def _print_similarities(similarities: torch.Tensor) -> None:
    count = len(similarities)
    if count < 2:
        return
    print("\nsimilarity (cosine; photographs of one person lie near 0.5 and above, of different people near 0)")
    print("face " + "".join(f"{at + 1:7}" for at in range(count)))
    for at, row in enumerate(similarities.tolist()):
        print(f"{at + 1:4} " + "".join("      –" if at == other else f"{value:7.3f}" for other, value in enumerate(row)))
