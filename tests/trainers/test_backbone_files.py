"""Files, downloads and names of backbones: loading, errors, and no execution of code in files."""

import hashlib
import http.server
import json
import pickle
import threading
import warnings
import zipfile

import clip
import open_clip
import pytest
import torch
from clip.clip import _tokenizer as bpe
from quick_run import command_line, run_train
from reference import tiny_clip
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError
from trainers.modules.clip.backbone import absolute_name, backbone_label, cached_backbone, has_vit, load_backbone

STATE = tiny_clip(vision=2).state_dict()
TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"width": 64, "heads": 1, "layers": 3},
}


class RunsCode:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file has run')",)


def archive(state, path):
    """Save a TorchScript archive, as OpenAI does; its program is empty."""
    root = nn.Module()
    for key, value in state.items():
        module, *names = root, *key.split(".")
        for name in names[:-1]:
            if not hasattr(module, name):
                module.add_module(name, nn.Module())
            module = getattr(module, name)
        module.register_buffer(names[-1], value)
    root.register_buffer("input_resolution", torch.tensor(224))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(str(path))


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Names of one CLIP by source: a file, a folder of open_clip, a CLIPModel's folder."""
    torch.save(STATE, tmp_path / "clip.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    save_file(STATE, tmp_path / "folder/open_clip_model.safetensors")
    found = {"openai": str(tmp_path / "clip.pt"), "open_clip": f"open_clip:local-dir:{tmp_path / 'folder'}"}
    (tmp_path / "tiny-vit.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-vit.json")
    found["open_clip file"] = f"open_clip:tiny-vit@{tmp_path / 'clip.pt'}"
    return found


# ---- files in OpenAI's format ----


def test_one_clip_loads_from_each_kind_of_file(places, tmp_path):
    contents = {
        "trained.pt": {"state_dict": STATE, "optimizer": {"state": {}}},
        "prefixed.pt": {
            "model_state_dict": {f"module.model.{key}": value for key, value in STATE.items()},
            "args": {"lr": 0.1},
        },
        "more.pt": {**STATE, "input_resolution": torch.tensor(32), "visual.attn_mask": torch.zeros(2)},
    }
    for file, content in contents.items():
        torch.save(content, tmp_path / file)
    archive(STATE, tmp_path / "archive.pt")
    save_file(STATE, tmp_path / "clip.safetensors")
    first = load_backbone(places["openai"])
    assert "QuickGELU" in first.info.notes[0] and has_vit(first.name)
    for file in (*contents, "archive.pt", "clip.safetensors"):
        assert load_backbone(str(tmp_path / file)).sha256 == first.sha256, file


@pytest.mark.parametrize("source", ["openai", "open_clip file"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is not a model", "."),
        ({"weight": torch.zeros(2)}, "."),
        ({**STATE, "token_embedding.weight": RunsCode()}, "might run code|eights.only"),
        ({key: value for key, value in STATE.items() if key != "ln_final.bias"}, "ln_final.bias"),
        ({**STATE, "logit_scale": torch.tensor(float("nan"))}, "logit_scale are not finite"),
    ],
)
def test_file_without_clip_raises_with_its_name(source, content, message, places, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "clip.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=message) as error:
        load_backbone(places[source])
    assert "clip.pt" in str(error.value).splitlines()[0]


def test_program_of_an_archive_does_not_run(tmp_path):
    archive(STATE, tmp_path / "archive.pt")
    evil = pickle.dumps(RunsCode(), protocol=2)
    with zipfile.ZipFile(tmp_path / "archive.pt") as old, zipfile.ZipFile(tmp_path / "evil.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, evil if name.endswith("/data.pkl") else old.read(name))
    with pytest.raises(UserError, match="evil.pt .* might run code: __builtin__.exec is neither a tensor"):
        load_backbone(str(tmp_path / "evil.pt"))


# ---- Hugging Face's folders and the hub ----


@pytest.fixture
def hf_folder(tmp_path):
    """A small CLIPModel's folder."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, which loads hf: backbones")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=32)
    config.text_config.eos_token_id = 49407
    transformers.CLIPModel(config).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("damage", ["pickle that runs code", "cut", "another model", "missing weight"])
def test_damaged_or_foreign_folder_raises_with_its_name(damage, hf_folder):
    weights, config = hf_folder / "model.safetensors", hf_folder / "config.json"
    if damage == "pickle that runs code":
        weights.unlink()
        torch.save({"logit_scale": RunsCode()}, hf_folder / "pytorch_model.bin")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:10000])
    else:
        old, new = {
            "another model": ('"model_type": "clip"', '"model_type": "siglip"'),
            "missing weight": ('"num_hidden_layers": 1', '"num_hidden_layers": 2'),
        }[damage]
        config.write_text(config.read_text().replace(old, new))
    with pytest.raises(UserError) as error:
        load_backbone(f"hf:{hf_folder}")
    assert str(error.value).startswith(f"Backbone hf:{hf_folder}")


def put_in_cache(folder, cache, repository):
    """Move a folder into the hub's cache as a repository."""
    storage = cache / f"models--{repository.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs/main").write_text("0" * 40)
    (storage / "snapshots").mkdir()
    folder.rename(storage / "snapshots" / ("0" * 40))


def test_models_in_the_hubs_cache_load_without_a_network(hf_folder, places, tmp_path, monkeypatch):
    import transformers
    from huggingface_hub import constants

    transformers.CLIPTokenizer(bpe.encoder, [*bpe.bpe_ranks]).save_pretrained(hf_folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(hf_folder)
    expected = [load_backbone(f"hf:{hf_folder}").sha256, *[load_backbone(places["open_clip"]).sha256] * 2]
    put_in_cache(hf_folder, tmp_path / "cache", "org/hf")
    put_in_cache(tmp_path / "folder", tmp_path / "cache", "org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", lambda *where: pytest.fail("the network is used"))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"tag": {"hf_hub": "org/tiny/"}})
    names = ["hf:org/hf", "open_clip:hf-hub:org/tiny", "open_clip:tiny-vit@tag"]
    assert [load_backbone(name).sha256 for name in names] == expected
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("hf:org/other", "open_clip:hf-hub:org/other"):
        with pytest.raises(UserError, match=f"^Backbone {name}"):
            load_backbone(name)


# ---- names ----


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN51", "'RN51' is neither a file nor one of OpenAI's names: RN50, .*ViT-L/14@336px"),
        ("openai/clip-vit-base-patch16", "Is hf:openai/clip-vit-base-patch16 meant?"),
        ("open_clip:ViT-B-32", "does not name architecture and weights"),
        ("open_clip:ViT-B-23@laion2b_s34b_b79k", "has no architecture 'ViT-B-23'. Close to it: ViT-B-32"),
        ("open_clip:ViT-L-14@laion2b", "laion2b is neither a file nor a tag of ViT-L-14. Tags: openai, "),
        ("open_clip:roberta-ViT-B-32@laion2b_s12b_b32k", "its text tower is not CLIP's"),
        ("hf:no/folder/here", "neither a folder nor an id"),
    ],
)
def test_unknown_backbone_name_raises_with_known_names(name, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name)


def test_missing_packages_are_named_in_the_error(monkeypatch):
    for package, name, pip in (
        ("transformers", "hf:org/name", "transformers"),
        ("open_clip", "open_clip:ViT-B-32@openai", "open_clip_torch"),
    ):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(UserError, match=f"needs the package {pip}: pip install {pip}"):
            load_backbone(name)


def test_labels_and_absolute_names(tmp_path, monkeypatch):
    names = {
        "ViT-L/14@336px": "ViT-L14@336px",
        "weights/tiny_rn.pt": "tiny_rn",
        "open_clip:ViT-B/32@some/folder/weights.safetensors": "ViT-B-32@weights",
        "open_clip:hf-hub:org/small": "hf-hub-org-small",
        "hf:org/name": "hf-org-name",
    }
    assert {name: backbone_label(name) for name in names} == names
    assert {name: absolute_name(name) for name in names} == {name: name for name in names}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    for front in ("", "hf:", "open_clip:a@", "open_clip:local-dir:"):
        assert absolute_name(f"{front}here") == f"{front}{tmp_path}/here"


def test_openai_name_is_downloaded_checked_and_cached(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "RN50.pt")
    checksum = hashlib.sha256((tmp_path / "RN50.pt").read_bytes()).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path):
            return str(tmp_path / path.rpartition("/")[2])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setitem(clip.clip._MODELS, "RN50", f"http://127.0.0.1:{server.server_port}/{checksum}/RN50.pt")
        first = load_backbone("RN50", root=tmp_path / "cache")
        assert first.sha256 == load_backbone(str(tmp_path / "RN50.pt")).sha256
        (tmp_path / "RN50.pt").write_bytes(b"damaged")
        assert load_backbone("RN50", root=tmp_path / "cache").sha256 == first.sha256
        with pytest.raises(UserError, match="(?s)^Backbone RN50: clip-anytorch cannot download http.*SHA256"):
            load_backbone("RN50", root=tmp_path / "other")
        server.shutdown()


# ---- the cache of a process, and runs ----


def test_cached_backbone_is_loaded_again_if_it_or_its_file_changed(places, tmp_path):
    where = "cpu", "fp32", ""
    first = cached_backbone(places["openai"], *where)
    assert cached_backbone(places["openai"], *where) is first
    with torch.no_grad():
        first.model.positional_embedding.add_(1)
    second = cached_backbone(places["openai"], *where)
    assert second is not first and second.sha256 == load_backbone(places["openai"]).sha256
    torch.save({**STATE, "logit_scale": torch.tensor(1.0)}, tmp_path / "clip.pt")
    assert cached_backbone(places["openai"], *where).sha256 != second.sha256


def test_run_and_prediction_preprocess_as_the_backbone_requires(places, image_folder, tmp_path, monkeypatch, capsys):
    from predict import Predictor

    preprocessing = {"mean": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "folder/open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocessing})
    )
    monkeypatch.chdir(tmp_path)
    assert run_train(command_line("CoOp", "red", root=image_folder, clip=places["open_clip"])) == 0
    assert "INPUT.PIXEL_MEAN [0.5, 0.5, 0.5]" in capsys.readouterr().out
    resize, *_, normalize = Predictor(tmp_path / "run").transform.transforms
    assert (list(resize.size), resize.interpolation.value, list(normalize.mean)) == ([32, 32], "bilinear", [0.5] * 3)
