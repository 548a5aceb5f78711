"""The embedded server and an exported model, asked by clients that are not ours.

ovmsclient speaks TF Serving's protocol with message classes of its own, REST by requests; it knows no signature but the
default one, so the others are asked by its messages and its connection. The stubs are tensorflow-serving-api's.
"""

import json

import numpy as np
import pytest

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.long]

grpc = pytest.importorskip("grpc")
ovmsclient = pytest.importorskip("ovmsclient")

RECOMMEND = {
    "history": [["i3", "i4", ""], ["", "i20", "é?"]],
    "ratings": [[5.0, 1.0, float("nan")], [float("nan"), 4.0, 2.0]],
    "exclude": [["i5"], [""]],
    "k": [4, 3],
}
SEARCH = {"text": ["red c", "café"], "history": [["i3"], [""]], "exclude": [[""], ["i2"]], "k": [2, 4]}
INPUTS = {"history": ("DT_STRING", [-1, -1]), "ratings": ("DT_FLOAT", [-1, -1]), "exclude": ("DT_STRING", [-1, -1])}


@pytest.fixture(scope="module")
def saved(chain_version):
    from tfllmrec.serving.saved_model import SavedModel

    return SavedModel.open(chain_version)


@pytest.fixture(scope="module")
def server(chain_version, serving):
    with serving(chain_version.parent.parent, allow_reload=True) as server:
        yield server


@pytest.fixture(scope="module", params=["rest", "grpc"])
def client(request, server):
    """An ovmsclient, and how it asks for any signature."""
    if request.param == "rest":
        client = ovmsclient.make_http_client(f"127.0.0.1:{server.rest_port}")
        client.ask = lambda signature, inputs: rest_predict(client, signature, inputs)
        yield client
        client.session.close()
    else:
        client = ovmsclient.make_grpc_client(f"127.0.0.1:{server.grpc_port}")
        client.ask = lambda signature, inputs: grpc_predict(client, signature, inputs)
        yield client
        client.channel.close()


def rest_predict(client, signature, inputs):
    from ovmsclient.tfs_compat.http.requests import make_predict_request
    from ovmsclient.tfs_compat.http.responses import HttpPredictResponse

    body = json.loads(make_predict_request(inputs, "chain", 1).parsed_inputs)
    url = f"http://{client.url}/v1/models/chain:predict"
    return HttpPredictResponse(client.session.post(url, json=body | {"signature_name": signature})).to_dict()["outputs"]


def grpc_predict(client, signature, inputs):
    from ovmsclient.tfs_compat.grpc.requests import make_predict_request
    from ovmsclient.tfs_compat.grpc.responses import GrpcPredictResponse

    request = make_predict_request(inputs, "chain", 1).raw_request
    request.model_spec.signature_name = signature
    return GrpcPredictResponse(client.prediction_service_stub.Predict(request, 60)).to_dict()["outputs"]


def lists(outputs):
    """[[(item id, score)]] without the padding of shorter rows; gRPC gives bytes, REST str."""
    ids = outputs["item_ids"]
    ids = ids if ids.dtype.kind == "U" else np.char.decode(ids.astype(bytes))
    return [
        [(item, pytest.approx(score, rel=1e-5)) for item, score in zip(*row, strict=True) if item]
        for row in zip(ids.tolist(), outputs["scores"].tolist(), strict=True)
    ]


def pairs(found):
    return list(zip(found.item_id, found.score.tolist(), strict=True))


def expected_recommendations(saved):
    """Row by row and without padding, by TensorFlow itself."""
    return [
        pairs(saved.recommend(histories=[["i3", "i4"]], k=4, exclude=["i5"], ratings=[[5.0, 1.0]])),
        pairs(saved.recommend(histories=[["i20", "é?"]], k=3, ratings=[[4.0, 2.0]])),
    ]


def expected_findings(saved):
    return [pairs(saved.search(["red c"], 2, histories=[["i3"]])), pairs(saved.search(["café"], 4, exclude=["i2"]))]


def test_ovmsclient_recommends_by_the_default_signature(client, saved):
    outputs = client.predict(RECOMMEND, "chain", 1, timeout=60)
    assert lists(outputs) == expected_recommendations(saved)
    assert outputs["unknown"].tolist() == [0, 1]


def test_ovmsclient_needs_no_version(client, saved):
    """It then sends version 0, by which OpenVINO's server means the newest one."""
    assert lists(client.predict(RECOMMEND, "chain", timeout=60)) == expected_recommendations(saved)
    assert client.get_model_status("chain") == client.get_model_status("chain", 1)
    assert client.get_model_metadata("chain") == client.get_model_metadata("chain", 1)
    with pytest.raises(ovmsclient.ModelNotFoundError):
        client.predict(RECOMMEND, "nope")


def test_ovmsclient_searches(client, saved):
    assert lists(client.ask("search", SEARCH)) == expected_findings(saved)


def test_ovmsclient_reads_status_and_metadata(client):
    assert client.get_model_status("chain", 1) == {1: {"state": "AVAILABLE", "error_code": 0, "error_message": ""}}
    told = client.get_model_metadata("chain", 1)
    if "metadata" in told:  # over REST it knows the names that OpenVINO's server gives, and passes all others on
        assert told["model_spec"] == {"name": "chain", "signature_name": "", "version": "1"}
        signature = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
        inputs = {
            name: (spec["dtype"], [int(dim["size"]) for dim in spec["tensor_shape"]["dim"]])
            for name, spec in signature["inputs"].items()
        }
    else:
        assert told["model_version"] == 1 and set(told["outputs"]) == {"item_ids", "scores", "unknown"}
        inputs = {name: (spec["dtype"], spec["shape"]) for name, spec in told["inputs"].items()}
    assert inputs == INPUTS | {"k": ("DT_INT32", [-1])}


def test_ovmsclient_knows_our_errors(client):
    with pytest.raises(ovmsclient.ModelNotFoundError, match="Servable not found for request: Specific"):
        client.predict(RECOMMEND, "nope", 1)
    for call in (client.get_model_status, client.get_model_metadata):
        with pytest.raises(ovmsclient.ModelNotFoundError):
            call("chain", 7)
    with pytest.raises(ovmsclient.InvalidInputError, match=r"Expects input k to be int32|expected type: int32"):
        client.predict(RECOMMEND | {"k": ["a", "b"]}, "chain", 1)


@pytest.fixture(scope="module")
def stub(server):
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        prediction.model = model_service_pb2_grpc.ModelServiceStub(channel)
        yield prediction


def predict(stub, signature, inputs, label=""):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "chain", signature
    if label:
        request.model_spec.version_label = label
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value, tf.float32 if key == "ratings" else None))
    response = stub.Predict(request, timeout=60)
    return response.model_spec, {key: tf.make_ndarray(proto) for key, proto in response.outputs.items()}


def test_raw_stubs_recommend_and_search(stub, saved):
    for signature, inputs, wanted in (
        ("recommend", RECOMMEND, expected_recommendations(saved)),
        ("search", SEARCH, expected_findings(saved)),
    ):
        spec, outputs = predict(stub, signature, inputs)
        assert (spec.name, spec.version.value, spec.signature_name) == ("chain", 1, signature)
        assert lists(outputs) == wanted


def test_raw_stubs_are_told_every_signature_of_an_export(stub, chain_version):
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2

    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "chain"
    told = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(asked).metadata["signature_def"].Unpack(told)
    (graph,) = saved_model_pb2.SavedModel.FromString((chain_version / "saved_model.pb").read_bytes()).meta_graphs
    assert told.signature_def.keys() == graph.signature_def.keys() >= {"recommend", "search", "similar", "explain"}
    for name, definition in graph.signature_def.items():
        assert told.signature_def[name] == definition


def test_raw_stubs_move_a_label(stub, chain_version, saved):
    """As for a canary; the version goes on answering."""
    from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2

    def reload(**labels):
        asked = model_management_pb2.ReloadConfigRequest()
        asked.config.model_config_list.config.add(
            name="chain", base_path=str(chain_version.parent), model_platform="tensorflow", version_labels=labels
        )
        assert stub.model.HandleReloadConfigRequest(asked, timeout=60).status.error_code == 0

    reload(stable=1)
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name, status.model_spec.version_label = "chain", "stable"
    (version,) = stub.model.GetModelStatus(status).model_version_status
    assert (version.version, version.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    spec, outputs = predict(stub, "search", SEARCH, label="stable")
    assert spec.version.value == 1 and lists(outputs) == expected_findings(saved)
    reload()
    with pytest.raises(grpc.RpcError) as refused:
        predict(stub, "search", SEARCH, label="stable")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Unrecognized servable version label: stable" in refused.value.details()
