"""Teachers: which LoRAs are active on which prompts.

The LoRAs are their own teachers, no training picture is needed. A *subject* is taught on its own prompts. A *style* with
trigger words is taught on plain prompts and on every subject's prompts, its words added. A style without
trigger words changes everything it is applied to, so it is active in every other teacher too, also in the one
for prompts without triggers. Where there is no such style, that one is the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..request import Concept, PromptOptions, concept_prompts, is_background


@dataclass(frozen=True)
class Teacher:
    """A set of active concepts on prompts that call them; what the model then predicts is what the merge is to predict.

    Attributes:
        name: for progress and messages
        concept: whose retention is measured on these prompts; None where no trigger is
        active: the concepts that are active
        prompts: what is asked
        importance: how much it counts
    """

    name: str
    concept: int | None
    active: tuple[int, ...]
    prompts: tuple[str, ...]
    importance: float = 1.0

    @property
    def absent(self) -> tuple[int, ...]:
        """What is active when the concept is not there; retention 0 is this."""
        return tuple(i for i in self.active if i != self.concept)

    def rivals(self, subjects: Sequence[int]) -> list[tuple[int, ...]]:
        """What would be active if another subject were in this one's place; none where no subject is taught."""
        if self.concept not in subjects:
            return []
        return [tuple(sorted({*self.absent, j})) for j in subjects if j not in self.active]


def make_teachers(concepts: Sequence[Concept], prompts: PromptOptions) -> list[Teacher]:
    """The teachers of a merge, the one without triggers last.

    A single concept has nothing to be kept apart from: there the teacher without triggers is left out, so that the
    merge of one LoRA is that LoRA.
    """
    background = tuple(i for i, concept in enumerate(concepts) if is_background(concept))
    teachers = []
    for i, concept in enumerate(concepts):
        active = tuple(sorted({i, *background}))
        own = concept_prompts(concept, prompts)
        teachers.append(Teacher(concept.label, i, active, own, concept.importance))
        if concept.kind == "style" and concept.trigger:
            teachers += _style_on_subjects(i, concepts, active, prompts)
    if len(concepts) > 1:
        plain = tuple(prompts.with_quality(prompt) for prompt in prompts.plain)
        importance = sum(concept.importance for concept in concepts) / len(concepts)
        teachers.append(Teacher("prompts without triggers", None, background, plain, importance))
    return teachers


def _style_on_subjects(
    style: int, concepts: Sequence[Concept], active: tuple[int, ...], prompts: PromptOptions
) -> list[Teacher]:
    """The style with trigger words on each subject's first prompt: both active, the style's words added."""
    subjects = [(j, concept) for j, concept in enumerate(concepts) if concept.kind == "subject"]
    return [
        Teacher(
            f"{concepts[style].label} on {subject.label}",
            style,
            tuple(sorted({*active, j})),
            tuple(f"{prompt}, {concepts[style].trigger}" for prompt in concept_prompts(subject, prompts)[:2]),
            concepts[style].importance / len(subjects),
        )
        for j, subject in subjects
    ]
