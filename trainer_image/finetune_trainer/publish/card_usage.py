"""How a model is used, in three lines of Python and their imports, for its card."""

from typing import NamedTuple

from finetune_api.spec import FineTuneJobSpec, Task

# Stands for a base model that is in a claim: where it lies elsewhere, only the reader knows.
_BASE_OF_A_CLAIM = "path/of/the/base-model"
_GENERATE = "generate"


class _Pipeline(NamedTuple):
    """name: of the pipeline. auto_model: class of the base model. verb: the variable. inputs: what it is called with."""

    name: str
    auto_model: str
    verb: str
    inputs: str


def usage(spec: FineTuneJobSpec, repository: str, adapter: bool, chat: bool) -> str:
    """A block of Markdown. chat: the tokenizer has a chat template."""
    pipeline = _pipeline(spec, chat)
    lines = _adapted(spec, pipeline, repository) if adapter else _whole(pipeline, repository)
    return "\n".join(["```python", *lines, f"print({pipeline.verb}({pipeline.inputs}))", "```"])


def _pipeline(spec: FineTuneJobSpec, chat: bool) -> _Pipeline:
    pair = any(dataset.columns.text_pair for dataset in spec.datasets)
    answer = '[{"role": "user", "content": "…"}], max_new_tokens=200'
    generation = _Pipeline(
        "text-generation", "AutoModelForCausalLM", _GENERATE, answer if chat and spec.task in ("sft", "dpo") else '"…"'
    )
    known: dict[Task, _Pipeline] = {
        "text-classification": _Pipeline(
            "text-classification",
            "AutoModelForSequenceClassification",
            "classify",
            '{"text": "…", "text_pair": "…"}' if pair else '"…"',
        ),
        "token-classification": _Pipeline(
            "token-classification", "AutoModelForTokenClassification", "find", '"…", aggregation_strategy="simple"'
        ),
        "masked-lm": _Pipeline("fill-mask", "AutoModelForMaskedLM", "fill", 'f"… {fill.tokenizer.mask_token} …"'),
    }
    return known.get(spec.task, generation)


def _whole(pipeline: _Pipeline, repository: str) -> list[str]:
    return ["from transformers import pipeline", "", f'{pipeline.verb} = pipeline("{pipeline.name}", "{repository}")']


def _adapted(spec: FineTuneJobSpec, pipeline: _Pipeline, repository: str) -> list[str]:
    """The base model, with the classes of the adapter's configuration; then the adapter."""
    base = spec.model.hub.name if spec.model.hub else _BASE_OF_A_CLAIM
    call = f'{pipeline.verb} = pipeline("{pipeline.name}", model=model, tokenizer="{repository}")'
    if pipeline.verb == _GENERATE and spec.model.hub:  # this class also adds the tokens that the adapter's tokenizer has more
        load = f'model = AutoPeftModelForCausalLM.from_pretrained("{repository}")'
        return ["from peft import AutoPeftModelForCausalLM", "from transformers import pipeline", "", load, call]
    config = "" if pipeline.verb == _GENERATE else f', config=AutoConfig.from_pretrained("{repository}")'
    return [
        "from peft import PeftModel",
        f"from transformers import {'AutoConfig, ' if config else ''}{pipeline.auto_model}, pipeline",
        "",
        f'base = {pipeline.auto_model}.from_pretrained("{base}"{config})',
        f'model = PeftModel.from_pretrained(base, "{repository}")',
        call,
    ]
