"""Measures the demo over many people and writes docs/results.md from what has been measured.

    make results                                           # everything; hours of one core
    python examples/demo/results.py choose guard           # some of the tables
    python examples/demo/results.py verdict --people 3     # for the first of their people
    python examples/demo/results.py --write                # the page alone

Every run leaves its figures in a file, so that a run that was stopped is not lost; the page says how many of each there are.
Settings are chosen on CHOOSE alone; what is said of PEOPLE, who were used for nothing else, follows from these settings.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from statistics import correlation, fmean, stdev

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "demo_assets")]

import torch
import world
from chart import draw_chart
from demo import ARMS, NEW_PEOPLE, SAMPLES, TARGET, World, compare, draw, mean
from tqdm import tqdm

CHOOSE, PEOPLE = tuple(range(8)), tuple(range(10, 18))
OFF = (("gradient_limit", None), ("min_score", 0.0), ("target_similarity", 1.0), ("ramp", 0), ("min_found", 0.0))


def only(*names: str) -> tuple:
    """The guard with no more than the named parts."""
    return tuple((name, value) for name, value in OFF if name not in names) + (TARGET if "target_similarity" in names else ())


def rollouts(weight: float, guard: tuple = TARGET, pair: float = .5) -> dict:
    return {"face_weight": pair, "rollout_weight": weight, "guard": guard}


#: table → (people, steps, arms); the first arm is what gains are against.
TABLES = {
    "room": (CHOOSE, 100, {
        "no face loss": ARMS["plain"],
        "50 steps": ARMS["plain"] | {"steps": 50},
        "rank 4": ARMS["plain"] | {"rank": 4},
        "2 pictures": ARMS["plain"] | {"pictures": 2},
        "2 pictures, 50 steps": ARMS["plain"] | {"pictures": 2, "steps": 50},
        "1 picture": ARMS["plain"] | {"pictures": 1}}),
    "choose": (CHOOSE, 100, {
        "no face loss": ARMS["plain"],
        "pair λ .5, the person": {"face_weight": .5},
        "pair λ .5, rollouts λ .2": rollouts(.2),
        "pair λ .5, rollouts λ .4, limit .5": rollouts(.4, TARGET + (("gradient_limit", .5),)),
        "pair λ .1, own picture": {"face_weight": .1, "reference": "own"},
        "pair λ .5, own picture": {"face_weight": .5, "reference": "own"},
        "pair λ .5, the best picture": {"face_weight": .5, "reference": "best"},
        "pair λ 1, the person": {"face_weight": 1.0},
        "pair λ .5, the person, one_minus_t": {"face_weight": .5, "time_weight": "one_minus_t"},
        "rollouts λ .2 alone": rollouts(.2, pair=0.0),
        "pair λ .5, rollouts λ .1": rollouts(.1),
        "pair λ .5, rollouts λ .4": rollouts(.4)}),
    "guard": ((0, 3, 4), 100, {
        "no face loss": ARMS["plain"],
        "rollouts λ 2, no guard": rollouts(2, OFF),
        "rollouts λ 2, bound on the gradient alone": rollouts(2, only("gradient_limit")),
        "rollouts λ 2, floor of the score alone": rollouts(2, only("min_score")),
        "rollouts λ 2, target similarity alone": rollouts(2, only("target_similarity")),
        "rollouts λ 2, ramp alone": rollouts(2, only("ramp")),
        "rollouts λ 2, the whole guard": rollouts(2)}),
    "verdict": (PEOPLE, 100, {
        "no face loss": ARMS["plain"], "pair": ARMS["pair"], "pair and rollouts": ARMS["rollouts"],
        "pair, decode: window": ARMS["pair"] | {"decode": "window"}}),
    "short": (PEOPLE, 50, {"no face loss": ARMS["plain"], "pair": ARMS["pair"], "pair and rollouts": ARMS["rollouts"]}),
    "long": (PEOPLE[:5], 300, {
        "no face loss": ARMS["plain"], "pair": ARMS["pair"], "pair and rollouts": ARMS["rollouts"],
        "pair, decode: window": ARMS["pair"] | {"decode": "window"},
        "pair, rollouts λ .8": rollouts(.8),
        "pair, rollouts λ .8, min_found 0": rollouts(.8, (*TARGET, ("min_found", 0.0)))}),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One LoRA's figures."""

    cosines: list[float]
    sharpness: float
    mse: float
    seconds: float
    counts: dict[str, float]

    @property
    def similarity(self) -> float:
        return mean([math.nan if c is None else c for c in self.cosines])

    @property
    def faceless(self) -> int:
        return sum(c is None for c in self.cosines)


def sharpness(images: torch.Tensor) -> float:
    """Mean difference of neighbouring pixels, in [0, 1]; needs no reference."""
    return float(images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean())


def measure(world_: World, name: str, person: int, arm: str, folder: Path, bar) -> None:
    _, steps, arms = TABLES[name]
    path = place(folder, steps, person, arm)
    if path.exists():
        bar.update(steps)
        return
    result = compare(world_, NEW_PEOPLE + person, folder / "state", bar, arms={path.stem: arms[arm]}, curve=False, steps=steps)[path.stem]
    h = result.history
    run = Run([None if math.isnan(c) else c for c in result.cosines], sharpness(result.samples), fmean(h.mse[-30:]),
              sum(h.seconds.values()) / len(h.mse), h.seconds)
    path.write_text(json.dumps(run.__dict__))


def place(folder: Path, steps: int, person: int, arm: str) -> Path:
    return folder / f"{steps}-{person}-{''.join(c if c.isalnum() or c in '.' else '_' for c in arm)}.json"


def reference(world_: World, person: int, folder: Path) -> None:
    """What the base model gives, and other pictures of the person."""
    path = place(folder, 0, person, "scale")
    if path.exists():
        return
    judge = world_.judge_of(NEW_PEOPLE + person)
    captions = world.pictures([NEW_PEOPLE + person], range(100, 100 + SAMPLES))[2]
    real = world.pictures([NEW_PEOPLE + person], range(600, 600 + SAMPLES))[0].float() / 255
    base = draw(world_, world.load_transformer(), captions, 1000 + person)
    back = world.decode(world_.vae, world.encode(world_.vae, (real * 255).round()))
    path.write_text(json.dumps({"base": mean(judge(base)), "real": mean(judge(real)), "vae": mean(judge(back)),
                                "sharp": [sharpness(base), sharpness(real), sharpness(back)]}))


def decoder(world_: World, person: int, folder: Path) -> None:
    """The most that the decoder can draw: the judge's similarity of latents that are fitted to other pictures of the person."""
    path = place(folder, 0, person, "decoder")
    if path.exists():
        return
    real = world.pictures([NEW_PEOPLE + person], range(600, 600 + SAMPLES // 2))[0]
    latents, shift, scale = world.encode(world_.vae, real).requires_grad_(), world_.vae.config.shift_factor, world_.vae.config.scaling_factor
    optimiser = torch.optim.Adam([latents], .05)
    for _ in range(40):
        error = (world_.vae.decode(latents / scale + shift).sample - (real / 127.5 - 1)).abs().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    path.write_text(json.dumps({"best": mean(world_.judge_of(NEW_PEOPLE + person)(world.decode(world_.vae, latents.detach())))}))


def read(folder: Path, name: str) -> dict[str, dict[int, Run]]:
    people, steps, arms = TABLES[name]
    found: dict[str, dict[int, Run]] = {}
    for arm in arms:
        paths = {p: place(folder, steps, p, arm) for p in people}
        found[arm] = {p: Run(**json.loads(path.read_text())) for p, path in paths.items() if path.exists()}
    return found


def error(values: list[float]) -> str:
    return f"{stdev(values) / len(values) ** .5:.3f}" if len(values) > 1 else "–"


#: What the rows of "choose" are compared with a second time.
USUAL = "pair λ .5, the person"


def change(runs: dict[int, Run], other: dict[int, Run]) -> tuple[list[float], str]:
    """The gains in similarity over the people of both, and their mean with its error."""
    gains = [runs[p].similarity - other[p].similarity for p in runs if p in other]
    return gains, f"{fmean(gains):+.3f} ± {error(gains)}" if gains and runs is not other else ""


def table(found: dict[str, dict[int, Run]]) -> str:
    """Gains are over the people of both rows."""
    first, usual = next(iter(found.values())), found.get(USUAL)
    extra = "" if usual is None else f" against \"{USUAL}\" |"
    rows = [f"| training | people | similarity | gain ± standard error |{extra} people worse | samples without a face | sharpness | diffusion loss | a step |",
            "|---|---|---|---|---|---|---|---|---|" + ("" if usual is None else "---|")]
    for arm, runs in found.items():
        if not runs:
            continue
        both = [p for p in runs if p in first]
        gains, gain = change(runs, first)
        extra = "" if usual is None else f" {change(runs, usual)[1]} |"
        slower = fmean(runs[p].seconds / first[p].seconds for p in both) if both else math.nan
        rows.append(f"| {arm} | {', '.join(map(str, runs))} | {fmean(r.similarity for r in runs.values()):.3f} | {gain} |{extra} "
                    f"{'' if runs is first else sum(g < 0 for g in gains)} | {sum(r.faceless for r in runs.values())} of {SAMPLES * len(runs)} | "
                    f"{fmean(r.sharpness for r in runs.values()):.4f} | {fmean(r.mse for r in runs.values()):.3f} | {slower:.1f}× |")
    return "\n".join(rows)


def limit(folder: Path, person: int) -> float:
    """The most that the decoder can draw of the person, nan where it was not measured."""
    path = place(folder, 0, person, "decoder")
    return json.loads(path.read_text())["best"] if path.exists() else math.nan


def goal(folder: Path, name: str, wanted: bool = False) -> str:
    """The gain of rollouts in a table, and the room that there was; `wanted`: beside the goal."""
    found = read(folder, name)
    plain, best = found["no face loss"], found["pair and rollouts"]
    both = [p for p in plain if p in best]
    if len(both) < 3:
        return ""
    gains = [best[p].similarity - plain[p].similarity for p in both]
    start, by, spread = fmean(plain[p].similarity for p in both), fmean(gains), stdev(gains) / len(gains) ** .5
    text = (f"Pair and rollouts gain {by:+.3f} ± {spread:.3f}, {100 * by / start:.0f} %, {by / spread:.1f} standard errors; {sum(g > 0 for g in gains)} of "
            f"{len(gains)} people are better, {sum(best[p].faceless for p in both)} samples have no face. "
            f"{'Wanted were +0.12, 15 % and 4 standard errors. ' if wanted else ''}"
            f"The correlation of a person's gain with the similarity without the face loss is {correlation([plain[p].similarity for p in both], gains):.2f}.")
    if not any(math.isnan(limit(folder, p)) for p in both):
        most = fmean(limit(folder, p) for p in both)
        text += (f" The most that the decoder can draw of these people is {most:.3f}, so the room above the LoRA without the face loss is "
                 f"{most - start:.3f}; of it the face loss wins {100 * by / (most - start):.0f} %.")
        if wanted and start + .12 > most - .01:
            text += (f" +0.12 would be {start + .12:.3f}, as much as the decoder can draw at all. The goal was set in an earlier world of the demo, "
                     f"where such a LoRA reached 0.60. It leaves no room for that gain here, as far as that limit is right.")
    return textwrap.fill(text, 124)


def chart(folder: Path, path: Path) -> None:
    panels = [(f"{TABLES[name][1]} steps: the judge's similarity",
               {arm: {p: r.similarity for p, r in found[arm].items()} for arm in ("no face loss", "pair", "pair and rollouts")})
              for name in ("short", "verdict") if len((found := read(folder, name))["pair and rollouts"]) > 2]
    if panels:
        draw_chart(path, panels, {p: v for p in PEOPLE if not math.isnan(v := limit(folder, p))}, .4)


def page(folder: Path) -> str:
    scale = [json.loads(path.read_text()) for path in sorted(folder.glob("0-*-scale.json"))]
    tables = {name: table(found) for name in TABLES if any((found := read(folder, name)).values())}
    missing = [f"`{arm}` of `{name}`" for name, (_, _, arms) in TABLES.items() for arm in arms if not read(folder, name)[arm]]
    average = lambda f: f"{fmean(map(f, scale)):.3f}" if scale else "–"
    return TEMPLATE.format(
        **{name: tables.get(name, "Not measured.") for name in TABLES}, choose_people=f"{CHOOSE[0]} to {CHOOSE[-1]}", people=f"{PEOPLE[0]} to {PEOPLE[-1]}", samples=SAMPLES,
        base=average(lambda s: s["base"]), real=average(lambda s: s["real"]), vae=average(lambda s: s["vae"]),
        sharp_base=average(lambda s: s["sharp"][0]), sharp_real=average(lambda s: s["sharp"][1]), sharp_vae=average(lambda s: s["sharp"][2]),
        **{f"{name}_goal": goal(folder, name, name == "verdict") for name in ("short", "verdict", "long")},
        missing=f"Not measured: {', '.join(missing)}." if missing else "", pair=ARMS["pair"]["face_weight"], four=4 * ARMS["rollouts"]["rollout_weight"], roll=ARMS["rollouts"]["rollout_weight"],
        machine=f"one thread, {platform.machine()}, torch {torch.__version__.split('+')[0]}")


TEMPLATE = """# Does the face loss help a LoRA?

Written by `make results` (`examples/demo/results.py`) from the runs that were made; `make demo` shows the same on a few people.

A small FLUX transformer that has learnt to draw people in general ([how](../examples/demo_assets/README.md)) gets a LoRA
of one person it has never seen, from five pictures, in steps of batch 4. All trainings of a person start from the same
seed and see the same pictures, noise and noise levels. Then each LoRA draws {samples} pictures with captions (pose,
expression, light) that were not trained on. A judge, a recogniser of another architecture that was trained on other people
and gave no gradient, compares them with twelve other pictures of the person. A sample without a face counts as 0.

For scale: the base model {base}, other pictures of the person {real}, their reconstructions by the VAE {vae}. Sharpness is the
mean difference of neighbouring pixels: {sharp_base} for the base model's samples, {sharp_real} for pictures, {sharp_vae} for
their reconstructions. "The person" is one reference from the five pictures; "own picture" compares every training picture
with itself. A pair is the training picture's x0 estimate; a rollout is what the model makes of noise. Times are of a step,
relative to one without the face loss, {machine}. Other programs ran on the machine meanwhile, so times are rough. {missing}

## The verdict

People {people}, used for nothing else, 100 steps; pair λ {pair}, rollouts λ {roll} with their default guard, but a
`target_similarity` of 0.9: two pictures of a drawn person are 0.84 alike to the loss's recogniser.

    python examples/demo/results.py verdict

{verdict}

{verdict_goal}

![every person's similarity with each training, at 50 and 100 steps](results.png)

The limit is what the decoder draws from latents that were fitted to other pictures of the person, pixel by pixel. Samples can
pass it a little, because the fit is to pixels and not to the judge.

## Shorter and longer trainings

The same settings, 50 steps:

    python examples/demo/results.py short

{short}

{short_goal}

300 steps. The last two rows have four times the λ of rollouts, {four}; the last one is without the pause while faces vanish
(`min_found`). That pause was added because of what the last row shows, so the row before it is no independent test. It
softens the collapse of one person and does not prevent it: in long trainings with a large λ the guard is not enough. In the
runs of people 10 and 11 the pause could not act, since every rollout found its face; one run serves both rows.

    python examples/demo/results.py long

{long}

{long_goal}

## How much room a training leaves

What a LoRA without the face loss reaches decides how much can be won. People {choose_people}, 100 steps, five pictures and rank 16
where nothing else is said:

    python examples/demo/results.py room

{room}

Fewer pictures do not make the task harder: a drawn person is simple, and one picture tells who it is. A short training or a
small rank do. So the size of the gain here does not tell its size on a real model.

## How the settings were chosen

People {choose_people}, 100 steps, one thing changed at a time. These people were used to choose, so their gains are no verdict. Every
row is compared with the same people's runs; a row of few people says little.

    python examples/demo/results.py choose

{choose}

## What happens when λ is too large

Ten times the λ of rollouts, pair λ .5 beside it, 100 steps: without a guard, with a part of it alone, and with all.

    python examples/demo/results.py guard

{guard}
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; default: all")
    p.add_argument("--people", type=int, help="only so many of a table's people")
    p.add_argument("--arms", nargs="*", help="only the arms whose names contain one of these words")
    p.add_argument("--write", action="store_true", help="measure nothing")
    p.add_argument("--state", type=Path, default=Path("out/results"))
    p.add_argument("--out", type=Path, default=Path("docs/results.md"))
    args = p.parse_args()
    if unknown := set(args.tables) - set(TABLES):
        p.error(f"no such table: {', '.join(unknown)}")
    args.state.mkdir(parents=True, exist_ok=True)
    if not args.write:
        names = args.tables or list(TABLES)
        wanted = [(name, person, arm) for name in names for person in TABLES[name][0][: args.people] for arm in TABLES[name][2]
                  if not args.arms or any(word in arm for word in args.arms)]
        world_ = World()
        with tqdm(total=sum(TABLES[name][1] for name, _, _ in wanted), unit="step") as bar:
            for name, person, arm in wanted:
                reference(world_, person, args.state)
                if person in PEOPLE:
                    decoder(world_, person, args.state)
                measure(world_, name, person, arm, args.state, bar)
    args.out.write_text(page(args.state), encoding="utf-8")
    chart(args.state, args.out.with_name("results.png"))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
