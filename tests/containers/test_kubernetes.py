"""The cron jobs: the schemas, what they must say, and their pods' containers run by Docker."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from .common import FOLDER, HOLD, HOPELESS, USER, Simulator, needs, seconds
from .conftest import Salon, mount

pytestmark = pytest.mark.xdist_group("containers")  # one engine, one worker

CRON_JOBS = {"cronjob": "1.31", "cronjob-accounts": "1.33"}  # and the oldest Kubernetes for each


def cron_job(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def job(name: str) -> dict[str, Any]:
    return cron_job(name)["spec"]["jobTemplate"]["spec"]


def pod(name: str) -> dict[str, Any]:
    return job(name)["template"]["spec"]


@pytest.mark.parametrize("name", CRON_JOBS)
def test_the_cron_job_fits_the_schema_of_the_oldest_and_of_the_newest_kubernetes(name: str) -> None:
    for version in (CRON_JOBS[name], kubernetes_validate.latest_version()):
        kubernetes_validate.validate(cron_job(name), version, strict=True)


@pytest.mark.parametrize("name", CRON_JOBS)
def test_the_cron_job_runs_daily_and_never_twice_at_once(name: str) -> None:
    spec = cron_job(name)["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 5 * * *", "Asia/Almaty")
    assert spec["concurrencyPolicy"] == "Forbid"
    assert job(name)["activeDeadlineSeconds"] < spec["startingDeadlineSeconds"] < 24 * 3600


@pytest.mark.parametrize("name", CRON_JOBS)
def test_the_pod_is_restricted(name: str) -> None:
    context, container = pod(name)["securityContext"], pod(name)["containers"][0]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == USER
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]}}  # fmt: skip
    assert all({"secret", "emptyDir"} & volume.keys() for volume in pod(name)["volumes"])


@pytest.mark.parametrize("name", CRON_JOBS)
def test_no_service_of_the_cluster_sets_a_setting(name: str) -> None:
    assert pod(name)["enableServiceLinks"] is False  # POSTGRES_PORT=tcp://10.0.0.1:5432
    assert pod(name)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", CRON_JOBS)
def test_the_pod_has_time_for_the_commit(name: str) -> None:
    assert pod(name)["terminationGracePeriodSeconds"] >= HOLD


@pytest.mark.parametrize(
    ("name", "action"), [("cronjob", "FailJob"), ("cronjob-accounts", "FailIndex")]
)
def test_the_cluster_retries_what_may_heal_and_nothing_else(name: str, action: str) -> None:
    assert pod(name)["restartPolicy"] == "Never"
    ignored, ended = job(name)["podFailurePolicy"]["rules"]
    assert ignored["action"] == "Ignore"
    assert ignored["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert ended["action"] == action
    container = pod(name)["containers"][0]["name"]
    assert ended["onExitCodes"] == {
        "containerName": container,
        "operator": "In",
        "values": HOPELESS,
    }


def test_every_index_takes_its_share_and_together_they_take_all() -> None:
    spec = job("cronjob-accounts")
    arguments = pod("cronjob-accounts")["containers"][0]["args"]
    assert spec["completionMode"] == "Indexed"
    assert spec["backoffLimitPerIndex"] > 0
    assert f"--shard=$(JOB_COMPLETION_INDEX)/{spec['completions']}" in arguments


def test_a_repetition_logs_in_for_those_only_that_failed() -> None:
    container = pod("cronjob-accounts")["containers"][0]
    assert container["args"][-2:] == ["update", "--if-needed"]
    (max_age,) = [e["value"] for e in container["env"] if e["name"] == "WEBKASSA_MAX_AGE"]
    retries = job("cronjob-accounts")["activeDeadlineSeconds"]
    assert retries + HOLD < seconds(max_age) < 20 * 3600


def secret_volume(folder: Path, files: dict[str, str]) -> Path:
    """Lay out files as Kubernetes does: links to links, readable for the pod's fsGroup."""
    data = folder / "..2026_01_01_00_00_00.1"
    data.mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "..data").symlink_to(data.name)
    for name, content in files.items():
        (data / name).write_text(content, encoding="utf-8")
        (data / name).chmod(0o440)
        os.chown(data / name, 0, USER)
        (folder / name).symlink_to(f"..data/{name}")
    return folder


def pod_run(salon: Salon, name: str, secrets: dict[str, Path], index: int = 0) -> Any:
    """Run the container of a cron job's pod with what the pod gives it."""
    spec = pod(name)
    (container,) = spec["containers"]
    env = {e["name"]: e["value"] for e in container.get("env", [])}
    env["JOB_COMPLETION_INDEX"] = str(index)  # the cluster sets it
    options = [f"--env={key}={value}" for key, value in env.items()]
    options.append(f"--memory={container['resources']['limits']['memory'].removesuffix('i')}")
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for place in container["volumeMounts"]:
        volume, target = volumes[place["name"]], place["mountPath"]
        if "secret" in volume:
            source = secrets[volume["secret"]["secretName"]] / place.get("subPath", "")
            options.append(mount(source.resolve() if "subPath" in place else source, target))
        else:
            options.append(f"--tmpfs={target}:mode=0770,uid=0,gid={USER}")
    arguments = [re.sub(r"\$\((\w+)\)", lambda m: env[m[1]], a) for a in container["args"]]
    return salon.run(*arguments, options=tuple(options))


def test_the_pod_of_the_cron_job_updates_the_key(salon: Salon) -> None:
    text = salon.settings_file().read_text(encoding="utf-8")
    settings = secret_volume(salon.home / "settings", {"webkassa.env": text})
    result = pod_run(salon, "cronjob", {"webkassa-key": settings})
    assert result.code == 0, result.err
    assert salon.shop.holds_the_live_key


@needs("--shard")
def test_the_indexes_of_the_job_update_every_account_once_and_again_only_what_failed(
    salon: Salon,
) -> None:
    login = {name: salon.settings.pop(name) for name in ("WEBKASSA_LOGIN", "WEBKASSA_PASSWORD")}
    del salon.settings["WEBKASSA_AUTH_URL"]
    text = salon.settings_file().read_text(encoding="utf-8")
    settings = secret_volume(salon.home / "settings", {"webkassa.env": text})
    indexes = range(job("cronjob-accounts")["completions"])
    with contextlib.ExitStack() as stack:
        vendors = [stack.enter_context(Simulator(host=f"127.0.0.{i + 1}")) for i in indexes]
        accounts = {
            f"shop-{i}.env": "".join(f"{key}='{value}'\n" for key, value in
                                     (login | {"WEBKASSA_AUTH_URL": vendor.url}).items())
            for i, vendor in enumerate(vendors)
        }  # fmt: skip
        folder = secret_volume(salon.home / "accounts", accounts)
        secrets = {"webkassa-key": settings, "webkassa-accounts": folder}
        vendors[1].password = "another"
        codes = [pod_run(salon, "cronjob-accounts", secrets, index).code for index in indexes]
        share = int(hashlib.sha256(b"shop-1").hexdigest()[:16], 16) % len(indexes)
        assert codes == [77 if index == share else 0 for index in indexes]
        vendors[1].password = login["WEBKASSA_PASSWORD"]
        codes = [pod_run(salon, "cronjob-accounts", secrets, index).code for index in indexes]
        assert codes == [0, 0, 0, 0]
        for i, vendor in enumerate(vendors):
            assert salon.shop.row(f"Webkassa:shop-{i}")["api_key"] == vendor.live
            assert len(vendor.issued) == 1
