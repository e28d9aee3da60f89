"""Python example for the model card: three lines and their imports."""

from typing import NamedTuple

from finetune_api.spec import FineTuneJobSpec, Task

# Stands for the path of a base model from a claim. Only the reader knows where that model is.
_CLAIM_BASE_PLACEHOLDER = "path/of/the/base-model"
_GENERATE = "generate"


class _Pipeline(NamedTuple):
    """One pipeline. auto_model: class of the base model. variable: name in the example. inputs: arguments of the call."""

    name: str
    auto_model: str
    variable: str
    inputs: str


def usage(spec: FineTuneJobSpec, repository: str, adapter: bool, chat: bool) -> str:
    """Return the example as a Markdown block. chat: whether the tokenizer has a chat template."""
    pipeline = _pipeline(spec, chat)
    lines = _adapter_lines(spec, pipeline, repository) if adapter else _full_model_lines(pipeline, repository)
    return "\n".join(["```python", *lines, f"print({pipeline.variable}({pipeline.inputs}))", "```"])


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


def _full_model_lines(pipeline: _Pipeline, repository: str) -> list[str]:
    return ["from transformers import pipeline", "", f'{pipeline.variable} = pipeline("{pipeline.name}", "{repository}")']


def _adapter_lines(spec: FineTuneJobSpec, pipeline: _Pipeline, repository: str) -> list[str]:
    """Return lines that load the base model, with the classes of the adapter's configuration, and then the adapter."""
    base = spec.model.hub.name if spec.model.hub else _CLAIM_BASE_PLACEHOLDER
    call = f'{pipeline.variable} = pipeline("{pipeline.name}", model=model, tokenizer="{repository}")'
    if pipeline.variable == _GENERATE and spec.model.hub:  # this class also adds the new tokens of the adapter's tokenizer
        load = f'model = AutoPeftModelForCausalLM.from_pretrained("{repository}")'
        return ["from peft import AutoPeftModelForCausalLM", "from transformers import pipeline", "", load, call]
    config = "" if pipeline.variable == _GENERATE else f', config=AutoConfig.from_pretrained("{repository}")'
    return [
        "from peft import PeftModel",
        f"from transformers import {'AutoConfig, ' if config else ''}{pipeline.auto_model}, pipeline",
        "",
        f'base = {pipeline.auto_model}.from_pretrained("{base}"{config})',
        f'model = PeftModel.from_pretrained(base, "{repository}")',
        call,
    ]
