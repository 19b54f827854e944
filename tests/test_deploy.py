"""deploy/: held against the schemas of Kubernetes, against one another and against the server.

No container runs here. What can be checked without one is: fields, that the files agree, and what
the embedded server answers under the same options and probes.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import yaml
from kubernetes_validate import ValidationError, validate
from tritonclient.utils import InferenceServerException

from nin.client import URLS, Client, Protocol
from nin.client.connection import control_key
from nin.contract import load_contract
from nin.errors import InputError, ServerError
from nin.export.onnx_file import DEFAULT_OPSET
from nin.paths import NIN, ROOT
from nin.releases import DEPLOYED, TRITON_RELEASES
from nin.serve.server import PORTS, Server, serve

# The newest version of Kubernetes whose schemas are in kubernetes-validate 1.37.0.
KUBERNETES = "1.37"

CONTRACT = load_contract(NIN)
CLASSIFIER, ENSEMBLE, DECODER = CONTRACT.name, CONTRACT.ensemble.name, CONTRACT.decoder.name

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(p for p in (DEPLOY / "kubernetes").glob("*.yaml") if p.stem != "kustomization")
READY = "/v2/health/ready"
USER = 1000  # triton-server in the official image
KEY_HEADER = "nin-control-key"

Tree = dict[str, Any]


def load(path: str | Path) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def manifest(kind: str) -> Tree:
    [found] = [m for m in map(load, MANIFESTS) if m["kind"] == kind]
    return found


def deployment_pod() -> Tree:
    return manifest("Deployment")["spec"]["template"]["spec"]


def predictor() -> Tree:
    return load("kserve/inferenceservice.yaml")["spec"]["predictor"]


def container(pod: Tree) -> Tree:
    [only] = pod["containers"]
    return only


def compose() -> Tree:
    return load("compose.yaml")["services"]["triton"]


def dockerfile() -> dict[str, str]:
    """Instruction to what follows it; continued lines are joined, and none comes twice."""
    lines = [s for s in (DEPLOY / "Dockerfile").read_text().splitlines() if not s.startswith("#")]
    found = [
        line.split(" ", 1) for line in "\n".join(lines).replace("\\\n", "").splitlines() if line
    ]
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def option(command: list[str], name: str) -> str:
    [value] = [text.partition("=")[2] for text in command if text.startswith(f"--{name}=")]
    return value


def baked_command() -> list[str]:
    """The options of the image's command, which a shell reads after it has drawn the key."""
    shell, script, line = json.loads(dockerfile()["CMD"])
    assert (shell, script) == ("sh", "-c")
    draw, _, command = line.partition(" && exec ")
    assert draw == "key=$(cat /proc/sys/kernel/random/uuid)"
    return shlex.split(command)


def quantity(text: str) -> float:
    """What Kubernetes and compose call 2, 256Mi or 4g."""
    parts = re.fullmatch(r"(\d+)(\w*)", text)
    assert parts is not None
    number, unit = parts.groups()
    return int(number) * {"": 1, "m": 2**20, "g": 2**30, "Mi": 2**20, "Gi": 2**30}[unit]


pods = pytest.mark.parametrize("pod", [deployment_pod, predictor])
Pod = Callable[[], Tree]


# Schemas


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_manifests_hold_against_the_schemas(path: Path) -> None:
    assert validate(load(path), KUBERNETES, strict=True) == KUBERNETES


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_a_misspelt_field_does_not(path: Path) -> None:
    broken = load(path)
    name, value = broken["spec"].popitem()
    broken["spec"][f"{name}x"] = value
    with pytest.raises(ValidationError, match=f"{name}x"):
        validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("terminationGracePeriodSecond", 60, "not allowed"),
        ("terminationGracePeriodSeconds", "60s", "'60s' is not of type 'integer'"),
        ("containers", [{"image": "triton"}], "'name' is a required property"),
    ],
)
def test_a_broken_pod_does_not(field: str, value: object, message: str) -> None:
    broken = manifest("Deployment")
    broken["spec"]["template"]["spec"][field] = value
    with pytest.raises(ValidationError, match=message):
        validate(broken, KUBERNETES, strict=True)


def test_kustomization_lists_every_manifest() -> None:
    assert sorted(load("kubernetes/kustomization.yaml")["resources"]) == [p.name for p in MANIFESTS]
    assert sorted(load(path)["kind"] for path in MANIFESTS) == [
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    ]


def test_inference_service_is_a_custom_predictor() -> None:
    """KServe's own schema isn't at hand, but all of a predictor that isn't KServe's is a pod's."""
    service = load("kserve/inferenceservice.yaml")
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    assert service["spec"].keys() == {"predictor"}
    assert service["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "RawDeployment"
    }
    pod = service["spec"]["predictor"]
    scaling = {name: pod.pop(name) for name in [*pod] if re.match("scale|minRep|maxRep", name)}
    assert scaling["scaleMetric"] in ("cpu", "memory")  # all that this mode knows
    assert 0 < scaling["scaleTarget"] <= 100
    assert 2 <= scaling["minReplicas"] < scaling["maxReplicas"]
    plain = {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": pod}
    assert validate(plain, KUBERNETES, strict=True) == KUBERNETES
    assert container(pod)["name"] == "kserve-container"
    assert container(pod)["ports"] == [{"name": "http1", "containerPort": PORTS["http"]}]
    assert {"name": "PROTOCOL", "value": "v2"} in container(pod)["env"]
    [spread] = pod["topologySpreadConstraints"]
    labels = {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
    assert spread["labelSelector"]["matchLabels"] == labels


# One image, one command


@pytest.mark.parametrize(
    "path",
    [
        "deploy/Dockerfile",
        "deploy/compose.yaml",
        "deploy/kubernetes/deployment.yaml",
        "deploy/kserve/inferenceservice.yaml",
        "docs/deploy.md",
    ],
)
def test_every_file_names_the_deployed_release(path: str) -> None:
    text = (ROOT / path).read_text()
    assert set(re.findall(r"triton(?:server)?:(\d\d\.\d\d)\b", text)) == {DEPLOYED}
    assert "triton:latest" not in text


def test_the_deployed_release_is_the_newest_and_loads_the_default_export() -> None:
    assert max(TRITON_RELEASES) == DEPLOYED
    assert TRITON_RELEASES[DEPLOYED].opset >= DEFAULT_OPSET


def test_dockerfile_bakes_the_repository_in() -> None:
    found = dockerfile()
    assert found["FROM"] == f"nvcr.io/nvidia/tritonserver:{DEPLOYED}-py3"
    assert found["COPY"].split()[-2:] == ["model_repository", "/models"]
    assert re.search(r"pillow==[\d.]+$", found["RUN"])
    assert found["USER"] == f"{USER}:{USER}"
    assert found["EXPOSE"].split() == [str(port) for port in PORTS.values()]
    assert "OMP_WAIT_POLICY=passive" in found["ENV"].split()


def test_commands_differ_in_the_control_mode_and_the_key_only() -> None:
    """The load API, which runs code of the caller's, is open to who has the key, on loopback."""
    baked = baked_command()
    assert option(baked, "model-control-mode") == "none"
    assert option(baked, "model-repository") == dockerfile()["COPY"].split()[-1]
    assert "--disable-auto-complete-config" in baked
    for pod in (deployment_pod(), predictor()):
        assert not container(pod).keys() & {"command", "args"}  # the image's
    keyless = [re.sub(r"\$\{NIN_CONTROL_KEY.*\}", "$key", text) for text in compose()["command"]]
    assert set(keyless) - set(baked) == {"--model-control-mode=explicit", "--load-model=*"}
    assert set(baked) - set(keyless) == {"--model-control-mode=none"}


def test_compose_does_not_start_without_a_key() -> None:
    restricted = option(compose()["command"], "http-restricted-api")
    assert re.search(rf":{KEY_HEADER}=\$\{{NIN_CONTROL_KEY:\?[^}}]+\}}$", restricted)


def test_the_largest_request_fits_the_limit() -> None:
    """64 images of `nin` with room for the JSON around them; photographs go a few at a time."""
    largest = max(
        m.graph.max_batch * 4 * int(np.prod(m.graph.input.shape)) for m in CONTRACT.models
    )
    limit = int(option(baked_command(), "http-max-input-size"))
    assert 2 * largest < limit <= 4 * largest
    ingress, _ = yaml.safe_load_all((DEPLOY / "ingress.yaml").read_text())
    body = ingress["metadata"]["annotations"]["nginx.org/client-max-body-size"]
    assert quantity(body) == limit


def test_both_clusters_get_the_same_image() -> None:
    first, second = (container(pod)["image"] for pod in (deployment_pod(), predictor()))
    assert first == second
    assert re.fullmatch(rf"registry\.example\.com/nin-triton:{DEPLOYED}-\d+", first)


def travels(path: str) -> bool:
    """Docker's rule: the last line that matches the path or a folder above it decides."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    above = [path, *map(str, PurePosixPath(path).parents)][:-1]
    kept = True
    for line in lines:
        pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if line[:1] not in ("", "#") and any(re.fullmatch(pattern, p) for p in above):
            kept = line.startswith("!")
    return kept


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("deploy/Dockerfile", True),
        ("model_repository/fashion_mnist/config.pbtxt", True),
        ("model_repository/fashion_mnist/2/model.onnx", True),
        ("model_repository/fashion_mnist_image/1/.gitkeep", True),
        ("model_repository/fashion_mnist/.2.tmp/model.onnx", False),
        ("model_repository/decode_image/1/__pycache__/model.pyc", False),
        ("deploy/compose.yaml", False),
        ("models/nin/weights.safetensors", False),
        (".venv/bin/python", False),
        (".git/config", False),
    ],
)
def test_only_the_repository_travels_to_the_builder(path: str, expected: bool) -> None:
    assert travels(path) is expected


# The pods


@pods
def test_pods_are_confined(pod: Pod) -> None:
    spec = pod()
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(spec)["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


@pods
def test_pods_have_limits_and_the_threads_fit_them(pod: Pod) -> None:
    resources = container(pod())["resources"]
    assert resources["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}
    for name, limit in resources["limits"].items():
        assert quantity(resources["requests"][name]) <= quantity(limit)
    threads = {"name": "OMP_NUM_THREADS", "value": resources["limits"]["cpu"]}
    assert threads in container(pod())["env"]


@pods
def test_pods_write_to_two_bounded_folders(pod: Pod) -> None:
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod()["volumes"]}
    mounts = {m["mountPath"]: volumes.pop(m["name"]) for m in container(pod())["volumeMounts"]}
    assert volumes == {}
    assert mounts.keys() == {"/dev/shm", "/tmp"}  # noqa: S108
    assert mounts["/dev/shm"]["medium"] == "Memory"  # noqa: S108
    limits = container(pod())["resources"]["limits"]
    assert quantity(mounts["/dev/shm"]["sizeLimit"]) < quantity(limits["memory"])  # noqa: S108
    assert quantity(mounts["/tmp"]["sizeLimit"]) < quantity(limits["ephemeral-storage"])  # noqa: S108


@pods
def test_probes_ask_the_real_endpoints(pod: Pod) -> None:
    only = container(pod())
    ports = {p["name"]: p["containerPort"] for p in only["ports"]}
    for probe, path in (
        ("startupProbe", READY),
        ("livenessProbe", f"/v2/models/{DECODER}/ready"),
    ):
        asked = only[probe]["httpGet"]
        assert asked["path"] == path
        assert ports.get(asked["port"], asked["port"]) == PORTS["http"]
        assert only[probe]["timeoutSeconds"] <= only[probe]["periodSeconds"]
    startup = only["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 120


def test_all_ask_the_same_models_whether_they_are_ready() -> None:
    first, *others = readiness_probes()
    assert others == [first, first]
    braces = re.search(r"\{(.*)\}", first[-1])
    assert braces is not None
    names = re.findall(r"\w+", braces[1])
    assert names == [CLASSIFIER, DECODER, ENSEMBLE]


def readiness_probes() -> list[list[str]]:
    """The command of each: Kubernetes', KServe's, compose's."""
    words, *command = compose()["healthcheck"]["test"]
    assert words == "CMD"
    probes = [container(pod())["readinessProbe"] for pod in (deployment_pod, predictor)]
    return [*(probe["exec"]["command"] for probe in probes), command]


@pods
def test_requests_in_flight_may_end(pod: Pod) -> None:
    command, pause = container(pod())["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    timeout = int(option(baked_command(), "exit-timeout-secs"))
    assert pod()["terminationGracePeriodSeconds"] > int(pause) + timeout


# The manifests agree


def test_selectors_match_the_pods() -> None:
    deployment = manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    [spread] = deployment["template"]["spec"]["topologySpreadConstraints"]
    selectors = [
        deployment["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
        manifest("Service")["spec"]["selector"],
        manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels


def test_ports_are_the_servers() -> None:
    ports = {p["name"]: p["containerPort"] for p in container(deployment_pod())["ports"]}
    assert ports == PORTS
    service = manifest("Service")["spec"]["ports"]
    assert {p["name"]: p["port"] for p in service} == PORTS
    assert all(p["targetPort"] == p["name"] for p in service)
    annotations = manifest("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORTS["metrics"])


def test_network_policy_lets_in_clients_and_prometheus_only() -> None:
    policy = manifest("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy  # named above and without a rule: denied
    clients, monitoring = policy["ingress"]
    assert [p["port"] for p in clients["ports"]] == [PORTS["http"], PORTS["grpc"]]
    assert [p["port"] for p in monitoring["ports"]] == [PORTS["metrics"]]
    # one peer each, with one selector that chooses: an empty or a missing one would mean all
    assert [[*peer] for peer in clients["from"]] == [["podSelector"]]
    assert [[*peer] for peer in monitoring["from"]] == [["namespaceSelector"]]
    assert clients["from"][0]["podSelector"] == {"matchLabels": {"nin-triton-client": "true"}}
    namespace = {"kubernetes.io/metadata.name": "monitoring"}
    assert monitoring["from"][0]["namespaceSelector"] == {"matchLabels": namespace}


def test_autoscaler_scales_the_deployment() -> None:
    deployment, scaler = manifest("Deployment"), manifest("HorizontalPodAutoscaler")["spec"]
    target = {name: deployment[name] for name in ("apiVersion", "kind")}
    assert scaler["scaleTargetRef"] == {**target, "name": deployment["metadata"]["name"]}
    assert "replicas" not in deployment["spec"]
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300
    assert scaler["minReplicas"] < scaler["maxReplicas"]
    # a drain may go on while one pod is left
    assert scaler["minReplicas"] > manifest("PodDisruptionBudget")["spec"]["maxUnavailable"]


def test_autoscaler_reads_the_metric_that_the_adapter_makes() -> None:
    [metric] = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    [rule] = load("prometheus-adapter.yaml")["rules"]["custom"]
    assert metric["type"] == "Pods"
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert {r["resource"] for r in rule["resources"]["overrides"].values()} == {"namespace", "pod"}
    assert rule["seriesQuery"].startswith("nv_inference_queue_duration_us{")
    queue, requests = rule["metricsQuery"].split(" / ")
    assert "rate(nv_inference_queue_duration_us{<<.LabelMatchers>>}" in queue
    assert "rate(nv_inference_request_success{<<.LabelMatchers>>}" in requests
    for part in (queue, requests):
        assert "by (<<.GroupBy>>)" in part
        assert part.count("(") == part.count(")")


def test_autoscaler_takes_no_batching_for_a_queue() -> None:
    """The target is well above what dynamic batching lets a request wait by configuration."""
    configurations = [p.read_text() for p in ROOT.glob("model_repository/*/config.pbtxt")]
    delays = [
        int(d) for d in re.findall(r"max_queue_delay_microseconds: *(\d+)", "".join(configurations))
    ]
    [metric] = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["target"]["type"] == "AverageValue"
    assert 0 < max(delays) <= 1000
    assert int(metric["pods"]["target"]["averageValue"]) >= 5 * max(delays)


# Compose


def test_compose_listens_on_loopback_only() -> None:
    assert compose()["ports"] == [f"127.0.0.1:{port}:{port}" for port in PORTS.values()]
    assert "network_mode" not in compose()


def test_compose_confines_the_server() -> None:
    service = compose()
    assert service["read_only"] is True
    assert service["user"] == f"{USER}:{USER}"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "pid", "ipc", "devices"}
    [tmpfs] = service["tmpfs"]
    assert re.match(r"/tmp:size=\d+m\b", tmpfs)  # noqa: S108
    limits = service["deploy"]["resources"]["limits"]
    assert service["environment"] == {"OMP_NUM_THREADS": limits["cpus"]}
    assert quantity(service["shm_size"]) < quantity(limits["memory"])


def test_compose_serves_the_checkouts_repository_read_only() -> None:
    service = compose()
    [volume] = service["volumes"]
    assert (DEPLOY / volume["source"]).resolve() == ROOT / "model_repository"
    assert volume["target"] == option(service["command"], "model-repository")
    assert volume["read_only"] is True
    assert service["image"] == f"nin-triton:{DEPLOYED}"
    context = (DEPLOY / service["build"]["context"]).resolve()
    assert context == ROOT
    assert context / service["build"]["dockerfile"] == DEPLOY / "Dockerfile"


def test_compose_waits_for_its_end() -> None:
    service = compose()
    timeout = int(option(service["command"], "exit-timeout-secs"))
    assert int(service["stop_grace_period"].removesuffix("s")) > timeout


def test_composes_commented_gpu_is_in_the_right_place() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    start = text.index("# reservations:")
    with_gpu = yaml.safe_load(text[:start] + text[start:].replace("# ", ""))
    expected = load("compose.yaml")
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    expected["services"]["triton"]["deploy"]["resources"]["reservations"] = {"devices": [gpu]}
    assert with_gpu == expected


# The way in


def test_the_ingress_lets_in_classification_only() -> None:
    ingress, policy = yaml.safe_load_all((DEPLOY / "ingress.yaml").read_text())
    for part in (ingress, policy):
        assert validate(part, KUBERNETES, strict=True) == KUBERNETES
    [rule] = ingress["spec"]["rules"]
    assert {(path["path"], path["pathType"]) for path in rule["http"]["paths"]} == {
        (f"/v2/models/{name}/{what}", "Exact")
        for name in (CLASSIFIER, ENSEMBLE)
        for what in ("infer", "config")
    }
    service = {"name": manifest("Service")["metadata"]["name"], "port": {"name": "http"}}
    assert all(path["backend"] == {"service": service} for path in rule["http"]["paths"])
    assert policy["spec"]["podSelector"] == manifest("NetworkPolicy")["spec"]["podSelector"]
    [rule] = policy["spec"]["ingress"]
    assert [[*peer] for peer in rule["from"]] == [["namespaceSelector"]]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"]
    assert rule["ports"] == [{"port": PORTS["http"]}]


# The embedded server under the same options


@pytest.fixture(scope="module")
def restricted(embedded: None, repository: Path) -> Iterator[Server]:
    """With the restrictions of the image's command, and `secret` for the key."""
    extra = [o.replace("$key", "secret") for o in baked_command() if "-restricted-" in o]
    assert len(extra) == 2
    with serve(repository, ports=dict.fromkeys(PORTS, 0), extra=extra) as server:
        yield server


@pytest.mark.parametrize("protocol", list(URLS))
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("load_model", [CLASSIFIER]),
        ("unload_model", [CLASSIFIER]),
        ("get_model_repository_index", []),
        ("register_system_shared_memory", ["region", "/key", 1]),
        ("get_system_shared_memory_status", []),
        ("unregister_system_shared_memory", []),
        ("register_cuda_shared_memory", ["region", b"", 0, 1]),
        ("get_cuda_shared_memory_status", []),
        ("unregister_cuda_shared_memory", []),
        ("update_trace_settings", []),
        ("update_log_settings", [{"log_verbose_level": 1}]),
    ],
)
def test_what_is_restricted_is_refused_without_the_key(
    restricted: Server, protocol: Protocol, method: str, arguments: list[Any]
) -> None:
    library = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    client = library.InferenceServerClient(getattr(restricted, protocol))
    for headers in ({}, {KEY_HEADER: "wrong", f"triton-grpc-protocol-{KEY_HEADER}": "wrong"}):
        with pytest.raises(InferenceServerException, match="restricted, expecting header") as error:
            getattr(client, method)(*arguments, headers=headers)
        assert error.value.status() == {"http": "403", "grpc": "StatusCode.UNAVAILABLE"}[protocol]
    client.close()


@pytest.mark.parametrize("protocol", list(URLS))
def test_what_applications_need_is_open_and_the_key_opens_the_rest(
    restricted: Server,
    protocol: Protocol,
    pixels: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Client(getattr(restricted, protocol), protocol=protocol) as client:
        assert client.classify(pixels[:1])[0][0].label == "Ankle boot"
        assert client.metadata(CLASSIFIER)["versions"] == ["1"]
        monkeypatch.delenv("NIN_CONTROL_KEY", raising=False)
        with pytest.raises(ServerError, match=f"restricted, expecting header .*{KEY_HEADER}"):
            client.load(CLASSIFIER)
        monkeypatch.setenv("NIN_CONTROL_KEY", "secret")
        client.load(CLASSIFIER)


def test_after_a_failed_load_the_readiness_probe_tells_the_truth(
    embedded: None, repository: Path, tmp_path: Path, pixels: np.ndarray
) -> None:
    """/v2/health/ready stays 400 though the version before serves; the models say that they do."""
    repository = Path(shutil.copytree(repository, tmp_path / "own"))
    with serve(repository, ports=dict.fromkeys(PORTS, 0)) as server, Client(server.http) as client:
        assert all(asked(probe, server) == 0 for probe in readiness_probes())
        (repository / CLASSIFIER / "2").mkdir()
        (repository / CLASSIFIER / "2" / "model.onnx").write_bytes(b"no model")
        with pytest.raises(InputError, match="load failed"):
            client.load(CLASSIFIER)
        assert client.classify(pixels[:1])[0][0].label == "Ankle boot"
        assert asked(["curl", "--fail", f"http://127.0.0.1:8000{READY}"], server) == 22
        assert all(asked(probe, server) == 0 for probe in readiness_probes())
        client._client.unload_model(DECODER, headers={KEY_HEADER: control_key()})
        assert all(asked(probe, server) == 22 for probe in readiness_probes())


def asked(probe: list[str], server: Server) -> int:
    """The exit code of a probe that is sent to this server instead."""
    assert probe[0] == "curl"
    assert "--fail" in probe  # else a 400 is ready
    if not shutil.which("curl"):
        pytest.skip("curl isn't installed")
    command = [word.replace(f"127.0.0.1:{PORTS['http']}", server.http) for word in probe]
    return subprocess.run(command, capture_output=True, timeout=60).returncode


def test_the_page_names_every_file_and_says_what_was_not_run() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    for path in (p for p in DEPLOY.rglob("*") if p.is_file()):
        assert path.relative_to(DEPLOY).as_posix() in page
    assert "None of this was run" in page
