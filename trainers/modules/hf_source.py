"""CLIPs in Hugging Face's layout, by folder or by the hub's id."""

from dataclasses import replace
from os import PathLike
from pathlib import Path

from common.errors import UserError
from trainers.modules.backbone_source import Loaded, Source
from trainers.modules.clip_model import build_clip, computes
from trainers.modules.hf_config import read_facts, read_shape, read_tokenizer
from trainers.modules.hf_hub import HUB_ID, files_of, hub_folder
from trainers.modules.hf_weights import read_weights, weights_of


class HuggingFace(Source):
    """hf:<folder>, or hf:<organisation>/<name> of the hub, downloaded into its cache by huggingface_hub.

    A folder holds a CLIPModel as save_pretrained has it: config.json, the weights, and the files of tokenizer and
    preprocessor. They are read as data; transformers is not needed.
    """

    prefix = "hf:"
    accepts = "hf:<folder or id> of a CLIPModel in Hugging Face's layout"

    def label(self, name: str) -> str:
        """hf- and the folder's name, or the id; a folder of the hub's cache goes by its id."""
        rest = self.rest(name)
        if HUB_ID.fullmatch(rest) and not Path(rest).is_dir():
            return f"hf-{rest.replace('/', '-')}"
        parts = Path(rest).expanduser().resolve().parts
        cached = [part.removeprefix("models--") for part in parts if part.startswith("models--")]
        return f"hf-{cached[-1].replace('--', '-') if cached else parts[-1]}"

    def check(self, name: str) -> None:
        rest = self.rest(name)
        path = Path(rest).expanduser()
        if path.is_file():
            raise UserError(f"Backbone {name} is a file; name the folder of it and its config.json: hf:{path.parent}.")
        if not rest or not (path.is_dir() or HUB_ID.fullmatch(rest)):
            raise UserError(
                f"Backbone {name} is neither a folder nor an id of the hub. Accepted: hf:<folder>, or "
                "hf:<organisation>/<name> (hf:openai/clip-vit-base-patch16)."
            )
        if path.is_dir():
            what = f"Backbone {name}"
            read_tokenizer(path, what, read_shape(path, what))
            weights_of(path, what)

    def load(self, name: str, root: str | PathLike) -> Loaded:
        folder = self.folder(name)
        what = f"Backbone {name}"
        shape = read_shape(folder, what)
        facts = replace(read_facts(folder, what, shape.image_size), tokenizer=read_tokenizer(folder, what, shape))
        weights = read_weights(folder, what, shape)
        kinds = {"image": shape.vision.kind, "text": shape.text.kind}
        model = build_clip(weights, **kinds)
        model.visual.input_resolution = shape.image_size  # which need not be a multiple of the patches' side
        return Loaded(model, replace(facts, computes=computes(weights, **kinds)), str(folder), files_of(folder))

    def has_vit(self, name: str) -> bool:
        return True  # that of a CLIPModel always is

    def resolved(self, name: str) -> str:
        path = Path(self.rest(name)).expanduser()
        return f"{self.prefix}{path.resolve()}" if path.is_dir() else name

    def folder(self, name: str) -> Path:
        """The folder of a backbone, downloaded first if it is an id that is not in the cache.

        Raises:
            UserError: it cannot be had.
        """
        path = Path(self.rest(name)).expanduser()
        return path if path.is_dir() else hub_folder(self.rest(name))
