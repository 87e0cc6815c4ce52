"""Every key of a run with its default. Other configs are overrides of this one.

A section with the name of a stage holds the options of that stage. Stages share the others.
"""

from ml_collections import ConfigDict

from qrpo_jax.config import Choice, Config, Either, Grids, Name, Number, Several, Switch, Text, Whole


def optimization(learning_rate: float) -> Config:
    """Keys that SFT and training share, with the default learning rate."""
    config = Config()
    config.batch_size = Whole(128, least=1)  # units (completions, or pairs) in a global batch
    config.epochs = Whole(1, least=1)  # passes over the units
    # Parts of a batch over which gradients are accumulated; 0: as memory or caches need.
    config.microbatches = Whole(0, least=0)
    config.learning_rate = Number(learning_rate, above=0)  # the highest, after the warm-up
    config.schedule = Choice("cosine", "linear", "constant")  # after the warm-up
    config.warmup_share = Number(0.1, least=0, below=1)  # share of all steps
    config.b1 = Number(0.9, least=0, below=1)  # of Adam: decay of the mean gradient
    config.b2 = Number(0.999, least=0, below=1)  # of Adam: decay of the mean squared gradient
    config.weight_decay = Number(0.0, least=0)  # of matrices, decoupled as in AdamW
    # Of Adam's moments in memory; bfloat16 is rounded stochastically.
    config.moment_dtype = Choice("float32", "bfloat16")
    config.clip_norm = Number(0.0, least=0)  # global gradient norm; 0 never clips (the norm is logged either way)
    # Steps between figures of speed, and lines of TensorBoard and W&B; metrics.jsonl has a line for each step.
    config.log_every = Whole(10, least=1)
    config.checkpoint_every = Whole(100, least=1)  # steps; a kill loses at most this many
    return config


def get_config() -> ConfigDict:
    config = Config()
    config.seed = Whole(0, least=0)  # of all random numbers
    # In order: sft | sample | score | reference | train | evaluate | harness | report | export. inspect looks at the
    # prompts and needs no weights. compare_transforms, benchmark and compile need no data and no weights. These four
    # run alone, or anywhere before report. chat talks in the terminal, with the settings of evaluate.
    config.stages = Several(("sample", "score", "reference", "train", "evaluate", "report", "export"), of=Text())

    # Several values of some keys: {"train.beta": [0.1, 0.3], "seed": [0, 1, 2]} runs all combinations, and a list of
    # such dicts has values that go together. Stages that do not depend on these keys run once (docs/sweeps.md).
    config.sweep = Grids()

    config.model = Config()
    # A Hugging Face folder, its address, or ORG/NAME[@REVISION] of the hub; "": a new model, trained from scratch.
    config.model.path = Text("")
    config.model.template = Choice("chat", "plain")  # chat: the tokenizer's template; plain: BOS, then the text
    # Prompts of templates that can think. off: they close an empty thought, and answers come without one.
    config.model.thinking = Choice("template", "on", "off")  # template: as the chat template has it
    config.model.d_model = Whole(128, least=1)  # width; these seven keys are the shape of a new model
    config.model.layers = Whole(4, least=1)
    config.model.heads = Whole(4, least=1)  # of queries
    config.model.kv_heads = Whole(4, least=1)  # of keys and values; heads is a multiple of it
    config.model.head_dim = Whole(32, least=1)
    config.model.d_ff = Whole(352, least=1)  # width of the feed-forward layer
    config.model.max_positions = Whole(512, least=1)  # longest text in tokens
    config.model.compute_dtype = Choice("float32", "bfloat16")  # of matrix products
    # Type in memory. bfloat16 saves 2 of 12 bytes a weight in training. Moments stay float32, and
    # updates are rounded stochastically, so that small ones add up. LoRA's adapters are float32 on any base.
    config.model.parameter_dtype = Choice("float32", "bfloat16")
    # auto: the best for the devices; splash is for TPUs, triton for GPUs, native for CPUs with a C++
    # compiler, blocks for all
    config.model.attention = Choice("auto", "plain", "blocks", "native", "splash", "triton")
    # What the backward pass recomputes of each layer, to save memory. dots: all but products with weights, and
    # attention; attention: all but attention; full: all; offload: all, and inputs of layers wait in host memory.
    config.model.remat = Choice("none", "dots", "attention", "full", "offload")
    # Layers one after the other in each turn of a training step's loop over layers; 0: 32 on a GPU, 8 on a
    # CPU without remat, else 1.
    config.model.unroll = Whole(0, least=0)
    config.model.vocab_chunk = Whole(0, least=0)  # tokens of the vocabulary whose logits exist at a time; 0: 8192

    config.mesh = Config()  # sizes; one may be -1 for all remaining devices
    config.mesh.replica = Whole(0, least=-1)  # copies of the model, one a slice or more; 0: the number of slices
    config.mesh.data = Whole(-1, least=-1)  # copies of the model within a slice
    config.mesh.fsdp = Whole(1, least=-1)  # splits parameters, and rows; weights are gathered where they are used
    config.mesh.tensor = Whole(1, least=-1)  # splits heads, feed-forward and vocabulary
    config.mesh.context = Whole(1, least=-1)  # splits long rows along their length
    # Devices that sample, score and read a unit of work. auto: each process's own if the models fit there, with as many
    # copies as fit, else the whole mesh above; process and all: always these.
    config.mesh.units = Choice("auto", "process", "all")
    # While it trains, a policy is sampled (rollout, watch) from a copy of its weights in model.compute_dtype, which so
    # many devices share. auto: as few as have room for it. training: without a copy; weights stay split over all
    # devices, and are gathered for each token.
    config.mesh.decoding = Either(Choice("auto", "training"), Whole(1, least=1))
    # Without an accelerator, devices that share the CPU; 0: one a core.
    config.mesh.cpu_devices = Whole(0, least=0, most=1024)

    config.prompts = Config()
    # programs | jsonl:FILES | parquet:FILES | hf:ORG/NAME[:CONFIG][@REVISION] | disk:FOLDER (datasets.save_to_disk) |
    # tfds:NAME[:VERSION] | rows:FOLDER (of a stage) | mix (of data sets) | model (beginnings that the model samples)
    config.prompts.source = Text("programs", empty=False)
    # Of source mix: data sets with weights, such as "jsonl:a.jsonl weight=0.3 layout=scored" (docs/data.md).
    config.prompts.mix = Several((), of=Text(empty=False))
    config.prompts.split = Text("")  # of the data set, to train on; of FILES, a word of their names. "": train, or all
    # What the columns mean (docs/data.md); "": recognised by their names, and said.
    config.prompts.layout = Choice(
        "",
        "rows",
        "qrpo",
        "qrpo_offpolicy",
        "ultrafeedback",
        "preference",
        "kto",
        "code",
        "apps",
        "code_contests",
        "gsm8k",
        "scored",
        "tulu",
        "magpie",
        "alpaca",
        "prompts",
    )
    config.prompts.columns = Several((), of=Text(empty=False))  # other names: prompt=question,completions=answers
    config.prompts.count = Whole(1024, least=0)  # prompts to train on; 0: all of a data set
    # Prompts to evaluate on: so many, a share of all, or a split of the data set.
    config.prompts.held_out = Either(Whole(256, least=0), Number(0.1, above=0, below=1), Name())
    # Prompts in one unit of work and of storage. 0: 128, or fewer so that every process or shard has two units; a stage
    # that goes on keeps its units.
    config.prompts.unit = Whole(0, least=0)
    config.prompts.max_tokens = Whole(256, least=1)  # longer prompts are dropped and counted
    config.prompts.beginning_tokens = Whole(24, least=1)  # length of prompts from the model itself

    config.sft = optimization(learning_rate=2e-3)
    config.sft.examples = Whole(16384, least=1)  # source programs: demonstrations to generate

    config.sample = Config()
    config.sample.backend = Choice("local", "openai")  # where: here, or on the servers of config.openai
    config.sample.completions = Whole(8, least=0)  # references a prompt; 0: use the completions of the source alone
    config.sample.max_new_tokens = Whole(64, least=1)  # longest completion
    config.sample.temperature = Number(1.0, least=0)  # 0 takes the most probable token
    config.sample.top_k = Whole(0, least=0)  # 0: no cut
    config.sample.top_p = Number(1.0, above=0, most=1)  # smallest set of tokens with so much probability; 1 for all
    config.sample.min_p = Number(0.0, least=0, most=1)  # tokens with so much of the largest probability; 0: all
    # Strings that end a completion, as end tokens do. Its text ends before them; its tokens end with them. On a command
    # line with commas or spaces in them: "('\\n', ' END')".
    config.sample.stop = Several((), of=Text(empty=False, lines=True))
    # Completions that a device decodes at a time; one that ends makes room for the next. 0: chosen by the sizes of the
    # model and of its cache. What is drawn does not depend on it.
    config.sample.slots = Whole(0, least=0)

    # OpenAI-compatible servers that have the reference policy: vLLM, SGLang and others (docs/sampling.md).
    config.openai = Config()
    config.openai.servers = Several((), of=Text(empty=False))  # base URLs that share the load: http://host:8000/v1
    config.openai.model = Text("")  # its name at the servers
    config.openai.key_variable = Text("")  # name of the environment variable that holds their key; "": they need none
    # What a prompt is sent as: token ids, exact; text; messages, which the server's own chat template lays out.
    config.openai.prompts = Choice("tokens", "text", "chat")
    config.openai.completions = Whole(0, least=0)  # of a prompt in one request, at most; 0: all
    config.openai.extra_fields = Switch(
        True
    )  # top_k, min_p, stop tokens, token ids: vLLM and SGLang know them, others may not
    config.openai.log_probs = Switch(True)  # ask for log-probs, which are kept where sample.temperature is 1 or 0
    config.openai.concurrency = Whole(64, least=1, most=65536)  # requests under way, to all servers together
    config.openai.attempts = Whole(12, least=1, most=1000)  # of one request; waits between them double up to a minute
    config.openai.connect_seconds = Number(10.0, above=0)
    config.openai.answer_seconds = Number(600.0, above=0)  # until an answer is complete

    config.reward = Config()
    # tests | answer | math_verify | model | dialogue_share | judge | format(REGEX) | length(LOW, HIGH) |
    # package.module:function | sum (docs/rewards.md)
    config.reward.name = Text("tests", empty=False)
    # Of reward sum: rewards with weights, such as "length(1, 400) weight=0.1"; each may have mean, std, clip, name.
    config.reward.parts = Several((), of=Text(empty=False))
    config.reward.path = Text("")  # model: the reward model, as in model.path; it has its own chat template
    # Score completions that have a reward already, too: those of the data set are replaced.
    config.reward.replace = Switch(False)
    # model: longer conversations are dropped and counted; 0: all that the model can read.
    config.reward.max_tokens = Whole(0, least=0)
    # model: conversations a forward pass, in model.compute_dtype. Functions of batches: completions a call.
    config.reward.batch_rows = Whole(16, least=1)
    config.reward.seconds = Number(60.0, above=0)  # functions: time limit of a call
    config.reward.concurrency = Whole(64, least=1, most=65536)  # async functions: calls under way at most
    # Share of completions that may be left without a reward because it raised, hung or gave no number; 0: none.
    config.reward.failures = Number(0.01, least=0, most=1)
    config.reward.block = Choice("first", "last")  # tests: the fenced block of a completion that is its code
    config.reward.max_tests = Whole(100, least=0)  # tests: those of a prompt that count, the first ones; 0: all
    config.reward.cpu_seconds = Number(1.0, least=0.01)  # tests: for each test, and for the code before the first
    config.reward.memory_mb = Whole(1024, least=64)  # tests: of each run of code
    config.reward.output_kb = Whole(64, least=1)  # tests: of the value that a test returns, or the text that it prints
    # tests: how many may end the process (a limit, an exit) before the rest of a completion's tests fail, too; 0: any
    config.reward.failed_runs = Whole(3, least=0)
    config.reward.workers = Whole(0, least=0, most=4096)  # processes; 0: one a core
    # How model-written code is kept apart (docs/sandbox.md); auto: the strongest that this machine holds.
    config.reward.isolation = Choice("auto", "bubblewrap", "kernel", "limits")
    config.reward.require_isolation = Choice("kernel", "bubblewrap", "limits")  # the weakest that a run accepts
    # Runs code elsewhere: a command that starts Python 3.11 or newer there with this program's pipes, such as
    # "podman run --rm -i --network=none IMAGE python3".
    config.reward.command = Text("")
    # Interpreter whose installed packages code may import, the python of a virtual environment; "": none, the standard
    # library alone.
    config.reward.python = Text("")
    config.reward.preload = Several((), of=Text(empty=False))  # modules to import once, not in each run

    # Reward judge: a model behind OpenAI-compatible servers that grades completions (docs/rewards.md).
    config.judge = Config()
    config.judge.servers = Several((), of=Text(empty=False))  # base URLs that share the load: http://host:8000/v1
    config.judge.model = Text("")  # its name at the servers
    config.judge.key_variable = Text("")  # name of the environment variable that holds their key; "": they need none
    # What it is asked, with {prompt}, {completion}, {payload} or {payload.KEY}; or the path of a file with that.
    config.judge.prompt = Text(
        "Grade the answer to a question from 1 to 10.\n\n{prompt}\n\nAnswer: {completion}", empty=False, lines=True
    )
    # Where its grade is: the last number, 7 of 7/10 | json:KEY | a regular expression, whose last match has it
    config.judge.grade = Text("number", empty=False)
    config.judge.low = Number(1.0)  # the grade that is reward 0; lower ones are no grade
    config.judge.high = Number(10.0)  # the grade that is reward 1; higher ones are no grade
    config.judge.max_tokens = Whole(1024, least=0)  # of an answer; 0: as the server has it
    config.judge.temperature = Number(0.0, least=0)
    config.judge.concurrency = Whole(64, least=1, most=65536)  # requests under way, to all servers together
    config.judge.attempts = Whole(6, least=1, most=1000)  # of one request; also after an answer without a grade
    config.judge.connect_seconds = Number(10.0, above=0)
    config.judge.answer_seconds = Number(120.0, above=0)  # until an answer is complete

    config.pack = Config()
    config.pack.max_tokens = Whole(512, least=2)  # longest prompt and completion together
    config.pack.over_long = Choice("drop", "truncate_prompt_left")  # what happens to longer ones; counted either way
    config.pack.share_prompts = Switch(True)  # completions of one prompt in a row share one copy of it
    # L, tokens of a packed row: at least max_tokens, twice that for pairs. 0: the length that costs least for these
    # data, this model and this machine (qrpo_jax/data/row_cost.py).
    config.pack.row_tokens = Whole(0, least=0)
    config.pack.slots = Whole(0, least=0)  # S, completions of a packed row; even. 0: as many as fit

    config.log_probs = Config()
    # Divides the logits of policy and reference alike; set it to sample.temperature so that both describe one
    # distribution.
    config.log_probs.temperature = Number(1.0, above=0)
    # Packed rows a forward pass, outside training; 0: chosen as in training.
    config.log_probs.batch_rows = Whole(0, least=0)

    config.select = Config()
    # What is trained on: completions one by one, or pairs of a prompt. offpolicy: of the first 6, 2, 6 and 20
    # completions of the reference policy, best and worst, or random pairs (the published off-policy sets).
    config.select.units = Choice(
        "singles",
        "best_worst",
        "random_pairs",
        "all_pairs",
        "offpolicy2best",
        "offpolicy2random",
        "offpolicy6random",
        "offpolicy10random",
    )
    config.select.first = Whole(0, least=0)  # train on this many completions of a row, the first ones; 0: all
    config.select.reference_count = Whole(0, least=0)  # rank against this many references, the first ones; 0: all
    config.select.exclude_own = Switch(True)  # a completion is not ranked against itself
    config.select.estimator = Choice("ecdf", "midpoint")  # ecdf is the published one
    config.select.ties = Choice("upper", "mid", "random")  # upper is the published one
    config.select.side = Choice("both", "chosen", "rejected", "random")  # of a pair, that QRPO and SFT train on

    # Low-rank adapters (LoRA) of stage train; the base does not change and is the reference policy. Stage sft always
    # trains all parameters. To fine-tune adapters on data, set train.objective = "sft".
    config.lora = Config()
    config.lora.rank = Whole(0, least=0)  # 0: none, train all parameters
    config.lora.alpha = Number(16.0)  # an adapter's output is scaled by alpha / rank
    # Regular expression for Hugging Face's name of a module in its layer, or for the last parts of that name, such as
    # q_proj|v_proj or self_attn.*; by default all linear maps.
    config.lora.targets = Text(".*_proj", empty=False)

    config.train = optimization(learning_rate=1e-6)
    # prompts: each epoch shuffles prompts, and completions of one prompt are in one batch, where they share it. That
    # makes a step cheaper, and the samples of a batch less independent. units: shuffles completions (or pairs) alone.
    config.train.shuffle = Choice("prompts", "units")
    # Steps from one set of parameters that is kept to the next, for evaluate.checkpoints; 0: the last ones alone. Each
    # takes as much room as the model.
    config.train.keep_every = Whole(0, least=0)
    # Steps from one computation of loss and log-ratios of held-out rows to the next, for the metrics; 0: none.
    config.train.evaluate_every = Whole(0, least=0)
    config.train.held_out = Whole(64, least=1)  # with it: prompts of the training rows that are not trained on
    # Completions: stored (rows of stages before, or brought) | on_policy (sampled by the policy as it trains, section
    # rollout)
    config.train.data = Choice("stored", "on_policy")
    # The last four need on-policy data; all others learn from either (docs/on_policy.md).
    config.train.objective = Choice("qrpo", "dpo", "rebel", "simpo", "sft", "grpo", "rloo", "reinforce_pp", "ppo")
    # KL strength, in units of f (QRPO), of the raw reward (REBEL, RLOO, REINFORCE++, PPO), of the advantage (GRPO), of
    # log-odds (DPO, SimPO). The four that need on-policy data can do with 0.
    config.train.beta = Number(0.1, least=0)
    # identity | log | square | sqrt | normal-icdf | scaled-normal-icdf | exponential-icdf | logit | power(p) |
    # threshold(q) | piecewise-linear((0, f), ..., (1, f)) | affine(transform, shift, scale) |
    # gaussian(mean, std) | package.module:function
    config.train.transform = Text("identity", empty=False)
    # log Z: population (exact quantiles) | finite_sample (the ranks of n references) | empirical (tied rewards too)
    config.train.partition = Choice("population", "finite_sample", "empirical")
    config.train.length_normalised = Switch(False)  # beta of a completion: min(beta / its length, beta_cap); not SimPO
    config.train.beta_cap = Number(0.0, least=0)  # 0: none
    config.train.loss_over_length = Switch(False)  # divide each loss by the length of its completion; not SimPO
    config.train.loss = Choice("mse", "mae")  # of the regression: squared or absolute error
    # log π_ref: stored (by stage reference) | on_the_fly (LoRA only: each step computes it with the adapters off; leave
    # the stage out of config.stages; a step takes one more forward pass)
    config.train.reference_log_probs = Choice("stored", "on_the_fly")
    config.train.gamma_beta_ratio = Number(0.5)  # SimPO's margin over beta
    # Of GRPO, RLOO, REINFORCE++ and PPO: a ratio to the policy that sampled has no gradient beyond 1 - clip_low and 1 +
    # clip_high. DAPO's clip-higher is 0.28.
    config.train.clip_low = Number(0.2, above=0, most=1)
    config.train.clip_high = Number(0.2, above=0)
    # GRPO: mean over each completion's tokens | all tokens of a batch weigh the same (DAPO) | sum over each
    # completion's tokens divided by rollout.max_new_tokens (Dr. GRPO)
    config.train.token_average = Choice("completion", "token", "constant")
    # GRPO: rewards minus the mean of their group, divided by its standard deviation | not divided (Dr. GRPO)
    config.train.advantage_scale = Choice("std", "none")
    # On-policy: a token's weight for what sampler and trainer disagree on is at most this; 0: all weights are 1.
    config.train.correction_cap = Number(2.0, least=0)
    config.train.mask_cut = Switch(False)  # on-policy: completions cut by the length limit have no part in the loss
    config.train.discount = Number(1.0, least=0, most=1)  # REINFORCE++, PPO: gamma, of the rewards of later tokens
    config.train.gae_lambda = Number(0.95, least=0, most=1)  # PPO: 1 has no bias, 0 the least variance
    config.train.whiten = Switch(True)  # REINFORCE++, PPO: advantages have mean 0 and std 1 over the tokens sampled
    config.train.value_coefficient = Number(0.1, least=0)  # PPO: weight of the value loss
    config.train.value_clip = Number(0.2, least=0)  # PPO: a value moves at most this far in an iteration; 0: no bound
    # RLOO, REINFORCE++, PPO: beta adapts to this KL to the reference, nats a completion; 0: beta is fixed.
    config.train.kl_target = Number(0.0, least=0)

    # With train.data = "on_policy": what the policy samples in each iteration (docs/on_policy.md).
    config.rollout = Config()
    config.rollout.iterations = Whole(100, least=1)  # each samples, scores and makes steps on what it sampled
    config.rollout.prompts = Whole(64, least=1)  # of an iteration
    config.rollout.completions = Whole(8, least=1)  # a prompt: its group
    config.rollout.max_new_tokens = Whole(64, least=1)  # longest completion
    config.rollout.temperature = Number(1.0, above=0)  # that of log_probs.temperature
    config.rollout.top_k = Whole(0, least=0)  # as in sample; log-probs are those of the whole distribution
    config.rollout.top_p = Number(1.0, above=0, most=1)  # as in sample
    config.rollout.min_p = Number(0.0, least=0, most=1)  # as in sample
    config.rollout.stop = Several((), of=Text(empty=False, lines=True))  # as in sample
    config.rollout.slots = Whole(0, least=0)  # as in sample
    config.rollout.order = Choice("shuffled", "source")  # of prompts; source: as they are listed, a curriculum
    # Of QRPO: among the rewards of the reference policy's stored completions of a prompt, or among those of its group.
    config.rollout.quantiles = Choice("reference", "group")
    # Times that prompts whose completions all have the same reward are replaced by further ones (dynamic sampling).
    config.rollout.refill = Whole(0, least=0)
    # Sample for the next iteration before the steps of this one, and score it on the CPU during these steps. Its policy
    # is then older by that many steps.
    config.rollout.ahead = Switch(False)

    # Held-out prompts that stage train samples and scores as it goes, for the metrics, from the selection half.
    config.watch = Config()
    config.watch.every = Whole(0, least=0)  # steps from one time to the next; 0: never
    config.watch.prompts = Whole(32, least=1)  # at most
    config.watch.completions = Whole(1, least=1)  # a prompt
    config.watch.max_new_tokens = Whole(64, least=1)  # longest completion
    config.watch.temperature = Number(1.0, least=0)  # as in sample
    config.watch.top_k = Whole(0, least=0)  # as in sample
    config.watch.top_p = Number(1.0, above=0, most=1)  # as in sample
    config.watch.min_p = Number(0.0, least=0, most=1)  # as in sample
    config.watch.stop = Several((), of=Text(empty=False))  # as in sample
    config.watch.slots = Whole(16, least=1)  # completions that a device decodes at a time, beside the training state

    config.evaluate = Config()
    config.evaluate.completions = Whole(8, least=1)  # a held-out prompt, from reference and policy each
    config.evaluate.max_new_tokens = Whole(64, least=1)  # longest completion
    config.evaluate.temperature = Number(1.0, least=0)  # as in sample
    config.evaluate.top_k = Whole(0, least=0)  # as in sample
    config.evaluate.top_p = Number(1.0, above=0, most=1)  # as in sample
    config.evaluate.min_p = Number(0.0, least=0, most=1)  # as in sample
    config.evaluate.stop = Several((), of=Text(empty=False, lines=True))  # as in sample
    config.evaluate.slots = Whole(0, least=0)  # as in sample
    # Each draws evaluate.completions anew; figures are of all together, and headlines of each.
    config.evaluate.seeds = Several((0,), of=Whole(0, least=0), distinct=True)
    # Policies to evaluate: last; or for a curve over training all that train.keep_every keeps, or a list of steps, of
    # which 0 is the reference. The best one is chosen on one half of the prompts and reported on the other.
    config.evaluate.checkpoints = Several(("last",), of=Either(Choice("last", "all"), Whole(0, least=0)), distinct=True)
    # Without stage train: another model, as in model.path, that the one of model.path is compared with; "": none.
    config.evaluate.against = Text("")

    # Published benchmarks on the policy, and beside it on its reference: stage harness (docs/harnesses.md).
    config.harness = Config()
    # alpaca_eval | humaneval | humaneval_plus | mbpp | mbpp_plus | leetcode | gsm8k | lm_eval(TASK, ...), each with
    # options, such as "humaneval completions=16 temperature=0.8 name=sampled" or "gsm8k source=jsonl:FILE shots=8".
    config.harness.tasks = Several(("humaneval", "mbpp", "gsm8k"), of=Text(empty=False), distinct=True)
    config.harness.prompts = Whole(0, least=0)  # of each task, the first ones; 0: all
    # Longer ones are not asked, and count as failed; those that lm_eval wants completed are cut on the left.
    config.harness.max_prompt_tokens = Whole(2048, least=1)
    config.harness.completions = Whole(1, least=1)  # of a prompt; pass@k for powers of two up to it
    config.harness.max_new_tokens = Whole(1024, least=1)  # longest completion
    config.harness.temperature = Number(0.0, least=0)  # 0 takes the most probable token
    config.harness.top_k = Whole(0, least=0)  # as in sample
    config.harness.top_p = Number(1.0, above=0, most=1)  # as in sample
    config.harness.min_p = Number(0.0, least=0, most=1)  # as in sample
    config.harness.slots = Whole(0, least=0)  # as in sample
    # Command that judges the answers of task alpaca_eval where it is installed and has a key; "": never. It may be that
    # of another environment: ENV/bin/alpaca_eval.
    config.harness.alpaca_eval = Text("alpaca_eval")
    config.harness.annotator = Text("weighted_alpaca_eval_gpt4_turbo", empty=False)  # its judge; this is AlpacaEval 2

    config.report = Config()
    config.report.examples = Whole(6, least=0)  # prompts shown of each kind: improved most, worsened most, first ones

    config.export = Config()
    # The last policy, the best one that stage evaluate found with evaluate.checkpoints, or that of a step that is kept.
    config.export.checkpoint = Either(Choice("last", "best"), Whole(0, least=1))
    config.export.dtype = Choice("float32", "bfloat16")  # of the written tensors
    # LoRA: merged into the base, or adapters for the model in model.path.
    config.export.adapter = Choice("merged", "peft")
    # ORG/NAME of a model of the hub that the exported folder is uploaded to (extra hf, and a token that may write); "":
    # nothing leaves this machine.
    config.export.push_to_hub = Text("")
    config.export.private = Switch(True)  # a model of the hub that this upload makes is private

    # Stage compile needs no TPU, no weights and no tokenizer: model.path may hold a config.json alone.
    config.compile = Config()
    # Slice to compile for: v5e:2x4, v5p:4x4x8, v5p:4x4x8*2 (two slices); "": devices here
    config.compile.topology = Text("")
    config.compile.programs = Several(
        ("train", "reference", "sample"), of=Choice("train", "reference", "sample"), distinct=True
    )
    # Packed rows of a training batch; 0: search for the largest batch that fits.
    config.compile.rows = Whole(0, least=0)

    # The table of a sweep (docs/sweeps.md).
    config.collect = Config()
    # Its lines: in the order of the sweep, or those with the highest value of a figure first.
    config.collect.sort = Choice("order", "reward", "reference", "gain", "quantile", "kl", "tokens", "length_rho")
    method = ("train.data", "train.objective", "train.transform")
    # Keys that make a method; of each, the selection half of held-out prompts chooses the values of the others.
    config.collect.method = Several(method, of=Text(empty=False), distinct=True)
    # A setting is chosen only if its KL to the reference on the selection half, in nats a completion, is at most this:
    # methods at the same price; 0: any.
    config.collect.max_kl = Number(0.0, least=0)
    # Best-of-N of the reference policy, for each N up to evaluate.completions, from its held-out completions.
    config.collect.best_of = Several((), of=Whole(1, least=1))

    config.inspect = Config()
    config.inspect.rows = Whole(1000, least=0)  # that are read and measured, spread over all; 0: all, in memory
    config.inspect.examples = Whole(3, least=0)  # rows shown as the model reads them

    config.compare_transforms = Config()
    # As in train.transform, with numbers for parameters.
    config.compare_transforms.transforms = Several(
        ("identity", "log", "square", "sqrt", "normal-icdf", "exponential-icdf", "logit", "threshold(0.9)"),
        of=Text(empty=False),
        distinct=True,
    )
    config.compare_transforms.betas = Several(
        (0.001, 0.01, 0.1, 0.3, 1.0, 1.5, 3.0), of=Number(1.0, least=1e-5, most=1e5), distinct=True
    )
    # n, for log Z of finite samples
    config.compare_transforms.references = Several(
        (1, 3, 10, 30, 50), of=Whole(1, least=1, most=100_000), distinct=True
    )
    config.compare_transforms.estimators = Several(("ecdf", "midpoint"), of=Choice("ecdf", "midpoint"), distinct=True)

    # The step of stage `train`, with its batch size, and the programs of `reference` and `sample`, on synthetic rows.
    config.benchmark = Config()
    config.benchmark.mix = Choice("many_short", "chat_pairs", "long_prompts")  # lengths of prompts and completions
    # Medians are over these; in each a matrix product is timed too, if no peak is known.
    config.benchmark.rounds = Whole(5, least=1)
    config.benchmark.calls = Whole(4, least=1)  # of each program a round, one after the other
    config.benchmark.prompts = Whole(32, least=1)  # sampled from at a time

    # Of training. Checkpoints of the work directory: sft.checkpoint_every, train.checkpoint_every.
    config.checkpoints = Config()
    # Folder on a disk of each host, or in its memory (/dev/shm), for checkpoints between those; "": none. Two hosts
    # must hold each part of the model (docs/launch.md).
    config.checkpoints.local_directory = Text("")
    config.checkpoints.local_every = Whole(10, least=1)  # steps, fewer than between those of the work directory

    config.log = Config()
    config.log.tensorboard = Switch(True)  # writes event files into the stage's folder
    config.log.profile = Text("")  # STEP:COUNT profiles COUNT steps from STEP on, into the stage's folder
    config.log.wandb = Switch(False)  # needs the wandb extra
    config.log.wandb_project = Text("qrpo-jax", empty=False)
    return config.lock()
