"""See facegrad work: the same LoRA of one person trained three times and judged: without the face loss, with it on the training
pairs, and with it on what the model makes of noise too.

    python examples/demo/demo.py                # out/demo.png and a verdict
    python examples/demo/demo.py --people 1     # one person: the fastest

The base model is a small FLUX that has learnt to draw people, none of them this one. All trainings see the same
five pictures, noise and noise levels; only the loss differs. The verdict comes from a recogniser of another
architecture that never gave a gradient, on samples with captions that were not trained on. Ctrl-C stops it, the
same command goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parent / "demo_assets"
sys.path[:0] = [str(HERE), str(ASSETS)]

try:
    import torch
    from tqdm import tqdm

    import facegrad
    import world
    from judge import Judge
    from lora import History, LoraRun, Settings
    from sheet import draw_sheet
    from facegrad.trainers import FaceTerm, Rollout
except ImportError as missing:
    sys.exit(f"The demo needs {missing.name!r} ({missing}): run `make setup build`, or `make demo`.")

NEW_PEOPLE = 9_000_000       # no network of the demo has ever seen anybody from here on
SAMPLES, JUDGE_EVERY = 16, 25
#: Two pictures of a drawn person are .84 alike to the recogniser, two photographs of a person about .5: more may be asked for here.
TARGET = (("target_similarity", 0.9),)
#: In a training of 100 steps, every step may have a rollout.
EVERY = (*TARGET, ("every_n_steps", 1))
ARMS = {"plain": {"face_weight": 0.0}, "pair": {"face_weight": 0.5}, "rollouts": {"face_weight": 0.5, "rollout_weight": 0.2, "guard": EVERY}}


class World:
    """The models that every run shares."""

    def __init__(self) -> None:
        self.vae = world.load_vae()
        self.detector = facegrad.Detector(str(ASSETS / "detector.onnx"), det_sizes=[160])
        self.recogniser = facegrad.Recogniser(str(ASSETS / "recogniser.safetensors"))
        self.judge = facegrad.Recogniser(str(ASSETS / "judge.onnx"))
        self.decoder = facegrad.Vae(self.vae)

    def losses(self, settings: Settings):
        """The face loss of a FLUX trainer, and the rollouts' own; None for what has no weight. The person's pictures are one
        reference. In a pair the generated face is where the training picture has it; in a rollout it has to be found."""
        config = {"face_loss_weight": settings.face_weight, "face_align_mode": "kps", "packing": "flux", "decode": settings.decode,
                  "time_weight": settings.time_weight, "reference_mode": "best" if settings.reference == "best" else "centroid"}
        loss = facegrad.FaceIdentityLoss(config, vae=self.decoder, detector=self.detector, recogniser=self.recogniser)
        images, landmarks, _ = world.pictures([settings.person], range(settings.pictures))
        loss.set_reference("person", images.float() / 255, landmarks)
        return (FaceTerm(loss) if settings.face_weight else None,
                Rollout(loss, weight=settings.rollout_weight, **dict(settings.guard)) if settings.rollout_weight else None)

    def judge_of(self, person: int) -> Judge:
        """Knows the person from twelve pictures that no training sees."""
        images, _, _ = world.pictures([person], range(500, 512))
        return Judge(self.judge, self.detector, images.float() / 255)


@dataclass
class Result:
    """One arm of one person: samples [16, 3, 64, 64] in [0, 1] and the judge's cosine for each, nan without a face."""

    samples: torch.Tensor
    cosines: list[float]
    history: History

    @property
    def similarity(self) -> float:
        return mean(self.cosines)


def mean(cosines: list[float]) -> float:
    """A sample without a face resembles nobody: it counts as 0."""
    return fmean(0.0 if math.isnan(c) else c for c in cosines)


def draw(world_: World, transformer, captions: torch.Tensor, seed: int) -> torch.Tensor:
    return world.decode(world_.vae, world.sample(transformer, captions, seed=seed))


def train(world_: World, run: LoraRun, judge: Judge, captions: torch.Tensor, bar, curve: bool = True) -> Result:
    """Trains what is left of a run, saves on the way, and draws the samples. `curve`: the judge is asked on the way too."""
    seed = 1000 + run.settings.seed
    try:
        while True:
            judged = run.history.judged
            if run.step % JUDGE_EVERY == 0 and (not judged or judged[-1][0] < run.step):
                if curve:
                    judged.append((run.step, mean(judge(draw(world_, run.transformer, captions[:8], seed)))))
                run.save()
            if run.finished:
                break
            figures = run.advance()
            bar.set_postfix({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in figures.items()}, refresh=False)
            bar.update()
    finally:
        run.save()
    samples = draw(world_, run.transformer, captions, seed)
    return Result(samples, judge(samples), run.history)


def compare(world_: World, person: int, folder: Path, bar, arms=ARMS, curve: bool = True, **settings) -> dict[str, Result]:
    """All arms of one person, each from the same seed."""
    judge = world_.judge_of(person)
    _, _, captions = world.pictures([person], range(100, 100 + SAMPLES))
    results = {}
    for arm, own in arms.items():
        wanted = Settings(person, seed=person - NEW_PEOPLE, **{**settings, **own})
        run = LoraRun(wanted, world_.vae, *world_.losses(wanted), folder / f"{person}-{arm}.pt")
        bar.set_description(f"person {person - NEW_PEOPLE}, {arm:8}")
        bar.update(run.step)
        results[arm] = train(world_, run, judge, captions, bar, curve)
    return results


def spread(values: list[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}"


def verdict(results: list[dict[str, Result]], base: list[float], real: list[float]) -> str:
    """The comparison of the arms in one sentence, and what it is to be seen against. The error is that of the mean over the
    samples, which are paired by noise and caption: it is about these people (docs/results.md is about people in general)."""
    column = lambda arm: [0.0 if math.isnan(c) else c for r in results for c in r[arm].cosines]

    def gain(arm: str) -> tuple[float, float]:
        gains = [b - a for a, b in zip(column("plain"), column(arm))]
        return fmean(gains), stdev(gains) / len(gains) ** .5

    parts = []
    for arm, words in (("pair", "on the training pairs"), ("rollouts", "on rollouts too")):
        by, error = gain(arm)
        helps = "helps" if by > 2 * error else "does not show" if by > -2 * error else "harms"
        parts.append(f"with the face loss {words} {fmean(column(arm)):.3f} ({by:+.3f} ± {error:.3f}, it {helps})")
    cosines = [c for r in results for arm in ARMS for c in r[arm].cosines]
    seconds = lambda arm: fmean(sum(r[arm].history.seconds.values()) / max(len(r[arm].history.mse), 1) for r in results)
    people = "one person" if len(results) == 1 else f"{len(results)} people"
    return "\n".join([
        f"An independent judge's similarity to the person: {fmean(column('plain')):.3f} without, {parts[0]}, {parts[1]} "
        f"(mean over {SAMPLES * len(results)} samples of {people} ± standard error of the paired difference).",
        f"For scale: base model {fmean(base):.3f}, other pictures of the person {fmean(real):.3f}. {sum(not math.isnan(c) for c in cosines)} of "
        f"{len(cosines)} samples show a face. A step takes {seconds('pair') / seconds('plain'):.1f} and "
        f"{seconds('rollouts') / seconds('plain'):.1f} times one without."])


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--people", type=int, default=2, help="how many new people, each with a seed of its own (default 2)")
    p.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    p.add_argument("--steps", type=int, default=100, help="optimiser steps of each training (default 100)")
    p.add_argument("--fresh", action="store_true", help="forget trainings that are in the state folder")
    p.add_argument("--state", type=Path, default=Path("out/demo"), help="where stopped trainings lie (default out/demo)")
    p.add_argument("--out", type=Path, default=Path("out/demo.png"), help="the picture to write (default out/demo.png)")
    args = p.parse_args()
    if args.people < 1 or args.steps < 1:
        p.error("--people and --steps must be at least 1")
    return args


def main() -> None:
    args = parse()
    people = [NEW_PEOPLE + args.first + k for k in range(args.people)]
    if args.fresh:
        for person in people:
            for arm in ARMS:
                (args.state / f"{person}-{arm}.pt").unlink(missing_ok=True)
    began, world_ = time.time(), World()
    results, base, real = [], [], []
    with tqdm(total=len(people) * len(ARMS) * args.steps, unit="step") as bar:
        try:
            for person in people:
                results.append(compare(world_, person, args.state, bar, steps=args.steps))
                judge = world_.judge_of(person)
                _, _, captions = world.pictures([person], range(100, 100 + SAMPLES))
                base.append(mean(judge(draw(world_, world.load_transformer(), captions, 1000 + person - NEW_PEOPLE))))
                real.append(mean(judge(world.pictures([person], range(600, 600 + SAMPLES))[0].float() / 255)))
        except KeyboardInterrupt:
            sys.exit(f"\nStopped; the same command goes on from here (state in {args.state}).")
    words = verdict(results, base, real)
    references = world.pictures([people[0]], range(5))[0].float() / 255
    draw_sheet(args.out, references, results, words)
    print(f"\n{words}\n\n{time.time() - began:.0f} s. Look at {args.out}")


if __name__ == "__main__":
    main()
