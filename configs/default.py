"""Every knob once, with its unit and source. Configs set the few that differ; what can be derived is derived in code, after overrides.

Values are the published EfficientNet recipe: arXiv 1905.11946 section 5.2 and tensorflow/tpu models/official/efficientnet
(main.py, utils.py, efficientnet_builder.py). A knob that is None takes what its comment says.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder


def optional(value: float) -> FieldReference:
    """A knob that has a value and may be set to None; it keeps its type for the command line either way."""
    return FieldReference(value, field_type=type(value))


def get_config() -> ConfigDict:
    config = ConfigDict()

    # What is trained.
    config.model = 'efficientnet_b0'  # a name from efficientnet_jax.architectures.names()
    config.depth = 1.0  # times the model's own repeats, rounded up (scaling.scale)
    config.width = 1.0  # times the model's own filters, rounded to multiples of 8
    config.stages = placeholder(tuple)  # rows (repeats, kernel, stride, expand, filters, se, op, skip); None: the model's own
    config.resolution = placeholder(int)  # pixels, side of the square input; None: the model's own
    config.dropout = placeholder(float)  # before the classifier; None: the model's own
    config.drop_path = placeholder(float)  # rate towards the last block; None: the model's own (0.2)
    config.bn_momentum = placeholder(float)  # of the running statistics; None: the model's own (0.99, made for >10k steps)
    config.batch_norm_group = placeholder(int)  # images that share batch statistics; None: the global batch
    config.dtype = 'bfloat16'  # of activations, 'bfloat16' or 'float32'; parameters, statistics and logits are float32
    config.remat = placeholder(str)  # recomputed in the backward pass: 'activations' (not convolutions) or whole 'blocks'; None: nothing
    config.classifier_init_scale = 1.0  # times the published initial range 1/sqrt(classes); 0 (zeros) learns sooner with few classes
    config.init_from = placeholder(str)  # weights to begin with: a file, a workdir, hf_hub:OWNER/NAME (weights.load); None: random
    config.init_padding = placeholder(str)  # 'same' or 'symmetric' for timm files that do not tell; None: what the weights say
    config.backbone_lr_multiplier = 1.0  # times the learning rate for all but the classifier; 0 freezes them
    config.freeze_batch_norm = (
        False  # train with the running statistics of init_from and leave them as they are (scale and bias still learn)
    )
    config.seed = 0  # of initialisation, data order, augmentation, dropout and drop path

    # Data. A TFDS name, 'digits' (embedded) or 'folder:/path' with one folder of images per class.
    config.dataset = 'imagenet2012'
    config.data_dir = placeholder(str)  # where TFDS keeps datasets; None: its default
    config.train_split = 'train'  # TFDS slicing syntax; choose models on a held-out part: 'train[:-25022]' and eval_split 'train[-25022:]'
    config.eval_split = 'validation'
    # With init_from, normalisation, interpolation and the evaluation crop are those of the weights (resolution and eval_crop_fraction win if set).
    config.normalisation = 'imagenet'  # 'imagenet', 'inception' (-1..1, AdvProp) or 'lite' ((x - 127) / 128)
    config.interpolation = 'bicubic'  # 'bicubic' or 'bilinear' (Lite, EdgeTPU)
    config.eval_crop_padding = 32  # pixels: evaluates the centre square that leaves this border (preprocessing.py, CROP_PADDING)
    config.eval_crop_fraction = placeholder(
        float
    )  # overrides the padding: centre square of this part of the shorter side (0.875, timm's crop_pct)
    config.augment = ConfigDict()
    config.augment.crop = 'random_area'  # 'random_area', 'pad' (shift by up to augment.pad pixels) or 'resize' (whole image)
    config.augment.area = (0.08, 1.0)  # random_area: part of the image's area (preprocessing.py)
    config.augment.ratio = (0.75, 4 / 3)  # random_area: width / height
    config.augment.attempts = 10  # random_area: then the centre crop
    config.augment.pad = 4  # pad: pixels on each side at the training resolution
    config.augment.flip = optional(0.5)  # share of images that are mirrored; None: none

    config.augment.policy = placeholder(str)  # 'autoaugment' (v0) or 'randaugment'; None: neither, the official code's default
    config.augment.layers = 2  # randaugment: operations per image
    config.augment.magnitude = 10.0  # randaugment: level of each; 10 is the unit of the tables (B5: 17, B7 and B8: 28)
    config.augment.cutout = placeholder(int)  # pixels at level 10; None: 100 (autoaugment), 40 (randaugment)
    config.augment.translate = placeholder(int)  # pixels at level 10; None: 250 (autoaugment), 100 (randaugment)
    config.augment.on = placeholder(str)  # where the policy runs, 'host' or 'device'; None: 'device', but on CPUs 'host'
    config.augment.mixup = placeholder(float)  # alpha of the Beta distribution (arXiv 1710.09412); None: off, as published
    config.augment.cutmix = placeholder(float)  # alpha (arXiv 1905.04899); None: off
    config.augment.erase = placeholder(float)  # probability of random erasing (arXiv 1708.04896); None: off
    config.max_corrupt = 0  # unreadable examples that are passed over and named in the log; one more stops the run with all their names
    config.max_pixels = 89_478_485  # of one image, read from its header; a larger one is unreadable. One takes up to 20 bytes a pixel (1.8 GB) in a decoding thread
    config.cache = False  # keep the encoded training images in each host's memory; refused at start if they do not fit

    # Optimisation.
    config.batch_size = 4096  # images a step over all devices (arXiv 1905.11946 v5; the code's default is 2048)
    config.epochs = 350.0
    config.steps = placeholder(int)  # updates; overrides epochs
    config.optimizer = 'rmsprop'  # 'rmsprop', 'sgd' or 'adamw'
    config.lr_per_256 = 0.016  # peak learning rate is this times batch_size / 256 (main.py)
    config.schedule = 'exponential'  # 'exponential', 'cosine' or 'constant'
    config.warmup_epochs = 5.0  # linear from 0
    config.decay_rate = 0.97  # exponential: factor ...
    config.decay_epochs = 2.4  # ... every so many epochs, a staircase from step 0
    config.momentum = 0.9  # of rmsprop and sgd; adamw's b1
    config.rmsprop_decay = 0.9
    config.rmsprop_epsilon = 1e-3  # inside the root
    config.weight_decay = 1e-5  # rmsprop, sgd: added to the gradient; adamw: decoupled. On all but batch-norm variables
    config.label_smoothing = 0.1
    config.ema_decay = optional(0.9999)  # limit of the moving average of weights and batch statistics; None: no average

    # Evaluation, checkpoints, logs. In steps where given, else in epochs.
    config.eval_batch_size = 1024  # images over all devices; the score does not depend on it
    config.eval_every_epochs = 5.0
    config.checkpoint_every_epochs = 1.0
    config.keep_last = 2  # newest checkpoints
    config.keep_best = 1  # by evaluated top-1
    config.log_every_steps = 100
    config.nan_rollbacks = 0  # times that NaN or Inf sends a run back to its last checkpoint, past the bad batch; 0: it stops

    # Devices.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1: all that are left
    config.mesh.spatial = 1  # devices that split image height
    config.mesh.shard_state = False  # split optimiser state and moving average over mesh.data: less memory, for L2

    # Export (--mode=export), see efficientnet_jax/export/export.py.
    config.export = ConfigDict()
    config.export.formats = ('stablehlo', 'savedmodel')  # some of 'stablehlo', 'savedmodel', 'tflite', 'tflite_int8' (Lite models)
    config.export.pixels = False  # True: uint8 pixels in and probabilities out, normalisation inside; False: normalised in, logits out
    config.export.images = placeholder(str)  # folder of image files to compare and calibrate with; None: eval_split and train_split
    config.export.check_images = 64  # on which each file is compared with the live network
    config.export.calibration_images = 200  # for the ranges of int8 activations (the TFLite guide asks for 100 to 500)
    config.export.tolerance = 1e-4  # largest difference allowed of float formats, as a part of the largest output
    config.export.int8_same_top1 = 0.9  # share of the images that the live network is clear about for which int8 must have its top-1

    # Scaling studies (--mode=study, configs/study.py), see efficientnet_jax/study/. Their base is the network that this config says.
    config.study = ConfigDict()
    config.study.kind = 'table2'  # table2, table3, table7, fig3, fig4, fig8, grid, plan, cam or latency
    config.study.train = False  # train every point with the recipe of this config
    config.study.seeds = 1  # runs of each network, with seed, seed + 1, ...
    config.study.storage = placeholder(str)  # journal:PATH, sqlite:///PATH or postgresql://...; None: a journal in the workdir
    config.study.name = placeholder(str)  # of the Optuna study in the storage; None: the kind
    config.study.lease_seconds = 60.0  # after which a silent worker's run is given to another
    config.study.retry = False  # try failed runs again
    config.study.xla_flops = False  # add XLA's own count of operations; seconds a network
    config.study.cycles = False  # add estimated TPU cycles and HBM (efficientnet_jax/tpu/aot.py); a compile a network
    config.study.chip = 'v5e:1x1'  # for which they are estimated
    config.study.cycles_batch = 128  # images in the estimated step
    config.study.compiles = 100  # at most so many for cycles; one takes 10 (batch 8) to 40 s (128) for B0, an update minutes
    config.study.cycles_train = False  # True: of an update; False: of evaluation
    config.study.highest = 1.4  # grid: of alpha, beta and gamma, from 1
    config.study.step = 0.05  # grid: between neighbours
    config.study.ratio = 2.0  # grid: alpha * beta^2 * gamma^2, or the cost over the base's (arXiv 1905.11946, equation 3)
    config.study.tolerance = 0.1  # grid: of the ratio, both sides
    config.study.constraint = 'nominal'  # grid: what has the ratio: 'nominal' (the product), 'macs' or 'cycles' (of the real network)
    config.study.depth_rounding = 'ceil'  # grid: 'ceil' as released, or 'round'
    config.study.resolution_multiple = 8  # grid, plan: pixels are rounded to multiples of it
    # plan: 'macs:4e8,1.8e9', or params:, activations:, cycles:; None: 2, 4, ... 64 times the base's macs
    config.study.target = placeholder(str)
    config.study.methods = ('depth', 'width', 'resolution', 'compound', 'fast', 'lacs')  # plan
    config.study.max_resolution = placeholder(int)  # plan: pixels; EfficientNetV2 trains with at most 480 (arXiv 2104.00298, section 4)
    config.study.late_stages = placeholder(int)  # plan: put extra depth into the last so many stages alone (likewise); None: into all
    config.study.images = placeholder(str)  # cam: files or folders, separated by commas
    config.study.checkpoints = placeholder(str)  # cam: workdirs or weight files, separated by commas; None: init_from
    config.study.models = (*(f'efficientnet_b{i}' for i in range(8)), 'mobilenet_v1', 'mobilenet_v2', 'resnet50')  # latency
    config.study.runs = 20  # latency: timed runs of which the mean is taken (table 4)

    # A supernet of candidates, see efficientnet_jax/search/supernet.py.
    config.supernet = ConfigDict()
    config.supernet.epochs = placeholder(float)  # search: of its training; None: epochs
    config.supernet.steps = placeholder(int)  # search: updates, overrides epochs; None: steps
    config.supernet.largest_share = 0.0  # part of the steps that train the largest candidate; the others draw one uniformly
    config.supernet.calibration_batches = 4  # training batches that give a candidate its batch statistics before it is evaluated

    # Plan: the train step compiled for a TPU slice that is not there, see efficientnet_jax/tpu/planner.py.
    config.plan = ConfigDict()
    config.plan.topology = 'v5e:2x2'  # generation and shape in chips: v2, v3, v5e, v6e with two axes, v4 and v5p with three
    config.plan.search = False  # plan the largest batch that fits in place of batch_size
    config.plan.compiles = 6  # at most so many for the search; one takes from a minute (B0) to ten (B7) of a core
    config.plan.remats = False  # also compile with every other remat, and advise
    config.plan.classes = placeholder(int)  # None: the data set's where it is prepared, else ImageNet's 1000
    config.plan.examples = placeholder(int)  # training images; None: likewise, else ImageNet's 1,281,167

    # Architecture search (--mode=search, configs/search.py), see efficientnet_jax/search/. Candidates have this config's stem, head, width and depth.
    config.search = ConfigDict()
    config.search.action = 'run'  # 'run', 'status', 'finalists' (the best trained in full) or 'proxy_check' (what the proxy is worth)
    config.search.strategy = 'evolution'  # 'random', 'evolution', 'ppo', 'tpe' or 'nsga2'; random runs beside each at equal cost
    config.search.space = 'efficientnet'  # or 'mnasnet_paper' (search/space.py)
    config.search.ops = ('conv', 'separable', 'mbconv')  # operators that a stage may have
    config.search.trials = 8000  # slots of the strategy, and as many of random; a repeated candidate takes one (arXiv 1807.11626: 8K)
    config.search.evaluation = 'train'  # 'train' (each on its own), 'supernet' (shared weights), 'oracle' (made up, for a dry run)
    config.search.reward = 'mnas'  # 'mnas', 'mnas_hard' or 'absolute' (objective.py)
    config.search.cost = (
        'macs'  # 'macs', 'params', 'activations', 'cycles' (study.chip, cycles_...) or 'step_seconds' (an update's, measured)
    )
    config.search.target = 400e6  # T, in the cost's unit (arXiv 1905.11946, section 4)
    config.search.w = -0.07  # exponent of cost / T (likewise)
    # The proxy task: what a candidate is trained for and on. A hold-out from train, never what eval_split says.
    config.search.train_split = 'train[:-50000]'  # arXiv 1807.11626, section 5
    config.search.eval_split = 'train[-50000:]'  # accuracies of the search (likewise)
    config.search.epochs = 5.0  # of train_split (likewise)
    config.search.steps = placeholder(int)  # updates; overrides epochs
    config.search.warmup_epochs = 1.0
    config.search.resolution = placeholder(int)  # pixels; None: those of the network that is searched, for which the cost is counted
    config.search.rungs = placeholder(int)  # times that candidates are compared on their way and the worse are stopped; None: never
    config.search.rung_factor = 2  # at a rung one of so many goes on, and it takes so many times the steps to the next (arXiv 1810.05934)
    config.search.compile_ahead = False  # compile the next candidate in a thread meanwhile; for accelerators, whose host is idle
    config.search.keep_checkpoints = False  # of candidates that are done
    config.search.storage = placeholder(str)  # journal:PATH, sqlite:///PATH or postgresql://...; None: a journal in the workdir
    config.search.name = 'search'  # of the Optuna study in the storage
    config.search.lease_seconds = 60.0  # after which a silent worker's candidate is given to another
    config.search.retry = False  # try failed candidates again
    config.search.finalists = 15  # finalists: the best so many by reward (arXiv 1807.11626, section 5)
    config.search.checked = 10  # proxy_check: random candidates
    config.search.check_seeds = 3  # proxy_check: runs of each proxy
    config.search.seeds = 1  # finalists, proxy_check: runs in full of each, with seed, seed + 1, ...
    config.search.population = 100  # evolution (arXiv 1802.01548), nsga2; random candidates that tpe begins with
    config.search.sample = 25  # evolution: of which the best is the parent (likewise)
    config.search.ppo_batch = 20  # ppo: candidates between two updates
    config.search.ppo_hidden = 64  # ppo: units of the LSTM
    config.search.ppo_lr = 3e-3  # ppo: of Adam
    config.search.ppo_epochs = 5  # ppo: steps on each batch
    config.search.ppo_entropy = 1e-3  # ppo: weight of the mean entropy of a choice

    return config.lock()
