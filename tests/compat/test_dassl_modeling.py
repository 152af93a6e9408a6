"""Networks by name, and the trainer that builds one of them."""

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, SimpleNet, TrainerX, build_trainer
from dassl.modeling import BACKBONE_REGISTRY, Backbone, build_head, build_network
from dassl.modeling.head.mlp import MLP
from dassl.modeling.network.ddaig_fcn import FCN, LocNet, ResnetBlock, get_norm_layer, init_network_weights
from torch import nn
from torch.nn import functional as F


class MeanColour(Backbone):
    """The mean of each channel."""

    def __init__(self, pretrained):
        super().__init__()
        self.pretrained = pretrained
        self._out_features = 3

    def forward(self, x):
        return x.mean(dim=(2, 3))


@BACKBONE_REGISTRY.register(force=True)
def mean_colour(pretrained=True, **_):
    return MeanColour(pretrained)


@TRAINER_REGISTRY.register(force=True)
class PlainClassifier(TrainerX):
    """A client that leaves build_model to the core, as Dassl's own Vanilla does."""

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


def model_cfg(**keys):
    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.MODEL.BACKBONE.NAME = "mean_colour"
    for key, value in keys.items():
        setattr(cfg.MODEL.HEAD, key, value)
    return cfg


def test_a_backbone_says_how_many_features_it_has():
    assert MeanColour(True).out_features == 3
    assert Backbone().out_features is None


def test_simple_net():
    cfg = model_cfg()
    net = SimpleNet(cfg, cfg.MODEL, 5)
    assert (net.fdim, net.head, net.backbone.pretrained) == (3, None, True)
    scores, features = net(torch.ones(2, 3, 4, 4), return_feature=True)
    assert (scores.shape, features.shape) == ((2, 5), (2, 3))
    assert torch.equal(net(torch.ones(2, 3, 4, 4)), scores)

    cfg = model_cfg(NAME="mlp", HIDDEN_LAYERS=(8, 6), DROPOUT=0.5)
    net = SimpleNet(cfg, cfg.MODEL, 0)
    assert (net.fdim, net.classifier) == (6, None)
    assert net(torch.ones(2, 3, 4, 4)).shape == (2, 6)


def test_the_default_model_is_built_trained_and_loaded(cfg, tmp_path, capsys):
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.OPTIM.LR = "PlainClassifier", "mean_colour", 1.0
    trainer = build_trainer(cfg)
    trainer.train()
    assert "# params: 12" in capsys.readouterr().out
    assert trainer.test() == 100.0
    cfg.MODEL.INIT_WEIGHTS = f"{trainer.output_dir}/model/model.pth.tar-3"
    again = build_trainer(cfg)
    assert torch.equal(again.model.classifier.weight, trainer.model.classifier.weight)


def test_mlp():
    head = build_head("mlp", verbose=False, in_features=4, hidden_layers=[5, 3], activation="leaky_relu", bn=True)
    assert isinstance(head, MLP)
    assert head.out_features == 3
    assert [type(layer) for layer in head.mlp] == 2 * [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU]
    assert head(torch.ones(2, 4)).shape == (2, 3)
    assert [type(layer) for layer in MLP(4, 6, bn=False, dropout=0.1).mlp] == [nn.Linear, nn.ReLU, nn.Dropout]
    with pytest.raises(AssertionError, match="HIDDEN_LAYERS is empty"):
        MLP(4)
    with pytest.raises(NotImplementedError, match="'tanh'. Accepted: relu, leaky_relu"):
        MLP(4, 4, activation="tanh")


@pytest.mark.parametrize("name", ["fcn_3x32_gctx", "fcn_3x64_gctx", "fcn_3x32_gctx_stn"])
def test_perturbing_networks(name):
    network = build_network(name, verbose=False)
    images = torch.rand(2, 3, 32, 32)
    perturbed, perturbation, seen = network(images, lmda=0.3, return_stn_output=True)
    assert perturbed.shape == perturbation.shape == seen.shape == images.shape
    assert perturbation.abs().max() <= 1
    torch.testing.assert_close(perturbed, seen + 0.3 * perturbation)
    assert torch.equal(network(images, lmda=0.3), perturbed)
    assert len(network(images, return_p=True)) == 2
    assert torch.equal(seen, images) == (not name.endswith("stn"))
    keys = set(network.state_dict())
    assert {"backbone.1.weight", "backbone.4.conv_block.1.weight", "gctx_fusion.0.weight", "regress.0.bias"} <= keys
    assert ("locnet.fc_loc.bias" in keys) == name.endswith("stn")


def test_the_transformer_starts_as_a_zoom_about_the_center():
    network = build_network("fcn_3x32_gctx_stn", verbose=False)
    _, theta = network.stn(torch.rand(2, 3, 32, 32))
    zoom = torch.tanh(torch.tensor(1.0)).item()
    torch.testing.assert_close(theta, torch.tensor([[[zoom, 0, 0], [0, zoom, 0]]]).expand(2, 2, 3))


def test_parts_of_the_perturbing_networks():
    for padding in ("reflect", "replicate", "zero"):
        block = ResnetBlock(4, padding, get_norm_layer("batch"), use_dropout=True, use_bias=True)
        assert block(torch.rand(1, 4, 5, 5)).shape == (1, 4, 5, 5)
    assert LocNet(3, nc=4, n_blocks=1, image_size=16)(torch.rand(2, 3, 16, 16)).shape == (2, 2, 3)
    plain = FCN(3, 1, nc=4, n_blocks=1, gctx=False, padding_type="zero")
    assert plain(torch.zeros(1, 3, 6, 6), return_p=True)[1].shape == (1, 1, 6, 6)
    assert get_norm_layer("none") is None
    with pytest.raises(NotImplementedError, match="'layer'. Accepted: batch, instance, none"):
        get_norm_layer("layer")
    with pytest.raises(NotImplementedError, match="padding_type 'same'"):
        ResnetBlock(4, "same", nn.BatchNorm2d, False, False)


@pytest.mark.parametrize("kind", ["normal", "xavier", "kaiming", "orthogonal"])
def test_weights_are_drawn_anew(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.InstanceNorm2d(32), nn.Linear(40, 40))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    init_network_weights(model, kind, gain=0.5)
    assert model[0].bias.eq(0).all()
    assert model[3].bias.eq(0).all()
    assert model[1].weight.eq(1).all()
    assert model[1].bias.eq(0).all()
    expected = {"normal": 0.5, "xavier": 0.5 * 40**-0.5, "kaiming": (2 / 40) ** 0.5, "orthogonal": 0.5 * 40**-0.5}
    assert model[3].weight.std().item() == pytest.approx(expected[kind], rel=0.1)
    with pytest.raises(NotImplementedError, match="'uniform'. Accepted: normal, xavier, kaiming, orthogonal"):
        init_network_weights(model, "uniform")
