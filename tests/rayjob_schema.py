"""A JSON Schema of the RayJobs that KubeRay and Kubernetes take: the part `rayjob.yaml` uses.

Written by hand after the published API, not copied from it: `RayJobSpec` and `RayClusterSpec` of
`ray.io/v1` (github.com/ray-project/kuberay, `ray-operator/apis/ray/v1/rayjob_types.go` and
`raycluster_types.go` with `authOptions`, from which KubeRay generates its custom resource
definition; read on 2026-11-27) and `PodTemplateSpec` of Kubernetes. Names, types, required fields
and enumerations are theirs. Every object is closed, as with `kubectl apply --validate=strict`: a
name that is not listed here is refused. Add further fields of theirs when they are used.
"""

from __future__ import annotations

import copy
from typing import Any

TEXT = {"type": "string"}
WHOLE = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}  # int32
FLAG = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "pattern": r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(of: dict[str, Any], at_least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": at_least}


METADATA = closed(name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS)
AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
FROM_SECRET = closed(("key",), name=NAME, key=TEXT, optional=FLAG)
CONTAINER = closed(
    ("name",),
    name=NAME,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(
        closed(("name",), name=TEXT, value=TEXT, valueFrom=closed(secretKeyRef=FROM_SECRET))
    ),
    ports=listed(
        # IANA limits names of ports to 15 characters.
        closed(("containerPort",), name=NAME | {"maxLength": 15}, containerPort=PORT)
    ),
    resources=closed(requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=listed(
        closed(("name", "mountPath"), name=NAME, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)
    ),
)
VOLUME = closed(
    ("name",),
    name=NAME,
    persistentVolumeClaim=closed(("claimName",), claimName=TEXT, readOnly=FLAG),
    emptyDir=closed(medium=TEXT, sizeLimit=QUANTITY),
)
POD = closed(
    metadata=METADATA,
    spec=closed(
        ("containers",),
        containers=listed(CONTAINER, at_least=1),
        volumes=listed(VOLUME),
        restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
        serviceAccountName=NAME,
        securityContext=closed(fsGroup=WHOLE, runAsUser=WHOLE, runAsGroup=WHOLE),
        imagePullSecrets=listed(closed(name=NAME)),
        nodeSelector=TEXTS,
        terminationGracePeriodSeconds={"type": "integer", "minimum": 0},
        tolerations=listed(closed(key=TEXT, operator=TEXT, value=TEXT, effect=TEXT)),
    ),
)
CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    headGroupSpec=closed(("template",), rayStartParams=TEXTS, template=POD, serviceType=TEXT),
    workerGroupSpecs=listed(
        closed(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=NAME,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            numOfHosts=WHOLE,
            idleTimeoutSeconds=WHOLE,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
RAYJOB = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=copy.deepcopy(METADATA) | {"required": ["name"]},
    spec=closed(
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterPodTemplate=POD,
        submitterConfig=closed(backoffLimit=WHOLE),
        backoffLimit=WHOLE,
        activeDeadlineSeconds=WHOLE,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=WHOLE,
        suspend=FLAG,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        rayClusterSpec=CLUSTER,
    ),
)
"""The whole RayJob."""
