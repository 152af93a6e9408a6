"""Connecting to a Ray cluster, or starting one here; what there is to say where none answers."""

import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from typing import Any

from common.errors import UserError
from common.startup import REPOSITORY
from common.threads import usable_cores
from scripts.launching import ray_node

SECONDS_TO_CONNECT = 3.0
SECONDS_TO_IMPORT = 120.0  # in which a process has Ray: on a busy machine, or one whose disk is slow
SECONDS_TO_ANSWER = 9.0
PROBE = "import ray, sys; print(flush=True); ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
REQUIREMENTS = "requirements-cluster.txt"
OWN = ("", "local")  # addresses of a cluster that is started here


def check_reachable(address: str) -> None:
    """Raise UserError if Ray is missing, an address is none, or nothing listens there."""
    if find_spec("ray") is None:
        raise UserError(
            f"ENGINE=ray needs Ray, which {sys.executable} does not have: "
            f"{sys.executable} -m pip install -r {REPOSITORY / REQUIREMENTS}"
        )
    if address in (*OWN, "auto"):
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if "://" in address or not host or not port.isdecimal():
        raise UserError(
            f"RAY_ADDRESS is {address!r}; accepted: auto, or the <host>:<port> that `ray start --head` prints. The "
            "launcher runs on a node of the cluster."
        )
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise _no_ray(address, str(error)) from error


def _no_ray(address: str, what: str) -> UserError:
    where = "on this machine" if address == "auto" else f"at {address}"
    return UserError(
        f"RAY_ADDRESS is {address}, but no Ray answers {where} ({what}). `ray start --head` on the first machine, and "
        "`ray start --address=<host>:6379` on the others, start a cluster; without RAY_ADDRESS one is started here."
    )


def connect(address: str) -> Any:
    """Ray, connected to a cluster; UserError where none answers, or one of another version."""
    os.environ.update(RAY_DEDUP_LOGS_SKIP_REGEX=".")  # what died is told by the engine; Ray would on stdout
    local = address in OWN
    if local:  # nobody else on this machine gets in
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    else:
        _probe(address)
    import ray

    ray.cloudpickle.register_pickle_by_value(ray_node)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        options |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": 100 * 2**20}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init("local" if local else address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        ray.shutdown()
        raise _refused(address, str(error.__cause__ or error)) from error
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise UserError(
            f"TMPDIR: {tempfile.gettempdir()} is too long for Ray's sockets. Set RAY_TMPDIR to a shorter folder, such "
            "as /tmp."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    return ray


def _probe(address: str) -> None:
    """Connect in a process that can be ended: Ray itself waits for minutes, and cannot be told not to."""
    command = [sys.executable, "-c", PROBE, address]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace") as process:
        assert process.stdout is not None
        try:
            select.select([process.stdout], [], [], SECONDS_TO_IMPORT)  # its line says that it has Ray
            _, said = process.communicate(timeout=SECONDS_TO_ANSWER)
        except subprocess.TimeoutExpired:
            what = f"nothing in {SECONDS_TO_ANSWER:.0f} s that Ray would say; a cluster that has a token wants "
            what += "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or ~/.ray/auth_token, here"
            raise _no_ray(address, what) from None
        finally:
            process.kill()
    if process.returncode:
        raise _refused(address, said)


def _refused(address: str, said: str) -> UserError:
    """What to tell of what Ray said when it did not connect."""
    if "ersion mismatch" in said:
        versions = [line.strip() for line in said.splitlines() if "Ray: " in line or "Python: " in line]
        return UserError(
            f"The Ray at {address} is of another version than that of {sys.executable}: {', '.join(versions)} (of the "
            "cluster, then here). Install the same on all machines, of Python as well."
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return _no_ray(address or "local", lines[-1] if lines else "it says nothing")
