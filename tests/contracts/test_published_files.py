"""Published files load with the logits of their own method, and our files load by published names.

Expected logits: tests/reference.py on the tensors in the file, by published names. logits.npy has half precision, the
probabilities of `Predictor` have single precision.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import clip.clip
import clip.model
import numpy as np
import pytest
import reference
import torch
from commands import CLASSES, QUICK, config_of, make_images, predictions, run_train, train
from dassl.data.datasets import build_dataset
from PIL import Image
from torch import nn

from predict import Predictor

D, E, W = 64, 32, 128  # widths of the ViT CLIP: text tower, image features, image tower
STATISTICS = ("weight", "bias", "running_mean", "running_var")
LAYERS = [f"transformer.resblocks.{i}.VPT_shallow" for i in (1, 2)]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder to run in; CLIP's layer norms take double precision."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip.model.LayerNorm, "forward", nn.LayerNorm.forward)


# ---- published formats: shapes of the tensors, by network and name ----

CTX = {"ctx": (4, D)}
WORDS = {"token_prefix": (7, 1, D), "token_suffix": (7, 72, D)}  # of seven other classes
UNUSED = {"bias_vectors": (1, 512), "meta_net.linear1.weight": (512, 512), "meta_net.linear1.bias": (512,)}
LINEAR1 = {"meta_net.linear1.weight": (2, E), "meta_net.linear1.bias": (2,)}
LINEAR2 = {"meta_net.linear2.weight": (D, 2), "meta_net.linear2.bias": (D,)}
VISION = {f"image_encoder.{key}": (4, W) for key in ("VPT", *LAYERS)}
TEXT = {"prompt_learner.ctx": (4, D)} | {f"text_encoder.{key}": (4, D) for key in LAYERS}
INNER_WORDS = {f"prompt_learner.{key}": shape for key, shape in WORDS.items()}
MAPLE = {"prompt_learner.ctx": (2, D), "prompt_learner.proj.weight": (W, D), "prompt_learner.proj.bias": (W,)}
for i in (0, 1):
    MAPLE |= {f"prompt_learner.compound_prompts_text.{i}": (2, D)}
    MAPLE |= {f"prompt_learner.compound_prompt_projections.{i}.weight": (W, D)}
    MAPLE |= {f"prompt_learner.compound_prompt_projections.{i}.bias": (W,)}
TRANSFORMER = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 8, 2048), 4, enable_nested_tensor=False)
ENCODER = nn.ModuleDict({"transformer_encoder": TRANSFORMER, "fc": nn.Linear(E, 4 * D)})
DPSPG = dict.fromkeys(["posencoder", "negencoder"], {k: tuple(v.shape) for k, v in ENCODER.state_dict().items()})
GENERATOR = {0: (128, 100 + E), 2: (256, 128), 5: (512, 256), 8: (1024, 512), 11: (4 * D, 1024)}
DISCRIMINATOR = {0: (512, 4 * D + E), 2: (512, 512), 5: (512, 512), 8: (1, 512)}
NORMS = {f"model.{i}.{key}": (n,) for i, n in ((3, 256), (6, 512), (9, 1024)) for key in STATISTICS}
NORMS |= {f"model.{i}.num_batches_tracked": () for i in (3, 6, 9)}


def linear_layers(shapes):
    weights = {f"model.{i}.weight": shape for i, shape in shapes.items()}
    return weights | {f"model.{i}.bias": shape[:1] for i, shape in shapes.items()}


class Method(NamedTuple):
    """A method's function in reference.py and the shapes of the tensors in its files."""

    expected: Callable
    learned: dict  # by network and published name
    others: dict = {}  # further tensors in published files, which logits do not depend on
    is_whole: bool = False  # whether published files have CLIP's tensors, too


THREE_LAYERS = [*QUICK, *["TRAINER.VPT.N_CTX_VISION", "4", "TRAINER.VPT.PROMPT_DEPTH_VISION", "3"]]
SPG = {"generator": linear_layers(GENERATOR) | NORMS, "discriminator": linear_layers(DISCRIMINATOR)}
METHODS = {
    "CoOp": Method(reference.coop, {"prompt_learner": CTX}, WORDS),
    "CoCoOp": Method(reference.cocoop, {"prompt_learner": CTX | LINEAR1 | LINEAR2}, WORDS),
    "KgCoOp": Method(reference.kgcoop, {"prompt_learner": CTX}, WORDS | UNUSED),
    "VPT": Method(reference.vpt, {"prompt_learner": VISION}, is_whole=True),
    "MaPLe": Method(reference.maple, {"MultiModalPromptLearner": MAPLE}, INNER_WORDS, is_whole=True),
    "PromptSRC": Method(reference.promptsrc, {"VLPromptLearner": VISION | TEXT}, INNER_WORDS, is_whole=True),
    "DPSPG_TRANSFORMER": Method(reference.dpspg_transformer, DPSPG),
    "SPG_CGAN": Method(reference.spg_logits, SPG),
}


def publish(folder, method, model):
    """Write the method's checkpoints as its repository does; return the learned tensors by network."""
    torch.manual_seed(3)
    networks = {}
    for network, learned in method.learned.items():
        shapes = {**learned, **method.others}
        state = {key: (torch.randn(shape) / max((1, *shape[-1:])) ** 0.5).abs() - 0.02 for key, shape in shapes.items()}
        state = {key: value.long() if key.endswith("tracked") else value.half() for key, value in state.items()}
        networks[network], whole = state, {}
        if method.is_whole:
            parts = {key: f"text_encoder.{key}" for key in model.state_dict() if key != "token_embedding.weight"}
            parts |= {key: f"image_encoder{key[6:]}" for key in parts if key.startswith("visual.")}
            parts["logit_scale"] = "logit_scale"
            whole = {name: model.state_dict()[key].half() for key, name in parts.items()}
        (folder / network).mkdir(parents=True)
        content = {"state_dict": whole | state, "epoch": 5, "optimizer": {}, "scheduler": {}, "val_result": None}
        torch.save(content, folder / network / "model.pth.tar-5")
    return networks


def read_plainly(networks):
    """Tensors of published files in double precision, as reference.py takes them: deep prompts are stacked."""
    found, deep = {}, {}
    for network, state in networks.items():
        for key in sorted(state):
            tower, _, name = key.partition(".")
            own = {"image_encoder": "vctx", "text_encoder": "ctx"}.get(tower)
            if name in LAYERS:
                deep.setdefault(f"{network}.deep_{own}", []).append(state[key].double())
            else:
                found[f"{network}.{own or key.removeprefix('prompt_learner.')}"] = state[key].double()
    return found | {key: torch.stack(layers) for key, layers in deep.items()}


def check_logits(method, model, networks, root, predictor):
    """Compare logits.npy of the run, and the predictor's probabilities, with the reference on the networks' tensors."""
    paths = [root / row["path"] for row in predictions("run")]
    pixels = torch.stack([clip.clip._transform(32)(Image.open(path)) for path in paths]).double()
    batch = {"img": pixels, "label": torch.zeros(len(paths), dtype=torch.long)}
    batch["noise"] = reference.image_noise(1, range(len(paths))).double()
    with torch.no_grad():
        logits, _ = method.expected(model, CLASSES, read_plainly(networks), batch)
    assert (logits.std(dim=0) > 0.1).all()  # images differ, by far more than rounding
    found = torch.from_numpy(np.load("run/logits.npy").astype(float))
    above = logits - logits.amax(dim=1, keepdim=True)
    torch.testing.assert_close(found - found.amax(dim=1, keepdim=True), above, atol=2e-2, rtol=0)
    if method.expected is not reference.spg_logits:  # the predictor's noise depends on the pixels
        found = [{name.replace(" ", "_"): value for name, value in row} for row in predictor(paths)]
        rows = [[row[name] for name in CLASSES] for row in found]
        torch.testing.assert_close(torch.tensor(rows).double().log(), logits.log_softmax(dim=1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("trainer", METHODS)
def test_published_checkpoint_gives_its_logits(trainer, images, clips, tmp_path):
    method, (file, model) = METHODS[trainer], clips["vit"]
    networks = publish(tmp_path / "theirs", method, model)
    flags = ["--eval-only", "--model-dir", "theirs", "--load-epoch", "5"]
    run_train(tmp_path, train(trainer, "run", *THREE_LAYERS, images=images, backbone=file, flags=flags))
    check_logits(method, model, networks, images, Predictor("theirs", CLASSES, file, trainer=trainer))


@pytest.mark.parametrize("trainer", METHODS)
def test_our_checkpoint_has_published_names_and_its_logits(trainer, images, clips, tmp_path):
    method, (file, model) = METHODS[trainer], clips["vit"]
    both_stages = {"DPSPG_TRANSFORMER": "DPSPG", "SPG_CGAN": "SPG"}.get(trainer, trainer)
    run_train(tmp_path, train(both_stages, "run", *THREE_LAYERS, images=images, backbone=file))
    networks = {}
    for network, learned in method.learned.items():
        best, last = (Path("run", network, name) for name in ("model-best.pth.tar", "model.pth.tar-2"))
        state = torch.load(best if best.is_file() else last, weights_only=True)["state_dict"]
        networks[network] = {key: state[key] for key in learned}
    check_logits(method, model, networks, images, Predictor("run"))


# ---- prompt labels and splits of SPG's authors: made ones, and real ones where they are at hand ----

PACS = {"art_painting": "a", "cartoon": "c", "photo": "p", "sketch": "s"}
PACS_CLASSES = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]


@pytest.fixture(params=["made", "real"])
def published(request, tmp_path):
    """The folder of the prompt labels and splits."""
    if request.param == "real":
        return request.getfixturevalue("shared") / "published"
    for number, (domain, code) in enumerate(PACS.items()):
        rows = [
            [f"PACS/images/{domain}/{name}/{i}.jpg", label, number, name]
            for label, name in enumerate(PACS_CLASSES)
            for i in (2, 0, 1)
        ]
        label = tmp_path / f"prompt_labels/PACS/RN50/seed_1/PACS_CoOp_{code}.pt"
        split = tmp_path / f"splits/{code}_train_val_split.json"
        for path in (label, split):
            path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.randn(4, 512).half(), label)
        split.write_text(json.dumps({"train": rows[::2] + rows[1::6], "val": rows[3::6] + rows[5::6]}))
    return tmp_path


def test_published_prompt_labels_train_the_generator(published, tmp_path):
    label_dir = published / "prompt_labels"
    files = sorted(label_dir.rglob("*"))
    torch.save(reference.tiny_clip(width=512, layers=1).state_dict(), "RN50.pt")
    make_images(tmp_path / "PACS/images", PACS, PACS_CLASSES)
    opts = [*QUICK, "TRAINER.SPG.LABEL_DIR", label_dir, "TRAINER.SPG.LABEL_SEED", 1]
    places = {"images": tmp_path, "dataset": "pacs", "target": "sketch", "backbone": "RN50.pt"}
    run_train(tmp_path, train("SPG", "run", *opts, **places))
    assert sorted(label_dir.rglob("*")) == files  # no label was learned
    with np.load("run/contexts.npz") as archive:
        labels = dict(zip(archive["label_domains"], archive["labels"], strict=True))
    assert labels.keys() == PACS.keys() - {"sketch"}
    for domain, label in labels.items():
        file = label_dir / f"PACS/RN50/seed_1/PACS_CoOp_{PACS[domain]}.pt"
        saved = torch.load(file, map_location="cpu", weights_only=True)
        assert np.array_equal(label, saved.detach().half().numpy())


def test_published_splits_are_used(published, tmp_path):
    import datasets  # noqa: F401 (registers)

    shutil.copytree(published / "splits", tmp_path / "PACS/spg_coop_splits")
    splits = {}
    for domain, code in PACS.items():
        split = json.loads((published / f"splits/{code}_train_val_split.json").read_text())
        splits[domain] = split["train"], split["val"]
        for row in split["train"] + split["val"]:
            (tmp_path / row[0]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / row[0]).touch()
    flags, places = ["--source-domains", "photo"], {"images": tmp_path, "dataset": "pacs", "target": "sketch"}
    found = build_dataset(config_of(train("CoOp", "run", flags=flags, **places)))
    (trained, validated), tested = splits["photo"], splits["sketch"][0] + splits["sketch"][1]
    for items, rows in ((found.train_x, trained), (found.val, validated), (found.test, tested)):
        listed = [[Path(x.impath).relative_to(tmp_path).as_posix(), x.label, x.domain, x.classname] for x in items]
        assert sorted(listed) == sorted(row for row in rows if "n02103406_4068-1.png" not in row[0])
