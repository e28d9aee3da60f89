"""Cases about tasks: the fields of each task, and fields of other tasks."""

from typing import Any

from finetune_api.spec.tasks import TASK_COLUMNS
from unit.api.cases import MINIMAL, Case, changed

LORA: dict[str, Any] = {**MINIMAL["model"], "lora": {}}
CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]}


def of(task: str, **more: Any) -> dict[str, Any]:
    """Return the minimal spec with this task."""
    return {**MINIMAL, "task": task, **more}


def data(*sets: dict[str, Any]) -> list[dict[str, Any]]:
    """Return data sets of the Hub with the given fields."""
    return [{"hub": {"name": "owner/data"}, **given} for given in sets]


def columns(task: str, **names: str) -> dict[str, Any]:
    """Return a spec of a task with these columns."""
    return of(task, datasets=data({"columns": names}))


def files(task: str, file_format: str) -> dict[str, Any]:
    """Return a spec of a task with files of a format."""
    return of(task, datasets=[{"claim": {"claimName": "data", "format": file_format}}])


_CLASSES = "labels, classWeights and balanced are for classes, and a Regression has none: remove them"
_PROBLEM = "classification.problemType: MultiLabel and Regression are for text-classification: remove it"
_LABELS = "datasets: columns.labels is for MultiLabel problems: write columns.label, or classification.problemType: MultiLabel"
_ONE_OF_THREE = "write only one of text, prompt and messages"
_WEIGHT = "datasets: write weight for each data set, or for none"
_FORMAT = (
    "datasets: claim.format: folders is for text-classification, masked-lm and causal-lm, text is for token-classification, "
    "masked-lm, causal-lm and sft: write another format"
)
_NATIVE = (
    "training.loop: Native is for text-classification, token-classification and masked-lm, without model.lora: write Trainer"
)
_QUANTIZED = "quantization: quantized weights can't be trained: add lora: {}, or write None"
_MERGE = "publish.mergeAdapter: without model.lora there is no adapter: add model.lora, or write false"
_BEST = "publish.when: OnBestCheckpoint needs evaluation.best: {metric: …}"
_SMOOTHING = "training.labelSmoothing: dpo and a Regression have no classes to spread a label over: remove it"
_SAMPLES = "samples: textPair is for text-classification, messages are for sft and dpo: write only text"
_METRICS = {
    "text-classification": "loss, accuracy, macroF1, microF1, exactMatch, mse, rmse, mae, r2, pearson and spearman",
    "token-classification": "loss, accuracy, precision, recall and f1",
    "masked-lm": "loss, perplexity and accuracy",
    "causal-lm": "loss, perplexity and tokenAccuracy",
    "sft": "loss, perplexity and tokenAccuracy",
    "dpo": "loss, rewardAccuracy, rewardMargin, chosenLogps and rejectedLogps",
}
_OWN_COLUMNS = {
    "text-classification": "datasets: the columns of text-classification are text, textPair, label and labels: remove the others "
    "from columns",
    "token-classification": "datasets: the columns of token-classification are tokens and tags: remove the others from columns",
    "masked-lm": "datasets: the column of masked-lm is text: remove the others from columns",
    "causal-lm": "datasets: the column of causal-lm is text: remove the others from columns",
    "sft": "datasets: the columns of sft are text, prompt, completion and messages: remove the others from columns",
    "dpo": "datasets: the columns of dpo are prompt, chosen and rejected: remove the others from columns",
}

ACCEPTED = [
    *(Case(task, of(task)) for task in TASK_COLUMNS),
    *(Case(f"{task} with adapters", of(task, model=LORA)) for task in TASK_COLUMNS),
    *(
        Case(f"{task} with the native loop", of(task, training={"loop": "Native"}))
        for task in ("text-classification", "token-classification", "masked-lm")
    ),
    Case(
        "tags", of("token-classification", classification={"labels": ["O", "B-PER"]}, datasets=data({"columns": {"tags": "ner"}}))
    ),
    Case("multi-label with the default column", changed("classification.problemType", "MultiLabel")),
    Case("multi-label in one of two data sets", of("text-classification", datasets=data({"columns": {"labels": "a"}}, {}))),
    Case("multi-label by the column", columns("text-classification", labels="genres")),
    Case(
        "multi-label by the problem type",
        {**columns("text-classification", labels="g"), "classification": {"problemType": "MultiLabel"}},
    ),
    Case("regression", of("text-classification", classification={"problemType": "Regression"})),
    Case("regression with balanced: false", changed("classification", {"problemType": "Regression", "balanced": False})),
    Case("masked-lm in chunks", of("masked-lm", maskedLM={"probability": 0.3, "chunk": True}, samples=[{"text": "A [MASK]."}])),
    Case("sft on chats", {**columns("sft", messages="chat"), "sft": {"packing": True}, "samples": [CHAT]}),
    Case("sft on prompts", columns("sft", prompt="question", completion="answer")),
    Case(
        "dpo",
        {**columns("dpo", prompt="q", chosen="a", rejected="b"), "dpo": {"beta": 0.5, "lossType": "ipo"}, "samples": [CHAT]},
    ),
    Case("weights for all data sets", of("sft", datasets=data({"weight": 0.5}, {"weight": 2}))),
    *(Case(f"folders of {task}", files(task, "folders")) for task in ("text-classification", "masked-lm", "causal-lm")),
    *(Case(f"text files of {task}", files(task, "text")) for task in ("token-classification", "masked-lm", "causal-lm", "sft")),
    Case("4-bit weights", of("sft", model={**LORA, "quantization": "nf4"})),
    Case("adapters merged", of("dpo", model=LORA, publish={"repository": "a/b", "mergeAdapter": True})),
    Case(
        "push of each best model",
        changed("evaluation", {"best": {}}, {**MINIMAL, "publish": {"repository": "a/b", "when": "OnBestCheckpoint"}}),
    ),
    *(
        Case(f"best by {metric} of {task}", of(task, evaluation={"best": {"metric": metric}}))
        for task, metric in (
            *(("text-classification", "exactMatch"), ("text-classification", "r2"), ("token-classification", "f1")),
            *(("masked-lm", "perplexity"), ("causal-lm", "tokenAccuracy"), ("sft", "loss"), ("dpo", "rewardMargin")),
        )
    ),
    Case("best by a metric", changed("evaluation", {"best": {"metric": "macroF1"}, "earlyStopping": {}, "everyEpochs": 0.5})),
    Case("TrainingArguments", changed("training.arguments", {"weight_decay": 0.1, "adam_beta2": 0.95, "optim": "sgd"})),
]

REFUSED = [
    *(
        Case(f"{block} of {task}", of(task, **{block: {}}), "spec", f"{block} is for {owners}: remove it, or correct task")
        for block, task, owners in (
            ("classification", "masked-lm", "text-classification and token-classification"),
            ("maskedLM", "causal-lm", "masked-lm"),
            ("sft", "causal-lm", "sft"),
            ("dpo", "sft", "dpo"),
        )
    ),
    *(
        Case(f"column {name} of {task}", columns(task, **{name: "x"}), "spec", sentence)
        for task, sentence in _OWN_COLUMNS.items()
        for name in sorted({*sum(TASK_COLUMNS.values(), ())} - {*TASK_COLUMNS[task]})
    ),
    Case(
        "wrong column in the second data set",
        of("sft", datasets=data({}, {"columns": {"tags": "x"}})),
        "spec",
        _OWN_COLUMNS["sft"],
    ),
    Case("regression of tags", of("token-classification", classification={"problemType": "Regression"}), "spec", _PROBLEM),
    *(
        Case(
            f"regression with {name}",
            changed("classification", {"problemType": "Regression", name: value}),
            "spec.classification",
            _CLASSES,
        )
        for name, value in (("labels", ["a", "b"]), ("classWeights", {"a": 2}), ("balanced", True))
    ),
    Case("one class", changed("classification.labels", ["a"]), "spec.classification.labels"),
    Case("class weight of 0", changed("classification.classWeights", {"a": 0}), "spec.classification.classWeights.a"),
    Case(
        "label and labels",
        columns("text-classification", label="a", labels="b"),
        "spec.datasets[0].columns",
        "write label or labels, not both",
    ),
    *(
        Case(
            f"labels for {name}",
            changed("classification.problemType", name, columns("text-classification", labels="a")),
            "spec",
            _LABELS,
        )
        for name in ("SingleLabel", "Regression")
    ),
    *(
        Case(f"{first} and {second}", columns("sft", **{first: "a", second: "b"}), "spec.datasets[0].columns", _ONE_OF_THREE)
        for first, second in (("text", "prompt"), ("text", "messages"), ("prompt", "messages"))
    ),
    Case("weight for one of two data sets", of("sft", datasets=data({"weight": 1}, {})), "spec", _WEIGHT),
    *(Case(f"folders of {task}", files(task, "folders"), "spec", _FORMAT) for task in ("token-classification", "sft", "dpo")),
    *(Case(f"text files of {task}", files(task, "text"), "spec", _FORMAT) for task in ("text-classification", "dpo")),
    *(
        Case(f"{task} with the native loop", of(task, training={"loop": "Native"}), "spec", _NATIVE)
        for task in ("causal-lm", "sft", "dpo")
    ),
    Case("adapters with the native loop", of("masked-lm", model=LORA, training={"loop": "Native"}), "spec", _NATIVE),
    Case("4-bit weights without adapters", changed("model.quantization", "nf4"), "spec.model", _QUANTIZED),
    Case("merging without adapters", changed("publish", {"repository": "a/b", "mergeAdapter": True}), "spec", _MERGE),
    Case(
        "push of the best model without a metric",
        changed("publish", {"repository": "a/b", "when": "OnBestCheckpoint"}),
        "spec",
        _BEST,
    ),
    *(
        Case(
            f"best by a metric that {task} lacks",
            of(task, evaluation={"best": {"metric": metric}}),
            "spec",
            f"evaluation.best.metric: the metrics of {task} are {_METRICS[task]}: write one of them",
        )
        for task, metric in (
            *(("text-classification", "f1"), ("token-classification", "macroF1"), ("masked-lm", "tokenAccuracy")),
            *(("causal-lm", "accuracy"), ("sft", "tokenaccuracy"), ("dpo", "perplexity")),
        )
    ),
    Case(
        "early stopping without a metric",
        changed("evaluation.earlyStopping", {}),
        "spec.evaluation",
        "earlyStopping needs best: {metric: …}",
    ),
    Case(
        "two checkpoint intervals",
        changed("checkpoint", {"everySteps": 1, "everySeconds": 1}),
        "spec.checkpoint",
        "write everySteps or everySeconds, not both",
    ),
    Case(
        "minNodes larger than nodes",
        changed("distributed", {"nodes": 2, "minNodes": 3}),
        "spec.distributed",
        "minNodes must not be larger than nodes",
    ),
    Case(
        "two evaluation intervals",
        changed("evaluation", {"everySteps": 1, "everyEpochs": 1}),
        "spec.evaluation",
        "write everySteps or everyEpochs, not both",
    ),
    Case("sample without an input", changed("samples", [{}]), "spec.samples[0]", "write exactly one of text and messages"),
    Case(
        "sample with two inputs",
        of("sft", samples=[{"text": "a", **CHAT}]),
        "spec.samples[0]",
        "write exactly one of text and messages",
    ),
    Case(
        "second text without a first one",
        of("sft", samples=[{"textPair": "a", **CHAT}]),
        "spec.samples[0]",
        "textPair is the second text: write text as well",
    ),
    Case("text pair for masked-lm", of("masked-lm", samples=[{"text": "a", "textPair": "b"}]), "spec", _SAMPLES),
    Case("chat for a classifier", changed("samples", [CHAT]), "spec", _SAMPLES),
    Case(
        "unknown role",
        of("sft", samples=[{"messages": [{"role": "tool", "content": "a"}]}]),
        "spec.samples[0].messages[0].role",
    ),
    Case("probability of 1", of("masked-lm", maskedLM={"probability": 1}), "spec.maskedLM.probability"),
    Case("smoothing in dpo", of("dpo", training={"labelSmoothing": 0.1}), "spec", _SMOOTHING),
    Case(
        "smoothing of numbers",
        of("text-classification", training={"labelSmoothing": 0.1}, classification={"problemType": "Regression"}),
        "spec",
        _SMOOTHING,
    ),
    Case("5-bit weights", of("sft", model={**LORA, "quantization": "nf5"}), "spec.model.quantization"),
]

# Only the models reject these arguments: a rule of a CRD can't see the keys of an object without a schema. Argument → message.
ARGUMENTS = {
    "learning_rate": "learning_rate: write spec.training.learningRate instead",
    "save_steps": "save_steps: write spec.checkpoint.everySteps instead",
    "eval_strategy": "eval_strategy: write spec.evaluation.everyEpochs instead",
    "bf16_full_eval": "bf16_full_eval: write spec.training.precision instead",
    "hub_token": "hub_token: write spec.hub.tokenSecretRef instead",
    "report_to": "report_to: write spec.logging.reportTo instead",
    "label_smoothing_factor": "label_smoothing_factor: write spec.training.labelSmoothing instead",
    "metric_for_best_model": "metric_for_best_model: write spec.evaluation.best.metric instead",
    "run_name": "run_name: write metadata.name instead",
    "dataloader_pin_memory": "dataloader_pin_memory is set by the trainer itself: remove it",
    "output_dir": "output_dir is set by the trainer itself: remove it",
    "fsdp_config": "fsdp_config is set by the trainer itself: remove it",
    "ddp_backend": "ddp_backend is set by the trainer itself: remove it",
}
