"""Folders of models: where they are, what identifies them, and how they join the store."""

import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError

from fusinglib.errors import InputError
from fusinglib.fusion import checkpoints, compatibility
from fusinglib.fusion.compatibility import SETTINGS_FILES, VOCABULARIES
from fusinglib.fusion.engine import fuse
from fusinglib.fusion.opening import open_checkpoint
from fusinglib.fusion.streaming import not_finite

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def is_text_to_text(folder: Path) -> bool:
    """Whether the model in `folder` reads text and writes text (an encoder-decoder).

    Raises `InputError` for one that is not T5-like: labels are scored in parallel, which needs
    relative positions (see `fusinglib.training.scoring.label_scores`).
    """
    config = config_of(folder)
    if config.is_encoder_decoder and not hasattr(config, "relative_attention_num_buckets"):
        raise InputError(
            f"{folder}: text-to-text models of the type {config.model_type!r} are not supported; "
            f"expected a T5 (T5, T5 v1.1, mT5...) or an encoder (BERT, RoBERTa...)"
        )
    return bool(config.is_encoder_decoder)


def config_of(folder: Path) -> transformers.PreTrainedConfig:
    """The configuration in `folder`; raises `InputError` for one that transformers cannot read."""
    try:
        return transformers.AutoConfig.from_pretrained(folder)
    except Exception as error:  # its classes raise many kinds of errors
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{Path(folder) / 'config.json'} describes no model that transformers "
            f"{transformers.__version__} knows ({said}): save the model again with save_pretrained"
        ) from error


def opened(auto, folder: Path, **kwargs):
    """The model in `folder`, in fp32; missing weights (except poolers) are refused."""
    try:
        model, report = auto.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **kwargs
        )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{folder}: its weights cannot be loaded ({said}): download or save the model again"
        ) from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise InputError(f"{folder}: its weights lack {missing[0]}, which its config requires")
    return model


def tokenizer(folder: Path):
    """The tokenizer of the model in `folder`; raises `InputError` if there is none, or if it has no
    padding token."""
    content = tokenizer_hash(folder)
    if content not in _TOKENIZERS:
        if not any((folder / name).is_file() for name in (*VOCABULARIES, *SETTINGS_FILES)):
            raise InputError(f"{folder} has no tokenizer: save its tokenizer there as well")
        made = transformers.AutoTokenizer.from_pretrained(str(folder))
        vocabularies = [name for name in VOCABULARIES if name != "added_tokens.json"]
        if made.vocab_files_names and not any((folder / name).is_file() for name in vocabularies):
            raise InputError(
                f"{folder} has no vocabulary ({', '.join(vocabularies[:3])}...) for its tokenizer: "
                "save it there as well"
            )
        if made.pad_token_id is None:
            raise InputError(
                f"{folder}: its tokenizer has no padding token: set one (tokenizer.pad_token) and "
                f"save the model again"
            )
        _TOKENIZERS[content] = made
    return _TOKENIZERS[content]


_TOKENIZERS: dict[str, transformers.PreTrainedTokenizerBase] = {}


def tokenizer_hash(folder: Path) -> str:
    """A hash of everything that determines the token ids of a text: the tokenizer's files, and the
    config's tokenizer class if they do not name it."""
    digest = hashlib.sha256()
    for path in (folder / name for name in (*VOCABULARIES, *SETTINGS_FILES)):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    config = checkpoints.read_json(folder / "config.json")
    digest.update(str([config.get("model_type"), config.get("tokenizer_class")]).encode())
    return digest.hexdigest()


def locate(model: str, revision: str, allow_pickle: bool = False) -> Path:
    """The folder of a local model or of a Hub id's snapshot (downloaded if need be): of a Trainer's
    checkpoints the best or newest (see `checkpoints.checkpoint`), or one with a LoRA adapter.

    Raises `InputError` if there is none, or if it has no safetensors weights, unless pickled ones
    are allowed (loaded with weights_only).
    """
    folder = Path(model)
    if not model or not folder.is_dir():
        kinds = [*checkpoints.FILES, *["*.bin"] * allow_pickle]
        folder = checkpoints.snapshot(model, revision, kinds)
    folder, _ = checkpoints.checkpoint(folder)
    if is_adapter(folder):
        open_checkpoint(folder, allow_pickle)
        return folder
    if not (folder / "config.json").is_file():
        raise InputError(f"model {model!r}: it has no config.json; expected a saved model folder")
    if list(folder.glob("*.safetensors")) or (allow_pickle and list(folder.glob("*.bin"))):
        return folder
    raise InputError(
        f"model {model!r}: it has no safetensors weights, and pickled weights are opened only with "
        "allow_pickle: true (weights only): set it, save the model with save_pretrained, or name "
        "a revision that has safetensors"
    )


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a LoRA adapter."""
    return (folder / "adapter_config.json").is_file()


def whole(folder: Path) -> Path:
    """The folder with the configuration and tokenizer of the model in `folder`: for an adapter that
    of its base."""
    return open_checkpoint(folder, allow_pickle=True).folder if is_adapter(folder) else folder


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer in `folder` that knows words."""
    try:
        return bool(tokenizer(folder))
    except InputError:
        return False


def refuse_foreign(folder: Path, ancestor: Path, without_tokenizer: bool = False) -> None:
    """Raise `InputError` if the model in `folder` cannot be finetuned from the `ancestor`: another
    architecture or vocabulary. A model `without_tokenizer` must have as many embeddings."""
    problems = compatibility.of_configs([folder, ancestor])
    sizes = [config_of(one).vocab_size for one in (folder, ancestor)]
    if without_tokenizer and sizes[0] != sizes[1]:
        problems.append(
            f"{folder} has no tokenizer, and {sizes[0]:,} embeddings where the pretrained model "
            f"has {sizes[1]:,}: save its tokenizer there as well"
        )
    compatibility.refuse(problems)
    if not without_tokenizer:
        words, known = (tokenizer(one).get_vocab() for one in (folder, ancestor))
        for word in words.keys() & known.keys():
            if words[word] != known[word]:
                raise InputError(
                    f"{folder} reads the token {word!r} as {words[word]}, and the pretrained model "
                    f"{ancestor} as {known[word]}: fuse models that share a tokenizer"
                )


def refuse_infinite(folder: Path) -> None:
    """Raise `InputError` for a model with weights that are NaN or infinite."""
    model = open_checkpoint(folder, allow_pickle=True)
    for name in not_finite(model.tensors):
        raise InputError(f"{folder}: its tensor {name} contains NaN or infinity: leave it out")


def weights(folder: Path) -> list[Path]:
    """The weight files in `folder`: safetensors, or pickles if there are none."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def fingerprint(folder: Path) -> str:
    """A hash of the weights, config and tokenizer in `folder`, and of an adapter's base, whatever
    their paths."""
    digest = hashlib.sha256()
    tokenizer = ("tokenizer.json", "vocab.json", "*.txt", "*.model")
    others = [sorted(folder.glob(pattern)) for pattern in ("config.json", *tokenizer)]
    if is_adapter(folder):
        settings = checkpoints.read_json(folder / "adapter_config.json")
        settings.pop("base_model_name_or_path", None)  # a path; its content is hashed
        digest.update(json.dumps(settings, sort_keys=True).encode())
        digest.update(fingerprint(whole(folder)).encode())
    for path in itertools.chain(weights(folder), *others):
        digest.update(path.name.encode())
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def import_model(folder: Path, output: Path, tokenizer_folder: Path | None = None) -> None:
    """Copy the base model in `folder` (an encoder without its head) to `output`, in fp32.

    A pooler that `folder` lacks (as masked language models do) is always initialised the same way.
    An adapter is merged into its base. The tokenizer is that of `tokenizer_folder`, by default the
    model's own. Raises `InputError` for weights that are not finite.
    """
    if is_adapter(folder):
        with tempfile.TemporaryDirectory() as scratch:
            merged = Path(scratch) / "merged"
            fuse([folder], merged, progress=False, allow_pickle=True)
            import_model(merged, output, tokenizer_folder or whole(folder))
        return
    auto = transformers.AutoModel
    if is_text_to_text(folder):
        auto = transformers.AutoModelForSeq2SeqLM
    torch.manual_seed(0)
    model = opened(auto, folder)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{folder}: its tensor {name} contains NaN or infinity: leave it out")
    _save(model, tokenizer_folder or folder, output)


def randomise(folder: Path, output: Path, seed: int) -> None:
    """Write a model of the same architecture as in `folder` that was never pretrained.

    A separate T5 head (v1.1) stays separate and starts at the scale d_model ** -0.5.
    """
    config = config_of(folder)
    torch.manual_seed(seed)
    if not config.is_encoder_decoder:
        _save(transformers.AutoModel.from_config(config), folder, output)
        return
    pretrained = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    untied = not torch.equal(
        pretrained.get_input_embeddings().weight, pretrained.get_output_embeddings().weight
    )
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    if untied:
        untie(model)
    _save(model, folder, output)


def untie(model) -> None:
    """Give a T5 model a separate head (v1.1), at the scale d_model ** -0.5.

    Transformers 5 ties every T5 made from a config, and unties only on loading.
    """
    head = model.get_input_embeddings().weight.detach().clone()
    torch.nn.init.normal_(head, std=model.config.d_model**-0.5)
    model.lm_head.weight = torch.nn.Parameter(head)


def _save(model, tokenizer_folder: Path, output: Path) -> None:
    model.save_pretrained(output)
    tokenizer(tokenizer_folder).save_pretrained(output)
