"""README.md of a Triton model: how to run it, what to send, many replicas on Kubernetes."""

from __future__ import annotations

from string import Template

from ctx_export.core.manifest import Manifest

_TEMPLATE = Template("""\
# $name

A decoder as a Triton model; [config.pbtxt](config.pbtxt) and [manifest.json](manifest.json) state
names, types and shapes. $context

## Run

The folder that holds this one is the model repository; from here:

```
docker run --rm $gpus-p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$$PWD/..:/models" \\
  nvcr.io/nvidia/tritonserver:YY.MM-py3 \\
  $command
```

$needs

## Requests

A text is a sequence: one correlation id (`sequence_id`), its first request with `sequence_start`,
its last with `sequence_end`. Triton keeps the KV cache between them. Send at most $chunk tokens in
a request: a prompt in such pieces, then every chosen token.

| input | shape | what it is |
|---|---|---|
| `input_ids` | [1, tokens] | token ids |
| `seen` | [1, 1] | tokens of the text before this request |
| `new` | [1, 1] | tokens in `input_ids`, fewer than its length where it is padded on the right |
| `logit_rows` | [1, rows] | rows of `input_ids` whose logits are wanted, the last one: `new` - 1 |
$rope
`logits` are [1, rows, $vocab] $dtype.

```python
import numpy as np
import tritonclient.grpc as triton


def feed(client, sequence, ids, seen, end=False):
    given = {
        "input_ids": [ids],
        "seen": [[seen]],
        "new": [[len(ids)]],
        "logit_rows": [[len(ids) - 1]],$rope_code
    }
    inputs = []
    for name, value in given.items():
        array = np.array(value, np.int64)
        inputs.append(triton.InferInput(name, array.shape, "INT64"))
        inputs[-1].set_data_from_numpy(array)
    result = client.infer(
        "$name", inputs, sequence_id=sequence, sequence_start=seen == 0, sequence_end=end
    )
    return result.as_numpy("logits")[0, -1]


client = triton.InferenceServerClient("localhost:8001")
ids = [1, 5, 9]
token = int(feed(client, 1, ids, seen=0).argmax())
token = int(feed(client, 1, [token], seen=len(ids)).argmax())
```

## What Triton does with the cache

A sequence's cache is $bytes bytes, $slots,
from its first request to its last or to $idle seconds of silence. $candidates sequences of an
instance have one, others wait; `max_candidate_sequences` and `count` change that. At most
$batch requests of different sequences, with the same number of tokens, are computed together.

Triton moves the whole cache with every request: into the batch, and from the model's output back
to its state. $advice It has no way to take tokens back, to copy a sequence or to share a prompt.

## Many replicas on Kubernetes

A sequence lives in one replica, and its requests must reach that one: over one gRPC connection, or
by the client's address as below. A proxy that spreads single requests must choose by a header with
the correlation id. When a replica goes, its sequences end; clients begin again with the whole
text.

```yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: $label
spec:
  replicas: 2
  selector: {matchLabels: {app: $label}}
  template:
    metadata:
      labels: {app: $label}
      annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8002"}
    spec:
      terminationGracePeriodSeconds: 120  # sequences that are under way end in it
      containers:
        - name: triton
          image: nvcr.io/nvidia/tritonserver:YY.MM-py3
          command: [tritonserver]
          args:
            - --model-repository=/models
            - --exit-timeout-secs=110$arguments
          ports: [{containerPort: 8000}, {containerPort: 8001}, {containerPort: 8002}]
          readinessProbe: {httpGet: {path: /v2/health/ready, port: 8000}}
          livenessProbe: {httpGet: {path: /v2/health/live, port: 8000}}
          resources:
            requests: {cpu: "4", memory: 16Gi}
            limits: {$limits}
          volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
      volumes:
        - name: models
          persistentVolumeClaim: {claimName: models, readOnly: true}
---
apiVersion: v1
kind: Service
metadata:
  name: $label
spec:
  selector: {app: $label}
  sessionAffinity: ClientIP
  ports:
    - {name: http, port: 8000}
    - {name: grpc, port: 8001}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: $label
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: $label}
  minReplicas: 2
  maxReplicas: 16
  metrics:
    # Requests that wait, by way of prometheus-adapter; without one, a Resource metric of cpu.
    - type: Pods
      pods:
        metric: {name: nv_inference_pending_request_count}
        target: {type: AverageValue, averageValue: "$pending"}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: 600  # a replica that goes takes its sequences with it
      policies: [{type: Pods, value: 1, periodSeconds: 120}]
```
""")

_ROPE_ROW = (
    "| `rope_length` | [1, 1] | tokens that the text will have at its end, the same in all its "
    "requests |\n"
)
_ONNX_NEEDS = (
    "The image's onnxruntime must be 1.23 or newer. It runs on GPUs where the container has any\n"
    "(`--gpus all`); `KIND_CPU` in config.pbtxt keeps it off."
)
_ENGINE_NEEDS = (
    "The image's TensorRT must be the engine's, {version}, and the GPUs of compute capability "
    "{capabilities}; Triton's release notes name each image's version. The plugin library is "
    "loaded by the server, once for all models."
)


def readme(manifest: Manifest, name: str, backend: str, cache_bytes: int) -> str:
    """`cache_bytes`: of one sequence's KV cache."""
    from ctx_export.serving.triton import CANDIDATES, IDLE_MICROSECONDS

    engine = backend == "tensorrt"
    plugins = f"--backend-config=tensorrt,plugins=/models/{name}/1/libctx_plugins.so"
    command = "tritonserver --model-repository=/models"
    rope = manifest.has_role("rope_length")
    full = manifest.max_context is not None
    return _TEMPLATE.substitute(
        name=name,
        label=_label(name),
        context=_context(manifest),
        gpus="--gpus all " if engine else "",
        command=f"{command} \\\n  {plugins}" if engine else command,
        arguments=f"\n            - {plugins}" if engine else "",
        needs=_needs(manifest, engine=engine),
        chunk=manifest.max_chunk,
        rope=_ROPE_ROW if rope else "",
        rope_code='\n        "rope_length": [[PLANNED]],' if rope else "",
        vocab=manifest.model["vocab"],
        dtype=manifest.of_role("logits")[0].dtype,
        bytes=cache_bytes,
        slots="with slots for the longest text" if full else "however long the text is",
        idle=IDLE_MICROSECONDS // 1_000_000,
        candidates=CANDIDATES * manifest.max_batch,
        batch=manifest.max_batch,
        advice=_advice(full=full),
        limits='"nvidia.com/gpu": 1' if engine else 'cpu: "8", memory: 32Gi',
        pending=2 * manifest.max_batch,
    )


def _label(name: str) -> str:
    """A name that Kubernetes takes: lower case letters, digits and dashes, at most 63."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    return kept.lower().strip("-")[:63].strip("-") or "model"


def _context(manifest: Manifest) -> str:
    if manifest.max_context is None:
        return "It takes any number of tokens in a cache of fixed size."
    return (
        f"It takes up to {manifest.max_context} tokens; what is beyond gives logits that are NaN."
    )


def _needs(manifest: Manifest, *, engine: bool) -> str:
    if engine and manifest.engine is not None:
        return _ENGINE_NEEDS.format(
            version=manifest.engine["version"],
            capabilities=", ".join(manifest.engine["compute_capabilities"]),
        )
    if manifest.precision != "bf16":
        return _ONNX_NEEDS
    return (
        f"{_ONNX_NEEDS} On a CPU it has no bfloat16 matrix product: export with --precision fp32."
    )


def _advice(*, full: bool) -> str:
    if not full:
        return "This one has a fixed size, so that a token costs the same at any length."
    return (
        "For this one, which has a slot for every token of the longest text, that is the cost of "
        "a token however short the text is: for long maxima export with `--sinks` and `--window`, "
        "or serve the package with its own sessions, which grow their caches."
    )
