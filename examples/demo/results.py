"""Measures the demo over several people and seeds and writes docs/results.md.

    make results
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch
from tqdm import tqdm

from demo import ARMS, NEW_PEOPLE, SAMPLES, World, compare, draw, mean, verdict

import facegrad
import world

COMPARED = ARMS | {"windows": ARMS["with"] | {"decode": "window"}}
VAE_KEEPS = "0.892 ± 0.045 alike"     # examples/demo_assets/train_world.py check
STAGES = ("model", "face loss", "backward", "optimiser")


def images_alone(world_: World, repeats: int = 5) -> float:
    """Seconds of one batch's loss on pictures: alignment and recogniser, forward and backward, without the decoder."""
    import time
    images, landmarks, _ = world.pictures([NEW_PEOPLE], range(4))
    images = images.float() / 255
    loss = facegrad.FaceLoss({"face_align_mode": "kps", "landmarks": "reference"}, recogniser=world_.recogniser)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        loss(images.requires_grad_(), images.detach(), reference_landmarks=landmarks)
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--people", type=int, default=5, help="people, each with a seed of its own (default 5)")
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--state", type=Path, default=Path("out/results"))
    p.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = p.parse_args()
    world_, results, base, real = World(), [], [], []
    people = [NEW_PEOPLE + k for k in range(args.people)]
    with tqdm(total=args.people * len(COMPARED) * args.steps, unit="step") as bar:
        for person in people:
            results.append(compare(world_, person, args.state, bar, arms=COMPARED, steps=args.steps))
            judge = world_.judge_of(person)
            captions = world.pictures([person], range(100, 100 + SAMPLES))[2]
            base.append(mean(judge(draw(world_, world.load_transformer(), captions, 1000 + person - NEW_PEOPLE))))
            real.append(mean(judge(world.pictures([person], range(600, 600 + SAMPLES))[0].float() / 255)))
    args.out.write_text(page(results, base, real, images_alone(world_), args.steps), encoding="utf-8")
    print(f"wrote {args.out}")


def page(results: list[dict], base: list[float], real: list[float], images_seconds: float, steps: int) -> str:
    rows = []
    for k, r in enumerate(results):
        a, b = r["without"].similarity, r["with"].similarity
        rows.append(f"| {k} | {base[k]:.3f} | {a:.3f} | {b:.3f} | {b - a:+.3f} | {r['windows'].similarity:.3f} | {real[k]:.3f} |")
    column = lambda f: [f(r) for r in results]
    gains = column(lambda r: r["with"].similarity - r["without"].similarity)
    total = lambda values: f"{fmean(values):.3f} ± {stdev(values):.3f}"
    rows.append(f"| mean ± deviation | {total(base)} | {total(column(lambda r: r['without'].similarity))} | "
                f"{total(column(lambda r: r['with'].similarity))} | {fmean(gains):+.3f} ± {stdev(gains):.3f} | "
                f"{total(column(lambda r: r['windows'].similarity))} | {total(real)} |")
    last = lambda arm: fmean(fmean(r[arm].history.mse[-30:]) for r in results)
    stage = {arm: {s: 1e3 * fmean(r[arm].history.seconds[s] for r in results) / steps for s in STAGES} for arm in COMPARED}
    plain = sum(stage["without"].values())
    face = stage["with"]["face loss"]
    split = min(1e3 * images_seconds, face)
    row = lambda name, without, with_: f"| {name} | {without} | {with_:.0f} | {100 * (with_ - float(without or 0)) / plain:+.0f} % |"
    times = [row(s, f"{stage['without'][s]:.0f}", stage["with"][s]) for s in STAGES]
    times.insert(2, row("— of it x0, VAE decoder and the way back", "", face - split))
    times.insert(3, row("— of it alignment and recogniser", "", split))
    times.append(row("a step", f"{plain:.0f}", sum(stage["with"].values())))
    seen = fmean(fmean(v for v in r["with"].history.similarity[-30:] if v == v) for r in results)
    return TEMPLATE.format(rows="\n".join(rows), times="\n".join(times), verdict=verdict(results, base, real), steps=steps, samples=SAMPLES,
                           people=len(results), without=last("without"), with_=last("with"), seen=seen, vae=VAE_KEEPS, error=stdev(gains) / len(gains) ** .5,
                           windows=total(column(lambda r: r["windows"].similarity - r["with"].similarity)),
                           machine=f"{torch.get_num_threads()} thread(s), {platform.machine()}, torch {torch.__version__}")


TEMPLATE = """# Does the face loss help a LoRA?

Written by `make results` (`examples/demo/results.py`); `make demo` shows the same on three of the people.

A small FLUX transformer that has learnt to draw people in general ([how](../examples/demo_assets/README.md)) gets a LoRA
of one person it has never seen, from five pictures, {steps} steps of batch 4, λ = 0.1. It is trained twice from the same
seed: same pictures, noise and noise levels, without and with the face loss. Then each LoRA draws {samples} pictures with
captions (pose, expression, light) that were not trained on. A recogniser of another architecture, trained on other people,
which gave no gradient, compares them with twelve other pictures of the person. A sample without a face counts as 0.

| person and seed | base model | LoRA without | LoRA with | gain | with, `decode: window` | the person's other pictures |
|---|---|---|---|---|---|---|
{rows}

{verdict}

The standard error of the gain over the {people} people is {error:.3f}. The diffusion loss of the last 30 steps is
{without:.4f} without and {with_:.4f} with the face loss.

With `decode: window` and remembered statistics the same training differs by {windows}. A face fills
these small pictures, so their windows save little; the column shows that nothing is lost ([what they save](performance.md)).

The gain is small here. Two things bound it. The training pictures are their own references, and at the end of the training
the recogniser already gives the x0 estimates a similarity of {seen:.2f} to them: little gradient is left, and what remains
wrong in a sample comes from many steps of the sampler, not from one estimate. And this small VAE blurs: a picture and its
reconstruction are {vae} to the judge, so no sample can reach the person's other pictures. Neither is tuned away.

## What a step costs

Milliseconds a step of batch 4, means over all runs, both arms in one process ({machine}, other work on the machine).
The model is tiny here, so the VAE's decoder and the recogniser, which a large model dwarfs, are most of a step.

| stage | without | with | of a step without |
|---|---|---|---|
{times}
"""


if __name__ == "__main__":
    main()
