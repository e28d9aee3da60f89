"""``spec.output``, ``cache``, ``hub``, ``publish`` and ``samples``: where the result goes."""

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.common import Claim, Name, ObjectName, require_exactly_one


class OutputVolume(Model):
    """A PersistentVolumeClaim that the operator creates for this job, named <name>-output."""

    size: Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$")] = Field(
        default="10Gi", description="Size of the volume, for example 50Gi."
    )
    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of the volume; the cluster's default if left out.", examples=["fast"]
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] | None = Field(
        default=None, description="Access mode; ReadWriteOnce for one node, ReadWriteMany for several, if left out."
    )


class Retention(Model):
    """What becomes of the volume that output.volume creates."""

    when_deleted: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="Whether the volume outlives the FineTuneJob. Retain: the claim stays, with checkpoints and model.",
    )
    when_finished: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="Whether the volume stays when the job has succeeded. Delete needs publish: the volume goes once the model "
        "is on the Hub, and with it the pods and their logs. A job that failed keeps its volume.",
    )


class Output(Model):
    """Where checkpoints, finished model, history and report go: one of claim, volume; a volume of 10Gi if left out."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.claim) && has(self.volume))", "write claim or volume, not both"),
            cel(
                "!(has(self.claim) && has(self.retention))", "retention is about output.volume: a claim of your own always stays"
            ),
        )
    )

    claim: Claim | None = Field(default=None, description="A claim that is there already; it is never deleted.")
    volume: OutputVolume | None = Field(default=None, description="A claim that the operator creates for this job.")
    retention: Retention | None = Field(default=None, description="What becomes of the volume that output.volume creates.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Output":
        if self.claim is not None and self.volume is not None:
            raise ValueError("write claim or volume, not both")
        if self.claim is not None and self.retention is not None:
            raise ValueError("retention is about output.volume: a claim of your own always stays")
        return self


class Cache(Model):
    """A claim that many jobs share."""

    claim_name: ObjectName = Field(
        description="PersistentVolumeClaim in the namespace of the job, ReadWriteMany where jobs run on several machines.",
        examples=["model-cache"],
    )


class SecretKey(Model):
    """A key of a Secret in the namespace of the job."""

    name: ObjectName = Field(description="Secret in the namespace of the job.", examples=["hub-token"])
    key: Name = Field(default="token", description="Key of the Secret that holds the token.")


class Hub(Model):
    """Access to the Hub, for pulling private and gated repositories as well as for pushing."""

    endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://[^\s]+$")] | None = Field(
        default=None, description="Address of a mirror or a private Hub, for example https://hub.example.com."
    )
    token_secret_ref: SecretKey | None = Field(
        default=None, description="Secret with an access token of the Hub; only the training pods ever see it."
    )


class Publish(Model):
    """Push the finished model, its tokenizer and a model card to the Hub."""

    repository: Annotated[str, Field(min_length=3, max_length=193, pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")] = Field(
        description="Repository of the Hub, owner/name; created when it is not there.", examples=["my-team/news"]
    )
    visibility: Literal["Private", "Public"] = Field(
        default="Private", description="Visibility of the repository when it is created; that of an existing one is left alone."
    )
    when: Literal["AtEnd", "OnBestCheckpoint"] = Field(
        default="AtEnd",
        description="AtEnd: the finished model, once. OnBestCheckpoint: also each model that evaluation.best finds better than "
        "all before it, while the training goes on.",
    )
    merge_adapter: bool = Field(
        default=False,
        description="Push the model with the adapters of model.lora added to its weights, which runs without peft. If false: the "
        "adapters alone, which are small and need the model that they were trained on; so are those that OnBestCheckpoint pushes "
        "before the end.",
    )


class Message(Model):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks: system, user or assistant.", examples=["user"])
    content: Annotated[str, Field(min_length=1, max_length=4096)] = Field(description="What is said.", examples=["Hello!"])


class Sample(Model):
    """An input that the finished model is tried on: exactly one of text, messages."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("has(self.text) != has(self.messages)", "write exactly one of text and messages"),
            cel("!has(self.textPair) || has(self.text)", "textPair is the second text: write text, too"),
        )
    )

    text: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="The text; for masked-lm with [MASK] where a word is to be found, for causal-lm, sft and dpo what is to be "
        "gone on with.",
        examples=["The film was a delight."],
    )
    text_pair: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="The second text, for classification of pairs of texts.", examples=["It was fun."]
    )
    messages: Annotated[Sequence[Message], Field(min_length=1, max_length=32)] | None = Field(
        default=None, description="A chat that the model is to answer, for sft and dpo."
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Sample":
        require_exactly_one(self, "text", "messages")
        if self.text_pair is not None and self.text is None:
            raise ValueError("textPair is the second text: write text, too")
        return self
