"""A Modelfile whose template renders the same text as the chat template that the model learned with."""

from collections.abc import Mapping

from warmline.data.tokenize import render
from warmline.engine.engine import Sampling
from warmline.model.load import architecture
from warmline.package.folder import COMPANION, SETTINGS
from warmline.package.go_template import Layout, go_template, layout_of
from warmline.package.subject import PackageError, Subject

# What Ollama imports from safetensors by itself (ollama/convert); others need a GGUF file.
IMPORTED = frozenset(
    "Gemma2ForCausalLM GemmaForCausalLM LlamaForCausalLM MixtralForCausalLM Phi3ForCausalLM Qwen2ForCausalLM".split()
)
MODEL = "model"
NUM_CTX = 4096  # tokens, at least; as far as the model reads


def layout_for(subject: Subject) -> Layout:
    """Raises PackageError for a template that Ollama cannot express."""
    return layout_of(
        lambda messages: render(subject.tokenizer, [dict(each) for each in messages], add_generation_prompt=True)
    )


def needs_gguf(subject: Subject) -> bool:
    return architecture(subject.base) not in IMPORTED


def modelfile(layout: Layout, stops: list[str], system_prompt: str | None, source: str, num_ctx: int) -> str:
    """The file. Raises PackageError for texts that a Modelfile would alter."""
    usual = Sampling()
    parameters: Mapping[str, float] = {
        "temperature": usual.temperature,
        "top_p": usual.top_p,
        "top_k": 0,  # Ollama's own would cut the tail and punish repetition: neither is what was evaluated
        "min_p": 0,
        "repeat_penalty": 1,
        "num_predict": usual.max_new_tokens,
        "num_ctx": num_ctx,
    }
    lines = [f"FROM {source}", f"TEMPLATE {_quoted(go_template(layout), 'the chat template')}"]
    if system_prompt:
        lines.append(f"SYSTEM {_quoted(system_prompt, 'the system prompt')}")
    lines += [f"PARAMETER {name} {value:g}" for name, value in parameters.items()]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"


def stops_of(subject: Subject, eos_ids: object) -> list[str]:
    """The texts of the tokens that end a reply. `eos_ids`: of the base's generation settings."""
    named = [*(eos_ids if isinstance(eos_ids, list) else [eos_ids]), subject.tokenizer.eos_token_id]
    texts = [subject.tokenizer.convert_ids_to_tokens(token) for token in named if isinstance(token, int)]
    return list(dict.fromkeys(str(text) for text in texts if text))


def num_ctx_of(subject: Subject, positions: int) -> int:
    return min(positions, max(NUM_CTX, subject.recipe.model.max_seq_len))


def usage(subject: Subject) -> str:
    """What the package's README says of how to use it."""
    name = subject.name
    return (
        f"In this folder:\n\n```sh\nollama create {name} -f Modelfile\n"
        f"warmline serve {name} --engine remote --url http://127.0.0.1:11434 --settings {COMPANION}/{SETTINGS}\n```\n\n"
        f"`ollama run {name}` talks to the bare model, without any safety. The template is checked to render the same text "
        "as the one of training; whether Ollama cuts that text into the same tokens was not measured. Behind a server the "
        "heads are not read."
    )


def _quoted(text: str, what: str) -> str:
    """In three quotes. Ollama's parser knows no escapes and drops what cannot be printed."""
    odd = next((letter for letter in text if letter != "\n" and not letter.isprintable()), None)
    if odd is not None:
        raise PackageError(
            f"{what} has the character U+{ord(odd):04X}, which a Modelfile drops: replace it in the recipe"
        )
    if '"""' in text or text.startswith('"') or text.endswith('"'):
        raise PackageError(f"{what} begins or ends with a quote, or has three in a row, which a Modelfile cannot hold")
    return f'"""{text}"""'
