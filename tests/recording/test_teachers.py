"""Who teaches what."""

from __future__ import annotations

from pathlib import Path

from lib_loraclr.recording.teachers import make_teachers
from tests.small import PROMPTS, concept


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
