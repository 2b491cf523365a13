"""Teachers: which LoRAs are active on which prompts.

The LoRAs are their own teachers, no training picture is needed. A *subject* is taught on its own prompts. A *style* with
trigger words is taught on plain prompts and on every subject's prompts, its words added; and what the model predicts there
without it and its words is known too, since most styles act whether they are called or not, and what the words change has to
be learnt. A style without trigger words changes everything it is applied to, so it is active in every other teacher too, also in
the one for prompts without triggers; on each subject it is a teacher besides, so that it counts there as much as the subject
does. Where there is no such style, the teacher for prompts without triggers is the base model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..request import Concept, Part, Phrase, PromptOptions, is_background


@dataclass(frozen=True)
class Slot:
    """A place in the recordings that all teachers share: each is asked there in the same way, at the same noise level.

    Attributes:
        number: from 0 on
        part: of the bank of phrases that it was drawn from
        phrase: how is asked
        partner: subject -> the subject that stands beside it in this slot's scenes, as numbers of concepts
        path: the denoising path that leads here, where the words are those that it was followed with; else None
        negative: whether the negative prompt is asked instead, with no subject active
    """

    number: int
    part: Part
    phrase: Phrase
    partner: dict[int, int]
    path: int | None = None
    negative: bool = False


@dataclass(frozen=True)
class Teacher:
    """A set of active concepts on prompts that call them; what the model then predicts is what the merge is to predict.

    Attributes:
        name: for progress and messages
        concept: whose retention is measured on these prompts; None where no trigger is
        active: the concepts that are active
        words: what calls a subject; empty where none is called
        texts: whole prompts: a concept's own, or those without trigger words
        fixed: whether nothing but the texts is asked; else half of what is learnt from
        style: trigger words of a style, which are added to every prompt
        quality: words that are added to every prompt
        importance: how much it counts
        share: of the points that others have
        alone: whether it never stands beside another
        guest: whether the words are those of a subject that a style is taught on
        outfits: other words that call the subject
        by_words: whether the style's words are to decide: what is predicted without it and them is known too
    """

    name: str
    concept: int | None
    active: tuple[int, ...]
    words: str = ""
    texts: tuple[str, ...] = ()
    fixed: bool = False
    style: str = ""
    quality: str = ""
    importance: float = 1.0
    share: float = 1.0
    alone: bool = False
    guest: bool = False
    outfits: tuple[str, ...] = ()
    by_words: bool = False

    @property
    def absent(self) -> tuple[int, ...]:
        """What is active when the concept is not there; retention 0 is this."""
        return tuple(i for i in self.active if i != self.concept)

    @property
    def in_scenes(self) -> bool:
        """Whether it can stand beside another in one picture, called by words of its own."""
        return bool(self.words) and not (self.fixed or self.style or self.guest or self.alone)

    def rivals(self, subjects: Sequence[int]) -> list[tuple[int, ...]]:
        """What would be active if another subject were in this one's place; none where no subject is taught."""
        if self.concept not in subjects:
            return []
        return [tuple(sorted({*self.absent, j})) for j in subjects if j not in self.active]

    def called(self, slot: Slot) -> str:
        """What calls the subject in a slot: of several sets of words each in its turn, and along a path the same."""
        turn = slot.number if slot.path is None else slot.path
        return (self.words, *self.outfits)[turn % (1 + len(self.outfits))]

    def prompt_without_style(self, slot: Slot) -> str:
        """The same without the style's words."""
        return replace(self, style="").prompt(slot)

    def prompt(self, slot: Slot) -> str:
        """What calls the teacher in a slot."""
        phrase = slot.phrase
        half = slot.part is Part.LEARN and slot.number % 2 == 0
        if self.fixed or (self.texts and (half or not phrase.thing)):
            text = self.texts[slot.number // 2 % len(self.texts)] + phrase.after
        else:
            text = phrase.asking(self.called(slot) or phrase.thing)
        return ", ".join(part for part in (text, self.style, self.quality) if part)

    def texts_asked(self, numbers: Iterable[int]) -> set[str]:
        """Which of its own texts are asked in slots of the learnt part, by the slots' numbers."""
        return {self.texts[k // 2 % len(self.texts)] for k in numbers if self.texts and (self.fixed or k % 2 == 0)}

    def prompt_beside(self, others: Sequence[Teacher], slot: Slot) -> str:
        """What is asked in a slot for several subjects at once, this one first."""
        text = slot.phrase.asking(self.called(slot), *(other.called(slot) for other in others))
        return ", ".join(part for part in (text, self.quality) if part)


def make_teachers(concepts: Sequence[Concept], prompts: PromptOptions) -> list[Teacher]:
    """The teachers of a merge, the one without triggers last.

    A single concept has nothing to be kept apart from: there the teacher without triggers is left out, so that the
    merge of one LoRA is that LoRA.
    """
    background = tuple(i for i, concept in enumerate(concepts) if is_background(concept))
    subjects = [j for j, concept in enumerate(concepts) if concept.kind == "subject"]
    teachers = []
    for i, concept in enumerate(concepts):
        active = tuple(sorted({i, *background}))
        common = {"quality": prompts.quality, "importance": concept.importance}
        if concept.kind == "subject":
            words, own = concept.trigger or concept.label, {"texts": concept.prompts, "fixed": bool(concept.prompts)}
            own |= {"alone": concept.alone, "outfits": concept.outfits}
            teachers.append(Teacher(concept.label, i, active, words, **own, **common))
            continue
        # of a style merged alone nothing is to be left out where it is not called
        by_words = bool(concept.trigger) and len(concepts) > 1
        own = {"texts": prompts.plain, "style": concept.trigger or "", "by_words": by_words}
        own = {"texts": concept.prompts, "fixed": True} if concept.prompts else own
        teachers.append(Teacher(concept.label, i, active, **own, **common))
        styled = [j for j in subjects if not concept.applied_to or concepts[j].label in concept.applied_to]
        for j in styled:
            teachers.append(_style_on_subject(i, j, concepts, background, prompts, 1 / len(styled)))
    if len(concepts) > 1:
        importance = sum(concept.importance for concept in concepts) / len(concepts)
        plain = {"texts": prompts.plain, "quality": prompts.quality, "importance": importance}
        teachers.append(Teacher("prompts without triggers", None, background, **plain))
    return teachers


def _style_on_subject(
    style: int,
    subject: int,
    concepts: Sequence[Concept],
    background: tuple[int, ...],
    prompts: PromptOptions,
    share: float,
) -> Teacher:
    """A style on a subject's prompts, both active; the style's words, if it has any, are added."""
    called = concepts[subject]
    return Teacher(
        f"{concepts[style].label} on {called.label}",
        style,
        tuple(sorted({style, subject, *background})),
        called.trigger or called.label,
        called.prompts,
        bool(called.prompts),
        concepts[style].trigger or "",
        prompts.quality,
        concepts[style].importance,
        share,
        guest=True,
        outfits=called.outfits,
        by_words=bool(concepts[style].trigger),
    )
