"""Nothing that breaks costs more than a few steps, and the result is the same: real pods, real training, real failures."""

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

from cluster.kube import Namespace, Object
from cluster.small_volume import fill, make_room, small_volume
from cluster.trouble import Trouble, kueue_on_two_machines, needs, node_down
from finetune_api import names

pytestmark = pytest.mark.cluster
# With the life without them, six take up to ten minutes on two cores; RECOVERY_TROUBLES=20 for more than each kind once.
TROUBLES = int(os.environ.get("RECOVERY_TROUBLES", "6"))
SEED = 20261121
# Long beside what it takes, as everything that ran on a machine that went down starts again at the same time.
BACK_SECONDS = 240.0
HASH = """
import hashlib, json
models = [f"/claims/{name}-output/model/model.safetensors" for name in NAMES]
print(json.dumps([hashlib.sha256(open(model, "rb").read()).hexdigest() for model in models]))
"""
CUT_SHORT = """
import json, pathlib
newest = max(pathlib.Path("/claims/unwatched-output/checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
largest = max((path for path in newest.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
with largest.open("r+b") as stream:
    stream.truncate(largest.stat().st_size // 2)
print(json.dumps([newest.name]))
"""
# Waits until a checkpoint begins to be written, and prints its name.
SAVE_BEGUN = f"""
import pathlib, time
directory = pathlib.Path("{names.OUTPUT_DIR}/checkpoints")
before = {{path.name for path in directory.glob(".step-*")}}
while not (begun := [path.name for path in directory.glob(".step-*") if path.name not in before and ".old" not in path.name]):
    time.sleep(0.005)
print(begun[0].split(".")[1], flush=True)
"""
# When each checkpoint was complete.
CHECKPOINTS = f"""
import json, pathlib
found = sorted(pathlib.Path("{names.OUTPUT_DIR}/checkpoints").glob("step-*"))
print(json.dumps({{path.name: json.loads((path / "manifest.json").read_text())["time"] for path in found}}))
"""
LOST_CHECKPOINTS = "finetune_checkpoint_failures_total{"
# Steps of about half a second on a slow machine; dropout on. Two processes, so the weights are the same bit for bit.
TRAINING = {"globalBatchSize": 8, "maxTokens": 64, "learningRate": 1e-4}
PATIENT = {"maxRestarts": 100, "maxPreemptions": 100}


@pytest.fixture(scope="module", autouse=True)
def _kueue() -> Iterator[None]:
    with kueue_on_two_machines():
        yield


@pytest.fixture
def make_run(make_job: Any) -> Callable[..., Object]:
    """``make_run(name, steps, **fields of spec)``: two pods that train for ``steps`` steps, saving every second one."""

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


def wait_for_step(jobs: Namespace, job: str, step: int, timeout: float = BACK_SECONDS) -> Object:
    """Wait until a training runs and has done so many steps, or is through; its status."""

    def there() -> Object | None:
        status = jobs.status(job)
        assert status.get("phase") != "Failed", jobs.describe(job)
        reached = status.get("progress", {}).get("step", 0) >= step
        return status if status.get("phase") == "Succeeded" or (status.get("phase") == "Running" and reached) else None

    found: Object = jobs.wait_for(f"step {step} of {job}", there, timeout, job)
    return found


def same_weights(reader: Any, *names: str) -> bool:
    """Whether the finished models of some jobs are the same, bit for bit."""
    hashes = reader(*(f"{name}-output" for name in names)).python(HASH.replace("NAMES", repr(list(names))))
    return len(set(hashes)) == 1


def remove(jobs: Namespace, *names: str) -> None:
    """Jobs with their volumes."""
    jobs.kubectl("delete", "finetunejobs", *names, "--wait=false")
    jobs.kubectl("delete", "persistentvolumeclaims", *(f"{name}-output" for name in names), "--wait=false")


def test_a_life_of_troubles_ends_with_the_very_weights_of_a_life_without(
    system: Namespace, jobs: Namespace, make_run: Any, reader: Any
) -> None:
    needs("NODE_KILL", "NODE_START", "NODE_CUT", "NODE_HEAL", "API_SERVER_RESTART")
    steps = 60 + 15 * TROUBLES
    trouble = Trouble(system, jobs, "troubled")
    jobs.apply(make_run("troubled", steps))
    rng = random.Random(SEED)
    for number, what in enumerate(choose_troubles(trouble, rng)):
        before = jobs.status("troubled").get("progress", {}).get("step", 0)
        status = wait_for_step(jobs, "troubled", before + 1)
        assert status["phase"] == "Running", f"it was through before trouble {number}: give it more steps"
        time.sleep(rng.uniform(0, 2))
        print(f"{number}: {what} at step {status['progress']['step']} of attempt {status['attempt']}, {status['restarts']}")
        what()
    troubled = jobs.wait_for_phase("troubled", "Succeeded", timeout=300 + 3 * steps)
    jobs.apply(make_run("untroubled", steps))
    untroubled = jobs.wait_for_phase("untroubled", "Succeeded", timeout=100 + 3 * steps)
    print(troubled["restarts"], troubled["goodput"], untroubled["goodput"])
    assert troubled["progress"]["step"] == untroubled["progress"]["step"] == steps
    assert troubled["evaluation"] == untroubled["evaluation"]
    assert untroubled["restarts"].get("failures", 0) + untroubled["restarts"].get("preemptions", 0) == 0
    assert same_weights(reader, "troubled", "untroubled")
    remove(jobs, "troubled", "untroubled")


class _What:
    """A trouble, and the pod that it befalls."""

    def __init__(self, act: Callable[..., None], *arguments: int) -> None:
        self._act, self._arguments = act, arguments

    def __call__(self) -> None:
        self._act(*self._arguments)

    def __str__(self) -> str:
        return f"{self._act.__name__}{self._arguments or ''}"


def choose_troubles(trouble: Trouble, rng: random.Random) -> list[_What]:
    """Each kind at least once when there are seven or more; the short ones most."""
    to_pods = [trouble.kill_process, trouble.delete_pod, trouble.force_delete_pod, trouble.kill_node, trouble.cut_node]
    kinds: list[Callable[..., None]] = [*to_pods, trouble.kill_operator, trouble.restart_api_server]
    short = [trouble.kill_process, trouble.delete_pod, trouble.force_delete_pod, trouble.kill_operator]
    chosen = rng.sample(kinds, min(TROUBLES, len(kinds))) + rng.choices(short, k=max(0, TROUBLES - len(kinds)))
    rng.shuffle(chosen)
    return [_What(kind, rng.randrange(2)) if kind in to_pods else _What(kind) for kind in chosen]


def test_a_stopped_process_is_noticed_its_stacks_are_in_the_log_and_the_job_goes_on(
    system: Namespace, jobs: Namespace, make_run: Any, tmp_path: pathlib.Path
) -> None:
    trouble = Trouble(system, jobs, "stalls")
    jobs.apply(make_run("stalls", 60, recovery=PATIENT | {"stallTimeoutSeconds": 45}))
    wait_for_step(jobs, "stalls", 3)
    log = tmp_path / "log"  # followed, as the pods are gone when the next attempt runs
    with log.open("w") as stream:
        follow = ["kubectl", "--namespace", jobs.name, "logs", "--follow", trouble.pod(0)["metadata"]["name"]]
        follower = subprocess.Popen(follow, stdout=stream, stderr=subprocess.STDOUT)
    trouble.signal_workers(1, signal.SIGSTOP)
    stalled = jobs.wait_for(
        "the condition TrainingStalled",
        lambda: next((c for c in jobs.status("stalls").get("conditions", ()) if c["type"] == "TrainingStalled"), None),
        BACK_SECONDS,
        "stalls",
    )
    assert stalled["status"] == "True"
    jobs.wait_for("the next attempt", lambda: _attempt(jobs, "stalls", 2), BACK_SECONDS, "stalls")
    status = wait_for_step(jobs, "stalls", 4)
    first = status["attempts"][0]
    assert first["reason"] == "Stalled"
    assert status["failure"]["reason"] == "Stalled"
    assert "rank 1" in status["failure"]["message"]
    events = jobs.kubectl("get", "events", "--field-selector=involvedObject.name=stalls").stdout
    assert "Stalled" in events
    assert status["goodput"]["stalledSeconds"] >= 5
    follower.wait(30)
    assert "stacks of rank 0" in log.read_text(), "where those who wait stand"
    remove(jobs, "stalls")


def test_a_drained_machine_costs_one_step_and_no_retry(system: Namespace, jobs: Namespace, make_run: Any) -> None:
    """One pod of two is told to go."""
    trouble = Trouble(system, jobs, "drained")
    jobs.apply(make_run("drained", 60, checkpoint={"everySteps": 1000}, recovery={"maxRestarts": 0}))
    wait_for_step(jobs, "drained", 4)
    trouble.evict(trouble.pod(1)["metadata"]["name"])
    status = jobs.wait_for("the next attempt", lambda: _attempt(jobs, "drained", 2), BACK_SECONDS, "drained")
    stopped_at = status["attempts"][0]["step"]
    assert status["checkpoint"]["step"] == stopped_at >= 4
    assert (status["restarts"]["failures"], status["restarts"]["preemptions"]) == (0, 1)
    again = wait_for_step(jobs, "drained", stopped_at + 1)
    assert again["phase"] == "Running"
    remove(jobs, "drained")


def test_a_drain_during_a_save_completes_it_and_costs_one_step(system: Namespace, jobs: Namespace, make_run: Any) -> None:
    trouble = Trouble(system, jobs, "saving")
    jobs.apply(make_run("saving", 200, checkpoint={"everySteps": 20, "keep": 5}, recovery={"maxRestarts": 0}))
    wait_for_step(jobs, "saving", 4)
    name = trouble.pod(0)["metadata"]["name"]
    with subprocess.Popen(
        ["kubectl", "--namespace", jobs.name, "exec", "--stdin", name, "--", "python", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as observer:
        assert observer.stdin
        assert observer.stdout
        observer.stdin.write(SAVE_BEGUN)
        observer.stdin.close()
        saving = observer.stdout.readline().strip()
    trouble.evict(name)
    evicted = time.time()
    status = jobs.wait_for("the next attempt", lambda: _attempt(jobs, "saving", 2), BACK_SECONDS, "saving")
    stopped_at = status["attempts"][0]["step"]
    assert status["checkpoint"]["step"] == stopped_at >= int(saving.removeprefix("step-"))
    assert (status["restarts"]["failures"], status["restarts"]["preemptions"]) == (0, 1)
    wait_for_step(jobs, "saving", stopped_at + 1)
    found = look_into(jobs, trouble.pod(0)["metadata"]["name"], CHECKPOINTS)
    assert f"step-{stopped_at}" in found
    assert found[saving] > evicted, "it was to be under way when the pod was told to go"
    remove(jobs, "saving")


def test_a_full_volume_stops_no_training_and_is_told_until_there_is_room(
    system: Namespace, jobs: Namespace, make_run: Any, trainer_image: str
) -> None:
    """A checkpoint takes 260 MiB, a model 87; the volume holds two checkpoints, the model, and no more."""
    trouble = Trouble(system, jobs, "crowded")
    with small_volume(jobs, "small", 700, trainer_image) as claim:
        output = {"claim": {"claimName": claim}}
        jobs.apply(make_run("crowded", 400, distributed={"nodes": 1}, output=output, checkpoint={"everySteps": 2, "keep": 1}))
        jobs.wait_for("a checkpoint", lambda: jobs.status("crowded").get("checkpoint"), BACK_SECONDS, "crowded")
        pod = trouble.pod(0)["metadata"]["name"]

        def failing() -> Object | None:
            conditions = jobs.status("crowded").get("conditions", ())
            return next((c for c in conditions if c["type"] == "CheckpointFailing" and c["status"] == "True"), None)

        def filled() -> Object | None:
            fill(jobs, pod, names.OUTPUT_DIR)
            return failing()

        condition = jobs.wait_for("the condition CheckpointFailing", filled, BACK_SECONDS, "crowded")
        assert condition["reason"] == "DiskFull"
        assert "the disk is full; the training goes on without: make room there" in condition["message"]
        fill(jobs, pod, names.OUTPUT_DIR)  # what the save that failed gave back
        full = wait_for_step(jobs, "crowded", jobs.status("crowded")["progress"]["step"] + 5)
        assert full["attempt"] == 1
        kept = list(look_into(jobs, pod, CHECKPOINTS))
        assert kept == [f"step-{full['checkpoint']['step']}"], "the older one stays as long as the new one is not complete"
        lost = [line for line in jobs.pod_http(pod, names.PORT_TELEMETRY, "/metrics").splitlines() if LOST_CHECKPOINTS in line]
        assert float(lost[-1].split()[-1]) >= 1
        make_room(jobs, pod, names.OUTPUT_DIR)
        jobs.wait_for("the condition's end", lambda: not failing(), BACK_SECONDS, "crowded")
        status = jobs.wait_for(
            "a newer checkpoint",
            lambda: (status := jobs.status("crowded"))["checkpoint"]["step"] > full["checkpoint"]["step"] and status,
            BACK_SECONDS,
            "crowded",
        )
        assert (status["phase"], status["attempt"], status["restarts"]["total"]) == ("Running", 1, 0)
        jobs.kubectl("delete", "finetunejob", "crowded")


def look_into(jobs: Namespace, pod: str, code: str) -> Any:
    """Run a program in a pod that prints JSON."""
    return json.loads(jobs.kubectl("exec", "--stdin", pod, "--", "python", "-", stdin=code).stdout)


def _attempt(jobs: Namespace, job: str, number: int) -> Object | None:
    status = jobs.status(job)
    return status if status.get("attempt") == number else None


def test_what_happens_while_the_operator_is_away_is_taken_in_afterwards(
    system: Namespace, jobs: Namespace, make_run: Any, reader: Any
) -> None:
    """One job stalls and one fails; the newest checkpoint of the first is cut short before it goes on."""
    trouble = Trouble(system, jobs, "unwatched")
    jobs.apply(make_run("unwatched", 60, recovery=PATIENT | {"stallTimeoutSeconds": 45}))
    wait_for_step(jobs, "unwatched", 5)
    wrong = make_run("misread", 60)
    wrong["spec"]["datasets"][0]["columns"]["text"] = "body"
    jobs.apply(wrong)
    jobs.wait_for("its pods", lambda: len(jobs.pods("misread")) == 2, 120, "misread")
    scale = ("scale", "deployment", "--selector=app.kubernetes.io/name=finetune-operator")
    system.kubectl(*scale, "--replicas=0")
    try:
        trouble.signal_workers(0, signal.SIGSTOP)
        for name in ("unwatched", "misread"):
            jobs.wait_for(f"the end of {name}'s pods", lambda name=name: _all_ended(jobs, name), BACK_SECONDS, name)
        assert jobs.status("misread")["phase"] != "Failed", "the operator was to be away"
        [cut] = reader("unwatched-output").python(CUT_SHORT)
    finally:
        system.kubectl(*scale, "--replicas=1")
    failed = jobs.wait_for_phase("misread", "Failed", timeout=120)
    assert failed["reason"] == "ConfigurationError"
    assert "spec.datasets[0].columns.text" in failed["message"]
    status = wait_for_step(jobs, "unwatched", int(cut.removeprefix("step-")) + 1)
    assert [attempt["reason"] for attempt in status["attempts"][:-1]] == ["Stalled"]
    assert status["attempts"][-1]["skippedCheckpoints"] == [cut]
    events = jobs.kubectl("get", "events", "--field-selector=involvedObject.name=unwatched,reason=CheckpointSkipped").stdout
    assert cut in events
    remove(jobs, "unwatched", "misread")


def _all_ended(jobs: Namespace, job: str) -> bool:
    """Of a job that had pods: when one has failed the other may be deleted, by the Job's controller."""
    return all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in jobs.pods(job))


def test_a_dead_machine_costs_a_minute_at_most(system: Namespace, jobs: Namespace, make_run: Any) -> None:
    needs("NODE_KILL", "NODE_START")
    trouble = Trouble(system, jobs, "bereft")
    elastic = {"nodes": 2, "minNodes": 1}
    jobs.apply(make_run("bereft", 200, distributed=elastic))
    wait_for_step(jobs, "bereft", 3)
    step = jobs.status("bereft")["progress"]["step"]
    began = time.monotonic()
    with node_down(trouble.node(1)):
        status = jobs.wait_for("another attempt that trains", lambda: _trains(jobs, "bereft", 2, step), BACK_SECONDS, "bereft")
        print(f"machine dead → next step {time.monotonic() - began:.0f} s, {status['attempts']}")
        assert status["restarts"]["preemptions"] >= 1
    remove(jobs, "bereft")


def _trains(jobs: Namespace, job: str, attempt: int, step: int) -> Object | None:
    status = jobs.status(job)
    progress = status.get("progress", {}).get("step", 0)
    return status if status.get("phase") == "Running" and status["attempt"] >= attempt and progress > step else None
