"""When the training evaluates, and whether early stopping can take effect. Pure, and used by the plan, too."""

from finetune_api.spec import EvaluationPlan


def is_due(plan: EvaluationPlan, step: int, total_steps: int, steps_per_epoch: int) -> bool:
    """Return whether to evaluate after ``step`` steps: before the first, after the last, and as often as the spec says."""
    if step in (0, total_steps):
        return True
    if plan.every_steps is not None:
        return step % plan.every_steps == 0
    interval = (plan.every_epochs or 1.0) * steps_per_epoch
    return int(step / interval) > int((step - 1) / interval)


def useless_early_stopping(plan: EvaluationPlan, total_steps: int, steps_per_epoch: int) -> str | None:
    """Return why early stopping can't end this training before its last step; None if it can, or is not asked for."""
    if plan.early_stopping is None:
        return None
    needed = plan.early_stopping.patience + 2  # the best one, those that are no better, and a step that is saved
    found = 0
    for step in range(1, total_steps + 1):
        found += is_due(plan, step, total_steps, steps_per_epoch)
        if found >= needed:
            return None
    return (
        f"spec.evaluation.earlyStopping can't take effect: with patience {plan.early_stopping.patience} it needs at least "
        f"{needed} evaluations, and this training has {found}; lower patience, or evaluate more often (evaluation.everySteps)"
    )
