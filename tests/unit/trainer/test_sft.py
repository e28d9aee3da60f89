"""Supervised fine-tuning: which tokens are learned, packed and padded rows, and the same loss as TRL's."""

import pathlib
import pickle
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from tokenizers import normalizers

from finetune_api.reasons import FineTuneError
from finetune_trainer.tasks import chat
from finetune_trainer.tasks.base import IGNORE_INDEX, DataInfo
from finetune_trainer.tasks.sft import SupervisedFineTuning, supports_packing
from unit.trainer.tiny_models import (
    TEXTS,
    assert_same_step,
    build_model,
    build_spec,
    build_task,
    build_tokenizer,
    loss_and_gradient,
    rows_of,
    splits_with_padding,
)

CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "How are you?"},
]
CHATS = [CHAT, CHAT[1:3], CHAT[3:]]
PROMPTS = {"prompt": ["What is the capital of France?", "Hello!", "A"], "completion": [" Paris.", " How are you?", " bad film."]}
# A template without generation tags, which TRL does not know.
PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def build(data: str, kind: str = "llama", template: str | None = None, max_tokens: int = 128, **options: Any) -> Any:
    tokenizer = build_tokenizer(chat_template=template)
    spec = build_spec("sft", training={"maxTokens": max_tokens}, sft=options, samples=options.pop("samples", None))
    model = build_model(kind, len(tokenizer) + 8)
    return build_task(SupervisedFineTuning, spec, tokenizer, model, format=data)


def learned(task: Any, row: dict[str, Any]) -> str:
    """Return the labels of a row as text."""
    return task.tokenizer.decode([label for label in row["labels"] if label != IGNORE_INDEX])


def trl_loss(task: Any, rows: dict[str, Any], directory: pathlib.Path, **options: Any) -> float:
    """Return the loss of TRL's trainer on the same rows in one batch."""
    from trl import SFTConfig, SFTTrainer

    data = datasets.Dataset.from_dict(rows)
    args = SFTConfig(
        output_dir=str(directory), use_cpu=True, bf16=False, report_to="none", max_length=128, disable_tqdm=True,
        per_device_eval_batch_size=len(data), per_device_train_batch_size=len(data), gradient_checkpointing=False, **options,
    )  # fmt: skip
    trainer = SFTTrainer(task.model, args, train_dataset=data, eval_dataset=data, processing_class=task.tokenizer)
    return float(trainer.evaluate()["eval_loss"])


# --- labels --------------------------------------------------------------------------------------------------------------


def test_only_the_completion_and_its_eos_are_learned() -> None:
    task = build("prompt")
    assert [learned(task, row) for row in rows_of(task, **PROMPTS)] == [" Paris.</s>", " How are you?</s>", " bad film.</s>"]


def test_without_assistant_only_loss_the_prompt_is_learned_too() -> None:
    task = build("prompt", assistantOnlyLoss=False)
    row = rows_of(task, **PROMPTS)[0]
    assert row["labels"][1:] == row["input_ids"][1:]


def test_all_tokens_of_a_text_are_learned() -> None:
    task = build("text")
    row = rows_of(task, text=TEXTS[:1])[0]
    assert row["labels"] == [IGNORE_INDEX, *row["input_ids"][1:]]
    assert task.tokenizer.decode(row["input_ids"]) == TEXTS[0] + "</s>"


def test_only_assistant_turns_of_a_chat_are_learned_and_a_model_without_template_gets_chatml() -> None:
    task = build("messages")
    row = rows_of(task, messages=[CHAT])[0]
    assert learned(task, row) == "Four.<|im_end|>How are you?<|im_end|>"
    assert task.tokenizer.decode(row["input_ids"]).startswith("<s><|im_start|>system\nYou are a helpful")
    assert chat.marker_ids(task.tokenizer) == [len(task.tokenizer) - 2, len(task.tokenizer) - 1]
    assert task.tokenizer.eos_token == "<|im_end|>"


def test_the_saved_template_renders_the_same_and_has_no_generation_tags() -> None:
    task = build("messages")
    assert "generation %}" not in task.tokenizer.chat_template
    assert chat.encode(task.tokenizer, CHAT) == rows_of(task, messages=[CHAT])[0]["input_ids"]


def test_a_template_without_generation_tags_is_learned_by_its_turns() -> None:
    task = build("messages", template=PLAIN)
    # The space of the template and the word after it are one token, and a token is learned as a whole.
    assert learned(task, rows_of(task, messages=[CHAT])[0]) == " Four.</s>How are you?</s>"


def test_a_template_that_trl_knows_is_learned_with_trl_s_generation_tags() -> None:
    from trl.chat_template_utils import qwen2_5_chat_template

    task = build("messages", template=qwen2_5_chat_template)
    task.tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert learned(task, rows_of(task, messages=[CHAT])[0]) == "\nFour.<|im_end|>\n\nHow are you?<|im_end|>\n"


def test_a_template_that_does_not_separate_turns_is_refused_with_a_hint() -> None:
    task = build("messages", template="{{ messages | length }} {% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(FineTuneError, match=r"spec\.sft\.assistantOnlyLoss: the model's chat template does not mark"):
        task.encode({"messages": [CHAT]})
    task = build("messages", template=task.tokenizer.chat_template, assistantOnlyLoss=False)
    assert len(rows_of(task, messages=[CHAT])) == 1


def test_a_chat_that_the_template_refuses_gives_a_sentence() -> None:
    task = build("messages", template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(FineTuneError, match=r"can't render a chat of the data: roles must alternate; .*spec\.sft\.chatTemplate"):
        task.encode({"messages": [CHAT]})


def test_the_template_of_the_job_overrides_the_template_of_the_model() -> None:
    task = build("messages", template=PLAIN, chatTemplate="chatml")
    assert task.tokenizer.chat_template == chat.CHATML
    task = build("messages", chatTemplate=PLAIN)
    assert task.tokenizer.chat_template == PLAIN
    with pytest.raises(FineTuneError, match=r"spec\.sft\.chatTemplate: there is no preset 'alpaca'; write chatml"):
        build("messages", chatTemplate="alpaca")


def test_a_tokenizer_is_changed_only_once() -> None:
    task = build("messages")
    size, spec = len(task.tokenizer), task.spec
    SupervisedFineTuning(spec, task.tokenizer, task.config, DataInfo(format="messages"))
    assert (len(task.tokenizer), task.tokenizer.chat_template) == (size, chat.CHATML)


def test_a_row_without_room_for_an_answer_is_left_out() -> None:
    task = build("prompt", max_tokens=12)
    rows = rows_of(task, prompt=[TEXTS[3], "A"], completion=[" Four.", " Four."])
    assert len(rows) == 1
    assert all(len(row["input_ids"]) <= 12 for row in rows)


# --- the same for every split --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loss_and_gradient_do_not_depend_on_how_rows_are_split(kind: str, packing: bool) -> None:
    task = build("messages", kind, packing=packing)
    assert task.is_packing is packing
    whole, *others = splits_with_padding(task, rows_of(task, messages=CHATS))
    for other in others:
        assert_same_step(task, whole, other)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_packed_rows_have_the_loss_and_the_gradient_of_padded_ones(kind: str) -> None:
    task = build("messages", kind, packing=True)
    rows = rows_of(task, messages=CHATS)
    assert task.collate(rows)["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in rows))
    packed_loss, packed_count, packed_gradient = loss_and_gradient(task, [rows])
    task.is_packing = False
    loss, count, gradient = loss_and_gradient(task, [rows])
    assert packed_count == count
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert (packed_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_evaluation_metrics_are_the_same_packed_and_padded() -> None:
    task = build("messages", packing=True)
    rows = rows_of(task, messages=CHATS)
    packed = task.compute_metrics(task.score(task.model, task.collate(rows)))[0]
    task.is_packing = False
    assert task.compute_metrics(task.score(task.model, task.collate(rows)))[0] == pytest.approx(packed, rel=1e-5)


class MixesPackedRows(transformers.LlamaForCausalLM):
    """A model that ignores position_ids and so mixes packed rows, as models with a state instead of attention do."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **others: Any) -> Any:
        return super().forward(input_ids=input_ids, **others)


def test_a_model_that_mixes_packed_rows_is_detected_and_its_rows_are_padded(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model("llama", 330)
    mixing = MixesPackedRows(model.config)
    mixing.load_state_dict(model.state_dict())
    assert supports_packing(model)
    assert not supports_packing(mixing)
    spec = build_spec("sft", sft={"packing": True})
    task = build_task(SupervisedFineTuning, spec, build_tokenizer(), mixing, format="text")
    assert "spec.sft.packing: MixesPackedRows does not keep packed rows apart: rows are padded" in caplog.text
    assert "attention_mask" in task.collate(rows_of(task, text=TEXTS))


@pytest.mark.parametrize("options", [{}, {"assistantOnlyLoss": False}])
def test_a_task_can_be_pickled_after_it_has_encoded_and_the_copy_encodes_the_same_rows(options: dict[str, Any]) -> None:
    task = build("messages", template=PLAIN, **options)
    task.model = None
    rows = rows_of(task, messages=CHATS)
    copy = pickle.loads(pickle.dumps(task))  # noqa: S301 - our own
    assert rows_of(copy, messages=CHATS) == rows


def test_packing_is_off_by_default_on_the_cpu() -> None:
    assert build("text").is_packing is False


# --- the same as TRL -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "rows", "ours", "theirs"),
    [
        ("text", {"text": TEXTS}, {}, {}),
        ("prompt", PROMPTS, {}, {"completion_only_loss": True}),
        ("prompt", PROMPTS, {"assistantOnlyLoss": False}, {"completion_only_loss": False}),
        ("messages", {"messages": CHATS}, {"chatTemplate": chat._CHATML_WITH_GENERATION_TAGS}, {"assistant_only_loss": True}),
        ("messages", {"messages": CHATS}, {"assistantOnlyLoss": False}, {}),
    ],
    ids=["text", "completion", "prompt and completion", "assistant", "chat"],
)
def test_the_loss_equals_the_one_of_trl(
    data: str, rows: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    task = build(data, **ours)
    batch = task.collate(rows_of(task, **rows))
    with torch.no_grad():
        loss = (task.loss(task.model, batch) / task.count_loss_labels(batch)).item()
    assert loss == pytest.approx(trl_loss(task, rows, tmp_path, **theirs), rel=1e-5)


# --- answers -------------------------------------------------------------------------------------------------------------


def test_samples_with_texts_are_used_as_they_are_and_messages_are_rendered_with_the_template() -> None:
    samples = [{"text": "Hello!"}, {"messages": CHAT[:2]}]
    task = build("messages", samples=samples)
    task.model.eval()
    answers = task.answer(task.spec.samples)
    assert [answer.text for answer in answers] == ["Hello!", "What is two and two?"]
    assert all(isinstance(answer.answer, str) for answer in answers)


def test_an_answer_is_the_learned_completion() -> None:
    task = build("messages", samples=[{"messages": CHAT[:2]}])
    rows = rows_of(task, messages=[CHAT[:3]])
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    for _ in range(30):
        loss_and_gradient(task, [rows])
        optimizer.step()
    task.model.eval()
    assert [answer.answer for answer in task.answer(task.spec.samples)] == ["Four."]


def test_samples_with_messages_are_refused_before_the_training_without_a_chat_template() -> None:
    with pytest.raises(FineTuneError, match=r"spec\.samples: messages need a chat template"):
        build("prompt", samples=[{"messages": CHAT[:2]}])


def test_samples_that_the_template_refuses_are_refused_before_the_training() -> None:
    template = "{{ raise_exception('a chat begins with the user') if messages[0].role != 'user' }}{{ messages[0].content }}"
    with pytest.raises(FineTuneError, match="a chat begins with the user"):
        build("messages", template=template, samples=[{"messages": [{"role": "system", "content": "x"}]}])


def test_a_sample_without_a_token_is_still_answered() -> None:
    task = build("text", samples=[{"text": "x"}])
    task.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    task.model.eval()
    [answer] = task.answer(task.spec.samples)
    assert answer.text == "x"


def test_no_row_is_padded_beyond_the_positions_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    task = build("text", max_tokens=13)
    monkeypatch.setattr(task, "_pad_to_multiple_of", 8)  # as with a GPU
    [row] = rows_of(task, text=["Nothing happens in this film, and it happens slowly, again and again."])
    assert task.collate([row])["input_ids"].shape == (1, 13)
    short = rows_of(task, text=["A"])
    assert task.collate(short)["input_ids"].shape == (1, 8)


def test_scores_are_one_entry_per_row() -> None:
    task = build("messages")
    scores = task.score(task.model, task.collate(rows_of(task, messages=CHATS)))
    assert {name: values.shape for name, values in scores.items()} == dict.fromkeys(("loss", "count", "correct"), (3,))
    assert scores["loss"].dtype == np.float64
