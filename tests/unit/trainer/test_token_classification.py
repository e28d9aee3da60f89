"""Token classification: which token has the tag of a word, and which entities are correct."""

from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from finetune_api.reasons import FineTuneError
from finetune_api.spec import Sample
from finetune_api.spec.tasks import TASK_METRICS
from finetune_api.status import Entity
from finetune_trainer.tasks.base import IGNORE_INDEX, DataInfo, Row, Task
from unit.trainer.tiny_tasks import (
    assert_evaluation_does_not_depend_on_batches,
    assert_split_does_not_matter,
    evaluated,
    make_task,
    make_tokenizer,
    rows_of,
    summed,
)

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
INFO = DataInfo(classes=TAGS, counts=(12, 3, 1, 1, 1))
WORDS = [["anna", "went", "to", "new", "york", "."], ["films"], ["the", "films", "was", "dull"], ["anna", "anna", "playing", "a"]]
LABELS = [["B-PER", "O", "O", "B-LOC", "I-LOC", "O"], ["O"], ["O"] * 4, ["B-PER", "I-PER", "O", "B-PER"]]


def task_and_rows(**spec: Any) -> tuple[Task, list[Row]]:
    task = make_task("token-classification", INFO, **spec)
    return task, rows_of(task, tokens=WORDS, tags=LABELS)


@pytest.mark.parametrize("spec", [{}, {"classification": {"balanced": True, "classWeights": {"O": 0.5}}}])
def test_loss_and_gradients_do_not_depend_on_the_split(spec: dict[str, Any]) -> None:
    task, rows = task_and_rows(**spec)
    assert_split_does_not_matter(task, rows)
    assert_evaluation_does_not_depend_on_batches(task, rows)
    loss, count, _ = summed(task, [rows])
    assert count == sum(map(len, WORDS))
    assert evaluated(task, [rows])[0]["loss"] == pytest.approx(loss / count, rel=1e-6)


def test_the_first_token_of_a_word_has_its_tag() -> None:
    task = make_task("token-classification", INFO)
    (row,) = rows_of(task, tokens=[["films", "playing", "a"]], tags=[["B-PER", "I-PER", "O"]])
    pieces = task.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert pieces == ["[CLS]", "film", "##s", "play", "##ing", "a", "[SEP]"]
    assert row["labels"] == [IGNORE_INDEX, 1, IGNORE_INDEX, 2, IGNORE_INDEX, 0, IGNORE_INDEX]


def test_a_word_that_the_tokenizer_drops_becomes_an_unknown_token() -> None:
    task = make_task("token-classification", INFO)
    (row,) = rows_of(task, tokens=[["\u200b", "anna", "\x00", "new", ""]], tags=[["O", "B-PER", "O", "B-LOC", "I-LOC"]])
    pieces = task.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert pieces == ["[CLS]", "[UNK]", "anna", "[UNK]", "new", "[UNK]", "[SEP]"]
    assert row["labels"] == [IGNORE_INDEX, 0, 1, 0, 3, 4, IGNORE_INDEX]


def test_truncated_words_are_left_out_and_counted() -> None:
    task = make_task("token-classification", INFO, training={"maxTokens": 8})
    rows = rows_of(task, tokens=[["a"] * 10, ["anna"]], tags=[["O"] * 10, ["B-PER"]])
    assert [task.is_truncated(row) for row in rows] == [True, False]
    _, details, scores = evaluated(task, [rows])
    assert (details["words"], details["wordsCut"]) == (11, 4)
    predictions = task.predictions(scores)
    assert predictions is not None
    assert [(len(row["tags"]), row["expected"], row["wordsCut"]) for row in predictions] == [(6, ["O"] * 6, 4), (1, ["B-PER"], 0)]


def test_a_byte_level_tokenizer_encodes_words_as_in_running_text() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(["anna went to new york"] * 50, trainer)
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    task = make_task("token-classification", INFO, tokenizer)
    (row,) = rows_of(task, tokens=[["anna", "went", "to", "new", "york"]], tags=[["B-PER", "O", "O", "B-LOC", "I-LOC"]])
    assert row["input_ids"] == tokenizer("anna went to new york")["input_ids"]
    assert [label for label in row["labels"] if label != IGNORE_INDEX] == [1, 0, 0, 3, 4]


def test_metrics_are_those_of_entities() -> None:
    task, _ = task_and_rows()
    number = {tag: index for index, tag in enumerate(TAGS)}
    actual = [number[tag] for tag in ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]]
    predicted = [number[tag] for tag in ["I-PER", "O", "O", "B-LOC", "O", "O"]]
    scores = {
        "words": np.array([4, 2]),
        "seen": np.array([4, 2]),
        "loss": np.full(6, 0.5, np.float32),
        "actual": np.array(actual),
        "predicted": np.array(predicted),
    }
    metrics, details = task.compute_metrics(scores)
    assert metrics.keys() == set(TASK_METRICS["token-classification"])
    # The second row begins with I-LOC, which is an entity of its own there, and is not found.
    assert metrics == {
        "loss": 0.5,
        "accuracy": pytest.approx(4 / 6),
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
    }
    assert details["perClass"]["LOC"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}


def test_answers_name_the_entities() -> None:
    task, rows = task_and_rows()
    samples = [Sample(text=" ".join(words)) for words in WORDS]
    predictions = task.predictions(evaluated(task, [rows])[2])
    assert predictions is not None
    answers = task.answer(samples)
    found = [list(answer.entities or ()) for answer in answers]
    assert any(found)
    for words, entities, prediction in zip(WORDS, found, predictions, strict=True):
        tagged = [word for word, tag in zip(words, prediction["tags"], strict=True) if tag != "O"]
        assert " ".join(entity.text for entity in entities).split() == tagged
        assert {entity.label for entity in entities} == {tag[2:] for tag in prediction["tags"] if tag != "O"}
        assert all(isinstance(entity, Entity) for entity in entities)
    assert task.answer([Sample(text=" ")])[0].entities == []


def test_a_tokenizer_without_word_ids_is_refused_with_a_sentence() -> None:
    class Slow:
        is_fast = False

    tokenizer = make_tokenizer()
    config = transformers.BertConfig(vocab_size=len(tokenizer))
    with pytest.raises(FineTuneError, match=r"^spec.model: its tokenizer is written in Python .* choose a model"):
        make_task("token-classification", INFO, Slow(), config)
