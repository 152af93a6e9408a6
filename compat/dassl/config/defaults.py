"""All config keys of the core, with their defaults."""

from yacs.config import CfgNode

# Batches of labelled (TRAIN_X) and unlabelled (TRAIN_U) training data.
_TRAIN_LOADER = {
    "SAMPLER": "RandomSampler",
    "BATCH_SIZE": 32,
    "N_DOMAIN": 0,  # domains in a batch, for RandomDomainSampler; 0: all
    "N_INS": 16,  # instances per class in a batch, for RandomClassSampler
}

# Weight of the unlabelled loss, confidence threshold of pseudo-labels, augmentations of the strong view.
_PSEUDO_LABELS = {"WEIGHT_U": 0.5, "CONF_THRE": 0.95, "STRONG_TRANSFORMS": ()}

_C = CfgNode(
    {
        "VERSION": 1,
        "OUTPUT_DIR": "./output",  # logs, checkpoints and TensorBoard files
        "RESUME": "",  # folder of an earlier run to resume; "": OUTPUT_DIR
        "SEED": -1,  # negative: no seed
        "USE_CUDA": True,  # if there is a GPU
        "VERBOSE": True,
        "INPUT": {
            "SIZE": (224, 224),  # height and width in pixels
            "INTERPOLATION": "bilinear",  # bilinear, bicubic or nearest
            "TRANSFORMS": (),  # names of dassl.data.transforms.transforms.AVAI_CHOICES
            "NO_TRANSFORM": False,  # True: PIL images
            "PIXEL_MEAN": [0.485, 0.456, 0.406],  # ImageNet's
            "PIXEL_STD": [0.229, 0.224, 0.225],
            "CROP_PADDING": 4,  # pixels, for random_crop
            "RRCROP_SCALE": (0.08, 1.0),  # fraction of the area, for random_resized_crop
            "CUTOUT_N": 1,  # holes
            "CUTOUT_LEN": 16,  # side of a hole in pixels
            "GN_MEAN": 0.0,  # gaussian_noise
            "GN_STD": 0.15,
            "RANDAUGMENT_N": 2,  # operations per image, for all three randaugment choices
            "RANDAUGMENT_M": 10,  # strength, 0 to 30
            "COLORJITTER_B": 0.4,  # brightness, contrast, saturation, hue
            "COLORJITTER_C": 0.4,
            "COLORJITTER_S": 0.4,
            "COLORJITTER_H": 0.1,
            "RGS_P": 0.2,  # probability of randomgrayscale
            "GB_P": 0.5,  # probability of gaussian_blur
            "GB_K": 21,  # its kernel size
        },
        "DATASET": {
            "ROOT": "",  # folder of the folders of all data sets
            "NAME": "",
            "SOURCE_DOMAINS": (),  # training
            "TARGET_DOMAINS": (),  # test
            "NUM_LABELED": -1,  # labelled instances in total, semi-supervised; -1: all
            "NUM_SHOTS": -1,  # instances per class, few-shot; -1: all
            "VAL_PERCENT": 0.1,  # fraction of the training data for data sets without a val split
            "STL10_FOLD": -1,  # 0 to 9; -1: all
            "CIFAR_C_TYPE": "",  # corruption of CIFAR-10-C and CIFAR-100-C
            "CIFAR_C_LEVEL": 1,  # 1 to 5
            "ALL_AS_UNLABELED": False,  # use labelled data as unlabelled data too
        },
        "DATALOADER": {
            "NUM_WORKERS": 4,  # processes per loader; 0: the main process
            "K_TRANSFORMS": 1,  # views of each training image
            "RETURN_IMG0": False,  # add the image without augmentation as img0
            "TRAIN_X": _TRAIN_LOADER,
            "TRAIN_U": {"SAME_AS_X": True, **_TRAIN_LOADER},
            "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
        },
        "MODEL": {
            "INIT_WEIGHTS": "",  # file of initial weights
            "BACKBONE": {"NAME": "", "PRETRAINED": True},
            "HEAD": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
        },
        "OPTIM": {
            "NAME": "adam",  # adam, amsgrad, sgd, rmsprop, radam, adamw, adamw_fused
            "LR": 0.0003,
            "WEIGHT_DECAY": 5e-4,
            "MOMENTUM": 0.9,
            "SGD_DAMPNING": 0,
            "SGD_NESTEROV": False,
            "RMSPROP_ALPHA": 0.99,
            "ADAM_BETA1": 0.9,
            "ADAM_BETA2": 0.999,
            "STAGED_LR": False,  # True: children of NEW_LAYERS train at LR, all others at LR * BASE_LR_MULT
            "NEW_LAYERS": (),
            "BASE_LR_MULT": 0.1,
            "LR_SCHEDULER": "single_step",  # single_step, multi_step or cosine
            "STEPSIZE": (-1,),  # single_step: the last is the period in epochs, -1: MAX_EPOCH; multi_step: milestones
            "GAMMA": 0.1,
            "MAX_EPOCH": 10,
            "WARMUP_EPOCH": -1,  # 0 or less: no warm-up
            "WARMUP_TYPE": "linear",  # constant or linear
            "WARMUP_CONS_LR": 1e-5,
            "WARMUP_MIN_LR": 1e-5,  # first epoch of linear
            "WARMUP_RECOUNT": True,  # the schedule starts at its epoch 0 after the warm-up, else at WARMUP_EPOCH
        },
        "TRAIN": {
            "CHECKPOINT_FREQ": 0,  # epochs; 0: only at the end
            "PRINT_FREQ": 10,  # batches
            "COUNT_ITER": "train_x",  # length of TrainerXU's epochs: train_x, train_u or smaller_one
        },
        "TEST": {
            "EVALUATOR": "Classification",
            "PER_CLASS_RESULT": False,
            "COMPUTE_CMAT": False,  # save the confusion matrix, rows normalised, to OUTPUT_DIR/cmat.pt
            "NO_TEST": False,  # no test after training
            "SPLIT": "test",  # test or val
            "FINAL_MODEL": "last_step",  # or best_val
        },
        # Keys of Dassl.pytorch's own methods, for configs that set them and for clients that derive from a method.
        "TRAINER": {
            "NAME": "",
            "MCD": {"N_STEP_F": 4},
            "MME": {"LMDA": 0.1},
            "CDAC": {
                "CLASS_LR_MULTI": 10,
                "RAMPUP_COEF": 30,
                "RAMPUP_ITRS": 1000,
                "TOPK_MATCH": 5,
                "P_THRESH": 0.95,
                "STRONG_TRANSFORMS": (),
            },
            "SE": {"EMA_ALPHA": 0.999, "CONF_THRE": 0.95, "RAMPUP": 300},
            "M3SDA": {"LMDA": 0.5, "N_STEP_F": 4},
            "DAEL": _PSEUDO_LABELS,
            "CROSSGRAD": {"EPS_F": 1.0, "EPS_D": 1.0, "ALPHA_F": 0.5, "ALPHA_D": 0.5},
            "DDAIG": {
                "G_ARCH": "",
                "LMDA": 0.3,
                "CLAMP": False,
                "CLAMP_MIN": -1.0,
                "CLAMP_MAX": 1.0,
                "WARMUP": 0,
                "ALPHA": 0.5,
            },
            "DAELDG": _PSEUDO_LABELS,
            "DOMAINMIX": {"TYPE": "crossdomain", "ALPHA": 1.0, "BETA": 1.0},
            "ENTMIN": {"LMDA": 1e-3},
            "MEANTEACHER": {"WEIGHT_U": 1.0, "EMA_ALPHA": 0.999, "RAMPUP": 5},
            "MIXMATCH": {"WEIGHT_U": 100.0, "TEMP": 2.0, "MIXUP_BETA": 0.75, "RAMPUP": 20000},
            "FIXMATCH": {**_PSEUDO_LABELS, "WEIGHT_U": 1.0},
        },
    }
)
