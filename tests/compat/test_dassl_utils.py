"""Files, images, names, seeds, meters and the log."""

import contextlib
import io
import os
import random
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.modeling import BACKBONE_REGISTRY, build_backbone, build_head, build_network
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    RegistryError,
    UserError,
    atomic_write,
    check_isfile,
    collect_env_info,
    download_url,
    get_most_similar_str_to_a_from_b,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    tools,
    write_json,
)
from PIL import Image


def test_submodules_are_where_dassl_has_them():
    from dassl.data.data_manager import DatasetWrapper  # noqa: F401
    from dassl.data.transforms.transforms import INTERPOLATION_MODES, build_transform  # noqa: F401
    from dassl.engine.trainer import SimpleTrainer, TrainerX  # noqa: F401
    from dassl.utils.logger import Logger, setup_logger  # noqa: F401
    from dassl.utils.meters import AverageMeter, MetricMeter  # noqa: F401
    from dassl.utils.registry import Registry  # noqa: F401
    from dassl.utils.tools import check_availability, read_image  # noqa: F401
    from dassl.utils.torchtools import load_checkpoint, save_checkpoint  # noqa: F401


# -- files ------------------------------------------------------------------------------------------


def test_json_round_trip_makes_folders(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json({"ü": [1, 2]}, path)
    assert read_json(path) == {"ü": [1, 2]}
    assert os.listdir(path.parent) == ["b.json"]


def test_json_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match="File not found: .*none.json"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(UserError, match="bad.json is not a JSON file"):
        read_json(tmp_path / "bad.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_written_files_have_the_usual_permissions(tmp_path):
    with atomic_write(tmp_path / "f") as handle:
        handle.write(b"x")
    (tmp_path / "g").write_text("x")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == stat.S_IMODE((tmp_path / "g").stat().st_mode)


def test_folders(tmp_path):
    mkdir_if_missing(str(tmp_path / "x" / "y"))
    mkdir_if_missing(str(tmp_path / "x" / "y"))
    for name in ("b", "a", ".hidden"):
        (tmp_path / "x" / name).write_text("")
    assert listdir_nohidden(str(tmp_path / "x"), sort=True) == ["a", "b", "y"]
    assert sorted(listdir_nohidden(str(tmp_path / "x"))) == ["a", "b", "y"]
    with pytest.raises(UserError, match="Folder not found: .*nowhere"):
        listdir_nohidden(str(tmp_path / "nowhere"))


def test_check_isfile_warns(tmp_path):
    with pytest.warns(UserWarning, match="No file found"):
        assert not check_isfile(str(tmp_path / "none"))
    (tmp_path / "f").write_text("")
    assert check_isfile(str(tmp_path / "f"))


def test_download_url(tmp_path, capsys):
    (tmp_path / "source").write_bytes(b"content")
    url = (tmp_path / "source").as_uri()
    download_url(url, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"content"
    assert capsys.readouterr().out == f'* url="{url}"\n* destination="{tmp_path}/copy"\n'
    with pytest.raises(OSError, match="none"):
        download_url((tmp_path / "none").as_uri(), str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_the_most_similar_string():
    assert get_most_similar_str_to_a_from_b("CoOp", ["CoCoOp", "SPG", "Coop"]) == "CoCoOp"
    assert get_most_similar_str_to_a_from_b("ab", ["ax", "ay"]) == "ay"  # of several the last
    assert get_most_similar_str_to_a_from_b("ab", ["xy"]) == "xy"
    assert get_most_similar_str_to_a_from_b("ab", []) is None


def test_tolist_if_not():
    assert tolist_if_not("a") == ["a"]
    assert tolist_if_not(["a"]) == ["a"]


# -- images -----------------------------------------------------------------------------------------


def colour_image(mode):
    """A 2 x 2 image that is (200, 100, 50) in the given mode."""
    image = Image.new("RGB", (2, 2), (200, 100, 50))
    if mode == "RGBA":
        return Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    if mode == "P with transparency":
        image = image.convert("P")
        image.info["transparency"] = b"\x00" * 256
        return image
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"),
        ("RGBA", "png"),
        ("RGBA", "webp"),
        ("P", "png"),
        ("P", "gif"),
        ("P with transparency", "png"),
        ("CMYK", "tif"),
        ("CMYK", "jpg"),
        ("YCbCr", "jpg"),
        ("LAB", "tif"),
    ],
)
def test_colour_images_become_rgb(tmp_path, mode, suffix, recwarn):
    path = tmp_path / f"image.{suffix}"
    colour_image(mode).save(path)
    image = read_image(str(path))
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image)[0, 0], (200, 100, 50), atol=26)  # the web palette is coarse
    assert not recwarn.list


def test_of_an_animation_the_first_picture_is_read(tmp_path):
    first, second = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "image.gif", save_all=True, append_images=[second])
    assert read_image(str(tmp_path / "image.gif")).getpixel((0, 0)) == (255, 0, 0)


def test_large_images_are_read_in_silence_and_larger_ones_refused_with_advice(tmp_path):
    """In a process of its own, as pytest has its own idea of warnings."""
    for edge in (30, 40):
        Image.new("1", (edge, edge)).save(tmp_path / f"it's {edge}.png")
    code = f"""
from PIL import Image
from dassl.utils import UserError, read_image
Image.MAX_IMAGE_PIXELS = 700
print(read_image("{tmp_path}/it's 30.png").size)
try:
    read_image("{tmp_path}/it's 40.png")
except UserError as error:
    print(error)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "(30, 30)",
        f"The image {tmp_path}/it's 40.png is larger than the 1,400 pixels that Pillow decodes. Scale it down, e.g. "
        f"with ImageMagick: mogrify -resize 4096x4096 '{tmp_path}/it'\"'\"'s 40.png'",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_grey_images_become_rgb(tmp_path, mode):
    path = tmp_path / "image.png"
    grey = np.array([[0, 128], [128, 255]], dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path)
    pixels = np.asarray(read_image(str(path)))
    assert pixels.shape == (2, 2, 3)
    if mode != "1":
        assert (pixels == grey[..., None]).all()


def test_grey_images_of_16_bits_are_scaled_and_the_user_is_told_once(tmp_path, monkeypatch):
    """As the PNG format defines them, and as Pillow reads colours of 16 bits; Dassl.pytorch clips at 255."""
    path = tmp_path / "image.png"
    Image.fromarray(np.array([[0, 255, 256, 25700, 65535]], dtype=np.uint16)).save(path)
    monkeypatch.setattr(tools, "_warned_of_16_bits", bytearray(1))
    with pytest.warns(
        UserWarning, match=rf"{path} is a grey image of 16 bits, which are scaled to 8; .* clips"
    ) as told:
        seen = [np.asarray(read_image(str(path)))[0, :, 0].tolist() for _ in range(3)]
    assert seen == 3 * [[0, 0, 1, 100, 255]]
    assert len(told) == 1
    assert told[0].filename == __file__


RAMP = np.tile(np.arange(256, dtype=np.uint8), (2, 1))


@pytest.fixture
def first_warnings(monkeypatch):
    """As in a process that has not read such an image before."""
    for name in vars(tools).copy():
        if name.startswith("_warned_of_"):
            monkeypatch.setattr(tools, name, bytearray(1))


@pytest.mark.parametrize(
    ("levels", "suffix", "expected", "told"),
    [
        (RAMP / np.float32(255), "tif", RAMP, "a grey image of floats, and nothing says"),
        (RAMP.astype(np.float32), "tif", RAMP, "a grey image of floats"),
        (np.zeros((2, 2), np.float32), "tif", np.zeros((2, 2)), "a grey image of floats"),
        (RAMP / np.float32(255), "ppm", RAMP, "a grey image of floats"),
        (RAMP.astype(np.int32), "tif", RAMP, "a grey image of integers of 32 bits"),
        (RAMP.astype(np.int32) * 257, "tif", RAMP, "a grey image of integers of 32 bits"),
        (RAMP.astype(np.int32) * 257, "ppm", RAMP, "a grey image of 16 bits, which are scaled"),
        (RAMP.astype(np.uint16) * 257, "tif", RAMP, "a grey image of 16 bits"),
        (RAMP.astype(">u2") * 257, "tif", RAMP, "a grey image of 16 bits"),
        (RAMP.astype(np.uint16) * 257, "jp2", RAMP, "a grey image of 16 bits"),
        (RAMP.astype(np.uint16), "png", 0 * RAMP, "No level of .* is above 255 of 65,535, so it is read as black"),
    ],
)
def test_grey_images_of_more_bits_are_read_rightly_and_told(levels, suffix, expected, told, tmp_path, first_warnings):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(levels).save(path)
    with pytest.warns(UserWarning, match=told) as warned:
        for _ in range(2):
            np.testing.assert_array_equal(np.asarray(read_image(str(path)))[..., 1], expected)
    assert len({str(one.message) for one in warned}) == len(warned) <= 2
    assert all(str(path) in str(one.message) and one.filename == __file__ for one in warned)


@pytest.mark.parametrize(
    "levels",
    [
        np.array([[0, 300]], np.float32),
        np.array([[-1, 1]], np.float32),
        np.array([[0, np.nan]], np.float32),
        np.array([[0, np.inf]], np.float32),
        np.array([[0, 65536]], np.int32),
        np.array([[-5, 200]], np.int32),
    ],
    ids=str,
)
def test_levels_of_unknown_range_are_refused(levels, tmp_path):
    Image.fromarray(levels).save(tmp_path / "image.tif")
    with pytest.raises(
        UserError, match=r"Cannot read the image .*image.tif: its grey levels are .*which is white"
    ) as error:
        read_image(str(tmp_path / "image.tif"))
    assert str(error.value).endswith(". Save it with 8 bits for each channel, or remove it.")


def drawn_in_transparency(mode):
    alpha = Image.fromarray(RAMP)
    if mode == "LA":
        return Image.merge("LA", [Image.new("L", alpha.size, 0), alpha])
    return Image.merge("RGBA", [*Image.new("RGB", alpha.size, (0, 0, 0)).split(), alpha])


@pytest.mark.parametrize(
    ("mode", "suffix"), [("LA", "png"), ("RGBA", "png"), ("RGBA", "webp"), ("P", "gif"), ("P", "png")]
)
def test_a_picture_in_its_transparency_alone_is_told(mode, suffix, tmp_path, first_warnings):
    path = tmp_path / f"image.{suffix}"
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 1), 1)
        image.save(path, transparency=1)
    else:
        drawn_in_transparency(mode).save(path, **({"exact": True, "lossless": True} if suffix == "webp" else {}))
    with pytest.warns(
        UserWarning, match=rf"The picture in {path} is in its transparency alone, which is dropped"
    ) as told:
        assert {np.asarray(read_image(str(path))).max() for _ in range(2)} == {0}
    assert len(told) == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P with transparency"])
def test_other_transparent_pictures_are_read_in_silence(mode, tmp_path, first_warnings, recwarn):
    if mode == "P with transparency":
        image = colour_image(mode)
    else:
        image = Image.merge(mode, [Image.fromarray(RAMP)] * len(mode))
    image.save(tmp_path / "image.png")
    read_image(str(tmp_path / "image.png"))
    assert not recwarn.list


def test_one_worker_tells_for_all(tmp_path):
    """In a process of its own, as pytest has its own idea of warnings."""
    for n in range(4):
        Image.fromarray(np.full((2, 2), 999, dtype=np.uint16)).save(tmp_path / f"{n}.png")
    code = f"""
from dassl.config import get_cfg_default
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
cfg = get_cfg_default()
cfg.VERBOSE, cfg.DATALOADER.NUM_WORKERS = False, 2
source = [Datum(f"{tmp_path}/{{n}}.png") for n in range(4)]
loader = build_data_loader(cfg, data_source=source, batch_size=1, tfm=build_transform(cfg))
for _ in range(2):
    list(loader)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stderr.count("is a grey image of 16 bits") == 1


def test_the_file_of_an_image_is_closed(tmp_path):
    path = tmp_path / "image.png"
    colour_image("RGB").save(path)
    images = [read_image(str(path)) for _ in range(5)]
    assert len(images) == 5
    for open_file in Path("/proc/self/fd").glob("*"):  # nothing where there is no such folder
        with contextlib.suppress(OSError):  # one that another thread has closed
            assert os.readlink(open_file) != str(path)


def test_image_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"Image not found: .*none\.jpg\. Check DATASET\.ROOT"):
        read_image(str(tmp_path / "none.jpg"))
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"Cannot read the image .*text\.jpg"):
        read_image(str(tmp_path / "text.jpg"))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"Cannot read the image .*cut\.jpg.*truncated"):
        read_image(str(tmp_path / "cut.jpg"))


# -- names ------------------------------------------------------------------------------------------


def test_registry():
    registry = Registry("TRAINER", "Set it somewhere.")

    @registry.register()
    class CoOp:
        pass

    assert registry.register(dict) is None
    assert registry._obj_map == {"CoOp": CoOp, "dict": dict}
    assert registry.get("CoOp") is CoOp
    assert "CoOp" in registry
    assert registry.registered_names() == ["CoOp", "dict"]
    with pytest.raises(KeyError, match="already"):
        registry.register(CoOp)
    registry.register(CoOp, force=True)
    with pytest.raises(UserError) as caught:
        registry.get("Coop")
    assert isinstance(caught.value, RegistryError)
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == ("Unknown trainer: 'Coop'. Accepted: CoOp, dict. Did you mean CoOp? Set it somewhere.")


def test_modeling_names_what_it_has_and_takes_plugins():
    with pytest.raises(UserError, match="Unknown backbone: 'resnet18'.*carries no backbones of its own"):
        build_backbone("resnet18")
    with pytest.raises(UserError, match="Unknown head: 'mpl'. Accepted: mlp. Did you mean mlp"):
        build_head("mpl")
    with pytest.raises(UserError, match="Unknown network: 'fcn'. Accepted: fcn_3x32_gctx, "):
        build_network("fcn")

    def tiny(width):
        return width

    BACKBONE_REGISTRY.register(tiny, force=True)
    assert build_backbone("tiny", verbose=False, width=3) == 3


# -- seeds, environment -----------------------------------------------------------------------------


def test_set_random_seed_covers_all_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    set_random_seed(7)
    first = draw()
    set_random_seed(7)
    assert draw() == first
    set_random_seed(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_environment_names_versions():
    info = collect_env_info()
    assert f"PyTorch: {torch.__version__}" in info
    assert "Python: " in info


# -- meters -----------------------------------------------------------------------------------------


def test_average_meter():
    meter = AverageMeter()
    meter.update(1.0)
    meter.update(torch.tensor(4.0), n=2)
    assert (meter.val, meter.avg, meter.count) == (4.0, 3.0, 3)
    moving = AverageMeter(ema=True)
    for value in (1.0, 2.0, 3.0):
        moving.update(value)
    assert moving.avg == pytest.approx(0.561)


def test_metric_meter_prints_value_and_average():
    meter = MetricMeter()
    meter.update({"loss": 1.0, "acc": torch.tensor([50.0])})
    meter.update({"loss": 2.0, "acc": 100.0})
    meter.update(None)
    assert str(meter) == "loss 2.0000 (1.5000) acc 100.0000 (75.0000)"
    with pytest.raises(TypeError, match="dict"):
        meter.update(3.0)


# -- the log ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def console():
    """A console of its own in place of pytest's, which the log must leave as it was."""
    own = io.StringIO()
    with contextlib.redirect_stdout(own):
        yield own
        sys.stdout.close()


def test_what_is_printed_is_logged(tmp_path):
    with console() as own:
        setup_logger(str(tmp_path / "run"))
        print("hello")
        assert not sys.stdout.isatty()
        # On disk at once, for those who follow a run.
        assert (tmp_path / "run" / "log.txt").read_text() == "hello\n"
    assert own.getvalue() == "hello\n"


def test_an_existing_log_is_kept(tmp_path):
    with console() as own:
        for text in ("first", "second", "third"):
            setup_logger(str(tmp_path))
            print(text)
    logs = sorted(os.listdir(tmp_path), key=lambda name: (len(name), name))
    assert logs[0] == "log.txt"
    assert len(logs) == 3
    assert all(re.fullmatch(r"log\.txt-\d{4}(-\d\d){5}(-\d+)?", name) for name in logs[1:])
    assert [(tmp_path / name).read_text() for name in logs] == ["first\n", "second\n", "third\n"]
    assert own.getvalue() == "first\nsecond\nthird\n"


def test_a_log_may_be_a_file_or_nothing(tmp_path):
    with console() as own:
        setup_logger(None)
        assert sys.stdout is own
        setup_logger(str(tmp_path / "my.log"))
        print("x")
    assert (tmp_path / "my.log").read_text() == "x\n"


# -- errors -----------------------------------------------------------------------------------------


def test_the_message_of_an_error_survives_a_worker():
    # What DataLoader makes of an error in a worker process: see torch._utils.ExceptionWrapper.
    for kind in (UserError, RegistryError):
        wrapped = (
            f"Caught {kind.__name__} in DataLoader worker process 0.\n"
            "Original Traceback (most recent call last):\n"
            f'  File "x.py", line 1, in y\n{kind.__module__}.{kind.__qualname__}: two\nlines\n'
        )
        assert str(kind(wrapped)) == "two\nlines"
    assert str(UserError("plain")) == "plain"
