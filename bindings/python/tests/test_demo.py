"""A short version of `make demo`: all arms, stopped and resumed, judged, drawn."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image

sys.path[:0] = [str(ROOT / "examples/demo"), str(ROOT / "examples/demo_assets")]
import demo
import lora
import results
import sheet
import world

SETTINGS = dict(person=demo.NEW_PEOPLE, seed=3, face_weight=0.1, rollout_weight=0.2, pictures=3, steps=4, batch=2)


@pytest.fixture(scope="module")
def shared():
    return demo.World()


def weights(run):
    return {k: v.clone() for k, v in run.transformer.named_parameters() if v.requires_grad}


def run(shared, path, **changes):
    settings = lora.Settings(**{**SETTINGS, **changes})
    return lora.LoraRun(settings, shared.vae, *shared.losses(settings), path)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(shared, tmp_path):
    whole = run(shared, tmp_path / "whole.pt")
    while not whole.finished:
        whole.advance()
    first = run(shared, tmp_path / "part.pt")
    first.advance(), first.advance()
    first.save()
    second = run(shared, tmp_path / "part.pt")
    assert second.step == 2
    while not second.finished:
        second.advance()
    # Tensors that were loaded lie elsewhere in memory, and vectorised sums may round differently there.
    assert second.history.mse == pytest.approx(whole.history.mse, rel=1e-5)
    assert second.history.face == pytest.approx(whole.history.face, rel=1e-4)
    assert all(torch.allclose(v, weights(whole)[k], atol=1e-4) for k, v in weights(second).items())
    assert run(shared, tmp_path / "part.pt", seed=4).step == 0, "another run's state was taken"


def test_the_arms_differ_by_the_face_loss_alone(shared, tmp_path):
    without, with_ = run(shared, tmp_path / "a.pt", face_weight=0.0, rollout_weight=0.0), run(shared, tmp_path / "b.pt")
    assert all(torch.equal(v, weights(with_)[k]) for k, v in weights(without).items())
    assert without.advance()["mse"] == with_.advance()["mse"]
    assert with_.history.face[0] > 0 == without.history.face[0] and with_.history.skipped == [0]
    assert any(not torch.equal(v, weights(with_)[k]) for k, v in weights(without).items())


def test_the_demo_ends_with_a_picture_and_a_verdict(tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo.png"
    monkeypatch.setattr(sys, "argv", ["demo.py", "--people", "1", "--steps", "2", "--state", str(tmp_path), "--out", str(out)])
    demo.main()
    said = capsys.readouterr().out
    assert "independent judge" in said and "on rollouts too" in said and "of 48 samples show a face" in said
    assert Image.open(out).width > 800
    assert len(list(tmp_path.glob("*.pt"))) == 3


def test_the_worlds_packing_and_vae_are_the_librarys(shared):
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(world.unpack(world.pack(latents), 8, 8), latents)
    config = shared.vae.config
    ours = shared.decoder.decode(latents / config.scaling_factor + config.shift_factor).clamp(0, 1)
    assert (ours - world.decode(shared.vae, latents)).abs().max() < 1e-4


def test_curves_are_averaged_over_shared_steps():
    assert sheet.average([{0: 1.0, 5: 3.0, 9: 1.0}, {0: 3.0, 5: 5.0}]) == {0: 2.0, 5: 4.0}
    assert list(sheet.smooth({0: 2.0, 1: 4.0}).values()) == [2.0, 3.0]


def test_the_page_of_results_has_a_place_for_every_table():
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    for name in (*results.TABLES, "scale"):
        changed = results.put(page, name, "| new |")
        assert results.put(page, name, "") == page != changed and f"<!-- {name} -->\n| new |\n<!-- end -->" in changed
        assert changed.count("<!-- end -->") == page.count("<!-- end -->")
    with pytest.raises(SystemExit, match="no place for nonsense: expected a line <!-- nonsense -->"):
        results.put(page, "nonsense", "| new |")


def test_a_table_is_made_of_the_runs_in_the_folder(tmp_path):
    assert results.block(tmp_path, "lasting") == ""
    for arm, cosines, seconds in (("no face loss", [0.5, 0.7], 1.0), ("pair, rollouts λ .8", [None, 0.8], 3.0)):
        run = results.Run(cosines, 0.03, 0.1, seconds, {})
        results.place(tmp_path, 300, 12, arm).write_text(json.dumps(run.__dict__))
    first, second = results.block(tmp_path, "lasting").splitlines()[2:]
    assert first.startswith("| no face loss | 12 | 0.600 |  |  | 0 of ") and second.endswith(" | 0.0300 | 0.100 | 3.0× |")
    assert second.startswith("| pair, rollouts λ .8 | 12 | 0.400 | -0.200 ± – | 1 | 1 of ")
