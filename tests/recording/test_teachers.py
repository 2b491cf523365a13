"""Who teaches what, and what examples hold."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_loraclr.model.host import Host
from lib_loraclr.progress import Progress
from lib_loraclr.recording.examples import PathPlan, add_nearest_other, record_examples
from lib_loraclr.recording.inputs import load_inputs
from lib_loraclr.recording.predictor import Predictor
from lib_loraclr.recording.teachers import make_teachers
from lib_loraclr.refining.retention import drift_of_singles, measure
from lib_loraclr.request.merge_request import RecordingOptions
from tests.small import PROMPTS, concept


def predictor_of(host: Host, demo: Path, *names: str, background: tuple[int, ...] = ()) -> Predictor:
    return Predictor(
        host,
        [given.deltas for given in load_inputs([concept(demo, name) for name in names], host)],
        RecordingOptions(guidance=4.0),
        negative_prompt="",
        background=background,
        memory=1 << 30,
        progress=Progress(),
    )


def test_subjects_teach_alone_and_the_base_model_teaches_the_rest(demo: Path) -> None:
    fox, pizza, rest = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    assert (fox.active, fox.absent, fox.concept) == ((0,), (), 0)
    assert fox.prompts[1] == "a photo of a sks animal"
    assert (pizza.active, pizza.concept) == ((1,), 1)
    assert (fox.rivals([0, 1]), pizza.rivals([0, 1]), rest.rivals([0, 1])) == ([(1,)], [(0,)], [])
    assert (rest.active, rest.concept, rest.prompts) == ((), None, PROMPTS.plain)


def test_a_style_without_trigger_is_active_everywhere(demo: Path) -> None:
    fox, mono, rest = make_teachers([concept(demo, "fox-face"), concept(demo, "style-mono")], PROMPTS)
    assert (fox.active, fox.absent) == ((0, 1), (1,))
    assert (mono.active, mono.absent, mono.prompts) == ((1,), (), PROMPTS.plain)
    assert rest.active == (1,)


def test_rivals_have_the_styles_that_are_active_everywhere(demo: Path) -> None:
    concepts = [concept(demo, name) for name in ("fox-face", "style-mono", "pizza")]
    fox, mono, pizza, rest = make_teachers(concepts, PROMPTS)
    assert [teacher.rivals([0, 2]) for teacher in (fox, mono, pizza, rest)] == [[(1, 2)], [], [(0, 1)], []]


def test_a_style_with_trigger_teaches_on_plain_prompts_and_on_the_subjects(demo: Path) -> None:
    fox, clay, on_fox, rest = make_teachers([concept(demo, "fox-face"), concept(demo, "style-clay")], PROMPTS)
    assert fox.active == (0,)
    assert clay.prompts[0] == "a photo of a cat, clay style"
    assert (on_fox.active, on_fox.absent, on_fox.concept) == ((0, 1), (0,), 1)
    assert on_fox.prompts[1] == "a photo of a sks animal, clay style"
    assert rest.active == ()


def test_a_single_concept_has_no_teacher_for_the_rest(demo: Path) -> None:
    assert [teacher.concept for teacher in make_teachers([concept(demo, "fox-face")], PROMPTS)] == [0]


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


def test_retention_is_one_for_the_teacher_itself_and_zero_for_its_absence(host: Host, demo: Path) -> None:
    predictor = predictor_of(host, demo, "fox-face", "pizza")
    teachers = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    examples = [record_examples(predictor, teacher, PathPlan(seed=9, paths=1, steps=3, kept=3)) for teacher in teachers]
    drift = drift_of_singles(predictor, examples)
    own = measure(predictor, predictor.together([0]), examples, single_drift=drift)
    assert own.concepts[0] > 0.99
    assert own.concepts[1] < 0.2  # the fox's LoRA does not bring the pizza
    absent = measure(predictor, {}, examples, single_drift=drift)
    assert abs(absent.concepts[0]) < 0.01 and abs(absent.concepts[1]) < 0.01
    assert absent.base_drift < 0.01 < own.base_drift


def test_half_of_a_lora_has_less_than_half_retention_lost(host: Host, demo: Path) -> None:
    """Retention grows with the strength of the concept: an order that a constant would not have."""
    predictor = predictor_of(host, demo, "fox-face")
    (fox,) = make_teachers([concept(demo, "fox-face")], PROMPTS)
    examples = [record_examples(predictor, fox, PathPlan(seed=9, paths=1, steps=3, kept=3))]
    deltas = predictor.deltas[0]
    values = [
        measure(predictor, {key: f.scaled(strength) for key, f in deltas.items()}, examples).concepts[0]
        for strength in (0.0, 0.5, 0.9, 1.0)
    ]
    assert values == sorted(values)
    assert values[1] < 0.9 < values[3]
