"""Every configuration key of the core, its meaning and its default."""

from yacs.config import CfgNode as CN


def _defaults():
    cfg = CN()
    cfg.VERSION = 1
    # Where logs, checkpoints and tensorboard files go.
    cfg.OUTPUT_DIR = "./output"
    # Folder of an earlier run to go on from; empty: OUTPUT_DIR itself.
    cfg.RESUME = ""
    # Negative: not seeded. 0 or more: python, numpy and torch are seeded with it.
    cfg.SEED = -1
    # Use a GPU when there is one; without one everything runs on the CPU.
    cfg.USE_CUDA = True
    # Print which trainer, dataset and evaluator are used.
    cfg.VERBOSE = True
    cfg.INPUT = _input()
    cfg.DATASET = _dataset()
    cfg.DATALOADER = _dataloader()
    cfg.MODEL = _model()
    cfg.OPTIM = _optim()
    cfg.TRAIN = _train()
    cfg.TEST = _test()
    cfg.TRAINER = _trainer()
    return cfg


def _input():
    node = CN()
    # (height, width) in pixels.
    node.SIZE = (224, 224)
    # Interpolation of every resize: bilinear, bicubic or nearest.
    node.INTERPOLATION = "bilinear"
    # Names of the augmentations, see dassl.data.transforms.
    node.TRANSFORMS = ()
    # True: images are passed on as PIL images.
    node.NO_TRANSFORM = False
    # Mean and standard deviation per channel for "normalize" (ImageNet's).
    node.PIXEL_MEAN = [0.485, 0.456, 0.406]
    node.PIXEL_STD = [0.229, 0.224, 0.225]
    # Pixels of padding for "random_crop".
    node.CROP_PADDING = 4
    # Range of the area kept by "random_resized_crop", as a fraction of the image.
    node.RRCROP_SCALE = (0.08, 1.0)
    # Number and side length in pixels of the holes of "cutout".
    node.CUTOUT_N = 1
    node.CUTOUT_LEN = 16
    # Mean and standard deviation of "gaussian_noise".
    node.GN_MEAN = 0.0
    node.GN_STD = 0.15
    # Operations per image, for "randaugment", "randaugment2" and "randaugment_fixmatch"; strength of the first.
    node.RANDAUGMENT_N = 2
    node.RANDAUGMENT_M = 10
    # Brightness, contrast, saturation and hue of "colorjitter".
    node.COLORJITTER_B = 0.4
    node.COLORJITTER_C = 0.4
    node.COLORJITTER_S = 0.4
    node.COLORJITTER_H = 0.1
    # Probability of "randomgrayscale".
    node.RGS_P = 0.2
    # Probability and kernel size of "gaussian_blur".
    node.GB_P = 0.5
    node.GB_K = 21
    return node


def _dataset():
    node = CN()
    # Folder that holds the folders of all datasets.
    node.ROOT = ""
    # Name in DATASET_REGISTRY.
    node.NAME = ""
    # Domains to train on and to test on.
    node.SOURCE_DOMAINS = ()
    node.TARGET_DOMAINS = ()
    # Labelled instances in total, for semi-supervised learning; -1: all.
    node.NUM_LABELED = -1
    # Instances per class, for few-shot learning; -1: all.
    node.NUM_SHOTS = -1
    # Part of the training data that becomes the val split where a dataset has none.
    node.VAL_PERCENT = 0.1
    # Fold of STL-10, 0 to 9; -1: all.
    node.STL10_FOLD = -1
    # Corruption (its name and level 1 to 5) of CIFAR-10/100-C.
    node.CIFAR_C_TYPE = ""
    node.CIFAR_C_LEVEL = 1
    # Use the labelled data as unlabelled data as well.
    node.ALL_AS_UNLABELED = False
    return node


def _dataloader():
    node = CN()
    # Worker processes per loader; 0: images are loaded in the main process.
    node.NUM_WORKERS = 4
    # Differently augmented views of each training image.
    node.K_TRANSFORMS = 1
    # Add the image without augmentation to the batch, as img0.
    node.RETURN_IMG0 = False
    node.TRAIN_X = _loader("RandomSampler")
    node.TRAIN_U = CN({"SAME_AS_X": True})
    node.TRAIN_U.update(_loader("RandomSampler"))
    node.TEST = CN({"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32})
    return node


def _loader(sampler):
    node = CN()
    node.SAMPLER = sampler
    node.BATCH_SIZE = 32
    # Domains per batch for RandomDomainSampler; 0: all.
    node.N_DOMAIN = 0
    # Instances per class in a batch for RandomClassSampler.
    node.N_INS = 16
    return node


def _model():
    node = CN()
    # Weights to start from.
    node.INIT_WEIGHTS = ""
    node.BACKBONE = CN({"NAME": "", "PRETRAINED": True})
    node.HEAD = CN({"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0})
    return node


def _optim():
    node = CN()
    # adam, amsgrad, sgd, rmsprop, radam, adamw, or adamw_fused (faster, other last digits).
    node.NAME = "adam"
    node.LR = 0.0003
    node.WEIGHT_DECAY = 5e-4
    node.MOMENTUM = 0.9
    node.SGD_DAMPNING = 0
    node.SGD_NESTEROV = False
    node.RMSPROP_ALPHA = 0.99
    node.ADAM_BETA1 = 0.9
    node.ADAM_BETA2 = 0.999
    # True: the children named in NEW_LAYERS learn at LR, all others at LR * BASE_LR_MULT.
    node.STAGED_LR = False
    node.NEW_LAYERS = ()
    node.BASE_LR_MULT = 0.1
    # single_step, multi_step or cosine; steps are epochs.
    node.LR_SCHEDULER = "single_step"
    # single_step: its last entry is the period, -1 or 0 meaning MAX_EPOCH; multi_step: the milestones.
    node.STEPSIZE = (-1,)
    node.GAMMA = 0.1
    node.MAX_EPOCH = 10
    # Epochs of warm-up; -1 or 0: none.
    node.WARMUP_EPOCH = -1
    # constant (at WARMUP_CONS_LR) or linear (the first epoch at WARMUP_MIN_LR).
    node.WARMUP_TYPE = "linear"
    node.WARMUP_CONS_LR = 1e-5
    node.WARMUP_MIN_LR = 1e-5
    # True: the schedule starts at its epoch 0 after the warm-up; False: at epoch WARMUP_EPOCH.
    node.WARMUP_RECOUNT = True
    return node


def _train():
    node = CN()
    # Epochs between checkpoints; 0: only at the end.
    node.CHECKPOINT_FREQ = 0
    # Batches between printed lines.
    node.PRINT_FREQ = 10
    # What an epoch of TrainerXU counts: train_x, train_u or smaller_one.
    node.COUNT_ITER = "train_x"
    return node


def _test():
    node = CN()
    # Name in EVALUATOR_REGISTRY.
    node.EVALUATOR = "Classification"
    node.PER_CLASS_RESULT = False
    # Save the confusion matrix, rows normalised, as cmat.pt in OUTPUT_DIR.
    node.COMPUTE_CMAT = False
    # True: no test after training.
    node.NO_TEST = False
    # test or val.
    node.SPLIT = "test"
    # Which model is tested after training: last_step or best_val.
    node.FINAL_MODEL = "last_step"
    return node


def _trainer():
    """The name, and the settings of the methods that come with Dassl.pytorch.

    This core leaves those methods out; their nodes are here for configs that set them, and for methods that
    were derived from one and read its node.
    """
    node = CN()
    # Name in TRAINER_REGISTRY.
    node.NAME = ""

    # Domain adaptation. N_STEP_F: steps of the feature extractor for each of the classifiers.
    node.MCD = CN({"N_STEP_F": 4})
    # LMDA: weight of the entropy.
    node.MME = CN({"LMDA": 0.1})
    node.CDAC = CN()
    node.CDAC.CLASS_LR_MULTI = 10  # the classifier's rate, as a multiple of the backbone's
    node.CDAC.RAMPUP_COEF = 30
    node.CDAC.RAMPUP_ITRS = 1000
    node.CDAC.TOPK_MATCH = 5  # features that pseudo-labels are matched by
    node.CDAC.P_THRESH = 0.95  # confidence from which a pseudo-label counts
    node.CDAC.STRONG_TRANSFORMS = ()  # augmentations of the strong view
    # EMA_ALPHA: decay of the teacher; CONF_THRE: confidence from which it counts; RAMPUP: epochs.
    node.SE = CN({"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300})
    # LMDA: weight of the distance between moments.
    node.M3SDA = CN({"LMDA": 0.5, "N_STEP_F": 4})
    node.DAEL = _unlabelled(0.5)

    # Domain generalisation. EPS: strength of the perturbation by the other network; ALPHA: weight of its loss.
    node.CROSSGRAD = CN({"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5})
    node.DDAIG = CN()
    node.DDAIG.G_ARCH = ""  # name in NETWORK_REGISTRY
    node.DDAIG.LMDA = 0.3  # weight of the perturbation
    node.DDAIG.CLAMP = False  # keep perturbed images between CLAMP_MIN and CLAMP_MAX
    node.DDAIG.CLAMP_MIN = -1.0
    node.DDAIG.CLAMP_MAX = 1.0
    node.DDAIG.WARMUP = 0  # epochs
    node.DDAIG.ALPHA = 0.5  # balance between original and perturbed images
    node.DAELDG = _unlabelled(0.5)
    # TYPE: crossdomain or random; ALPHA, BETA: of the Beta distribution of the mixture.
    node.DOMAINMIX = CN({"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0})

    # Semi-supervised learning. LMDA: weight of the entropy.
    node.ENTMIN = CN({"LMDA": 1e-3})
    # RAMPUP: epochs.
    node.MEANTEACHER = CN({"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5})
    # TEMP: temperature that sharpens guessed labels; MIXUP_BETA: of the mixture; RAMPUP: steps.
    node.MIXMATCH = CN({"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000})
    node.FIXMATCH = _unlabelled(1.0)
    return node


def _unlabelled(weight):
    """Weight of the unlabelled loss, confidence from which a pseudo-label counts, augmentations of the strong view."""
    return CN({"WEIGHT_U": weight, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()})


# Dassl's name for the tree of defaults, which get_cfg_default() copies.
_C = _defaults()
