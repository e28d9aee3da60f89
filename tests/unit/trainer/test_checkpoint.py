"""Checkpoints are complete or not there."""

import pathlib

from finetune_trainer import checkpoint


def write(checkpoints: pathlib.Path, step: int) -> pathlib.Path:
    folder = checkpoint.staging_dir(checkpoints) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(f"weights of {step}")
    return folder


def test_a_save_that_was_cut_off_is_never_resumed_from(tmp_path: pathlib.Path) -> None:
    write(tmp_path, 10)
    assert checkpoint.latest(tmp_path) is None
    checkpoint.discard_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_newest_is_found_by_number_and_older_ones_go(tmp_path: pathlib.Path) -> None:
    for step in (8, 9, 10):
        checkpoint.commit(write(tmp_path, step), tmp_path, step, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.complete_checkpoints(tmp_path)] == [9, 10]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert (newest / "model.safetensors").read_text() == "weights of 10"


def test_a_step_saved_again_replaces_itself(tmp_path: pathlib.Path) -> None:
    checkpoint.commit(write(tmp_path, 5), tmp_path, 5, keep=2)
    checkpoint.commit(write(tmp_path, 5), tmp_path, 5, keep=2)
    assert len(checkpoint.complete_checkpoints(tmp_path)) == 1
