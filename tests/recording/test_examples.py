"""What examples hold, and the paths that they were met on."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_loraclr.model.host import Host
from lib_loraclr.recording.examples import PathPlan, add_nearest_other, record_examples
from lib_loraclr.recording.teachers import make_teachers
from tests.small import PROMPTS, concept, predictor_of


def test_examples_hold_what_the_models_predict_at_their_points(host: Host, demo: Path) -> None:
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    fox = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)[0]
    examples = record_examples(predictor, fox, PathPlan(seed=4, paths=2, steps=3, kept=2))
    assert len(examples) == 4
    assert sorted(set(examples.t.tolist())) == [332, 999]

    def predict(active: tuple[int, ...], prompt: str, k: int) -> torch.Tensor:
        with torch.no_grad(), host.apply(predictor.together(active)):
            return host.denoise(examples.x[k : k + 1].float(), examples.t[k : k + 1], host.encode([prompt]))[0]

    close = {"atol": 5e-3, "rtol": 5e-3}  # half precision of what is kept
    for k in range(4):
        teacher, base = (predict(active, examples.prompts[k], k) for active in ((0,), ()))
        torch.testing.assert_close(examples.target[k].float(), teacher, **close)
        torch.testing.assert_close(examples.negative_target[k].float(), predict((), "", k), **close)
        torch.testing.assert_close(examples.effect[k], (teacher - base).square().mean(), atol=1e-5, rtol=0.05)
    (with_other,) = add_nearest_other(predictor, [examples], [0, 1])
    torch.testing.assert_close(with_other.other[2].float(), predict((1,), examples.prompts[2], 2), **close)


def test_paths_do_not_depend_on_how_many_points_are_kept(host: Host, demo: Path) -> None:
    predictor = predictor_of(host, demo, "fox-face")
    (fox,) = make_teachers([concept(demo, "fox-face")], PROMPTS)
    few, all_of_them = (
        record_examples(predictor, fox, PathPlan(seed=0, paths=1, steps=4, kept=keep)) for keep in (2, 4)
    )
    assert torch.equal(few.x, all_of_them.x[[0, 3]])
