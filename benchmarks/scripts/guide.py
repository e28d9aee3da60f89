"""Train as the Hugging Face guide for text classification does, on a CSV file: `guide.py JSON`.

For baseline A: padded to 512 tokens, fp32, the Trainer's defaults. For baseline B: with the tuned options of the caller.
Source: transformers documentation, tasks/sequence_classification.
"""

import json
import sys
import time

import datasets
import numpy as np
import transformers


class StepTimer(transformers.TrainerCallback):
    """Records the time at which each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    options = json.loads(sys.argv[1])
    data = datasets.load_dataset("csv", data_files={"train": options["train"], "test": options["test"]})
    tokenizer = transformers.AutoTokenizer.from_pretrained(options["model"])
    padding = options["padding"]

    def preprocess(rows: dict[str, list[str]]) -> transformers.BatchEncoding:
        return tokenizer(rows["text"], truncation=True, max_length=options["max_tokens"], padding=padding)

    data = data.map(preprocess, batched=True)
    transformers.set_seed(options["seed"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(options["model"], num_labels=options["classes"])
    timer = StepTimer()
    arguments = transformers.TrainingArguments(
        output_dir=options["output"], max_steps=options["steps"], per_device_train_batch_size=options["batch"],
        learning_rate=options["learning_rate"], save_strategy="no", report_to="none", disable_tqdm=True, seed=options["seed"],
        **options["arguments"],
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data["train"], eval_dataset=data["test"], callbacks=[timer],
        data_collator=transformers.DataCollatorWithPadding(tokenizer), processing_class=tokenizer,
        compute_metrics=lambda output: {"accuracy": float(np.mean(output.predictions.argmax(1) == output.label_ids))},
    )  # fmt: skip
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"] if options["evaluate"] else None
    rate = options["batch"] * (len(timer.ends) - 1) / (timer.ends[-1] - timer.ends[0])
    print("RESULT " + json.dumps({"rate": rate, "accuracy": accuracy, "first_step": timer.ends[0]}))


if __name__ == "__main__":
    main()
