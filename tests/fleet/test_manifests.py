"""The fleet's pages and manifests: Kubernetes takes these, and they say what the program knows."""

import functools
import glob
import os
import re
import subprocess

import kubernetes_validate
import pytest
import yaml

from harness.atoll import BINARY, ROOT

GUIDE = os.path.join(ROOT, "docs", "kubernetes.md")
PAGE = os.path.join(ROOT, "docs", "fleet.md")
FOLDER = os.path.join(ROOT, "docs", "kubernetes")
FILES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(FOLDER, "*.yaml")))
# What Cluster Autoscaler 1.26 to 1.36 is made for.
VERSIONS = [f"1.{minor}" for minor in range(26, 37)]

# A schema is megabytes of JSON, and the same for all manifests.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def documents(name):
    with open(os.path.join(FOLDER, name)) as file:
        return list(yaml.safe_load_all(file))


def everything():
    return [one for name in FILES for one in documents(name)]


def find(kind, name, file=None):
    candidates = documents(file) if file else everything()
    found = [one for one in candidates if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def container(deployment):
    return find("Deployment", deployment)["spec"]["template"]["spec"]["containers"][0]


def flags(arguments):
    """`--name=value` and `--name` as a dictionary."""
    pairs = [argument.split("=", 1) for argument in arguments]
    assert len({pair[0] for pair in pairs}) == len(pairs), "a flag is there twice"
    return {pair[0]: pair[1] if len(pair) == 2 else None for pair in pairs}


@functools.cache
def help_text():
    done = subprocess.run([BINARY, "fleet", "serve", "--help"], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.parametrize("name", FILES)
def test_kubernetes_accepts_it(name):
    all_of_it = documents(name)
    assert all_of_it
    for version in VERSIONS:
        for one in all_of_it:
            kubernetes_validate.validate(one, version, strict=True)


def test_flags_are_those_of_the_program():
    one = container("atoll-fleet")
    assert one["command"] == ["atoll", "fleet", "serve"]
    for flag, value in flags(one["args"]).items():
        known = re.search(rf"^ +{flag}(?: <([^>]+)>)?(?: |$)", help_text(), re.M)
        assert known, f"`atoll fleet serve --help` does not know {flag}"
        assert (known[1] is None) == (value is None), f"{flag} has a value, or it has none"


def test_ports_are_where_it_listens():
    one = container("atoll-fleet")
    given = flags(one["args"])
    listens = {"http": given["--listen"], "grpc": given["--grpc"]}
    ports = {port["name"]: port["containerPort"] for port in one["ports"]}
    assert {name: int(place.rsplit(":", 1)[1]) for name, place in listens.items()} == ports
    # What the program has by default is what the guide says.
    assert f"[default: 127.0.0.1:{ports['http']}]" in " ".join(help_text().split())
    for file in ["atoll.yaml", "atoll-outside.yaml"]:
        service = find("Service", "atoll-fleet", file)
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["name"]]
            assert port["targetPort"] in [port["name"], port["port"]]
    slices = find("EndpointSlice", "atoll-fleet-outside")
    assert {port["name"]: port["port"] for port in slices["ports"]} == ports
    for probe in ["readinessProbe", "livenessProbe"]:
        assert one[probe]["httpGet"]["port"] in ports


def test_cluster_autoscaler_is_sent_to_atoll():
    given = flags(container("cluster-autoscaler")["args"])
    assert given["--cloud-provider"] == "externalgrpc"
    assert given["--expander"].split(",")[0] == "grpc"
    cloud = yaml.safe_load(find("ConfigMap", "cluster-autoscaler-cloud")["data"]["cloud.yaml"])
    assert set(cloud) == {"address", "key", "cert", "cacert"}
    service = find("Service", "atoll-fleet", "atoll.yaml")
    grpc = next(port["port"] for port in service["spec"]["ports"] if port["name"] == "grpc")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert cloud["address"] == given["--grpc-expander-url"] == f"{host}:{grpc}"
    assert f"DNS:{host}" in open(GUIDE).read(), "the certificate names the host that is called"
    # Its client of expanders shows no certificate.
    assert "--open-expander" in flags(container("atoll-fleet")["args"])


@pytest.mark.parametrize("deployment", ["atoll-fleet", "cluster-autoscaler"])
def test_files_are_mounted_and_secrets_made(deployment):
    pod = find("Deployment", deployment)["spec"]["template"]["spec"]
    one = pod["containers"][0]
    mounts = {mount["mountPath"]: mount for mount in one["volumeMounts"]}
    named = [value for value in flags(one["args"]).values() if value and value.startswith("/")]
    if deployment == "atoll-fleet":
        named += re.findall(r'file = "([^"]+)"', find("ConfigMap", "atoll-fleet")["data"]["fleet.toml"])
    else:
        cloud = yaml.safe_load(find("ConfigMap", "cluster-autoscaler-cloud")["data"]["cloud.yaml"])
        named += [value for value in cloud.values() if value.startswith("/")]
    for path in named:
        assert path in mounts or os.path.dirname(path) in mounts, f"nothing is mounted at {path}"
    guide = open(GUIDE).read()
    for volume in pod["volumes"]:
        if "secret" in volume:
            name = volume["secret"]["secretName"]
            assert re.search(rf"kubectl create secret generic {name}\b", guide), f"the guide does not make {name}"
        if "configMap" in volume:
            find("ConfigMap", volume["configMap"]["name"])
    find("ServiceAccount", pod["serviceAccountName"])


def test_the_configuration_is_one(tmp_path):
    config = tmp_path / "fleet.toml"
    config.write_text(find("ConfigMap", "atoll-fleet")["data"]["fleet.toml"])
    command = [BINARY, "fleet", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_may_do_what_it_does_and_no_more():
    """All requests to the API server are in one folder of the sources: their paths, and how they are made."""
    allowed = {}
    for rule in find("ClusterRole", "atoll-fleet")["rules"]:
        for resource in rule["resources"]:
            allowed.setdefault(resource, set()).update(rule["verbs"])
    sources = ""
    for path in glob.glob(os.path.join(ROOT, "crates", "fleet", "src", "kubernetes", "*.rs")):
        sources += open(path).read()
    asked = set(re.findall(r'/api/v1/(?:namespaces/\{[^}]*\}/)?([a-z]+)', sources))
    asked |= set(re.findall(r'/apis/policy/v1/([a-z]+)', sources))
    assert {"nodes", "pods", "poddisruptionbudgets"} <= asked, asked
    assert {name.split("/")[0] for name in allowed} == asked - {"namespaces"}
    assert ("pods/eviction" in allowed) == ("/eviction" in sources)
    assert allowed.get("nodes/status", set()) == ({"patch"} if "nodes/{node}/status" in sources else set())
    assert ("delete" in allowed["nodes"]) == (".delete(&path" in sources)
    assert "patch" in allowed["nodes"] and "patch" not in allowed["pods"] and "delete" not in allowed["pods"]


def test_the_guide_names_every_manifest():
    guide = open(GUIDE).read()
    for name in FILES:
        assert f"(kubernetes/{name})" in guide, f"the guide does not name {name}"
    for name in re.findall(r"kubectl apply -f docs/kubernetes/(\S+)", guide):
        assert name in FILES, f"the guide applies {name}, which is not there"


def blocks(path, language):
    """What is between fences of a page, of one language; of none if that is empty."""
    found, inside = [], None
    for line in open(path).read().splitlines():
        if line.startswith("```"):
            if inside is None:
                inside = (line[3:], [])
            else:
                found.append(inside)
                inside = None
        elif inside is not None:
            inside[1].append(line)
    return ["\n".join(lines) + "\n" for name, lines in found if name == language]


def commands():
    """The `atoll fleet` commands of both pages, each with its flags."""
    found = set()
    for block in blocks(GUIDE, "") + blocks(PAGE, ""):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.findall(r"\batoll fleet ([a-z].*?)(?:\s#.*)?$", line):
                words = command.split()
                found.add((words[0], tuple(word for word in words if word.startswith("--"))))
    return sorted(found)


@pytest.mark.parametrize("command,given", commands())
def test_commands_of_the_pages_are_there(command, given):
    done = subprocess.run([BINARY, "fleet", command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for flag in given:
        assert re.search(rf"(?:^|[ ,]){flag}(?: |$)", done.stdout, re.M), f"`atoll fleet {command}` does not know {flag}"


def test_the_pages_configuration_is_one(tmp_path):
    whole = next(block for block in blocks(PAGE, "toml") if block.startswith("# fleet.toml"))
    config = tmp_path / "fleet.toml"
    config.write_text(whole.replace("…", "ab" * 32))
    command = [BINARY, "fleet", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
