"""Under which terms the data and the base of a run stand, as far as warmline knows."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from warmline.config.recipe import Recipe
from warmline.data.sources.registry import APACHE, SOURCES, Licence

MIT = Licence("MIT", is_non_commercial=False)
# Of the bases that the shipped recipes name, as their pages on the hub state them.
BASES: Mapping[str, Licence] = {
    "microsoft/DialoGPT-medium": MIT,
    "microsoft/Phi-3-mini-4k-instruct": MIT,
    "Qwen/Qwen2.5-0.5B-Instruct": APACHE,
    "Qwen/Qwen2.5-3B-Instruct": Licence("Qwen Research License", is_non_commercial=True),
    "Qwen/Qwen2.5-7B-Instruct": APACHE,
}


class Terms(NamedTuple):
    """`None` is what warmline does not know."""

    data: Mapping[str, Licence | None]  # by the recipe's name of the source
    base: Licence | None
    base_is_own: bool  # pre-trained here, from sources that stand in `data`

    def non_commercial(self) -> list[str]:
        """What forbids commercial use, by name and licence."""
        return [f"{name} ({licence.name})" for name, licence in self._all() if licence and licence.is_non_commercial]

    def unknown(self) -> list[str]:
        """What warmline knows no licence of."""
        return [name for name, licence in self._all() if licence is None]

    def _all(self) -> Iterator[tuple[str, Licence | None]]:
        yield from self.data.items()
        if not self.base_is_own:
            yield "the base model", self.base


def terms_of(recipe: Recipe) -> Terms:
    """The licences of everything that a recipe learns from.

    A source's licence is that of the corpus which its reader is for, wherever the copy lies.
    """
    data = {name: SOURCES[settings.reader or name].licence for name, settings in recipe.data.sources.items()}
    return Terms(data, BASES.get(recipe.model.base), recipe.model.base == "tiny")


def warnings_of(terms: Terms) -> list[str]:
    """What whoever packages must be told, in one line each."""
    lines = []
    if found := terms.non_commercial():
        lines.append(f"non-commercial: this package is made from {', '.join(found)}; it may not be used commercially")
    if found := terms.unknown():
        lines.append(f"no licence is known to warmline of {', '.join(found)}: see to it before you hand this on")
    return lines
