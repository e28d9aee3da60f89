"""Cases in which each alert fires or does not fire. Series are in promtool's format, with one value per minute from time 0."""

import dataclasses
from collections.abc import Sequence

JOB = 'namespace="team",finetunejob="news"'
POD = f'{JOB},pod="news-1-0-x"'
RANKS = [f'{POD},rank="{rank}",node="node-{rank}"' for rank in range(4)]
OPERATOR = 'namespace="finetune-system",pod="finetune-operator-7d-x"'
OF_JOB = {"namespace": "team", "finetunejob": "news"}
GPU_POD = 'namespace="team",pod="news-1-0-x"'
OF_GPU_POD = {**OF_JOB, "pod": "news-1-0-x"}

RUNNING = (f'finetune_job_phase{{{JOB},phase="Running"}}', "1x120")
# 60 steps of about a second, none longer than 2.5 s.
STEPS = [
    (f'finetune_training_step_duration_seconds_bucket{{{RANKS[0]},le="{bound}"}}', f"{count}x120")
    for bound, count in (("0.5", 0), ("1", 30), ("2.5", 60), ("+Inf", 60))
]
# 60 steps of up to 250 s: ten of them take 2,500 s.
LONG_STEPS = [
    (f'finetune_training_step_duration_seconds_bucket{{{RANKS[0]},le="{bound}"}}', f"{count}x120")
    for bound, count in (("100", 0), ("250", 60), ("+Inf", 60))
]


def last_step(minute: int, labels: str = RANKS[0]) -> tuple[str, str]:
    """Return a series of a job that makes steps until ``minute`` and none afterwards."""
    return f"finetune_training_last_step_timestamp_seconds{{{labels}}}", f"0+60x{minute} {minute * 60}x{120 - minute}"


def gpu(percent: int | str, labels: str) -> tuple[str, str]:
    """Return a series of the GPU's utilisation. percent: a constant value, or values in promtool's format."""
    return f'DCGM_FI_DEV_GPU_UTIL{{gpu="0",{labels}}}', percent if isinstance(percent, str) else f"{percent}x120"


def forward(*milliseconds: float) -> list[tuple[str, str]]:
    return [
        (f"finetune_training_forward_duration_seconds{{{labels}}}", f"{value / 1000}x120")
        for labels, value in zip(RANKS, milliseconds, strict=False)
    ]


def job(name: str, values: str, more: str = "") -> tuple[str, str]:
    return f"finetune_job_{name}{{{JOB}{more}}}", values


@dataclasses.dataclass(frozen=True)
class Case:
    """A case of an alert. short_name: the alert's name without FineTune. series: in promtool's format.

    minute: when promtool evaluates the alert. firing: labels of the alert, None if it does not fire.
    """

    name: str
    short_name: str
    series: Sequence[tuple[str, str]]
    minute: int
    firing: dict[str, str] | None = None

    @property
    def alert(self) -> str:
        return f"FineTune{self.short_name}"


CASES = [
    Case("no step for eleven minutes", "JobStalled", [RUNNING, *STEPS, last_step(20)], 31, OF_JOB),
    Case("steps continue", "JobStalled", [RUNNING, *STEPS, last_step(60)], 60),
    Case("one rank is late because its pod was lost", "JobStalled", [RUNNING, *STEPS, last_step(60), last_step(5, RANKS[1])], 60),
    Case("no step for eleven minutes, and steps take minutes", "JobStalled", [RUNNING, *LONG_STEPS, last_step(20)], 31),
    Case("no step for an hour, and steps take minutes", "JobStalled", [RUNNING, *LONG_STEPS, last_step(20)], 80, OF_JOB),
    Case(
        "no steps during the push of the model",
        "JobStalled",
        [(f'finetune_job_phase{{{JOB},phase="Running"}}', "1x20 0x100"), *STEPS, last_step(20)],
        60,
    ),
    Case("the pod detected the stall", "JobStalled",
         [RUNNING, *STEPS, last_step(20), job("condition", "0x20 1x60", ',condition="TrainingStalled"')], 22, OF_JOB),
    Case("no trainer is scraped, the operator reports no step", "JobStalled",
         [RUNNING, job("last_step_timestamp_seconds", "0+60x20 1200x60")], 31, OF_JOB),
    Case("no trainer is scraped, steps continue", "JobStalled", [RUNNING, job("last_step_timestamp_seconds", "0+60x100")], 60),

    Case("a step had a loss of NaN", "JobNonFiniteLoss",
         [(f"finetune_training_nonfinite_loss_total{{{POD}}}", "0x10 1x60")], 15, OF_JOB),
    Case("the NaN was long ago", "JobNonFiniteLoss", [(f"finetune_training_nonfinite_loss_total{{{POD}}}", "0x10 1x60")], 40),
    Case("the job failed because of it", "JobNonFiniteLoss", [job("failure_info", "1x60", ',reason="NonFiniteLoss"')], 5, OF_JOB),
    Case("the job failed for another reason", "JobNonFiniteLoss", [job("failure_info", "1x60", ',reason="DiskFull"')], 5),

    Case("an idle GPU", "JobGPUIdle",
         [last_step(100), gpu(2, GPU_POD)], 40, OF_GPU_POD),
    Case("the same without honorLabels", "JobGPUIdle",
         [last_step(100), gpu(2, 'namespace="gpu-operator",pod="dcgm-1",exported_namespace="team",exported_pod="news-1-0-x"')],
         40, OF_GPU_POD),
    Case("idle since the start of the training, for 13 minutes", "JobGPUIdle", [last_step(100), gpu(0, GPU_POD)], 13),
    Case("idle since the start of the training, for 16 minutes", "JobGPUIdle", [last_step(100), gpu(0, GPU_POD)], 16, OF_GPU_POD),
    Case("busy, then idle for 13 minutes", "JobGPUIdle", [last_step(100), gpu("90x30 2x90", GPU_POD)], 43),
    Case("busy, then idle for 16 minutes", "JobGPUIdle", [last_step(100), gpu("90x30 2x90", GPU_POD)], 46, OF_GPU_POD),
    Case("it loaded for 40 minutes and has just started to train", "JobGPUIdle",
         [(last_step(0)[0], "_x40 2460+60x60"), gpu("0x41 90x70", GPU_POD)], 41),
    Case("it was idle at its end, and the pod is deleted", "JobGPUIdle",
         [(last_step(0)[0], "0+60x60 _x60"), gpu("90x56 0x4 _x60", GPU_POD)], 72),
    Case("a busy GPU", "JobGPUIdle", [last_step(100), gpu(90, GPU_POD)], 40),
    Case("an idle GPU of another pod", "JobGPUIdle", [last_step(100), gpu(2, 'namespace="team",pod="notebook"')], 40),
    Case("no exporter of GPU metrics", "JobGPUIdle", [last_step(100)], 40),

    Case("no checkpoint for more than two hours", "JobCheckpointStale",
         [RUNNING, job("checkpoint_timestamp_seconds", "-1260x120"), job("start_timestamp_seconds", "-9000x120")], 100, OF_JOB),
    Case("a checkpoint from an hour ago", "JobCheckpointStale",
         [RUNNING, job("checkpoint_timestamp_seconds", "2400x120"), job("start_timestamp_seconds", "-9000x120")], 100),
    Case("there never was one", "JobCheckpointStale", [RUNNING, job("start_timestamp_seconds", "-9000x120")], 10, OF_JOB),
    Case("it was suspended for days and runs again", "JobCheckpointStale",
         [RUNNING, job("checkpoint_timestamp_seconds", "-90000x120"), job("phase_since_timestamp_seconds", "0x120")], 100),
    Case("it is suspended", "JobCheckpointStale",
         [job("phase", "1x120", ',phase="Suspended"'), job("checkpoint_timestamp_seconds", "-90000x120")], 100),

    Case("the last save failed", "JobCheckpointFailing",
         [job("condition", "1x60", ',condition="CheckpointFailing"')], 5, OF_JOB),
    Case("the trainer counted a failure", "JobCheckpointFailing",
         [(f"finetune_checkpoint_failures_total{{{POD}}}", "0x10 1x60")], 15, OF_JOB),
    Case("all saves succeeded", "JobCheckpointFailing",
         [job("condition", "0x60", ',condition="CheckpointFailing"'),
          (f"finetune_checkpoint_failures_total{{{POD}}}", "3x60")], 15),

    Case("half an hour Pending", "JobPendingTooLong",
         [job("phase", "1x60", ',phase="Pending"')], 31, OF_JOB),
    Case("half an hour Initializing", "JobPendingTooLong",
         [job("phase", "1x60", ',phase="Initializing"')], 31, OF_JOB),
    Case("half an hour of both", "JobPendingTooLong",
         [job("phase", "1x15 0x60", ',phase="Pending"'), job("phase", "0x15 1x60", ',phase="Initializing"')], 31, OF_JOB),
    Case("less than half an hour of both", "JobPendingTooLong",
         [job("phase", "1x15 0x60", ',phase="Pending"'), job("phase", "0x15 1x60", ',phase="Initializing"')], 29),
    Case("half an hour with steps in between", "JobPendingTooLong",
         [job("phase", "1x15 0x60", ',phase="Pending"'), job("phase", "0x17 1x60", ',phase="Initializing"')], 31),
    Case("Pending for 20 minutes", "JobPendingTooLong", [job("phase", "1x20 0x40", ',phase="Pending"')], 31),
    Case("a long time in a queue", "JobPendingTooLong", [job("phase", "1x120", ',phase="Queued"')], 100),

    Case("one of four is slow", "JobStraggler", forward(100, 102, 98, 150), 25,
         {**OF_JOB, "rank": "3", "node": "node-3"}),
    Case("one of two is slow", "JobStraggler", forward(100, 200), 25, {**OF_JOB, "rank": "1", "node": "node-1"}),
    Case("all are about as fast", "JobStraggler", forward(100, 110, 98, 115), 25),
    Case("a single process", "JobStraggler", forward(100), 25),
    Case("slow for a few minutes", "JobStraggler",
         [*forward(100, 102, 98), (f"finetune_training_forward_duration_seconds{{{RANKS[3]}}}", "0.1x10 0.15x3 0.1x60")], 25),

    Case("three failures in half an hour", "JobCrashLoop",
         [job("restarts_total", "0x5 1x10 2x10 3x30", ',kind="failures"'), job("restarts_total", "0x60", ',kind="in_place"')],
         30, OF_JOB),
    Case("failures and restarts in place count together", "JobCrashLoop",
         [job("restarts_total", "0x5 1x50", ',kind="failures"'), job("restarts_total", "0x5 2x50", ',kind="in_place"')],
         30, OF_JOB),
    Case("preemptions do not count", "JobCrashLoop", [job("restarts_total", "0x5 9x50", ',kind="preemptions"')], 30),
    Case("failures from long ago", "JobCrashLoop", [job("restarts_total", "0x5 3x110", ',kind="failures"')], 90),
    Case("another operator took over", "JobCrashLoop",
         [job("restarts_total", "4x10 _x50", ',kind="failures",pod="a"'),
          job("restarts_total", "_x10 4x50", ',kind="failures",pod="b"')],
         30),

    Case("the last push failed", "JobHubPushFailing",
         [(f"finetune_hub_push_failures_total{{{POD}}}", "0x10 1x60")], 15, OF_JOB),
    Case("a best model was not pushed", "JobHubPushFailing",
         [(f"finetune_hub_best_push_failures_total{{{POD}}}", "0x10 1x60")], 15, OF_JOB),
    Case("the pod ended before a scrape", "JobHubPushFailing",
         [job("failure_info", "1x60", ',reason="HubPushFailed"')], 5, OF_JOB),
    Case("nothing failed", "JobHubPushFailing",
         [(f"finetune_hub_push_failures_total{{{POD}}}", "0x60"),
          (f"finetune_hub_best_push_failures_total{{{POD}}}", "0x60")], 15),

    Case("a job failed", "JobFailed",
         [job("phase", "1x60", ',phase="Failed"'), job("failure_info", "1x60", ',reason="DataError"')], 5,
         {**OF_JOB, "reason": "DataError"}),
    Case("an attempt failed, the job continues", "JobFailed",
         [job("phase", "0x60", ',phase="Failed"'), job("failure_info", "1x60", ',reason="WorkerDied"')], 5),

    Case("a training went wrong", "JobFinding", [job("finding", "1x60", ',type="NoBetterThanConstant"')], 5,
         {**OF_JOB, "type": "NoBetterThanConstant"}),
    Case("its finding is gone", "JobFinding", [job("finding", "1x5 _x60", ',type="NoBetterThanConstant"')], 20),

    Case("no operator responds", "OperatorDown", [(f"finetune_operator_leader{{{OPERATOR}}}", "1x5 _x60")], 20,
         {"namespace": "finetune-system"}),
    Case("it starts again", "OperatorDown", [(f"finetune_operator_leader{{{OPERATOR}}}", "1x5 _x7 0x60")], 20),
    Case("only an operator of another release responds", "OperatorDown",
         [('finetune_operator_leader{namespace="other",pod="finetune-operator-1"}', "1x60")], 20,
         {"namespace": "finetune-system"}),

    Case("no replica holds the Lease", "OperatorNoLeader", [(f"finetune_operator_leader{{{OPERATOR}}}", "1x5 0x60")], 10,
         {"namespace": "finetune-system"}),
    Case("one of two replicas holds the Lease", "OperatorNoLeader",
         [(f"finetune_operator_leader{{{OPERATOR}}}", "0x60"),
          ('finetune_operator_leader{namespace="finetune-system",pod="finetune-operator-y"}', "1x60")], 10),

    Case("no event for six minutes", "OperatorWatchStale",
         [(f"finetune_operator_watch_last_event_timestamp_seconds{{{OPERATOR}}}", "0+60x10 600x60")], 17,
         {"namespace": "finetune-system", "pod": "finetune-operator-7d-x"}),
    Case("a list each minute", "OperatorWatchStale",
         [(f"finetune_operator_watch_last_event_timestamp_seconds{{{OPERATOR}}}", "0+60x60")], 30),
]  # fmt: skip
