"""Every key of a run with its default. Other configs are overrides of this one.

A section with the name of a stage holds the options of that stage. Stages share the others.
"""

from ml_collections import ConfigDict


def optimization(**overrides: object) -> ConfigDict:
    """Keys that SFT and training share."""
    config = ConfigDict()
    config.batch_size = 128  # units (completions, or pairs) in a global batch
    config.epochs = 1
    config.microbatches = 0  # parts of a batch over which gradients are accumulated; 0: as memory or caches need
    config.learning_rate = 1e-6
    config.schedule = "cosine"  # after the warm-up: cosine | linear | constant
    config.warmup_share = 0.1  # share of all steps
    config.b1 = 0.9
    config.b2 = 0.999
    config.weight_decay = 0.0
    config.moment_dtype = "float32"  # of Adam's moments in memory: float32 | bfloat16, which is rounded stochastically
    config.clip_norm = 0.0  # global gradient norm; 0 never clips (the norm is logged either way)
    config.log_every = 10  # steps
    config.checkpoint_every = 100  # steps; a kill loses at most this many
    config.update(overrides)
    return config


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    # In order: sft | sample | score | reference | train | evaluate | report | export. compare_transforms, benchmark and
    # compile need no data and no weights, and run alone or anywhere before report.
    config.stages = ("sample", "score", "reference", "train", "evaluate", "report", "export")

    config.model = ConfigDict()
    config.model.path = ""  # a Hugging Face folder; "": a new model of the shape below, trained from scratch
    config.model.template = "chat"  # chat: the tokenizer's template; plain: BOS, then the text
    config.model.d_model = 128
    config.model.layers = 4
    config.model.heads = 4
    config.model.kv_heads = 4
    config.model.head_dim = 32
    config.model.d_ff = 352
    config.model.max_positions = 512
    config.model.compute_dtype = "float32"  # of matrix products: float32 | bfloat16
    # Type in memory: float32 | bfloat16. bfloat16 saves 2 of 12 bytes a weight in training. Moments stay float32, and
    # updates are rounded stochastically, so that small ones add up. LoRA's adapters are float32 on any base.
    config.model.parameter_dtype = "float32"
    config.model.attention = "auto"  # auto: the best for the devices | plain | blocks | splash (TPU) | triton (GPU)
    # What the backward pass recomputes of each layer, to save memory: none | dots (all but products with weights, and
    # attention) | attention (all but attention) | full (all) | offload (all, and inputs of layers wait in host memory).
    config.model.remat = "none"
    # Layers one after the other in each turn of a training step's loop over layers; 0: 32 on a GPU, 8 on a CPU, else 1.
    config.model.unroll = 0
    config.model.vocab_chunk = 0  # tokens of the vocabulary whose logits exist at a time; 0: 8192

    config.mesh = ConfigDict()  # sizes; one may be -1 for all remaining devices
    config.mesh.replica = 0  # copies of the model, one a slice or more; 0: the number of slices
    config.mesh.data = -1  # copies of the model within a slice
    config.mesh.fsdp = 1  # splits parameters, and rows; weights are gathered where they are used
    config.mesh.tensor = 1  # splits heads, feed-forward and vocabulary
    config.mesh.context = 1  # splits long rows along their length
    config.mesh.cpu_devices = 0  # without an accelerator, devices that share the CPU; 0: one a core

    config.prompts = ConfigDict()
    config.prompts.source = "programs"  # programs | jsonl | model (beginnings sampled from the model itself)
    config.prompts.path = ""  # of the JSON-lines file
    config.prompts.count = 1024  # prompts to train on; jsonl: 0 for all
    config.prompts.held_out = 256  # prompts to evaluate on
    config.prompts.unit = 128  # prompts in one unit of work and of storage
    config.prompts.max_tokens = 256  # longer prompts are dropped and counted
    config.prompts.beginning_tokens = 24  # length of prompts from the model itself

    config.sft = optimization(learning_rate=2e-3)
    config.sft.examples = 16384  # source programs: demonstrations to generate

    config.sample = ConfigDict()
    config.sample.completions = 8  # references a prompt; 0: use the completions of the source alone
    config.sample.max_new_tokens = 64
    config.sample.temperature = 1.0
    config.sample.top_k = 0  # 0: no cut
    config.sample.top_p = 1.0

    config.reward = ConfigDict()
    config.reward.name = "tests"  # tests | model | dialogue_share | package.module:function
    config.reward.path = ""  # model: the reward model's Hugging Face folder, which has its own chat template
    config.reward.max_tokens = 0  # model: longer conversations are dropped and counted; 0: all that the model can read
    config.reward.batch_rows = 16  # model: conversations a forward pass, in model.compute_dtype
    config.reward.cpu_seconds = 1.0  # for one completion on all its tests
    config.reward.memory_mb = 256
    config.reward.workers = 0  # processes; 0: one a core

    config.pack = ConfigDict()
    config.pack.max_tokens = 512  # longest prompt and completion together
    config.pack.over_long = "drop"  # or truncate_prompt_left; counted either way
    config.pack.share_prompts = True  # completions of one prompt in a row share one copy of it
    # L, tokens of a packed row: at least max_tokens, twice that for pairs. 0: the length that costs least for these
    # data, this model and this machine (qrpo_jax/data/row_cost.py).
    config.pack.row_tokens = 0
    config.pack.slots = 0  # S, completions of a packed row; even. 0: as many as fit

    config.log_probs = ConfigDict()
    # Divides the logits of policy and reference alike; set it to sample.temperature so that both describe one
    # distribution.
    config.log_probs.temperature = 1.0
    config.log_probs.batch_rows = 0  # packed rows a forward pass, outside training; 0: chosen as in training

    config.select = ConfigDict()
    config.select.units = "singles"  # singles | best_worst | random_pairs
    config.select.first = 0  # train on this many completions of a row, the first ones; 0: all
    config.select.reference_count = 0  # rank against this many references, the first ones; 0: all
    config.select.exclude_own = True  # a completion is not ranked against itself
    config.select.estimator = "ecdf"  # ecdf (published) | midpoint
    config.select.ties = "upper"  # upper (published) | mid | random
    config.select.side = "both"  # of a pair, QRPO and SFT train on: both | chosen | rejected | random

    # Low-rank adapters (LoRA) of stage train; the base does not change and is the reference policy. Stage sft always
    # trains all parameters. To fine-tune adapters on data, set train.objective = "sft".
    config.lora = ConfigDict()
    config.lora.rank = 0  # 0: none, train all parameters
    config.lora.alpha = 16.0  # an adapter's output is scaled by alpha / rank
    # Regular expression for Hugging Face's name of a module in its layer, or for the last parts of that name, such as
    # q_proj|v_proj or self_attn.*; by default all linear maps.
    config.lora.targets = ".*_proj"

    config.train = optimization()
    # prompts: each epoch shuffles prompts, and completions of one prompt are in one batch, where they share it. That
    # makes a step cheaper, and the samples of a batch less independent. units: shuffles completions (or pairs) alone.
    config.train.shuffle = "prompts"
    config.train.objective = "qrpo"  # qrpo | dpo | rebel | simpo | sft
    config.train.beta = 0.1  # KL strength, in units of f (QRPO), of the raw reward (REBEL), of log-odds (DPO, SimPO)
    # identity | log | square | sqrt | normal-icdf | scaled-normal-icdf | exponential-icdf | logit | power(p) |
    # threshold(q) | piecewise-linear((0, f), ..., (1, f)) | affine(transform, shift, scale) |
    # gaussian(mean, std) | package.module:function
    config.train.transform = "identity"
    # log Z: population (exact quantiles) | finite_sample (the ranks of n references) | empirical (tied rewards too)
    config.train.partition = "population"
    config.train.length_normalised = False  # beta of a completion: min(beta / its length, beta_cap); not SimPO
    config.train.beta_cap = 0.0  # 0: none
    config.train.loss_over_length = False  # divide each loss by the length of its completion; not SimPO
    config.train.loss = "mse"  # mse | mae
    # log π_ref: stored (by stage reference) | on_the_fly (LoRA only: each step computes it with the adapters off; leave
    # the stage out of config.stages; a step takes one more forward pass)
    config.train.reference_log_probs = "stored"
    config.train.gamma_beta_ratio = 0.5  # SimPO's margin over beta

    config.evaluate = ConfigDict()
    config.evaluate.completions = 8  # a held-out prompt, from reference and policy each
    config.evaluate.max_new_tokens = 64
    config.evaluate.temperature = 1.0
    config.evaluate.top_k = 0
    config.evaluate.top_p = 1.0

    config.report = ConfigDict()
    config.report.examples = 6  # prompts shown with completions

    config.export = ConfigDict()
    config.export.dtype = "float32"  # of the written tensors: float32 | bfloat16
    config.export.adapter = "merged"  # LoRA: merged into the base | peft, adapters for the model in model.path

    # Stage compile needs no TPU, no weights and no tokenizer: model.path may hold a config.json alone.
    config.compile = ConfigDict()
    config.compile.topology = ""  # slice to compile for: v5e:2x4, v5p:4x4x8, v5p:4x4x8*2 (two slices); "": devices here
    config.compile.programs = ("train", "reference", "sample")
    config.compile.rows = 0  # packed rows of a training batch; 0: search for the largest batch that fits

    config.compare_transforms = ConfigDict()
    config.compare_transforms.transforms = (  # as in train.transform, with numbers for parameters
        "identity",
        "log",
        "square",
        "sqrt",
        "normal-icdf",
        "exponential-icdf",
        "logit",
        "threshold(0.9)",
    )
    config.compare_transforms.betas = (0.001, 0.01, 0.1, 0.3, 1.0, 1.5, 3.0)
    config.compare_transforms.references = (1, 3, 10, 30, 50)  # n, for log Z of finite samples
    config.compare_transforms.estimators = ("ecdf", "midpoint")

    # The step of stage `train`, with its batch size, and the programs of `reference` and `sample`, on synthetic rows.
    config.benchmark = ConfigDict()
    config.benchmark.mix = "many_short"  # lengths of prompts and completions: many_short | chat_pairs | long_prompts
    config.benchmark.rounds = 5  # medians are over these; in each a matrix product is timed too, if no peak is known
    config.benchmark.calls = 4  # of each program a round, one after the other
    config.benchmark.prompts = 32  # sampled from at a time

    config.log = ConfigDict()
    config.log.tensorboard = True
    config.log.wandb = False  # needs the wandb extra
    config.log.wandb_project = "qrpo-jax"
    return config
