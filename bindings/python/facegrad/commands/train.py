"""Start a trainer's own script with the face loss.

The trainers are diffusers' DreamBooth LoRA scripts, sd-scripts, musubi-tuner, ai-toolkit, SimpleTuner, OneTrainer and
diffusion-pipe.

Everything after the script is an argument of the script. --face FILE may stand anywhere among the arguments and names the
YAML file with the section face_loss. With several processes: accelerate launch -m facegrad train SCRIPT --face face.yaml ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """example:
  facegrad train train_dreambooth_lora_flux.py --face face.yaml --pretrained_model_name_or_path ...
exit codes: the script's own; 2 a wrong argument"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("script", type=Path, help="the trainer's own script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's arguments, and --face FILE among them")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    rest, face = _face(arguments.arguments)
    from ..trainers.face import TrainerFace, show_log
    from ..trainers.start import run as start

    show_log()
    if not arguments.script.is_file():
        raise SystemExit(f"facegrad train: {arguments.script}: no such script")
    start(arguments.script, rest, TrainerFace(face))
    return 0


def _face(arguments: list[str]) -> tuple[list[str], str]:
    """The script's own arguments, and the file that --face names."""
    for at, argument in enumerate(arguments):
        if argument == "--face" and at + 1 < len(arguments):
            return arguments[:at] + arguments[at + 2 :], arguments[at + 1]
        if argument.startswith("--face="):
            return arguments[:at] + arguments[at + 1 :], argument.split("=", 1)[1]
    raise SystemExit("facegrad train: --face FILE is missing: the YAML file with the section face_loss")
