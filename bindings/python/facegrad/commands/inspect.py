"""Show the faces of pictures, their scores and who resembles whom.

Prints a table and writes a sheet with boxes, landmarks, aligned crops and similarities.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..evaluate import RETRY_SIZES, EmbeddedFace, Evaluator
from ..images import ImageError, image_files, read_image
from ..packs import PACKS, find_pack
from ..sheet import Mark, Panel, draw_sheet

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
    panels, faces, unreadable = _look(arguments.images, evaluator)
    if not panels:
        return 3
    _print(panels, faces)
    if arguments.sheet:
        rows = torch.stack([face.embedding for face in faces]) if faces else None
        draw_sheet(arguments.sheet, panels, None if rows is None else rows @ rows.T)
        print(f"\nsheet: {arguments.sheet}")
    if unreadable:
        return 3
    return 0 if all(panel.marks for panel in panels) else 4


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


def _look(paths: list[str], evaluator: Evaluator) -> tuple[list[Panel], list[EmbeddedFace], bool]:
    """A panel for every picture, all faces in their order, and whether something could not be read."""
    panels: list[Panel] = []
    all_faces: list[EmbeddedFace] = []
    files: list[Path] = []
    unreadable = False
    for path in paths:
        try:
            files += image_files([path])
        except ImageError as error:
            print(error, file=sys.stderr)
            unreadable = True
    for file in files:
        try:
            image = read_image(file)
        except ImageError as error:
            print(error, file=sys.stderr)
            unreadable = True
            continue
        faces = evaluator.faces(image[None])[0]
        crops = evaluator.align(image[None], [faces])
        marks = [
            Mark(face, crop.cpu(), str(len(all_faces) + at + 1), f"score {face.score:.2f}")
            for at, (face, crop) in enumerate(zip(faces, crops))
        ]  # fmt: skip
        all_faces += faces
        panels.append(Panel(file.name, image, marks))
    return panels, all_faces, unreadable


def _print(panels: list[Panel], faces: list[EmbeddedFace]) -> None:
    width = max(len(panel.title) for panel in panels)
    print(f"{'picture':{width}}  face  score   size      at")
    for panel in panels:
        if not panel.marks:
            print(f"{panel.title:{width}}     –  no face was found")
        for mark in panel.marks:
            x1, y1, x2, y2 = mark.face.bbox
            print(f"{panel.title:{width}}  {mark.name:>4}  {mark.face.score:.3f}  {x2 - x1:4.0f}×{y2 - y1:<4.0f}  {x1:.0f},{y1:.0f}")
    if len(faces) > 1:
        rows = torch.stack([face.embedding for face in faces])
        print("\nsimilarity (cosine; photographs of one person lie near 0.5 and above, of different people near 0)")
        print("face " + "".join(f"{at + 1:7}" for at in range(len(faces))))
        for at, row in enumerate((rows @ rows.T).tolist()):
            print(f"{at + 1:4} " + "".join("      –" if at == other else f"{value:7.3f}" for other, value in enumerate(row)))
