"""The bank of phrases: ways in which people ask for something, from which every recording and measurement draws its prompts.

A merge keeps what it was recorded on. Recorded on eight sentences it draws another concept as soon as a prompt has a word that
is in none of them, so each recorded point has a prompt of its own: a form ("an oil painting of {}"), and words after it.

The bank is divided once and for all, by the text of each phrase: most are learnt from, some decide when to stop, and the
rest are only ever measured on, so that what is reported is what a merge does on words it has never seen.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

#: stands for what is asked for
SLOT = "{}"


class Part(Enum):
    """What a part of the bank is for."""

    LEARN = "learn"
    STOP = "stop"
    MEASURE = "measure"


@dataclass(frozen=True)
class Bank:
    """Phrases of one way to prompt.

    Attributes:
        forms: what stands around that which is asked for, `{}`
        words: kind of phrase -> phrases that follow it; of each kind at most one is in a prompt
        things: what prompts show that call no concept
        joints: between two things that are asked for at once
        joint: what phrases are joined with
        articles: whether people write one before what they ask for ("a photo of a dog"), and as often do not
        separate: words that a phrase may begin with instead (" on a beach" needs no comma)
    """

    forms: tuple[str, ...]
    words: dict[str, tuple[str, ...]]
    things: tuple[str, ...]
    joints: tuple[str, ...]
    joint: str = ", "
    articles: bool = False
    separate: tuple[str, ...] = ()


def _several(text: str) -> tuple[str, ...]:
    """Phrases that are written with bars between them."""
    return tuple(phrase.strip() for phrase in text.split("|"))


_COLOURS = _several(
    """
    white | black | red | green | blue | yellow | pink | gray | purple | orange | brown | beige | turquoise | dark |
    bright | colorful | plain | blurry
    """
)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


#: by the way a checkpoint is prompted
BANKS: dict[str, Bank] = {
    "photo": Bank(
        forms=_several(
            """
            {} | a photo of {} | a picture of {} | an image of {} | a photograph of {} | a snapshot of {} |
            a close-up of {} | a close-up photo of {} | a portrait of {} | a wide shot of {} | a full body shot of {} |
            a view of {} | a cropped photo of {} | a good photo of {} | a bright photo of {} |
            a dark photo of {} | a photo of the {} | a nice photo of {} | a painting of {} | an oil painting of {} |
            a watercolor of {} | a drawing of {} | a sketch of {} | an illustration of {} | a cartoon of {} |
            a 3d render of {} | pixel art of {} | an old photo of {}
            """
        ),
        words={
            "background": tuple(f"on {_article(colour)} {colour} background" for colour in _COLOURS),
            "place": _several(
                """
                in a forest | on a beach | in the street | in a city | in the snow | in a garden | on a table |
                in a kitchen | in the mountains | in a field | at the lake | under water | in a room | on grass |
                in the desert | on a bridge | in a cafe | in space | outdoors | indoors | in front of a wall |
                in a studio | on the moon | in the rain | by a window | on a sofa | in a library | on a road
                """
            ),
            "light": _several(
                """
                at night | at sunset | at noon | in the morning | in soft light | in dramatic light | in neon light |
                backlit | in fog | under a blue sky | in golden light | in dim light
                """
            ),
            "action": _several(
                """
                running | sitting | standing | jumping | sleeping | looking at the camera | flying | walking |
                seen from above | seen from behind | seen from the side | in motion | lying down | floating
                """
            ),
            "clothing": _several(
                """
                wearing a hat | wearing a scarf | wearing sunglasses | wearing a red coat | with a bow tie |
                wearing a crown | with flowers | wearing a suit | holding a book | with a blue ribbon
                """
            ),
            "quality": _several(
                """
                highly detailed | sharp focus | 8k | high quality | minimalist | professional | cinematic |
                masterpiece | depth of field | vivid colors | film grain | beautiful
                """
            ),
        },
        things=_several(
            """
            a cat | a dog | a car | a house | a tree | a woman | a man | a bird | a bowl of fruit | a ship | a city |
            a mountain | a flower | a chair | a horse | a bicycle | a child | a castle | a bridge | a cup | a book |
            a clock | a lamp | a fish | a train | an apple | a river | a street | a face
            """
        ),
        joints=(*("{} and {}",) * 14, *("{}, {}",) * 2, "{} next to {}", "{} beside {}", "{} with {}", "{} holding {}"),
        articles=True,
        separate=("on ", "in ", "at ", "under ", "by ", "wearing ", "with ", "holding "),
    ),
    "booru": Bank(
        forms=_several(
            """
            {} | {}, solo | 1girl, {} | 1boy, {} | {}, upper body | {}, full body | {}, portrait | {}, close-up |
            {}, cowboy shot | {}, from above | {}, from side | {}, from behind | {}, looking at viewer | {}, chibi |
            {}, sketch | {}, monochrome | {}, watercolor | {}, flat color | {}, official art
            """
        ),
        words={
            "background": tuple(f"{colour} background" for colour in (*_COLOURS[:10], "simple", "gradient", "blurry")),
            "place": _several(
                """
                outdoors | indoors | forest | beach | city | street | classroom | bedroom | garden | sky | mountain |
                snow | cafe | bridge | field | library | kitchen | underwater | rooftop | train
                """
            ),
            "light": _several(
                """
                day | night | sunset | backlighting | sunlight | neon lights | fog | moonlight | rain | dusk
                """
            ),
            "action": _several(
                """
                standing | sitting | running | jumping | lying | walking | waving | sleeping | eating | arms up |
                smile | closed eyes | open mouth | blush | serious
                """
            ),
            "clothing": _several(
                """
                hat | scarf | sunglasses | school uniform | dress | jacket | kimono | hoodie | armor | ribbon | gloves |
                swimsuit | suit
                """
            ),
            "quality": _several(
                """
                masterpiece | best quality | highres | absurdres | very aesthetic | detailed | newest | 8k |
                depth of field | lens flare
                """
            ),
        },
        things=_several(
            """
            1girl | 1boy | cat | dog | scenery | still life | car | house | tree | flower | bird | city |
            multiple girls | food | horse | robot | ship | castle | no humans | fish | old man | child
            """
        ),
        joints=("{}, {}", "{}, {}", "{} and {}", "{}, {}, side by side"),
    ),
}

#: where a person wants nothing asked but their own templates
_NO_BANK = Bank((), {}, (), ("{} and {}",))

#: parts of the bank that are not learnt from, in sixteenths
_STOPPING, _MEASURED = 2, 3
#: of the prompts that are learnt from, the share that has one of a person's own templates as its form
OWN_TEMPLATES = 0.5
#: of the others, the share without any form, as many people write
BARE = 0.4
#: how often several things are asked for without the form that one of them has: "a fox and a crow on a beach"
PLAIN_TOGETHER = 0.5
#: how often a thing has an article where people may write one
ARTICLE = 0.6
#: how many phrases follow, and how often of sixteen
_FOLLOWING = (0,) * 3 + (1,) * 11 + (2,) * 2
#: kinds that are drawn more often than others: most prompts say where something is
_OFTEN = {"background": 3, "place": 2}


def part_of(phrase: str) -> Part:
    """The part of the bank that a phrase is in, by its text alone, so that it is the same in every merge."""
    place = zlib.crc32(phrase.encode()) % 16
    if place < _STOPPING:
        return Part.STOP
    return Part.MEASURE if place < _STOPPING + _MEASURED else Part.LEARN


@dataclass(frozen=True)
class Phrase:
    """One way to ask for something.

    Attributes:
        form: with `{}` where it stands
        after: what follows, its separator included; may be empty
        joint: how a second thing is joined to a first, "{} and {}"
        thing: what is shown where no concept is called
        plain_together: whether several things are asked for without the form
    """

    form: str
    after: str = ""
    joint: str = "{} and {}"
    thing: str = ""
    plain_together: bool = False

    def asking(self, *wanted: str) -> str:
        """The prompt for one thing, or for several at once in their order.

        An article that the form has before its place ("a photo of a {}", "my {}") stands before each that has none of its own.
        """
        article = re.search(rf"\b{_ARTICLE.pattern}(?=\{{\}})", self.form)
        form = self.form.replace(article[0] + SLOT, SLOT, 1) if article else self.form
        if article:
            wanted = tuple(one if _ARTICLE.match(one) else article[0] + one for one in wanted)
        together = wanted[-1]
        for number, one in enumerate(reversed(wanted[:-1])):
            # of three, the first are a list
            joint = self.joint if number == 0 else "{}, {}"
            together = joint.replace(SLOT, "\0", 1).replace(SLOT, together, 1).replace("\0", one, 1)
        if self.plain_together and len(wanted) > 1:
            form = SLOT
        return form.replace(SLOT, together) + self.after


#: what a thing may have before it already
_ARTICLE = re.compile(r"(an?|the|my|one|some) ")


class Phrases:
    """Draws phrases from one part of a bank, and from what a person added to it."""

    def __init__(
        self,
        bank: str,
        part: Part,
        *,
        templates: Sequence[str],
        added: Sequence[str] = (),
        avoid: Sequence[str] = (),
        seed: int,
    ) -> None:
        """
        Args:
            bank: name of one of `BANKS`; another name stands for no bank, and the templates are all there is
            templates: a person's own, with `{trigger}`; learnt from only, where there is a bank
            added: phrases that a person added, or that LoRAs were trained with; divided like the bank. Those with `{trigger}`
                are templates
            avoid: words that must call nothing where no concept is meant: no phrase of the bank with them is asked
            seed: of all that is drawn
        """
        self._random = random.Random(f"{seed} {part.value}")
        whole = BANKS.get(bank, _NO_BANK)
        asked = [*templates, *(phrase for phrase in added if "{trigger}" in phrase)]
        own = [template.replace("{trigger}", SLOT) for template in asked]
        self._joint, self._separate, self._joints = whole.joint, whole.separate, whole.joints
        self._articles, self._has_bank = whole.articles, bool(whole.forms)
        self._forms = _of_part(_without(whole.forms, avoid), part) or own
        self._templates = own if part is Part.LEARN else []
        kinds = {**whole.words, "added": [phrase for phrase in added if phrase not in asked]}
        words = {kind: _of_part(_without(phrases, avoid), part) for kind, phrases in kinds.items()}
        self._words = {kind: phrases for kind, phrases in words.items() if phrases}
        self._things = _of_part(_without(whole.things, avoid), part)

    def draw(self, *, plain: bool = False) -> Phrase:
        """The next phrase.

        Args:
            plain: whether it is in a person's own templates or without any form, and in none of the bank's
        """
        form = self._form(plain)
        # a template that says what stands behind is not asked to have that on another background
        kinds = [kind for kind in sorted(self._words) if kind not in form]
        kinds = self._pick(kinds, min(self._random.choice(_FOLLOWING), len(kinds)))
        words = [self._random.choice(self._words[kind]) for kind in kinds]
        # what needs no comma first: "on a beach, highly detailed"
        after = "".join(sorted(map(self._separated, words), key=lambda part: not part.startswith(" ")))
        thing = self._random.choice(self._things) if self._things else ""
        plain_together = self._has_bank and self._random.random() < PLAIN_TOGETHER
        return Phrase(form, after, self._random.choice(self._joints), thing, plain_together)

    def _pick(self, kinds: Sequence[str], count: int) -> list[str]:
        """So many different ones, the frequent ones more often."""
        drawn: list[str] = []
        while len(drawn) < count:
            left = [kind for kind in kinds if kind not in drawn]
            drawn += self._random.choices(left, [_OFTEN.get(kind, 1) for kind in left])
        return drawn

    def _form(self, plain: bool) -> str:
        if self._templates and self._random.random() < OWN_TEMPLATES:
            form = self._random.choice(self._templates)
        elif self._has_bank and (plain or self._random.random() < BARE):
            form = SLOT
        else:
            form = self._random.choice(self._forms)
        if self._articles and self._random.random() < ARTICLE:
            # not in a person's own "my {}" or "a big {}"
            form = re.sub(r"(^|\bof )\{\}", r"\1a {}", form, count=1)
        return form

    def _separated(self, words: str) -> str:
        return f" {words}" if words.startswith(self._separate or "\0") else f"{self._joint}{words}"


def contains_words(text: str, words: str) -> bool:
    """Whether some words stand in a text as words, in whatever case."""
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def _without(phrases: Sequence[str], avoid: Sequence[str]) -> list[str]:
    return [phrase for phrase in phrases if not any(contains_words(phrase, words) for words in avoid)]


def _of_part(phrases: Sequence[str], part: Part) -> list[str]:
    """Those of some phrases that are in a part; where none is, those that are learnt from, and of two or three of a person's
    own all: what is measured is never among the others'."""
    for wanted in (part, Part.LEARN):
        own = [phrase for phrase in phrases if part_of(phrase) is wanted]
        if own:
            return own
    return list(phrases)
