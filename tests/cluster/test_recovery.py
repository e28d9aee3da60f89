"""Recovery with real pods, real training and real failures: a fault costs a few steps at most and does not change the result."""

import json
import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.fault_injection import FaultInjector, kueue_with_two_replicas, node_down, require_commands
from cluster.kube import Namespace, Object
from cluster.small_volume import fill, make_room, small_volume
from finetune_api import names

pytestmark = pytest.mark.cluster
# Six faults, and the run without faults, take up to ten minutes on two cores. RECOVERY_TROUBLES=20 injects each kind
# at least once.
FAULTS = int(os.environ.get("RECOVERY_TROUBLES", "6"))
STEPS = 60 + 15 * FAULTS
SEED = 20261121
# Much longer than a recovery takes, because everything that ran on a failed node restarts at the same time.
RECOVERY_SECONDS = 240.0
HASH = """
import hashlib, json
models = [f"/claims/{name}-output/model/model.safetensors" for name in NAMES]
print(json.dumps([hashlib.sha256(open(model, "rb").read()).hexdigest() for model in models]))
"""
TRUNCATE_CHECKPOINT = """
import json, pathlib
newest = max(pathlib.Path("/claims/unwatched-output/checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
largest = max((path for path in newest.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
with largest.open("r+b") as stream:
    stream.truncate(largest.stat().st_size // 2)
print(json.dumps([newest.name]))
"""
# Waits until a save of a checkpoint starts, and prints the name of the checkpoint.
SAVE_STARTED = f"""
import pathlib, time
directory = pathlib.Path("{names.OUTPUT_DIR}/checkpoints")
before = {{path.name for path in directory.glob(".step-*")}}
while not (started := [path.name for path in directory.glob(".step-*") if path.name not in before and ".old" not in path.name]):
    time.sleep(0.005)
print(started[0].split(".")[1], flush=True)
"""
# Prints the completion time of each checkpoint.
CHECKPOINTS = f"""
import json, pathlib
found = sorted(pathlib.Path("{names.OUTPUT_DIR}/checkpoints").glob("step-*"))
print(json.dumps({{path.name: json.loads((path / "manifest.json").read_text())["time"] for path in found}}))
"""
LOST_CHECKPOINTS = "finetune_checkpoint_failures_total{"
# Steps of about half a second on a slow machine; dropout on. Two processes, so the weights are the same bit for bit.
TRAINING = {"globalBatchSize": 8, "maxTokens": 32, "learningRate": 1e-4}
PATIENT = {"maxRestarts": 100, "maxPreemptions": 100}


@pytest.fixture(scope="module", autouse=True)
def _kueue() -> Iterator[None]:
    with kueue_with_two_replicas():
        yield


@pytest.fixture(scope="module")
def make_run(make_job: Any) -> Callable[..., Object]:
    """Return ``make_run(name, steps, **fields of spec)``: a job of two pods and ``steps`` steps that saves every second step."""

    def make(name: str, steps: int, **spec: Any) -> Object:
        fields = {
            "distributed": {"nodes": 2},
            "training": TRAINING | {"maxSteps": steps},
            "checkpoint": {"everySteps": 2},
            "evaluation": {"everyEpochs": 1000},
            "recovery": PATIENT,
        }
        return dict(make_job(name, **{**fields, **spec}))

    return make


@pytest.fixture(scope="module")
def reference(jobs: Namespace, make_run: Any) -> Iterator[str]:
    """Start the run without faults, and return its name. It trains while the first tests wait."""
    # Checkpoints do not change the weights, so this run saves fewer of them.
    jobs.apply(make_run("without-faults", STEPS, checkpoint={"everySteps": 50}))
    yield "without-faults"
    remove(jobs, "without-faults")


def wait_for_step(jobs: Namespace, job: str, step: int, timeout: float = RECOVERY_SECONDS) -> Object:
    """Wait until a job runs and has reached the step, or has succeeded. Return its status."""

    def there() -> Object | None:
        status = jobs.status(job)
        assert status.get("phase") != "Failed", jobs.describe(job)
        reached = status.get("progress", {}).get("step", 0) >= step
        return status if status.get("phase") == "Succeeded" or (status.get("phase") == "Running" and reached) else None

    found: Object = jobs.wait_for(f"step {step} of {job}", there, timeout, job)
    return found


def same_weights(reader: Any, *names: str) -> bool:
    """Return whether the finished models of the jobs are equal bit for bit."""
    hashes = reader(*(f"{name}-output" for name in names)).python(HASH.replace("NAMES", repr(list(names))))
    return len(set(hashes)) == 1


def remove(jobs: Namespace, *names: str) -> None:
    """Delete jobs with their volumes."""
    jobs.kubectl("delete", "finetunejobs", *names, "--wait=false")
    jobs.kubectl("delete", "persistentvolumeclaims", *(f"{name}-output" for name in names), "--wait=false")


def test_a_stopped_process_is_detected_its_stacks_are_in_the_log_and_the_job_continues(
    system: Namespace, jobs: Namespace, make_run: Any, tmp_path: pathlib.Path, reference: str
) -> None:
    """The reference trains meanwhile, because nothing else does for most of this test."""
    faults = FaultInjector(system, jobs, "stalls")
    # Without checkpoints: a process that stops while it waits for rank 0 to save is not named in the message.
    never = {"everySteps": 1000}
    jobs.apply(make_run("stalls", 60, checkpoint=never, recovery=PATIENT | {"stallTimeoutSeconds": 45}))
    wait_for_step(jobs, "stalls", 3)
    log = tmp_path / "log"  # followed, because the pods are deleted before the next attempt runs
    with log.open("w") as stream:
        follow = ["kubectl", "--namespace", jobs.name, "logs", "--follow", faults.pod(0)["metadata"]["name"]]
        follower = subprocess.Popen(follow, stdout=stream, stderr=subprocess.STDOUT)
    faults.signal_workers(1, signal.SIGSTOP)
    stalled = jobs.wait_for(
        "the condition TrainingStalled",
        lambda: next((c for c in jobs.status("stalls").get("conditions", ()) if c["type"] == "TrainingStalled"), None),
        RECOVERY_SECONDS,
        "stalls",
    )
    assert stalled["status"] == "True"
    jobs.wait_for("the next attempt", lambda: _attempt(jobs, "stalls", 2), RECOVERY_SECONDS, "stalls")
    status = wait_for_step(jobs, "stalls", 4)
    first = status["attempts"][0]
    assert first["reason"] == "Stalled"
    assert status["lastFailure"]["reason"] == "Stalled"
    assert "rank 1" in status["lastFailure"]["message"]
    events = jobs.kubectl("get", "events", "--field-selector=involvedObject.name=stalls").stdout
    assert "Stalled" in events
    assert status["goodput"]["stalledSeconds"] >= 5
    follower.wait(30)
    assert "stacks of rank 0" in log.read_text(), "the log shows where the waiting rank is blocked"
    remove(jobs, "stalls")


def test_a_drained_node_costs_one_step_and_no_retry(system: Namespace, jobs: Namespace, make_run: Any) -> None:
    """One of two pods is evicted."""
    faults = FaultInjector(system, jobs, "drained")
    jobs.apply(make_run("drained", 60, checkpoint={"everySteps": 1000}, recovery={"maxRestarts": 0}))
    wait_for_step(jobs, "drained", 4)
    faults.evict(faults.pod(1)["metadata"]["name"])
    status = jobs.wait_for("the next attempt", lambda: _attempt(jobs, "drained", 2), RECOVERY_SECONDS, "drained")
    stopped_at = status["attempts"][0]["step"]
    assert status["checkpoint"]["step"] == stopped_at >= 4
    assert (status["restarts"]["failures"], status["restarts"]["preemptions"]) == (0, 1)
    again = wait_for_step(jobs, "drained", stopped_at + 1)
    assert again["phase"] == "Running"
    remove(jobs, "drained")


def test_a_drain_during_a_save_completes_the_save_and_costs_one_step(system: Namespace, jobs: Namespace, make_run: Any) -> None:
    faults = FaultInjector(system, jobs, "saving")
    jobs.apply(make_run("saving", 200, checkpoint={"everySteps": 20, "keep": 5}, recovery={"maxRestarts": 0}))
    wait_for_step(jobs, "saving", 4)
    name = faults.pod(0)["metadata"]["name"]
    with subprocess.Popen(
        ["kubectl", "--namespace", jobs.name, "exec", "--stdin", name, "--", "python", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as observer:
        assert observer.stdin
        assert observer.stdout
        observer.stdin.write(SAVE_STARTED)
        observer.stdin.close()
        saving = observer.stdout.readline().strip()
    faults.evict(name)
    evicted = time.time()
    status = jobs.wait_for("the next attempt", lambda: _attempt(jobs, "saving", 2), RECOVERY_SECONDS, "saving")
    stopped_at = status["attempts"][0]["step"]
    assert status["checkpoint"]["step"] == stopped_at >= int(saving.removeprefix("step-"))
    assert (status["restarts"]["failures"], status["restarts"]["preemptions"]) == (0, 1)
    wait_for_step(jobs, "saving", stopped_at + 1)
    found = run_in_pod(jobs, faults.pod(0)["metadata"]["name"], CHECKPOINTS)
    assert f"step-{stopped_at}" in found
    assert found[saving] > evicted, "the save must still run when the pod is evicted"
    remove(jobs, "saving")


def test_a_full_volume_does_not_stop_the_training_and_is_a_condition_until_there_is_room(
    system: Namespace, jobs: Namespace, make_run: Any, trainer_image: str
) -> None:
    """A checkpoint takes 260 MiB and a model 87 MiB. The volume has room for two checkpoints and the model only."""
    faults = FaultInjector(system, jobs, "crowded")
    with small_volume(jobs, "small", 700, trainer_image) as claim:
        output = {"claim": {"claimName": claim}}
        jobs.apply(make_run("crowded", 400, distributed={"nodes": 1}, output=output, checkpoint={"everySteps": 2, "keep": 1}))
        jobs.wait_for("a checkpoint", lambda: jobs.status("crowded").get("checkpoint"), RECOVERY_SECONDS, "crowded")
        pod = faults.pod(0)["metadata"]["name"]

        def failing() -> Object | None:
            conditions = jobs.status("crowded").get("conditions", ())
            return next((c for c in conditions if c["type"] == "CheckpointFailing" and c["status"] == "True"), None)

        def filled() -> Object | None:
            fill(jobs, pod, names.OUTPUT_DIR)
            return failing()

        condition = jobs.wait_for("the condition CheckpointFailing", filled, RECOVERY_SECONDS, "crowded")
        assert condition["reason"] == "DiskFull"
        assert "the disk is full; the training continues without it: make room there" in condition["message"]
        fill(jobs, pod, names.OUTPUT_DIR)  # the space that the failed save has released
        full = wait_for_step(jobs, "crowded", jobs.status("crowded")["progress"]["step"] + 5)
        assert full["attempt"] == 1
        kept = list(run_in_pod(jobs, pod, CHECKPOINTS))
        assert kept == [f"step-{full['checkpoint']['step']}"], "the older checkpoint stays until the new one is complete"
        lost = [line for line in jobs.pod_http(pod, names.PORT_TELEMETRY, "/metrics").splitlines() if LOST_CHECKPOINTS in line]
        assert float(lost[-1].split()[-1]) >= 1
        make_room(jobs, pod, names.OUTPUT_DIR)
        jobs.wait_for("the end of the condition", lambda: not failing(), RECOVERY_SECONDS, "crowded")
        status = jobs.wait_for(
            "a newer checkpoint",
            lambda: (status := jobs.status("crowded"))["checkpoint"]["step"] > full["checkpoint"]["step"] and status,
            RECOVERY_SECONDS,
            "crowded",
        )
        assert (status["phase"], status["attempt"], status["restarts"]["total"]) == ("Running", 1, 0)
        jobs.kubectl("delete", "finetunejob", "crowded")


def run_in_pod(jobs: Namespace, pod: str, code: str) -> Any:
    """Run a program in a pod, and return the JSON that it prints."""
    return json.loads(jobs.kubectl("exec", "--stdin", pod, "--", "python", "-", stdin=code).stdout)


def _attempt(jobs: Namespace, job: str, number: int) -> Object | None:
    status = jobs.status(job)
    return status if status.get("attempt") == number else None


def test_what_happens_while_the_operator_is_down_is_processed_afterwards(
    system: Namespace, jobs: Namespace, make_run: Any, reader: Any
) -> None:
    """One job stalls and one fails. The newest checkpoint of the first is truncated before the job continues."""
    faults = FaultInjector(system, jobs, "unwatched")
    jobs.apply(make_run("unwatched", 60, recovery=PATIENT | {"stallTimeoutSeconds": 45}))
    wait_for_step(jobs, "unwatched", 5)
    wrong = make_run("misread", 60)
    wrong["spec"]["datasets"][0]["columns"]["text"] = "body"
    jobs.apply(wrong)
    jobs.wait_for("its pods", lambda: len(jobs.pods("misread")) == 2, 120, "misread")
    scale = ("scale", "deployment", "--selector=app.kubernetes.io/name=finetune-operator")
    system.kubectl(*scale, "--replicas=0")
    try:
        faults.signal_workers(0, signal.SIGSTOP)
        for name in ("unwatched", "misread"):
            jobs.wait_for(f"the end of {name}'s pods", lambda name=name: _all_ended(jobs, name), RECOVERY_SECONDS, name)
        assert jobs.status("misread")["phase"] != "Failed", "the operator must be down"
        [truncated] = reader("unwatched-output").python(TRUNCATE_CHECKPOINT)
    finally:
        system.kubectl(*scale, "--replicas=1")
    failed = jobs.wait_for_phase("misread", "Failed", timeout=120)
    assert failed["reason"] == "ConfigurationError"
    assert "spec.datasets[0].columns.text" in failed["message"]
    status = wait_for_step(jobs, "unwatched", int(truncated.removeprefix("step-")) + 1)
    assert [attempt["reason"] for attempt in status["attempts"][:-1]] == ["Stalled"]
    assert status["attempts"][-1]["skippedCheckpoints"] == [truncated]
    events = jobs.kubectl("get", "events", "--field-selector=involvedObject.name=unwatched,reason=CheckpointSkipped").stdout
    assert truncated in events
    remove(jobs, "unwatched", "misread")


def _all_ended(jobs: Namespace, job: str) -> bool:
    """Return whether all pods have ended. When one pod has failed, the controller of the Job may delete the other one."""
    return all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in jobs.pods(job))


def test_a_run_with_faults_ends_with_the_same_weights_as_a_run_without(
    system: Namespace, jobs: Namespace, make_run: Any, reader: Any, reference: str
) -> None:
    require_commands("NODE_KILL", "NODE_START", "NODE_CUT", "NODE_HEAL", "API_SERVER_RESTART")
    without = jobs.wait_for_phase(reference, "Succeeded", timeout=100 + 3 * STEPS)
    faults = FaultInjector(system, jobs, "with-faults")
    jobs.apply(make_run("with-faults", STEPS))
    rng = random.Random(SEED)
    for number, fault in enumerate(choose_faults(faults, rng)):
        before = jobs.status("with-faults").get("progress", {}).get("step", 0)
        status = wait_for_step(jobs, "with-faults", before + 1)
        assert status["phase"] == "Running", f"it succeeded before fault {number}: increase its number of steps"
        time.sleep(rng.uniform(0, 2))
        print(f"{number}: {fault} at step {status['progress']['step']} of attempt {status['attempt']}, {status['restarts']}")
        fault()
    with_faults = jobs.wait_for_phase("with-faults", "Succeeded", timeout=300 + 3 * STEPS)
    print(with_faults["restarts"], with_faults["goodput"], without["goodput"])
    assert with_faults["progress"]["step"] == without["progress"]["step"] == STEPS
    assert with_faults["evaluation"] == without["evaluation"]
    assert without["restarts"].get("failures", 0) + without["restarts"].get("preemptions", 0) == 0
    assert same_weights(reader, "with-faults", reference)
    remove(jobs, "with-faults")


class Fault:
    """A fault, and the index of the pod that it affects."""

    def __init__(self, act: Callable[..., None], *arguments: int) -> None:
        self._act, self._arguments = act, arguments

    def __call__(self) -> None:
        self._act(*self._arguments)

    def __str__(self) -> str:
        return f"{self._act.__name__}{self._arguments or ''}"


def choose_faults(faults: FaultInjector, rng: random.Random) -> list[Fault]:
    """Choose faults: each kind at least once if there are seven or more, and short faults most often."""
    to_pods = [faults.kill_process, faults.delete_pod, faults.force_delete_pod, faults.kill_node, faults.cut_node]
    kinds: list[Callable[..., None]] = [*to_pods, faults.kill_operator, faults.restart_api_server]
    short = [faults.kill_process, faults.delete_pod, faults.force_delete_pod, faults.kill_operator]
    chosen = rng.sample(kinds, min(FAULTS, len(kinds))) + rng.choices(short, k=max(0, FAULTS - len(kinds)))
    rng.shuffle(chosen)
    return [Fault(kind, rng.randrange(2)) if kind in to_pods else Fault(kind) for kind in chosen]


def test_a_dead_node_costs_a_minute_at_most(system: Namespace, jobs: Namespace, make_run: Any) -> None:
    require_commands("NODE_KILL", "NODE_START")
    faults = FaultInjector(system, jobs, "lost-node")
    elastic = {"nodes": 2, "minNodes": 1}
    jobs.apply(make_run("lost-node", 200, distributed=elastic))
    wait_for_step(jobs, "lost-node", 3)
    step = jobs.status("lost-node")["progress"]["step"]
    began = time.monotonic()
    with node_down(faults.node(1)):
        status = jobs.wait_for(
            "another attempt that trains", lambda: _trains(jobs, "lost-node", 2, step), RECOVERY_SECONDS, "lost-node"
        )
        print(f"node dead → next step {time.monotonic() - began:.0f} s, {status['attempts']}")
        assert status["restarts"]["preemptions"] >= 1
    remove(jobs, "lost-node")


def _trains(jobs: Namespace, job: str, attempt: int, step: int) -> Object | None:
    status = jobs.status(job)
    progress = status.get("progress", {}).get("step", 0)
    return status if status.get("phase") == "Running" and status["attempt"] >= attempt and progress > step else None
