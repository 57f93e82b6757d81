"""Upload a fused model to the Hub."""

from pathlib import Path

from fusinglib.errors import InputError
from fusinglib.fusion import recipes

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def check(name: str) -> None:
    """Raise `InputError` if `name` is no name of a repository, or nobody is logged in."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if "/" not in name:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise InputError(f"--push {name}: expected OWNER/NAME ({error}).") from error
    try:
        huggingface_hub.whoami()
    except Exception as error:  # the client raises many kinds of errors
        raise InputError(f"--push {name}: the Hub does not know you: {LOGIN}.") from error


def push(folder: Path, name: str, recipe: dict) -> str:
    """Upload a fused model to a repository, which is created private if it is new; its address.

    A recipe that names local folders stays behind. Raises `InputError` for what the Hub refuses.
    """
    import huggingface_hub

    ignored = [] if recipes.is_portable(recipe) else [recipes.NAME]
    hub = huggingface_hub.HfApi()
    try:
        address = hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=name, folder_path=folder, ignore_patterns=ignored,
            commit_message="Upload a model fused by fusinglib",
        )  # fmt: skip
    except Exception as error:  # the client raises many kinds of errors
        said = " ".join(str(error).split())
        raise InputError(
            f"{name}: the Hub refused the upload ({said}); {folder} is complete: repeat it with "
            f"`hf upload {name} {folder}`."
        ) from error
    return str(address)
