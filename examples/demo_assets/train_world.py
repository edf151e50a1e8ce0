"""Makes the demo's world from drawn faces alone: vae/ and transformer/, both in the diffusers format.

    python examples/demo_assets/train_world.py vae
    python examples/demo_assets/train_world.py transformer    # needs the encoder in vae/, there from the first step
    python examples/demo_assets/train_world.py check          # what both are worth, and out/world.png

Everything is seeded and counted in steps, so that a machine makes the same files again. A run that was stopped
goes on from its last checkpoint in --work. --into writes the files elsewhere, --start gives the transformer weights to
begin with.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F

import world
from world import HERE

WORK = HERE.parents[1] / "out" / "world"
PEOPLE, EACH, PART = 1500, 4, 100
INTO, START = HERE, None


def population() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The base model's pictures, drawn a hundred people at a time: what is drawn stays in WORK."""
    WORK.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in range(world.POPULATION, world.POPULATION + PEOPLE, PART):
        path = WORK / f"people-{first}.pt"
        if not path.exists():
            torch.save(world.pictures(range(first, first + PART), range(EACH)), path)
        parts.append(torch.load(path))
    images, points, captions = (torch.cat(part) for part in zip(*parts))
    return images, points, captions


class Run:
    """The training of one network: AdamW, a cosine rate after a short warm-up, an average of the weights,
    a checkpoint now and then."""

    def __init__(self, name: str, net: torch.nn.Module, steps: int, rate: float, decay: float) -> None:
        self.net, self.steps, self.rate, self.decay = net, steps, rate, decay
        self.path = WORK / f"{name}.pt"
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4, betas=(.9, .98), fused=True)
        self.average = {k: v.clone() for k, v in net.state_dict().items()}
        self.step, self.running = 0, None
        if self.path.exists():
            state = torch.load(self.path)
            net.load_state_dict(state["net"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average, self.step, self.running = state["average"], state["step"], state["running"]
            print(f"going on from step {self.step}", flush=True)

    def __iter__(self):
        """Yields a generator of random numbers for every step that is left."""
        while self.step < self.steps:
            done = self.step / self.steps
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * min(1, (self.step + 1) / 100) * (.5 + .5 * math.cos(math.pi * done)) + 1e-6
            yield torch.Generator().manual_seed(self.step)
        self.net.load_state_dict(self.average)

    def update(self, loss: torch.Tensor, *figures: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1)
        self.optimiser.step()
        self.step += 1
        keep = min(self.decay, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.net.state_dict().values()), 1 - keep)
        now = torch.stack([v.detach() for v in (loss, *figures)])
        self.running = now if self.running is None else self.running.lerp(now, .03)
        if self.step % 50 == 0 or self.step == self.steps:
            print(f"step {self.step}/{self.steps}", " ".join(f"{v:.4f}" for v in self.running), flush=True)
            torch.save(dict(net=self.net.state_dict(), optimiser=self.optimiser.state_dict(), average=self.average,
                            step=self.step, running=self.running), self.path)


def save_half(net, folder: Path, **config) -> None:
    """Writes config.json and the weights as float16, half the bytes of what the demo loads as float32."""
    net.register_to_config(**config)
    net.register_to_config(_name_or_path="")
    net.half().save_pretrained(folder)
    print(f"wrote {folder.name}, {sum(f.stat().st_size for f in folder.iterdir()) / 1024:.0f} KiB")


def patches(x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] → [N, 4·C, H/2, W/2], channel by channel the four pixels of a cell."""
    return F.pixel_unshuffle(x, 2)


def principal(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `count` principal directions [C, count] of the channels of [N, C, H, W], and their deviations."""
    flat = x.movedim(1, -1).reshape(-1, x.shape[1])
    flat = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    vectors = vectors * vectors.sum(0).sign()       # eigenvectors know no sign, and machines choose differently
    return vectors.flip(1)[:, :count], values.flip(0)[:count].sqrt()


@torch.no_grad()
def start_as_principal_components(net, images: torch.Tensor) -> None:
    """Sets the encoder to a linear map of 8x8 patches, their 16 principal components, and leaves its residual blocks
    at zero: latents of a fraction of the numbers keep a face's identity from the first step on, and what a mere patch
    cannot say, the decoder learns from the patches around it. GroupNorm sees a large constant channel in every group, so
    that its statistics do not depend on the picture, and SiLU works where it is straight."""
    enc, x = net.encoder, images / 127.5 - 1
    for module in net.modules():
        if hasattr(module, "conv_shortcut") and hasattr(module, "conv2"):
            module.conv2.weight.zero_(), module.conv2.bias.zero_()
        if hasattr(module, "to_out"):
            module.to_out[0].weight.zero_(), module.to_out[0].bias.zero_()
    blank = lambda conv: (conv.weight.zero_(), conv.bias.zero_())
    blank(enc.conv_in)
    enc.conv_in.weight[range(3), range(3), 1, 1] = 1
    channels = 3
    for block, following in zip(enc.down_blocks, enc.down_blocks[1:]):
        down, shortcut = block.downsamplers[0].conv, following.resnets[0].conv_shortcut
        x = patches(x)
        kept = min(x.shape[1], down.weight.shape[0])
        basis = torch.eye(kept) if kept == x.shape[1] else principal(x, kept)[0]
        blank(down), blank(shortcut)
        down.weight[:kept, :channels, :2, :2] = basis.T.reshape(kept, channels, 2, 2)
        x, channels = torch.einsum("nchw,ck->nkhw", x, basis), kept
        shortcut.weight[range(channels), range(channels), 0, 0] = 1
    # The last stage: latents spread over the groups, and one constant channel in each.
    width, groups = shortcut.weight.shape[0], world.VAE["norm_num_groups"]
    latent, share, constant, straight = world.VAE["latent_channels"], width // groups, 300.0, 8.0
    basis, deviation = principal(x, latent)
    basis = basis / deviation.sqrt()            # halfway to equal deviations: coarse before fine under noise
    mean = torch.einsum("nchw,ck->k", x, basis) / x[:, 0].numel()
    basis, mean = basis / deviation.max().sqrt(), mean / deviation.max().sqrt()
    place = [k % groups * share + k // groups for k in range(latent)]
    blank(shortcut)
    shortcut.weight[place, :channels, 0, 0] = basis.T
    shortcut.bias[place] = -mean
    shortcut.bias[range(share - 1, width, share)] = constant
    level = constant / share
    spread = constant * ((1 - 1 / share) / share) ** .5
    enc.conv_norm_out.weight.fill_(spread), enc.conv_norm_out.bias.fill_(level + straight)
    blank(enc.conv_out)
    enc.conv_out.weight[range(latent), place, 1, 1] = 1
    enc.conv_out.bias[:latent] = -straight
    enc.conv_out.bias[latent:] = -6


def linear_path(decoder) -> list[torch.nn.Module]:
    """The convolutions of a decoder that no residual block is around, in their order."""
    path = [decoder.conv_in]
    for block in decoder.up_blocks:
        path += [r.conv_shortcut for r in block.resnets if r.conv_shortcut is not None]
        path += [up.conv for up in block.upsamplers or ()]
    return [*path, decoder.conv_out]


def straight(decoder, z: torch.Tensor) -> torch.Tensor:
    """What the decoder would make of latents without residual blocks, norms and activations: a linear map."""
    x = decoder.conv_in(z)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = x if resnet.conv_shortcut is None else resnet.conv_shortcut(x)
        for up in block.upsamplers or ():
            x = up.conv(F.interpolate(x, scale_factor=2.0))
    return decoder.conv_out(x)


@torch.no_grad()
def start_as_linear_path(decoder) -> None:
    """Makes the whole decoder the linear map that `straight` has learnt: residual blocks at zero; before the last norm a large
    constant channel in every group, so that its statistics do not depend on the picture, and SiLU where it is straight.
    The linear map is already sharp, and training adds to it what it cannot say."""
    for module in decoder.modules():
        if hasattr(module, "conv1") and hasattr(module, "conv2"):
            module.conv2.weight.zero_(), module.conv2.bias.zero_()
        if hasattr(module, "to_out"):
            module.to_out[0].weight.zero_(), module.to_out[0].bias.zero_()
    last, norm, out = decoder.up_blocks[-1].resnets[0].conv_shortcut, decoder.conv_norm_out, decoder.conv_out
    width, groups, constant, straight_at = last.weight.shape[0], norm.num_groups, 60.0, 8.0
    share = width // groups
    for channel in range(share - 1, width, share):
        last.weight[channel].zero_(), last.bias[channel].fill_(constant)
        out.weight[:, channel].zero_()
    norm.weight.fill_(constant * ((1 - 1 / share) / share) ** .5), norm.bias.fill_(constant / share + straight_at)
    out.bias.sub_(straight_at * out.weight.sum((1, 2, 3)))


def train_vae(steps: int, batch: int) -> None:
    """The encoder as above. The decoder first as a linear map, for twice as many steps, then whole, with the absolute error of
    pixels and of their differences, the face weighed four times, from latents with a little noise. vae/ is written first
    as it starts, so that a transformer may be trained on its latents at the same time."""
    from diffusers import AutoencoderKL
    torch.manual_seed(5)
    images, points, _ = population()
    net = AutoencoderKL(**world.VAE)
    start_as_principal_components(net, images[:1200].float())
    if not (WORK / "latents.pt").exists():
        with torch.no_grad():
            torch.save(torch.cat([net.encode(part.float() / 127.5 - 1).latent_dist.mean for part in images.split(50)]), WORK / "latents.pt")
    latents = torch.load(WORK / "latents.pt")
    scale = dict(scaling_factor=round(1 / float(latents.std()), 4), shift_factor=round(float(latents.mean()), 4))
    save_half(copy.deepcopy(net), INTO / "vae", **scale)
    axis = torch.arange(world.SIZE)

    def batch_of(g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        index = torch.randint(len(images), (batch,), generator=g)
        x, centre = images[index].float() / 127.5 - 1, points[index].mean(1)
        far = ((axis[None, None] - centre[:, 0, None, None]) ** 2 + (axis[None, :, None] - centre[:, 1, None, None]) ** 2) / 18 ** 2
        z = latents[index]
        return x, (1 + 3 * torch.exp(-far ** 2))[:, None], z + .05 * torch.randn(z.shape, generator=g)

    linear = torch.nn.ModuleList(linear_path(net.decoder))
    first = Run("linear", linear, 2 * steps, 4e-3, .99)
    for g in first:
        x, weight, z = batch_of(g)
        y = straight(net.decoder, z)
        first.update(((y - x).square() * weight).mean(), (y - x).abs().mean())
    start_as_linear_path(net.decoder)
    run = Run("decoder", net.decoder, steps, 2e-3, .995)
    for g in run:
        x, weight, z = batch_of(g)
        y = net.decode(z).sample
        pixels = ((y - x).abs() * weight).mean()
        edges = sum((((y - x).diff(dim=d)).abs() * weight.narrow(d, 1, world.SIZE - 1)).mean() for d in (2, 3))
        run.update(pixels + edges, pixels)
    save_half(net, INTO / "vae", **scale)


def train_transformer(steps: int, batch: int) -> None:
    """Flow matching as in FLUX: v = x1 − x0 at x_t = (1 − t)·x0 + t·x1, t = sigmoid(N(0, 1))."""
    from diffusers import FluxTransformer2DModel
    torch.manual_seed(6)
    captions, scale = population()[2], world.load_vae(INTO / "vae").config
    latents = world.pack((torch.load(WORK / "latents.pt") - scale.shift_factor) * scale.scaling_factor)
    net = world.load_transformer(START).train().requires_grad_(True) if START else FluxTransformer2DModel(**world.TRANSFORMER)
    run = Run("transformer", net, steps, 2e-3, .998)
    for g in run:
        index = torch.randint(len(latents), (batch,), generator=g)
        x0, noise = latents[index], torch.randn(batch, *latents.shape[1:], generator=g)
        t = torch.randn(batch, generator=g).sigmoid()
        x_t = torch.lerp(x0, noise, t[:, None, None])
        v = net(hidden_states=x_t, timestep=t, **world.prompt(captions[index]), return_dict=False)[0]
        run.update(F.mse_loss(v, noise - x0))
    save_half(net, INTO / "transformer")


def check() -> None:
    """What the VAE keeps of people it has never seen, and whose faces the transformer draws: numbers and out/world.png."""
    from PIL import Image

    from align import crop
    from check import session
    images, points, captions = world.pictures(range(8_000_000, 8_000_008), range(2))
    vae = world.load_vae(INTO / "vae")
    back = world.decode(vae, world.encode(vae, images))
    print(f"VAE: mean absolute error {float((back - images / 255).abs().mean()):.4f} of 1")
    judge = session(HERE / "judge.onnx")
    look = lambda x: F.normalize(torch.from_numpy(judge.run(None, {"data": (crop(x, points) * 2 - 1).numpy()})[0]))
    same = (look(images / 255) * look(back)).sum(1)
    print(f"VAE: the judge's similarity of a picture and its reconstruction {float(same.mean()):.3f} ± {float(same.std()):.3f}")
    rows = [images / 255, back]
    if (INTO / "transformer").exists():
        rows.append(world.decode(vae, world.sample(world.load_transformer(INTO / "transformer"), captions)))
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    (WORK.parent / "world.png").parent.mkdir(exist_ok=True)
    array = (sheet.permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(array).resize((array.shape[1] * 2, array.shape[0] * 2), Image.Resampling.BICUBIC).save(WORK.parent / "world.png")
    print("out/world.png: pictures, reconstructions, samples with the same captions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vae", "transformer", "check"])
    parser.add_argument("--steps", type=int, help="default 2500, transformer 3000")
    parser.add_argument("--batch", type=int, help="default 8, transformer 48")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK, help="checkpoints, default out/world")
    parser.add_argument("--into", type=Path, default=HERE, help="where vae/ and transformer/ go, default beside this script")
    parser.add_argument("--start", type=Path, help="folder of a transformer to begin with, default: random weights")
    a = parser.parse_args()
    globals().update(WORK=a.work, INTO=a.into, START=a.start)
    torch.set_num_threads(a.threads)
    if a.what == "vae":
        train_vae(a.steps or 2500, a.batch or 8)
    elif a.what == "transformer":
        train_transformer(a.steps or 3000, a.batch or 48)
    else:
        check()


if __name__ == "__main__":
    main()
