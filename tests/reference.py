"""Every method of this project as its paper defines it: slow, obvious, one function each. All tests compare with it.

Prompts run through all 77 positions of the text tower, images through all layers with all their tokens.

Symbols: f (B, E) image features, t (C, E) text features, both L2-normalised unless stated otherwise; y (B,) labels;
s = exp(logit_scale); CE cross-entropy; D, W widths of text and image tower; v (n, D) a context. CLIP is frozen.

A method's function gets a `clip.model.CLIP`, class names, learned tensors by "<network>.<published name>", and a batch:
"img" (B, 3, H, H) and "label" (B,), in training also "domain" (B,). It returns the logits s f . t (B, C) and the loss.
"""

import functools
import math

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.clip import _tokenizer as tokenizer
from clip.model import CLIP
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from sklearn.linear_model import LogisticRegression

TEMPLATE = "a photo of a {}."
# ZeroshotCLIP2: seven templates that CLIP's authors select, and the plain one, as in CoOp.
ENSEMBLE = (
    *("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."),
    *("a {} in a video game.", "art of the {}.", "a photo of the small {}.", TEMPLATE),
)
# PromptSRC uses the first 60 of CLIP's 80 templates for ImageNet.
IMAGENET = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES[:60]]


# ---- CLIP ----


def tiny_clip(seed=0, embed_dim=32, width=64, layers=3, vision=(1, 1, 1, 1), resolution=32, vit_width=64, patch=8):
    """A CLIP with random weights: a ModifiedResNet (tuple of layers) or a ViT (number of layers)."""
    torch.manual_seed(seed)
    vision_width, patch = (8, None) if isinstance(vision, tuple) else (vit_width, patch)
    model = CLIP(embed_dim, resolution, vision, vision_width, patch, 77, 49408, width, width // 64, layers)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start at 0 and 1, where mistakes could hide
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def plain_text_features(model, classnames, ctx, position="end", deep=()):
    """Text features (C, E) of one context (n, D) or of class-specific ones (C, n, D).

    Prompt: [SOS] v_1 .. v_n [class name] "." [EOS], padded to 77; features are read at EOS, projected, normalised.

    Args:
        position: of the class name: behind the context ("end"), before it, or behind its first n // 2 vectors.
        deep: contexts (m, D), m <= n, that replace the outputs at positions 1 to m before layers 2, 3, ...
    """
    n, names = ctx.shape[-2], tuple(name.replace("_", " ") for name in classnames)
    tokens, lengths = tokenize(n, names)
    embedding = model.token_embedding(tokens).type(model.dtype)
    ctx = ctx.expand(len(names), -1, -1)
    prefix, suffix = embedding[:, :1], embedding[:, 1 + n :]
    rows = []
    for i, length in enumerate(lengths):
        before = {"end": n, "middle": n // 2, "front": 0}[position]
        rows.append(torch.cat([prefix[i], ctx[i, :before], suffix[i, :length], ctx[i, before:], suffix[i, length:]]))
    x = torch.stack(rows) + model.positional_embedding.type(model.dtype)
    x = through_layers(model.transformer, x, deep)
    x = model.ln_final(x).type(model.dtype)
    return unit(x[torch.arange(len(names)), tokens.argmax(dim=-1)] @ model.text_projection)


@functools.cache
def tokenize(n, names):
    """Tokens (C, 77) of n placeholders and each name, and the number of tokens of each name."""
    tokens = clip.tokenize([" ".join(["X"] * n) + f" {name}." for name in names])
    return tokens, [len(tokenizer.encode(name)) for name in names]


def plain_image_features(model, images, tokens, deep=()):
    """Unnormalised features (B, E) of a ViT with tokens (n, W) behind the class token; `deep` as in the text tower."""
    visual = model.visual
    patches = visual.conv1(images.type(model.dtype)).flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.type(model.dtype).expand(len(images), 1, -1)
    x = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.type(model.dtype)
    x = torch.cat([x[:, :1], tokens.type(model.dtype).expand(len(images), -1, -1), x[:, 1:]], dim=1)
    x = through_layers(visual.transformer, visual.ln_pre(x), deep)
    return visual.ln_post(x[:, 0]) @ visual.proj


def through_layers(transformer, x, deep=()):
    """Run all layers on x (B, T, D); before layers 2, 3, ... one of `deep` (n, D) replaces positions 1 to n."""
    for i, block in enumerate(transformer.resblocks):
        if 0 < i <= len(deep):
            vectors = deep[i - 1].type(x.dtype)
            x = torch.cat([x[:, :1], vectors.expand(len(x), -1, -1), x[:, 1 + len(vectors) :]], dim=1)
        x = block(x.permute(1, 0, 2)).permute(1, 0, 2)
    return x


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def image_features(model, images):
    """f (B, E) of the frozen image tower; given features (B, E) pass through."""
    return images if images.dim() == 2 else unit(model.encode_image(images))


def fixed_text_features(model, classnames, template=TEMPLATE, normalised=True):
    """t (C, E) of fixed words around the class names, encoded once."""
    return encoded_words(model, tuple(classnames), template, normalised)


@functools.lru_cache(maxsize=4)
def encoded_words(model, classnames, template, normalised):
    texts = [template.format(name.replace("_", " ")) for name in classnames]
    features = model.encode_text(clip.tokenize(texts))
    return unit(features) if normalised else features


def words(model, text):
    """Token embeddings (n, D) of words, which contexts start from."""
    return model.token_embedding.weight[tokenizer.encode(text)].detach()


def logits_of(model, f, t):
    """s f . t (B, C), with t (C, E), or (B, C, E) where every image has texts of its own."""
    cosines = f @ t.t() if t.dim() == 2 else torch.stack([text @ image for image, text in zip(f, t, strict=True)])
    return model.logit_scale.exp() * cosines


def with_cross_entropy(logits, batch):
    """The logits, and CE of them and y."""
    return logits, F.cross_entropy(logits, batch["label"])


def of_network(learned, prefix):
    """The tensors with names "<prefix>.<name>", by name."""
    return {key.removeprefix(f"{prefix}."): value for key, value in learned.items() if key.startswith(f"{prefix}.")}


def linear(learned, name, x):
    """x W^T + b with the weight and bias of a layer."""
    return x @ learned[f"{name}.weight"].t() + learned[f"{name}.bias"]


# ---- methods ----


def zero_shot(model, classnames, images, templates=(TEMPLATE,)):
    """ZeroshotCLIP: logits s f . t, t = normalised sum over the templates of their normalised text features."""
    t = unit(sum(fixed_text_features(model, classnames, template) for template in templates))
    return logits_of(model, image_features(model, images), t)


def linear_probe(model, train, images, c=0.316):
    """LinearProbe: logistic regression (L2, C = 0.316, lbfgs) on unnormalised features of all training images."""
    x = model.encode_image(train["img"]).numpy()
    fitted = LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(x, train["label"].numpy())
    return torch.from_numpy(fitted.decision_function(model.encode_image(images).numpy()))


def coop(model, classnames, learned, batch, position="end"):
    """CoOp and SPG_CoOp: one context v (n, D) for all images. Loss: CE(s f . t(v), y)."""
    t = plain_text_features(model, classnames, learned["prompt_learner.ctx"], position)
    return with_cross_entropy(logits_of(model, image_features(model, batch["img"]), t), batch)


def cocoop(model, classnames, learned, batch):
    """CoCoOp: context v + MetaNet(f) for each image, MetaNet = Linear2(ReLU(Linear1(f))). Loss: CE."""
    f, net = image_features(model, batch["img"]), "prompt_learner.meta_net"
    shifts = linear(learned, f"{net}.linear2", linear(learned, f"{net}.linear1", f).relu())
    t = [plain_text_features(model, classnames, learned["prompt_learner.ctx"] + shift) for shift in shifts]
    return with_cross_entropy(logits_of(model, f, torch.stack(t)), batch)


def kgcoop(model, classnames, learned, batch, weight=8.0):
    """KgCoOp: as CoOp. Loss: CE + 8 (1 - mean over classes of cos(t, t_fixed)), fixed: "a photo of a <class>."."""
    t = plain_text_features(model, classnames, learned["prompt_learner.ctx"])
    distance = 1 - (t * fixed_text_features(model, classnames)).sum(dim=-1).mean()
    logits = logits_of(model, image_features(model, batch["img"]), t)
    return logits, F.cross_entropy(logits, batch["label"]) + weight * distance


def dpl(model, classnames, learned, batch, by_domain=False):
    """DPL: context = mean of MLP(unnormalised f) over the batch; by_domain: over the domain, in training. Loss: CE.

    MLP: E -> 512 -> 512 -> n D, with ReLU behind the first two layers. (Dropout 0.1 before ReLU: left out.)
    """
    unnormalised = model.encode_image(batch["img"])
    x = linear(learned, "mlp_model.input", unnormalised).relu()
    x = linear(learned, "mlp_model.hiddens.0", x).relu()
    contexts = linear(learned, "mlp_model.output", x).view(len(x), -1, model.ln_final.weight.shape[0])
    groups = batch["domain"] if by_domain and "domain" in batch else torch.zeros(len(x))
    means = [contexts[groups == group].mean(dim=0) for group in groups]
    t = torch.stack([plain_text_features(model, classnames, mean) for mean in means])
    return with_cross_entropy(logits_of(model, unit(unnormalised), t), batch)


def vp(model, classnames, learned, batch):
    """VP: learned pixels are added to the normalised image; fixed prompts "a photo of a <class>.". Loss: CE.

    A patch (1, 3, p, p) has its upper left corner at (x, y), one of batch["places"] for each image. A frame does not
    move: pad_up and pad_down (1, 3, p, H), pad_left and pad_right (1, 3, H - 2p, p).
    """
    images = []
    for image, (x, y) in zip(batch["img"], batch["places"].tolist(), strict=True):
        canvas = torch.zeros_like(image)
        if "prompter.patch" in learned:
            p = learned["prompter.patch"].shape[-1]
            canvas[:, y : y + p, x : x + p] += learned["prompter.patch"][0]
        else:
            p = learned["prompter.pad_up"].shape[-2]
            canvas[:, :p, :] += learned["prompter.pad_up"][0]
            canvas[:, -p:, :] += learned["prompter.pad_down"][0]
            canvas[:, p:-p, :p] += learned["prompter.pad_left"][0]
            canvas[:, p:-p, -p:] += learned["prompter.pad_right"][0]
        images.append(image + canvas)
    f = image_features(model, torch.stack(images))
    return with_cross_entropy(logits_of(model, f, fixed_text_features(model, classnames)), batch)


def vpt(model, classnames, learned, batch):
    """VPT: tokens in the ViT (n, W), deep ones in layers 2, 3, ...; fixed prompts "a photo of a <class>.". Loss: CE."""
    deep = learned.get("prompt_learner.deep_vctx", ())
    f = unit(plain_image_features(model, batch["img"], learned["prompt_learner.vctx"], deep))
    return with_cross_entropy(logits_of(model, f, fixed_text_features(model, classnames)), batch)


def maple(model, classnames, learned, batch):
    """MaPLe: prompt [v_1][v_2] of a <class>.; visual tokens are Linear(v), deep ones Linear_i(v_i). Loss: CE."""
    learned = of_network(learned, "MultiModalPromptLearner")
    deep = [vectors for key, vectors in learned.items() if key.startswith("compound_prompts_text.")]
    visual = [linear(learned, f"compound_prompt_projections.{i}", vectors) for i, vectors in enumerate(deep)]
    ctx = torch.cat([learned["ctx"], words(model, "a photo of a")[len(learned["ctx"]) :]])
    f = unit(plain_image_features(model, batch["img"], linear(learned, "proj", learned["ctx"]), visual))
    return with_cross_entropy(logits_of(model, f, plain_text_features(model, classnames, ctx, deep=deep)), batch)


def promptsrc(model, classnames, learned, batch, weights=(25.0, 10.0), t_fixed=None):
    """PromptSRC: independent prompts in both towers. A benchmark gives t_fixed, which a run encodes once.

    Loss: CE + 25 mean |t - t_fixed| + 10 mean |f - f_fixed| + KL(zero-shot || prompted) / (B C). The frozen CLIP gives
    t_fixed and f_fixed, and zero-shot logits s f_fixed . t_fixed.
    """
    learned = of_network(learned, "VLPromptLearner")
    t = plain_text_features(model, classnames, learned["ctx"], deep=learned.get("deep_ctx", ()))
    f = unit(plain_image_features(model, batch["img"], learned["vctx"], learned.get("deep_vctx", ())))
    t_fixed = imagenet_text_features(model, tuple(classnames)) if t_fixed is None else t_fixed
    f_fixed = image_features(model, batch["img"])
    logits, zero_shot = logits_of(model, f, t), logits_of(model, f_fixed, t_fixed).softmax(dim=1)
    kl = (zero_shot * (zero_shot.log() - logits.softmax(dim=1).log())).sum() / logits.numel()
    near = weights[0] * (t - t_fixed).abs().mean() + weights[1] * (f - f_fixed).abs().mean()
    return logits, F.cross_entropy(logits, batch["label"]) + near + kl


@functools.cache
def imagenet_text_features(model, classnames):
    """PromptSRC's t_fixed: normalised mean over 60 templates of unnormalised text features."""
    templates = [fixed_text_features(model, classnames, template, normalised=False) for template in IMAGENET]
    return unit(torch.stack(templates).mean(dim=0))


def dpspg_coop(model, classnames, learned, batch):
    """DPSPG_CoOp (stage I): a positive and a negative context. Logits: positive - negative.

    Loss: CE(positive, y) + binary cross-entropy of sigmoid(negative) and "is another class", mean over all entries;
    terms of other classes have weight C - 1.
    """
    f = image_features(model, batch["img"])
    positive, negative = (
        logits_of(model, f, plain_text_features(model, classnames, learned[f"prompt_learner.ctx_{sign}"]))
        for sign in ("pos", "neg")
    )
    other = 1 - F.one_hot(batch["label"], len(classnames))
    weight = len(classnames) - 1
    binary = -(weight * other * F.logsigmoid(negative) + (1 - other) * F.logsigmoid(-negative)).mean()
    return positive - negative, F.cross_entropy(positive, batch["label"]) + binary


def dpspg_transformer(model, classnames, learned, batch, alpha=0.2):
    """DPSPG_TRANSFORMER (stage II): two transformers make contexts v+ and v- (n, D) of f. Logits: s f . (t+ - 0.2 t-).

    Loss: MSE(v+, positive label of the image's domain) + MSE(v-, negative label). A training batch has the labels,
    batch["prompt labels"]["pos"] and ["neg"] (domains, n, D), and gets the loss alone; others get logits alone.
    """
    f, shape = image_features(model, batch["img"]), (len(batch["img"]), -1, model.ln_final.weight.shape[0])
    networks = {"pos": "posencoder", "neg": "negencoder"}
    contexts = {sign: transformer_encoder(of_network(learned, name), f).view(shape) for sign, name in networks.items()}
    if labels := batch.get("prompt labels"):
        return None, sum(((contexts[sign] - labels[sign][batch["domain"]]) ** 2).mean() for sign in networks)
    positive, negative = (
        logits_of(model, f, torch.stack([plain_text_features(model, classnames, ctx) for ctx in contexts[sign]]))
        for sign in networks
    )
    return positive - alpha * negative, None


def transformer_encoder(learned, x):
    """Linear of 4 layers on sequences of one token x (B, E): norm after, ReLU. (Dropout 0.1: left out.)"""
    for i in range(4):
        layer = of_network(learned, f"transformer_encoder.layers.{i}")
        _, _, weight = layer["self_attn.in_proj_weight"].chunk(3)
        _, _, bias = layer["self_attn.in_proj_bias"].chunk(3)
        # A token that attends to itself alone attends to its own value.
        attended = linear(layer, "self_attn.out_proj", x @ weight.t() + bias)
        x = F.layer_norm(x + attended, x.shape[-1:], layer["norm1.weight"], layer["norm1.bias"])
        hidden = linear(layer, "linear2", linear(layer, "linear1", x).relu())
        x = F.layer_norm(x + hidden, x.shape[-1:], layer["norm2.weight"], layer["norm2.bias"])
    return linear(learned, "fc", x)


# ---- SPG, stage II ----


def spg_losses(model, classnames, learned, batch):
    """SPG_CGAN (stage II), Algorithm 1: a conditional least-squares GAN. Yields (network, name of its loss, loss).

    The batch has 2B images: x with domains, then an independent batch x'; f and f' are their features. With
    v' = G(f', z), z = batch["noise"] (B, 100), and the prompt labels v(x) of the images' domains (domains, n, D):

    1. L_D = MSE(Dis(v(x), f), 1) + MSE(Dis(v', f'), 0), without gradients to G. Update Dis.
    2. L_G = MSE(Dis(v', f'), 1), with the updated Dis and the same v'. Update G.
    """
    f, other = image_features(model, batch["img"]).chunk(2)
    labels = batch["prompt labels"][batch["domain"].chunk(2)[0]]
    contexts = generate(learned, other, batch["noise"], labels.shape[-1], training=True)
    real, fake = judge(learned, labels, f), judge(learned, contexts.detach(), other)
    yield "discriminator", "loss_d", ((real - 1) ** 2).mean() + (fake**2).mean()
    yield "generator", "loss_g", ((judge(learned, contexts, other) - 1) ** 2).mean()


def spg_logits(model, classnames, learned, batch):
    """SPG: logits s f . t(G(f, z)), one context and so C texts for each image; z = batch["noise"] (B, 100)."""
    f, width = image_features(model, batch["img"]), model.ln_final.weight.shape[0]
    contexts = generate(learned, f, batch["noise"], width)
    return logits_of(model, f, torch.stack([plain_text_features(model, classnames, ctx) for ctx in contexts])), None


def generate(learned, f, z, width, training=False):
    """G(f, z) -> contexts (B, n, D): Linear, LeakyReLU, three times Linear, BatchNorm, LeakyReLU; then Linear, tanh."""
    net = of_network(learned, "generator.model")
    x = leaky(linear(net, "0", torch.cat([z, f], dim=1)))
    for i in (2, 5, 8):
        x = leaky(batch_norm(net, i + 1, linear(net, str(i), x), training))
    return linear(net, "11", x).tanh().view(len(f), -1, width)


def judge(learned, contexts, f):
    """Dis(v, f) (B, 1): four Linear with LeakyReLU between. (Dropout 0.4 behind the second and third: left out.)"""
    net = of_network(learned, "discriminator.model")
    x = torch.cat([contexts.flatten(1), f], dim=1)
    for i in ("0", "2", "5"):
        x = leaky(linear(net, i, x))
    return linear(net, "8", x)


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x)


def batch_norm(net, i, x, training, eps=0.8, momentum=0.1):
    """BatchNorm with the authors' eps 0.8; training takes the batch's statistics and adds them to the running ones."""
    mean, var = net[f"{i}.running_mean"], net[f"{i}.running_var"]
    if training:
        with torch.no_grad():
            mean.lerp_(x.mean(dim=0), momentum)
            var.lerp_(x.var(dim=0), momentum)
        mean, var = x.mean(dim=0), x.var(dim=0, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * net[f"{i}.weight"] + net[f"{i}.bias"]


def clipped(gradient, name):
    """Clip the gradient of a tensor of stage II on its own, at the published norm (PACS has others)."""
    if name.startswith("discriminator"):
        limit = 5.0 if ".0." in name or ".8." in name else 5e-2 if name.endswith("weight") else 5e-1
    else:
        limit = 1.0 if name.endswith((".9.bias", ".11.bias")) else 5e-3 if name.endswith("weight") else 5e-8
    norm = gradient.norm().item()
    return gradient * (limit / (norm + 1e-6)) if norm > limit else gradient


# ---- random draws of test images, optimisation ----


def image_noise(seed, indices, size=100, draw=0):
    """SPG's z of test images: N(0, I), seeded by run, draw and image index alone."""
    seeds = [np.random.SeedSequence([seed, draw, i]).generate_state(1, np.uint64)[0] for i in indices]
    return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(int(each))) for each in seeds])


def image_places(seed, indices, end):
    """VP's (x, y) of test images, uniform in [0, end), which follow from run and index of the image alone."""
    return torch.tensor(np.stack([np.random.default_rng([seed, i]).integers(end, size=2) for i in indices]))


def learning_rate(optim, epoch):
    """Rate of an epoch, from 0: constant or linear warm-up, then the base rate by a cosine over MAX_EPOCH epochs."""
    if epoch >= optim.WARMUP_EPOCH:
        return optim.LR * (1 + math.cos(math.pi * (epoch - optim.WARMUP_EPOCH) / optim.MAX_EPOCH)) / 2
    if optim.WARMUP_TYPE == "constant":
        return optim.WARMUP_CONS_LR
    return optim.LR * epoch / optim.WARMUP_EPOCH if epoch else optim.WARMUP_MIN_LR


def optimiser(optim, tensors):
    """SGD with momentum 0.9 or AdamW with betas (0.9, 0.999), with the weight decay of a config's OPTIM section."""
    if optim.NAME == "sgd":
        return torch.optim.SGD(tensors, optim.LR, momentum=0.9, weight_decay=optim.WEIGHT_DECAY)
    return torch.optim.AdamW(tensors, optim.LR, (0.9, 0.999), eps=1e-8, weight_decay=optim.WEIGHT_DECAY, fused=False)
