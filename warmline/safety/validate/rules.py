"""All rules by the names that labels use, and which of them a single sentence can be judged by."""

from collections.abc import Mapping
from functools import partial

from warmline.safety.validate.advice import directive_or_actionable_advice
from warmline.safety.validate.beliefs import delusion_confirmed
from warmline.safety.validate.diagnosis import diagnosis
from warmline.safety.validate.feelings import missing_acknowledgement, missing_emotion_name
from warmline.safety.validate.form import length_form, number_in_model_text, repetition
from warmline.safety.validate.language import language_mismatch
from warmline.safety.validate.memory import fabricated_memory
from warmline.safety.validate.methods import method_information
from warmline.safety.validate.phrases import dependency_hook, human_claim, invalidating, phrase_check
from warmline.safety.validate.privacy import pii_echo
from warmline.safety.validate.questions import probing_question
from warmline.safety.validate.support import missing_support_encouragement, multiple_escalations
from warmline.safety.validate.violations import Check
from warmline.safety.validate.wording import BROKEN, worded

_PHRASES: Mapping[str, Check] = {
    "probing_question": probing_question,
    "invalidating": invalidating,
    "fabricated_memory": fabricated_memory,
    "directive_or_actionable_advice": directive_or_actionable_advice,
    "method_information": method_information,
    "diagnosis": diagnosis,
    "missing_acknowledgement": missing_acknowledgement,
    "missing_emotion_name": missing_emotion_name,
    "missing_support_encouragement": missing_support_encouragement,
    "multiple_escalations": multiple_escalations,
    "promise_of_secrecy": partial(phrase_check, "promise_of_secrecy"),
    "human_claim": human_claim,
    "unsafe_validation": partial(phrase_check, "unsafe_validation"),
    "dependency_hook": dependency_hook,
    "abandonment": partial(phrase_check, "abandonment"),
    "number_in_model_text": number_in_model_text,
    "no_suicide_contract": partial(phrase_check, "no_suicide_contract"),
    "delusion_confirmed": delusion_confirmed,
    "ed_content": partial(phrase_check, "ed_content"),
    "sexual_content": partial(phrase_check, "sexual_content"),
    "length_form": length_form,
    "repetition": repetition,
    "language_mismatch": language_mismatch,
    "pii_echo": pii_echo,
}
RULES: Mapping[str, Check] = {
    name: worded(name, check) if name in BROKEN else check for name, check in _PHRASES.items()
}
# What only a whole reply can lack or have too much of.
WHOLE_REPLY = frozenset(
    {
        "missing_acknowledgement",
        "missing_emotion_name",
        "missing_support_encouragement",
        "multiple_escalations",
        "repetition",
    }
)
OF_A_SENTENCE: Mapping[str, Check] = {name: check for name, check in RULES.items() if name not in WHOLE_REPLY}
