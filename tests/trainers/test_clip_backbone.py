import hashlib
import http.server
import pickle
import threading
import warnings
import zipfile

import clip
import pytest
import torch
from clip.model import CLIP, convert_weights
from reference import tiny_clip
from torch import nn

from common.errors import UserError
from trainers.modules.clip_backbone import (
    backbone_label,
    check_backbone,
    effective_precision,
    load_backbone,
    load_clip,
    weights_fingerprint,
)


def scripted_archive(state_dict, path):
    """A TorchScript archive with the given weights, as OpenAI's: the file format counts, not the program in it."""
    root = nn.Module()
    for key, value in state_dict.items():
        module, *names = root, *key.split(".")
        for name in names[:-1]:
            if not hasattr(module, name):
                module.add_module(name, nn.Module())
            module = getattr(module, name)
        module.register_buffer(names[-1], value)
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(str(path))


FULL_SIZE = {
    "RN50": {"embed_dim": 1024, "vision_layers": (3, 4, 6, 3), "vision_width": 64, "vision_patch_size": None},
    "ViT-B/16": {"embed_dim": 512, "vision_layers": 12, "vision_width": 768, "vision_patch_size": 16},
}


def full_size_clip(name):
    with torch.device("meta"):  # CLIP's own initialisation would take most of the test's time
        model = CLIP(
            image_resolution=224,
            context_length=77,
            vocab_size=49408,
            transformer_width=512,
            transformer_heads=8,
            transformer_layers=12,
            **FULL_SIZE[name],
        )
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(-0.05, 0.05, generator=generator)
        else:
            value.zero_()
    return model.eval().requires_grad_(False)


def test_a_file_that_does_not_say_how_it_computes(tmp_path):
    state = tiny_clip(vision=2).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    scripted_archive(state, tmp_path / "archive.pt")
    assert load_backbone(str(tmp_path / "archive.pt")).notes == ()
    assert load_backbone(str(tmp_path / "weights.pt")).notes == (
        f"Note: {tmp_path}/weights.pt is computed as OpenAI's: QuickGELU, 1 and 1 heads; weights of OpenCLIP go by "
        f"open_clip:<architecture>@{tmp_path}/weights.pt.",
    )


def test_openclips_weights_are_not_computed_as_openais(tmp_path):
    state = tiny_clip(vision=2).state_dict()
    torch.save({"epoch": 1, "name": "2024-ViT-B-32", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_1.pt")
    told = rf"OpenCLIP's training \(2024-ViT-B-32\).*open_clip:<architecture>@{tmp_path}/epoch_1.pt"
    with pytest.raises(UserError, match=told):
        load_clip(str(tmp_path / "epoch_1.pt"))
    torch.save(tiny_clip(vision=1, vit_width=1280).state_dict(), tmp_path / "huge.pt")
    with pytest.raises(UserError, match=r"image tower of width 1280, which OpenAI has not published; OpenCLIP's ViT-H"):
        load_clip(str(tmp_path / "huge.pt"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("openai/clip-vit-base-patch16", "Is hf:openai/clip-vit-base-patch16 meant?"),
        ("{folder}", "Is hf:{folder} meant?"),
        ("openclip:ViT-B-32@laion2b_s34b_b79k", "Is open_clip:ViT-B-32@laion2b_s34b_b79k meant?"),
        ("HF:org/name", "Is hf:org/name meant?"),
        ("RN51", "of a CLIPModel in Hugging Face's layout."),
    ],
)
def test_what_an_unknown_name_is_meant_for(tmp_path, name, meant):
    with pytest.raises(UserError) as error:
        check_backbone(name.format(folder=tmp_path))
    assert "Accepted besides: open_clip:<architecture>@<pretrained tag or file>, open_clip:local-dir:<folder>" in str(
        error.value
    )
    assert str(error.value).endswith(meant.format(folder=tmp_path))


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_state_dict_and_archive(tmp_path, name):
    model = full_size_clip(name)
    convert_weights(model)  # OpenAI's files are in half precision
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    scripted_archive(model.state_dict(), tmp_path / "archive.pt")
    expected = {key: value.float() for key, value in model.state_dict().items()}
    for file in ("weights.pt", "archive.pt"):
        loaded = load_clip(str(tmp_path / file), "cpu", "fp32")
        assert isinstance(loaded, CLIP)
        assert loaded.visual.input_resolution == 224
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        for key, value in loaded.state_dict().items():
            torch.testing.assert_close(value.float(), expected[key], rtol=0, atol=0)
            assert not value.is_floating_point() or value.dtype == torch.float32


@pytest.mark.parametrize("vision", [(1, 1, 1, 1), 2])
def test_single_precision_weights_are_not_rounded(tmp_path, vision):
    model = tiny_clip(vision=vision)
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    loaded = load_clip(str(tmp_path / "tiny.pt"), "cpu", "fp32")
    image = torch.randn(2, 3, 32, 32)
    # Rounded to half precision, they would be off by 1e-4; the memory layout of convolutions costs the last digit.
    torch.testing.assert_close(loaded.encode_image(image), model.encode_image(image), rtol=0, atol=1e-6)
    assert loaded.visual.input_resolution == 32
    assert weights_fingerprint(loaded) == weights_fingerprint(model)


def test_half_precision_on_a_cpu_becomes_single_with_a_line(tmp_path, capsys):
    torch.save(tiny_clip().state_dict(), tmp_path / "tiny.pt")
    for precision in ("fp16", "bf16", "amp"):
        assert load_clip(str(tmp_path / "tiny.pt"), "cpu", precision).dtype == torch.float32
        assert (
            capsys.readouterr().out == f"Precision {precision} needs a GPU; on this CPU the computation runs in fp32.\n"
        )
    assert effective_precision("fp16", "cuda") == "fp16"


def test_fingerprint_sees_every_value():
    model = tiny_clip()
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(tiny_clip())
    model.ln_final.bias[3] += 1e-6
    assert weights_fingerprint(model) != before


def test_labels_for_folders():
    assert backbone_label("ViT-L/14@336px") == "ViT-L14@336px"
    assert backbone_label("RN50") == "RN50"
    assert backbone_label("weights/tiny_rn.pt") == "tiny_rn"


@pytest.fixture
def model_server(tmp_path, monkeypatch):
    """OpenAI's download address, served from a folder on this machine."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save(tiny_clip().state_dict(), folder / "RN50.pt")
    checksum = hashlib.sha256((folder / "RN50.pt").read_bytes()).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def translate_path(self, path):
            return super().translate_path(path.rpartition("/")[2])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{checksum}/RN50.pt"
    monkeypatch.setitem(clip.clip._MODELS, "RN50", address)
    yield folder
    server.shutdown()
    server.server_close()


def test_openai_names_are_downloaded_checked_and_cached(model_server, tmp_path):
    cache = tmp_path / "cache"
    model = load_clip("RN50", "cpu", "fp32", root=cache)
    assert weights_fingerprint(model) == weights_fingerprint(tiny_clip())
    (model_server / "RN50.pt").unlink()
    load_clip("RN50", "cpu", "fp32", root=cache)  # from the cache


def test_a_corrupt_download_is_an_error(model_server, tmp_path):
    content = bytearray((model_server / "RN50.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (model_server / "RN50.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"Could not download CLIP RN50 from .*SHA256"):
        load_clip("RN50", "cpu", "fp32", root=tmp_path / "cache")


def test_a_failed_download_is_an_error(model_server, tmp_path):
    (model_server / "RN50.pt").unlink()
    with pytest.raises(UserError, match="Could not download CLIP RN50 .*404"):
        load_clip("RN50", "cpu", "fp32", root=tmp_path / "cache")


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file has run')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is not a model", "cannot be read"),
        (b"", "cannot be read"),
        ({"weight": torch.zeros(2)}, "is no CLIP in OpenAI's format"),
        ([torch.zeros(2)], "holds a list"),
        (Malicious(), "might run code when opened"),
    ],
)
def test_files_that_are_no_clip(tmp_path, content, message):
    path = tmp_path / "file.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        load_clip(str(path), "cpu", "fp32")
    assert "file.pt" in str(error.value)


def test_the_program_of_an_archive_is_never_run(tmp_path):
    path = tmp_path / "archive.pt"
    scripted_archive(tiny_clip().state_dict(), path)
    pickled = pickle.dumps(Malicious(), protocol=2)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "evil.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("/data.pkl") else old.read(name))
    with pytest.raises(
        UserError, match=r"evil.pt is refused: __builtin__.exec is neither a tensor nor a container, and might run code"
    ):
        load_clip(str(tmp_path / "evil.pt"), "cpu", "fp32")


def test_a_truncated_state_dict_is_an_error(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save(tiny_clip().state_dict(), path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut.pt cannot be read"):
        load_clip(str(path), "cpu", "fp32")


def test_a_state_dict_without_some_weights_is_an_error(tmp_path):
    state_dict = tiny_clip().state_dict()
    del state_dict["ln_final.bias"]
    torch.save(state_dict, tmp_path / "part.pt")
    with pytest.raises(UserError, match="is no CLIP in OpenAI's format"):
        load_clip(str(tmp_path / "part.pt"), "cpu", "fp32")


def test_unknown_names_list_the_accepted_ones():
    with pytest.raises(
        UserError, match=r"'RN51' is neither a file nor one of OpenAI's names: RN50, RN101, .*ViT-L/14@336px"
    ):
        load_clip("RN51")
    with pytest.raises(UserError, match=r"'fp8'; accepted: fp32, fp16, bf16, amp"):
        load_clip("RN50", precision="fp8")
