"""Runs a trainer's script, with or without the face loss, and writes what its optimiser steps saw.

    python probe.py REPORT.json [--face face.yaml | --watch] [--told] [--before FILE.py] SCRIPT ARGUMENTS…

--watch: the trainer has the face loss switched on by its own configuration.

The report has, per optimiser step, the norm of the LoRA's gradient and how many of its tensors have one, and per call of the
face loss the convention, how far ``a·x_t + b·target`` is from the true clean latents, and how many samples counted. With
--told the detector is told a face in the middle of every picture: random decoders draw none. FILE.py is run before the script,
with the script's folder importable: it makes a trainer's fixed sizes small.
"""

from __future__ import annotations

import json
import random
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

report: dict[str, list] = {"steps": [], "calls": []}


def on_step(optimizer: torch.optim.Optimizer, args: object, options: object) -> None:
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = sum(float(g.double().square().sum()) for g in grads) ** 0.5
    report["steps"].append(
        {"norm": norm, "tensors": sum(len(group["params"]) for group in optimizer.param_groups), "moved": sum(bool(g.any()) for g in grads)}
    )


def watch_face() -> None:
    import facegrad.trainers.face as module

    before, conventions = module.TrainerFace.step, module.fit

    def fit(latents, x_t, target, noise=None, *rest):
        found = conventions(latents, x_t, target, noise, *rest)
        shape = (-1, *[1] * (x_t.dim() - 1))
        a, b = (c.to(x_t.device).view(shape) for c in (found.a, found.b))
        one, two = a * x_t.double(), b * target.double()
        # Relative to the largest term: where little signal is left, rounding in x_t and target grows with them.
        error = (one + two - latents.double()).norm() / max(latents.double().norm(), one.norm(), two.norm())
        report["calls"].append(
            {
                "convention": str(found),
                "names": [replace(found, kind=kind, negated=negated).formula for kind, negated in found.names],
                "error": float(error),
                "dtype": str(x_t.dtype),
                "shape": list(x_t.shape),
                "levels": found.level.tolist(),
            }
        )
        return found

    def step(self, **arguments):
        calls = len(report["calls"])
        value = before(self, **arguments)
        if len(report["calls"]) == calls:
            report["calls"].append({})
        report["calls"][-1] |= {"value": value.item(), "logs": self.logs(), "prediction": str(arguments["prediction"].dtype)}
        return value

    module.fit, module.TrainerFace.step = fit, step


def tell_faces() -> None:
    import facegrad.models

    def detect(self, images):
        height, width = images.shape[-2:]
        points = ((0.34, 0.45), (0.66, 0.45), (0.5, 0.6), (0.37, 0.75), (0.63, 0.75))
        face = facegrad.models.Face(
            (0.2 * width, 0.2 * height, 0.8 * width, 0.9 * height), 0.9, tuple((x * width, y * height) for x, y in points)
        )
        return [[face] for _ in images]

    facegrad.models.Detector.detect = detect


def main() -> None:
    out, arguments = Path(sys.argv[1]), sys.argv[2:]
    face = None
    if arguments[0] == "--face":
        face, arguments = arguments[1], arguments[2:]
    watch = face is not None
    if arguments[0] == "--watch":
        watch, arguments = True, arguments[1:]
    told = arguments[0] == "--told"
    arguments = arguments[told:]
    before = None
    if arguments[0] == "--before":
        before, arguments = arguments[1], arguments[2:]
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    if before is not None:
        runpy.run_path(before)
    torch.set_num_threads(1)
    # For what a trainer draws before it sets its own seed, or without one.
    torch.manual_seed(0)
    random.seed(0)
    register_optimizer_step_pre_hook(on_step)
    if watch:
        watch_face()
    if told:
        tell_faces()
    try:
        if face is not None:
            from facegrad.__main__ import main as facegrad_main

            facegrad_main(["train", arguments[0], "--face", face, *arguments[1:]])
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
