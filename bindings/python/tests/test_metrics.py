"""What a training run writes down."""

from __future__ import annotations

import json
import math

import pytest
import torch

import facegrad
from facegrad import Located, Outcome, Report, Sample
from facegrad.metrics import Statistics, TrainingMetrics, copy_paste


def sample(outcome: Outcome, similarity: float = math.nan, located: Located = Located.NOWHERE) -> Sample:
    return Sample(outcome, located, facegrad.Alignment.NONE, similarity, 1.0, math.nan, None, None)


def report(*samples: Sample) -> Report:
    counted = [s.similarity for s in samples if s.outcome == Outcome.COUNTED]
    return Report(0.0, 1 - sum(counted) / len(counted) if counted else 0.0, len(counted), samples)


def test_statistics_are_torchs():
    values = torch.randn(50, dtype=torch.float64) + 3
    statistics = Statistics()
    for value in values.tolist():
        statistics.add(value)
    assert statistics.mean == pytest.approx(values.mean().item()) and statistics.deviation == pytest.approx(values.std().item())
    assert (statistics.least, statistics.largest) == (values.min().item(), values.max().item())


def test_everything_is_counted(tmp_path):
    metrics = TrainingMetrics(window=2, buckets=4)
    assert metrics.as_dict() == {"face/counted": 0.0}
    found, given = Located.DETECTED, Located.GIVEN
    metrics.update(report(sample(Outcome.COUNTED, 0.2, found), sample(Outcome.NO_FACE), sample(Outcome.TIME)), times=[0.1, 0.6, 0.9])
    metrics.append(tmp_path / "face.jsonl", 1)
    metrics.update(report(sample(Outcome.COUNTED, 0.4, found), sample(Outcome.COUNTED, 0.8, given)), times=torch.tensor([0.2, 1.0]))
    metrics.append(tmp_path / "face.jsonl", 2)
    values = metrics.as_dict()
    assert values["face/similarity"] == pytest.approx(0.6)
    assert values["face/similarity_mean"] == pytest.approx(1.4 / 3)
    assert (values["face/similarity_min"], values["face/similarity_max"]) == (0.2, 0.8)
    assert values["face/detection_rate"] == pytest.approx(2 / 3)
    assert values["face/skipped/no_face"] == 1 and values["face/skipped/time"] == 1
    assert values["face/similarity_t/0.00-0.25"] == pytest.approx(0.3)
    assert values["face/similarity_t/0.75-1.00"] == pytest.approx(0.8)
    assert "face/similarity_t/0.50-0.75" not in values and "face/copy_paste" not in values
    assert all(isinstance(value, float) for value in values.values())
    first, second = map(json.loads, (tmp_path / "face.jsonl").read_text().splitlines())
    assert first["step"] == 1 and first["similarities"] == [0.2, None, None]
    assert second["similarity"] == pytest.approx(0.6)
    with pytest.raises(ValueError, match="times: expected 2 entries"):
        metrics.update(report(sample(Outcome.TIME), sample(Outcome.TIME)), times=[0.1])


def test_copying_is_between_the_person_and_the_photograph():
    def at(degrees: float) -> torch.Tensor:
        angle = math.radians(degrees)
        return torch.tensor([[math.cos(angle), math.sin(angle)]])

    references, target = torch.cat([at(0), at(180)]), at(60)
    for degrees, want in ((0, 1.0), (60, -1.0), (30, 0.0), (-30, 1.0)):
        assert copy_paste(at(degrees), references, target).item() == pytest.approx(want, abs=1e-6)
    metrics = TrainingMetrics()
    metrics.update_copying(torch.cat([at(0), at(60), at(0) * math.nan]), references, target)
    assert metrics.as_dict()["face/copy_paste"] == pytest.approx(0, abs=1e-6)
