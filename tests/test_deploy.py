"""Tests that the files in deploy/ are valid and agree on the names of models, ports, images and files."""

import re
from pathlib import Path

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from tfllmrec.client.client import PORTS

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = ["compose.yaml", "compose.cluster.yaml"]
REST, GRPC = PORTS["http"], PORTS["grpc"]


def read(name):
    return (DEPLOY / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def kubernetes():
    """The objects of kubernetes.yaml by (kind, name)."""
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(read("kubernetes.yaml"))}


@pytest.fixture(scope="module")
def pod(kubernetes):
    return kubernetes["Deployment", "tfllmrec"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (one,) = pod["containers"]
    return one


def compose(name):
    return yaml.safe_load(read(name))


def commands(container):
    """Returns the arguments of TF Serving in each file."""
    found = {name: compose(name)["services"]["serving"]["command"] for name in COMPOSE}
    return found | {"kubernetes.yaml": container["args"]}


# Protobuf text --------------------------------------------------------------------------------------------------------


def message(**fields):
    """Returns a message class for definitions that no wheel contains.

    Args:
      fields: ``(number, type)`` or, for a nested message, ``(number, {fields})`` of each field.
    """
    file = descriptor_pb2.FileDescriptorProto(name="made.proto", syntax="proto3")

    def add(where, name, fields):
        described = where.add(name=name)
        for field, (number, kind) in fields.items():
            made = described.field.add(name=field, number=number, label=1)
            if isinstance(kind, dict):
                add(described.nested_type, field.title().replace("_", ""), kind)
                made.type, made.type_name = 11, f".{described.name}.{field.title().replace('_', '')}"
            else:
                made.type = getattr(made, f"TYPE_{kind.upper()}")

    add(file.message_type, "Made", fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Made"))


def test_the_batching_parameters():
    # tensorflow_serving/servables/tensorflow/session_bundle_config.proto
    number = {"value": (1, "int64")}
    parameters = message(
        max_batch_size=(1, number),
        batch_timeout_micros=(2, number),
        max_enqueued_batches=(3, number),
        num_batch_threads=(4, number),
        pad_variable_length_inputs=(7, "bool"),
    )
    read_in = text_format.Parse(read("batching_parameters.txt"), parameters())
    assert read_in.pad_variable_length_inputs  # histories differ in length
    assert read_in.max_batch_size.value > 1 and 0 < read_in.batch_timeout_micros.value <= 5000
    assert read_in.num_batch_threads.value > 0 and read_in.max_enqueued_batches.value > 0


def test_the_monitoring_config(kubernetes):
    # tensorflow_serving/config/monitoring_config.proto
    config = message(prometheus_config=(1, {"enable": (1, "bool"), "path": (2, "string")}))
    prometheus = text_format.Parse(read("monitoring.config"), config()).prometheus_config
    assert prometheus.enable
    annotations = kubernetes["Deployment", "tfllmrec"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == prometheus.path and annotations["prometheus.io/port"] == str(REST)


def test_the_models_config(pod, container):
    from tensorflow_serving.config import model_server_config_pb2

    config = text_format.Parse(read("models.config"), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert model.model_platform == "tensorflow"
    # The policy in the comment, which users may add, is valid.
    policy = "\n".join(re.findall(r"^#     (.*)$", read("models.config"), flags=re.MULTILINE))
    canary = text_format.Parse(policy, model_server_config_pb2.ModelConfig())
    assert set(canary.version_labels.values()) == set(canary.model_version_policy.specific.versions) == {1, 2}
    # All files refer to this model and mount its folder.
    for name in [*COMPOSE, "envoy.yaml", "kubernetes.yaml", "models.config"]:
        assert set(re.findall(r"/v1/models/(\w+)", read(name))) <= {model.name}
    folder = str(Path(model.base_path).parent)
    assert Path(model.base_path).name == model.name
    for name in COMPOSE:
        mounted = [volume.split(":")[-2:] for volume in compose(name)["services"]["serving"]["volumes"]]
        assert [folder, "ro"] in mounted
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["models"]["mountPath"] == folder and all(mount["readOnly"] for mount in mounts.values())


# Consistency of the files ---------------------------------------------------------------------------------------------


def test_one_image_that_fits_the_tensorflow_of_the_export(container):
    images = [compose(name)["services"]["serving"]["image"] for name in COMPOSE] + [container["image"]]
    versions = {
        re.fullmatch(r"tensorflow/serving:(?:\$\{TF_SERVING_VERSION:-)?([\d.]+)\}?", image)[1] for image in images
    }
    assert len(versions) == 1
    (lowest,) = re.findall(r'"tensorflow>=([\d.]+),', (ROOT / "setup.py").read_text())
    assert versions.pop().startswith(lowest + ".")


def test_the_files_that_a_flag_names_are_there(container):
    kustomization = yaml.safe_load(read("kustomization.yaml"))
    (generated,) = kustomization["configMapGenerator"]
    assert kustomization["resources"] == ["kubernetes.yaml"]
    cluster = compose("compose.cluster.yaml")
    targets = {
        config["target"]: cluster["configs"][config["source"]]["file"].removeprefix("./")
        for service in cluster["services"].values()
        for config in service["configs"]
    }
    assert ".:/config:ro" in compose("compose.yaml")["services"]["serving"]["volumes"]
    named = {name: re.findall(r"/config/([\w.]+)", " ".join(args)) for name, args in commands(container).items()}
    named["compose.cluster.yaml"] += re.findall(r"/config/([\w.]+)", str(cluster["services"]["balancer"]["command"]))
    named["kubernetes.yaml"] += re.findall(r"# .*/config/([\w.]+)", read("kubernetes.yaml"))
    assert named["compose.yaml"] == ["models.config", "monitoring.config", "batching_parameters.txt"]
    for files in named.values():
        assert "models.config" in files and all((DEPLOY / file).is_file() for file in files)
    assert all(targets[f"/config/{file}"] == file for file in named["compose.cluster.yaml"])
    assert sorted(generated["files"]) == sorted(set(named["kubernetes.yaml"]))


def test_batching_is_off_unless_asked_for(container):
    """Batching pads requests, which users who write requests by hand must know about before they turn it on."""
    for name, args in commands(container).items():
        assert not any("enable_batching=true" in arg for arg in args), name
    assert "--enable_batching=${BATCHING:-false}" in commands(container)["compose.yaml"]


def test_all_serve_with_the_same_flags(container):
    plain = [[arg for arg in args if "batching" not in arg] for args in commands(container).values()]
    assert plain[0] == plain[1] == plain[2]


@pytest.mark.parametrize(("name", "service"), [("compose.yaml", "serving"), ("compose.cluster.yaml", "balancer")])
def test_published_ports_are_for_this_machine(name, service):
    ports = compose(name)["services"][service]["ports"]
    assert ports == [f"${{BIND:-127.0.0.1}}:{port}:{port}" for port in (GRPC, REST)]
    others = [other for key, other in compose(name)["services"].items() if key != service]
    assert not any("ports" in other for other in others)


def test_the_balancer_reaches_the_servers():
    config = yaml.safe_load(read("envoy.yaml"))["static_resources"]
    (service,) = (name for name in compose("compose.cluster.yaml")["services"] if name != "balancer")
    ports = {"rest": REST, "grpc": GRPC}
    listeners = {one["name"]: one["address"]["socket_address"]["port_value"] for one in config["listeners"]}
    assert listeners == ports
    for cluster in config["clusters"]:
        ((endpoint,),) = (one["lb_endpoints"] for one in cluster["load_assignment"]["endpoints"])
        address = endpoint["endpoint"]["address"]["socket_address"]
        assert (address["address"], address["port_value"]) == (service, ports[cluster["name"]])
        # Health checks use REST.
        checked = endpoint["endpoint"].get("health_check_config", {}).get("port_value", address["port_value"])
        assert checked == REST
        assert cluster["health_checks"][0]["http_health_check"]["path"].endswith("/metadata")
    for listener in config["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        (host,) = manager["route_config"]["virtual_hosts"]
        assert {route["route"]["cluster"] for route in host["routes"]} == {listener["name"]}
        assert (manager.get("codec_type") == "HTTP2") == (listener["name"] == "grpc")


def test_kubernetes_sends_requests_to_servers_that_are_ready(kubernetes, pod, container):
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"rest": REST, "grpc": GRPC}
    labels = kubernetes["Deployment", "tfllmrec"]["spec"]["template"]["metadata"]["labels"]
    for name, port in (("tfllmrec", "rest"), ("tfllmrec-grpc", "grpc")):
        service = kubernetes["Service", name]["spec"]
        assert service["selector"] == labels
        assert service["ports"] == [{"name": port, "port": ports[port], "targetPort": port}]
    assert kubernetes["Service", "tfllmrec-grpc"]["spec"]["clusterIP"] == "None"
    for probe in ("readinessProbe", "startupProbe"):
        assert container[probe]["httpGet"] == {"path": "/v1/models/movielens/metadata", "port": "rest"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert ("PersistentVolumeClaim", volumes["models"]["persistentVolumeClaim"]["claimName"]) in kubernetes
    (generated,) = yaml.safe_load(read("kustomization.yaml"))["configMapGenerator"]
    assert volumes["config"]["configMap"]["name"] == generated["name"]
    scaler = kubernetes["HorizontalPodAutoscaler", "tfllmrec"]["spec"]
    assert (
        scaler["scaleTargetRef"]["name"] == "tfllmrec"
        and "replicas" not in kubernetes["Deployment", "tfllmrec"]["spec"]
    )
    assert container["resources"]["requests"]["cpu"]  # the autoscaler's utilization is relative to it
    assert kubernetes["PodDisruptionBudget", "tfllmrec"]["spec"]["selector"]["matchLabels"] == labels
