"""What may be shown to a person: checked words of the companion, the card, and what the app itself says."""

from warmline.safety.resources.card import Card
from warmline.safety.validate.notice import Notice
from warmline.safety.validate.release import Validated, is_validated

Released = Validated | Card | Notice  # each is made in this package alone


def text_of(piece: Released) -> str:
    """The words to show, for a sink. Raises TypeError for anything that was not released: a sink shows nothing else."""
    if isinstance(piece, Card):
        return piece.text()
    if isinstance(piece, Notice):
        return piece.text
    if is_validated(piece):
        return str.__str__(piece)
    raise TypeError(f"a {type(piece).__name__} was not released: only validated text, a card or a notice is shown")
