"""Measures the demo over many people and writes the tables of docs/results.md from what has been measured.

    make results                                           # everything; hours of one core
    python examples/demo/results.py choose guard           # some of the tables
    python examples/demo/results.py verdict --people 3     # for the first of their people
    python examples/demo/results.py --write                # the page alone

Every run leaves its figures in a file, so that a run that was stopped is not lost. A table of which the folder has no run stays
as the page has it; otherwise it is made of the folder's runs alone.
Settings are chosen on CHOOSE alone; what is said of PEOPLE, who were used for nothing else, follows from these settings.
"""

from __future__ import annotations

import argparse
import json
import math
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
from demo import ARMS, EVERY, NEW_PEOPLE, SAMPLES, TARGET, World, compare, draw, mean
from tqdm import tqdm

CHOOSE, PEOPLE = tuple(range(8)), tuple(range(10, 18))
#: Person 12 served to choose the guard of long trainings; it is judged on these.
FRESH = tuple(range(20, 25))
OFF = (("every_n_steps", 1), ("gradient_limit", None), ("min_score", 0.0), ("target_similarity", 1.0), ("ramp", 0), ("min_found", 0.0))


def only(*names: str) -> tuple:
    """The guard with no more than the named parts."""
    return tuple((name, value) for name, value in OFF if name not in names) + (TARGET if "target_similarity" in names else ())


def rollouts(weight: float, guard: tuple = EVERY, pair: float = .5) -> dict:
    return {"face_weight": pair, "rollout_weight": weight, "guard": guard}


#: Rollouts in every fourth step, which is the default, and beside them what they are compared with.
INTERVAL = {
    "no face loss": ARMS["plain"],
    "pair, rollouts λ .2 every 4th step": rollouts(.2, TARGET),
    "pair, rollouts λ .8 every 4th step": rollouts(.8, TARGET)}  # fmt: skip

OFTEN = {"no face loss": ARMS["plain"], "pair, rollouts λ .8": rollouts(.8), "pair, rollouts λ .8 every 4th step": rollouts(.8, TARGET)}

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
        "pair λ .5, rollouts λ .4, limit .5": rollouts(.4, (*EVERY, ("gradient_limit", .5))),
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
        "pair, rollouts λ .8, backoff 1": rollouts(.8, (*EVERY, ("backoff", 1.0))),
        "pair, rollouts λ .8, min_found 0": rollouts(.8, (*EVERY, ("min_found", 0.0)))}),
    "often": ((12,), 100, OFTEN),
    "lasting": ((12,), 300, OFTEN),
    "interval": (CHOOSE, 100, INTERVAL),
    "interval-300": (CHOOSE, 300, INTERVAL),
    "fresh": (FRESH, 300, {arm: INTERVAL[arm] for arm in ("no face loss", "pair, rollouts λ .8 every 4th step")}),
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
                    f"{fmean(r.sharpness for r in runs.values()):.4f} | {fmean(r.mse for r in runs.values()):.3f} | {'–' if math.isnan(slower) else f'{slower:.1f}×'} |")
    return "\n".join(rows)


def limit(folder: Path, person: int) -> float:
    """The most that the decoder can draw of the person, nan where it was not measured."""
    path = place(folder, 0, person, "decoder")
    return json.loads(path.read_text())["best"] if path.exists() else math.nan


def goal(folder: Path, name: str, wanted: bool = False) -> str:
    """The gain of rollouts in a table, and the room that there was; `wanted`: beside the goal."""
    found = read(folder, name)
    plain, best = found["no face loss"], found.get("pair and rollouts", {})
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
    if len(panels) == 2:
        draw_chart(path, panels, {p: v for p in PEOPLE if not math.isnan(v := limit(folder, p))}, .4)


def scale(folder: Path) -> str:
    """What the base model, other pictures and their reconstructions give, over the people whose scale was measured."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("0-*-scale.json"))]
    if not found:
        return ""
    average = lambda f: f"{fmean(map(f, found)):.3f}"
    return textwrap.fill(
        f"For scale: the base model {average(lambda s: s['base'])}, other pictures of the person {average(lambda s: s['real'])}, their "
        f"reconstructions by the VAE {average(lambda s: s['vae'])}. Sharpness is the mean difference of neighbouring pixels: "
        f"{average(lambda s: s['sharp'][0])} for the base model's samples, {average(lambda s: s['sharp'][1])} for pictures, "
        f"{average(lambda s: s['sharp'][2])} for their reconstructions.", 124)


def block(folder: Path, name: str) -> str:
    """A table with what follows from it; empty without runs."""
    found = read(folder, name)
    return f"{table(found)}\n\n{goal(folder, name, name == 'verdict')}".strip() if any(found.values()) else ""


def put(text: str, name: str, new: str) -> str:
    """The page with what stands between the lines `<!-- NAME -->` and `<!-- end -->` anew; what is empty changes nothing."""
    head, mark, tail = text.partition(f"<!-- {name} -->\n")
    if not mark or "<!-- end -->" not in tail:
        raise SystemExit(f"the page has no place for {name}: expected a line <!-- {name} --> and a line <!-- end --> below it")
    return head + mark + new + "\n" + tail[tail.index("<!-- end -->"):] if new else text


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
    text = args.out.read_text(encoding="utf-8")
    for name in args.tables or list(TABLES):
        text = put(text, name, block(args.state, name))
    args.out.write_text(text if args.tables else put(text, "scale", scale(args.state)), encoding="utf-8")
    chart(args.state, args.out.with_name("results.png"))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
