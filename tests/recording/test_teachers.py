"""Who teaches what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lib_loraclr.recording.path_plan import PathPlan, draw_slots
from lib_loraclr.recording.teachers import Slot, Teacher, make_teachers
from lib_loraclr.request.merge_request import Concept
from lib_loraclr.request.phrases import Part, Phrase, Phrases
from tests.small import PROMPTS, concept

#: how is asked, in a slot of each part
ASKED = Phrase("a painting of {}", ", at night", "{} next to {}", "a dog")


def slot(number: int = 1, part: Part = Part.LEARN, phrase: Phrase = ASKED) -> Slot:
    return Slot(number, part, phrase, {})


def slots(part: Part, count: int = 300) -> list[Slot]:
    """As a merge draws them."""
    phrases = Phrases("photo", part, templates=PROMPTS.templates, seed=0)
    return [Slot(k, part, phrases.draw(), {}) for k in range(count)]


def test_subjects_teach_alone_and_the_base_model_teaches_the_rest(demo: Path) -> None:
    fox, pizza, rest = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    assert (fox.active, fox.absent, fox.concept) == ((0,), (), 0)
    assert fox.prompt(slot()) == "a painting of sks animal, at night"
    assert (pizza.active, pizza.concept) == ((1,), 1)
    assert (fox.rivals([0, 1]), pizza.rivals([0, 1]), rest.rivals([0, 1])) == ([(1,)], [(0,)], [])
    assert (rest.active, rest.concept, rest.texts) == ((), None, PROMPTS.plain)


def test_a_style_without_trigger_is_active_everywhere(demo: Path) -> None:
    fox, mono, on_fox, rest = make_teachers([concept(demo, "fox-face"), concept(demo, "style-mono")], PROMPTS)
    assert (fox.active, fox.absent) == ((0, 1), (1,))
    assert (mono.active, mono.absent, mono.texts) == ((1,), (), PROMPTS.plain)
    assert rest.active == (1,)
    # what it does on the subject counts as much as what the subject does under it
    assert (on_fox.active, on_fox.absent, on_fox.concept, on_fox.words) == ((0, 1), (0,), 1, "sks animal")


def test_rivals_have_the_styles_that_are_active_everywhere(demo: Path) -> None:
    concepts = [concept(demo, name) for name in ("fox-face", "style-mono", "pizza")]
    fox, mono, on_fox, on_pizza, pizza, rest = make_teachers(concepts, PROMPTS)
    assert [teacher.rivals([0, 2]) for teacher in (fox, mono, pizza, rest)] == [[(1, 2)], [], [(0, 1)], []]
    assert [on_fox.rivals([0, 2]), on_pizza.rivals([0, 2])] == [[], []]


def test_a_style_with_trigger_teaches_on_plain_prompts_and_on_the_subjects(demo: Path) -> None:
    fox, clay, on_fox, rest = make_teachers([concept(demo, "fox-face"), concept(demo, "style-clay")], PROMPTS)
    assert fox.active == (0,)
    assert clay.prompt(slot(0)) == "a photo of a cat, at night, clay style"
    assert clay.prompt(slot(1)) == "a painting of a dog, at night, clay style"
    assert (on_fox.active, on_fox.absent, on_fox.concept) == ((0, 1), (0,), 1)
    assert on_fox.prompt(slot()) == "a painting of sks animal, at night, clay style"
    assert rest.active == ()
    for teacher in (clay, on_fox):
        for k in range(2):
            assert teacher.prompt(slot(k)) == f"{teacher.prompt_without_style(slot(k))}, clay style"


def test_words_decide_about_a_style_that_has_some_and_is_not_alone(demo: Path) -> None:
    names = ("fox-face", "style-clay", "style-mono")
    clay = replace(concept(demo, "style-clay"), prompts=("a clay thing",))

    def by_words(*concepts: Concept) -> set[str]:
        return {own.name for own in make_teachers(concepts, PROMPTS) if own.by_words}

    assert by_words(*(concept(demo, name) for name in names)) == {"style-clay", "style-clay on fox-face"}
    assert by_words(concept(demo, "style-clay")) == set(), "alone it keeps what it does"
    assert by_words(concept(demo, "fox-face"), clay) == {"style-clay on fox-face"}, (
        "no words to leave out of whole prompts"
    )


def test_a_style_on_many_subjects_has_the_points_of_one_teacher(demo: Path) -> None:
    concepts = [concept(demo, name) for name in ("fox-face", "pizza", "penguin", "guitar", "style-clay")]
    shares = [teacher.share for teacher in make_teachers(concepts, PROMPTS) if " on " in teacher.name]
    assert shares == [0.25] * 4


def test_a_single_concept_has_no_teacher_for_the_rest(demo: Path) -> None:
    assert [teacher.concept for teacher in make_teachers([concept(demo, "fox-face")], PROMPTS)] == [0]


def test_only_subjects_with_words_of_their_own_stand_beside_each_other(demo: Path) -> None:
    """Not a style, though it is taught on prompts that call a subject; nor what is asked by whole prompts of its own."""
    names = ("fox-face", "pizza", "style-clay", "style-mono")
    written = concept(demo, "penguin", prompts=("a bird by its own prompt",))
    teachers = make_teachers([*(concept(demo, name) for name in names), written], PROMPTS)
    assert [teacher.name for teacher in teachers if teacher.in_scenes] == ["fox-face", "pizza"]
    assert {teacher.name for teacher in teachers} >= {"style-mono on fox-face", "style-clay on pizza"}


@pytest.mark.parametrize("part", Part, ids=lambda part: part.value)
def test_prompts_that_are_a_persons_own_are_asked_and_nothing_else(part: Part) -> None:
    own = Concept("fox.safetensors", trigger="sks", prompts=("a red sks", "two sks"))
    fox, other, rest = make_teachers([own, Concept("cat.safetensors", trigger="ohwx")], PROMPTS)
    asked = [fox.prompt(each) for each in slots(part)]
    assert all(prompt.startswith(("a red sks", "two sks")) for prompt in asked)
    assert any(prompt.startswith("a red") for prompt in asked) and any(prompt.startswith("two") for prompt in asked)
    assert all("ohwx" in other.prompt(each) for each in slots(part))


def test_half_of_the_plain_prompts_that_are_learnt_from_are_a_persons(demo: Path) -> None:
    *_, rest = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    own = {part: [rest.prompt(each).startswith(PROMPTS.plain) for each in slots(part)] for part in Part}
    assert 0.5 <= sum(own[Part.LEARN]) / len(own[Part.LEARN]) < 0.6, "and now and then the bank asks the same"
    assert sum(own[Part.MEASURE]) < 0.1 * len(own[Part.MEASURE]), "what is measured on was not learnt from"
    learnt = [rest.prompt(each) for each in slots(Part.LEARN)]
    for text in PROMPTS.plain:
        assert sum(prompt.startswith(text) for prompt in learnt) > 0.2 * len(learnt), "they take turns"


def test_without_a_bank_the_plain_prompts_are_all_that_calls_nothing(demo: Path) -> None:
    *_, rest = make_teachers([concept(demo, "fox-face"), concept(demo, "pizza")], PROMPTS)
    for part in Part:
        phrases = Phrases("none", part, templates=PROMPTS.templates, seed=0)
        assert {rest.prompt(Slot(k, part, phrases.draw(), {})) for k in range(20)} == set(PROMPTS.plain)


def test_several_subjects_are_called_in_their_order_and_this_one_first() -> None:
    fox, cat, owl = (Teacher(name, k, (k,), name) for k, name in enumerate(("fox", "cat", "owl")))
    assert fox.prompt_beside([cat], slot()) == "a painting of fox next to cat, at night"
    assert cat.prompt_beside([fox], slot()) == "a painting of cat next to fox, at night"
    assert owl.prompt_beside([fox, cat], slot()) == "a painting of owl, fox next to cat, at night"
    assert replace(fox, quality="8k").prompt_beside([cat], slot()) == "a painting of fox next to cat, at night, 8k"


def test_each_set_of_trigger_words_is_asked_in_its_turn_alone_in_scenes_and_in_a_style(demo: Path) -> None:
    dressed = replace(concept(demo, "fox-face"), outfits=("sks animal in red", "sks animal in armor"))
    style = concept(demo, "style-clay")
    fox, penguin, _, clay_on_fox, *_ = make_teachers([dressed, concept(demo, "penguin"), style], PROMPTS)
    sets = ("sks animal", *dressed.outfits)
    for number in range(6):
        here = slot(number)
        words = sets[number % 3]
        assert fox.prompt(here) == f"a painting of {words}, at night"
        assert fox.prompt_beside([penguin], here) == f"a painting of {words} next to ohwx bird, at night"
        assert penguin.prompt_beside([fox], here) == f"a painting of ohwx bird next to {words}, at night"
        assert clay_on_fox.name == "style-clay on fox-face" and f"{words}," in clay_on_fox.prompt(here)


def test_a_path_is_followed_with_one_set_of_trigger_words(demo: Path) -> None:
    """What is predicted as a path is followed stands for the slots that are asked the same: their prompts are that path's."""
    fox, *_ = make_teachers([replace(concept(demo, "fox-face"), outfits=("sks animal in red",))], PROMPTS)
    plan = PathPlan(Part.LEARN, 0, 3, 8)
    phrases = Phrases("photo", Part.LEARN, templates=PROMPTS.templates, seed=0)
    drawn = draw_slots(plan, phrases, [])
    known = plan.known(fox)
    assert len(known) > plan.paths, "control: more than the first of each path"
    for number in known:
        assert fox.prompt(drawn[number]) == fox.prompt(drawn[number % plan.paths])
    assert {fox.called(slot) for slot in drawn} == {"sks animal", "sks animal in red"}


def test_a_style_is_taught_on_the_subjects_that_it_is_applied_to(demo: Path) -> None:
    names = ("fox-face", "penguin", "pizza")
    clay = replace(concept(demo, "style-clay"), applied_to=("penguin",))
    teachers = make_teachers([*(concept(demo, name) for name in names), clay], PROMPTS)
    [guest] = [teacher for teacher in teachers if teacher.guest]
    assert guest.name == "style-clay on penguin" and guest.share == 1, "with the points of all"
    everywhere = make_teachers([*(concept(demo, name) for name in names), replace(clay, applied_to=())], PROMPTS)
    assert sum(teacher.guest for teacher in everywhere) == 3, "control"
