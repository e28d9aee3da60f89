"""``spec.output``, ``cache``, ``hub``, ``publish`` and ``samples``: volumes, the Hub, and inputs for the finished model."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from finetune_api.model import Model, cel, validations
from finetune_api.spec.common import Claim, Name, ObjectName, Size, require_exactly_one


class OutputVolume(Model):
    """A PersistentVolumeClaim that the operator creates for this job, named <name>-output."""

    size: Size = Field(default="10Gi", description="Size of the volume, for example 50Gi.")
    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of the volume. If left out: the cluster's default.", examples=["fast"]
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] | None = Field(
        default=None, description="Access mode. If left out: ReadWriteOnce for one node, ReadWriteMany for several."
    )


class Retention(Model):
    """When the operator deletes the volume that output.volume creates."""

    when_deleted: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="What happens to the volume when the FineTuneJob is deleted. Retain: the claim stays, with checkpoints and "
        "model. Delete: it is deleted.",
    )
    when_finished: Literal["Retain", "Delete"] = Field(
        default="Retain",
        description="What happens to the volume when the job has succeeded. Retain: it stays. Delete: once the model is on the "
        "Hub, the operator deletes the volume, the pods and their logs; needs publish. A failed job keeps its volume.",
    )


class Output(Model):
    """Where checkpoints, finished model, history and report are stored: in a claim or a volume. If left out: a volume of 10Gi."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("!(has(self.claim) && has(self.volume))", "write claim or volume, not both"),
            cel("!(has(self.claim) && has(self.retention))", "retention is for output.volume: your own claim is never deleted"),
        )
    )

    claim: Claim | None = Field(default=None, description="An existing claim. The operator never deletes it.")
    volume: OutputVolume | None = Field(default=None, description="A claim that the operator creates for this job.")
    retention: Retention | None = Field(default=None, description="When the operator deletes the volume.")

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Output":
        if self.claim is not None and self.volume is not None:
            raise ValueError("write claim or volume, not both")
        if self.claim is not None and self.retention is not None:
            raise ValueError("retention is for output.volume: your own claim is never deleted")
        return self


class Cache(Model):
    """A claim that many jobs share."""

    claim_name: ObjectName = Field(
        description="PersistentVolumeClaim in the namespace of the job. It must be ReadWriteMany if jobs run on several nodes.",
        examples=["model-cache"],
    )


class SecretKey(Model):
    """A key of a Secret in the namespace of the job."""

    name: ObjectName = Field(description="Secret in the namespace of the job.", examples=["hub-token"])
    key: Name = Field(default="token", description="Key of the Secret that holds the token.")


_CREDENTIALS = "^https?://[^/]*@"
CREDENTIALS_MESSAGE = (
    "endpoint must not hold a user or a password, because everyone who can read the job can read it: write the URL without them, "
    "and the token into the Secret of tokenSecretRef"
)


class Hub(Model):
    """Access to the Hub, to pull private and gated repositories and to push."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel(f"!has(self.endpoint) || !self.endpoint.matches('{_CREDENTIALS}')", CREDENTIALS_MESSAGE)
        )
    )

    endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://[^\s]+$")] | None = Field(
        default=None, description="URL of a mirror or a private Hub, for example https://hub.example.com."
    )
    token_secret_ref: SecretKey | None = Field(
        default=None, description="Secret with an access token of the Hub. Only the training pods read it."
    )

    @pydantic.model_validator(mode="after")
    def _no_credentials(self) -> "Hub":
        if self.endpoint is not None and re.match(_CREDENTIALS, self.endpoint):
            raise ValueError(CREDENTIALS_MESSAGE)
        return self


class Publish(Model):
    """Push the finished model, its tokenizer and a model card to the Hub."""

    repository: Annotated[str, Field(min_length=3, max_length=193, pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")] = Field(
        description="Repository of the Hub, owner/name. Created if it does not exist.", examples=["my-team/news"]
    )
    visibility: Literal["Private", "Public"] = Field(
        default="Private", description="Visibility of a new repository. That of an existing one does not change."
    )
    when: Literal["AtEnd", "OnBestCheckpoint"] = Field(
        default="AtEnd",
        description="AtEnd: push the finished model, once. OnBestCheckpoint: also push each new best model by evaluation.best, "
        "during the training.",
    )
    merge_adapter: bool = Field(
        default=False,
        description="true: push the model with the adapters of model.lora merged into its weights. Such a model runs without "
        "peft. false: push only the adapters, which are small and need the base model. Before the end, OnBestCheckpoint always "
        "pushes only the adapters.",
    )


class Message(Model):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"] = Field(
        description="Role of the author: system, user or assistant.", examples=["user"]
    )
    content: Annotated[str, Field(min_length=1, max_length=4096)] = Field(description="Text of the message.", examples=["Hello!"])


class Sample(Model):
    """An input for the finished model: exactly one of text, messages."""

    model_config = pydantic.ConfigDict(
        json_schema_extra=validations(
            cel("has(self.text) != has(self.messages)", "write exactly one of text and messages"),
            cel("!has(self.textPair) || has(self.text)", "textPair is the second text: write text as well"),
        )
    )

    text: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="The text. For masked-lm: with [MASK] where the model predicts a token. For causal-lm, sft and dpo: the "
        "prompt that the model continues.",
        examples=["The film was a delight."],
    )
    text_pair: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="The second text, for classification of pairs of texts.", examples=["It was fun."]
    )
    messages: Annotated[Sequence[Message], Field(min_length=1, max_length=32)] | None = Field(
        default=None, description="A chat that the model answers, for sft and dpo."
    )

    @pydantic.model_validator(mode="after")
    def _union(self) -> "Sample":
        require_exactly_one(self, "text", "messages")
        if self.text_pair is not None and self.text is None:
            raise ValueError("textPair is the second text: write text as well")
        return self
