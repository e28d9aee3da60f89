"""The file of operator defaults: each mistake in it is reported in a sentence."""

import pathlib

import pytest

from finetune_api.spec import PodSecurity
from finetune_operator.defaults import OperatorDefaults, read_defaults

IMAGE = "trainer:1"


def write(folder: pathlib.Path, text: str) -> pathlib.Path:
    file = folder / "site.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_without_a_file_only_the_image_is_set() -> None:
    assert read_defaults(None, IMAGE) == OperatorDefaults(trainer_image=IMAGE)
    assert OperatorDefaults().security_context == PodSecurity(run_as_user=1000, run_as_group=1000, fs_group=1000)


def test_an_empty_file_is_valid(tmp_path: pathlib.Path) -> None:
    assert read_defaults(write(tmp_path, "# nothing\n"), IMAGE) == OperatorDefaults(trainer_image=IMAGE)


def test_the_image_in_the_file_takes_precedence_over_the_argument(tmp_path: pathlib.Path) -> None:
    assert read_defaults(write(tmp_path, "trainerImage: mine:2\n"), IMAGE).trainer_image == "mine:2"


def test_the_cluster_chooses_ids_that_are_null(tmp_path: pathlib.Path) -> None:
    defaults = read_defaults(write(tmp_path, "securityContext: {runAsUser: null, runAsGroup: null, fsGroup: null}\n"), IMAGE)
    assert defaults.security_context == PodSecurity()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nodeSelectors: {gpu: h100}\n", "nodeSelectors: unknown field; did you mean nodeSelector?"),
        ("node_selector: {gpu: h100}\n", "node_selector: unknown field; did you mean nodeSelector?"),
        ("tolerations: [{keys: a}]\n", "tolerations[0].keys: unknown field; did you mean key?"),
        ("proxy: {httpProxy: 8080}\n", "proxy.httpProxy: Input should be a valid string"),
        ("securityContext: {runAsUser: 0}\n", "securityContext.runAsUser: Input should be greater than or equal to 1"),
        ("networkPolicy: {enabled: 'yes'}\n", "networkPolicy.enabled: Input should be a valid boolean"),
        ("- a\n", "Input should be a valid dictionary"),
        ("a: [\n", "can't be read: while parsing"),
    ],
)
def test_a_mistake_in_the_file_is_reported_in_a_sentence(tmp_path: pathlib.Path, text: str, sentence: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ValueError, match=r"site\.yaml") as caught:
        read_defaults(file, IMAGE)
    assert sentence in str(caught.value)


def test_a_missing_file_is_reported_in_a_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.yaml: can't be read: .*No such file"):
        read_defaults(tmp_path / "nowhere.yaml", IMAGE)
