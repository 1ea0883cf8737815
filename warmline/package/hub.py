"""A folder for the hub: adapter, tokenizer, model card. Nothing is uploaded unless somebody says so and has a token."""

from pathlib import Path

from warmline.package.subject import PackageError, Subject
from warmline.package.vllm import adapter_config, write_adapter

TOKEN = "HF_TOKEN"


def write_hub(subject: Subject, draft: Path) -> str:
    """peft's adapter at the top of the folder, where the hub looks for it; returns the usage."""
    write_adapter(subject, draft, adapter_config(subject))
    subject.tokenizer.save_pretrained(draft)
    base = "BASE_FOLDER" if subject.is_local else subject.base_name
    return (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```\n\n'
        "The chat template is the tokenizer's. The heads are linear layers over the last prompt token: `companion/heads.json`."
    )


def check_push(name: str, token: str | None) -> str:
    """The token. Raises PackageError before anything is made where the upload could not be."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise PackageError(f"--push {name!r} is no hub id: {str(error).splitlines()[0]}") from None
    if not token:
        raise PackageError(f"--push needs a token with the right to write: set {TOKEN}")
    return token


def push(folder: Path, name: str, token: str) -> str:
    """Upload a package to the repository `name`, private where it is made now; returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(token=token)
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, commit_message="warmline package")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PackageError(f"{folder} is made, and was not uploaded to {name}: {first}") from None
    return str(address)
