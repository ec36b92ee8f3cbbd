"""Workspaces, users and roles through MLflow's own client; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT MLFLOW_TRACKING_TOKEN=... mlflow_workspaces.py

The token is an admin's, on a server where people sign in. The client of users and roles is part of MLflow's server, which is
not installed here: its requests are sent as it sends them.
"""

import contextlib
import os
import sys
import uuid

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"

import mlflow
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response

MARK = uuid.uuid4().hex[:8]
TEAM = f"team-{MARK}"
OTHERS = f"others-{MARK}"
EMPTY = f"empty-{MARK}"
ALICE = f"alice-{MARK}"
PASSWORD = "a long and winding password"
NEW_PASSWORD = "another winding password"


def check(what, found, expected):
    if found != expected:
        print(f"DIFFERENT {what}: {found!r}, expected {expected!r}")
        sys.exit(1)
    print(f"ok {what}")


def refused(what, code, text, call):
    try:
        call()
    except (RestException, MlflowException) as error:
        check(f"{what}: the code", error.error_code, code)
        if text not in str(error):
            check(f"{what}: the message", str(error), text)
        return
    check(what, "accepted", "refused")


def ask(method, path, **fields):
    """A request as the client of users and roles sends it."""
    endpoint = f"/api/{path}"
    sent = {"params" if method == "GET" else "json": fields}
    answer = http_request(get_default_host_creds(mlflow.get_tracking_uri()), endpoint, method, **sent)
    return verify_rest_response(answer, endpoint).json()


@contextlib.contextmanager
def signed_in(name, password):
    token = os.environ.pop("MLFLOW_TRACKING_TOKEN")
    os.environ.update(MLFLOW_TRACKING_USERNAME=name, MLFLOW_TRACKING_PASSWORD=password)
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
        os.environ["MLFLOW_TRACKING_TOKEN"] = token


def workspaces():
    made = mlflow.create_workspace(TEAM, description="ours")
    check("a workspace is made", (made.name, made.description), (TEAM, "ours"))
    mlflow.create_workspace(OTHERS)
    check("it is got", mlflow.get_workspace(TEAM).description, "ours")
    names = [workspace.name for workspace in mlflow.list_workspaces()]
    check("all are listed", {"default", TEAM, OTHERS} <= set(names), True)
    refused("a name twice", "RESOURCE_ALREADY_EXISTS", f"Workspace '{TEAM}' already exists.", lambda: mlflow.create_workspace(TEAM))
    refused("a reserved name", "INVALID_PARAMETER_VALUE", "reserved", lambda: mlflow.create_workspace("default"))
    root = lambda: mlflow.create_workspace(f"x{MARK}", default_artifact_root="s3://bucket/x")
    refused("a store of its own", "INVALID_PARAMETER_VALUE", "default_artifact_root", root)
    check("it is changed", mlflow.update_workspace(TEAM, description="all ours").description, "all ours")
    refused("a workspace that is not there", "RESOURCE_DOES_NOT_EXIST", "", lambda: mlflow.get_workspace(f"no-{MARK}"))


def runs():
    mlflow.set_experiment(f"without {MARK}")
    with mlflow.start_run() as without:
        mlflow.log_metric("m", 1.0)
    mlflow.set_workspace(TEAM)
    mlflow.set_experiment(f"within {MARK}")
    with mlflow.start_run() as within:
        mlflow.log_metric("m", 2.0)
        mlflow.log_text("content", "note.txt")
    check("a run is in its workspace", mlflow.get_run(within.info.run_id).data.metrics, {"m": 2.0})
    refused("another's run", "RESOURCE_DOES_NOT_EXIST", "", lambda: mlflow.get_run(without.info.run_id))
    mlflow.set_workspace(f"no-{MARK}")
    refused("in no workspace", "RESOURCE_DOES_NOT_EXIST", "", lambda: mlflow.get_run(within.info.run_id))
    mlflow.set_workspace(None)
    check("without a workspace", mlflow.get_run(without.info.run_id).data.metrics, {"m": 1.0})


def users():
    made = ask("POST", "2.0/mlflow/users/create", username=ALICE, password=PASSWORD)["user"]
    check("a user is made", (made["username"], made["is_admin"]), (ALICE, False))
    again = lambda: ask("POST", "2.0/mlflow/users/create", username=ALICE, password=PASSWORD)
    refused("a user twice", "RESOURCE_ALREADY_EXISTS", f"User (username={ALICE}) already exists.", again)
    short = lambda: ask("POST", "2.0/mlflow/users/create", username=f"b{MARK}", password="x")
    refused("a short password", "INVALID_PARAMETER_VALUE", "", short)
    check("the user is got", ask("GET", "2.0/mlflow/users/get", username=ALICE)["user"], made)
    absent = lambda: ask("GET", "2.0/mlflow/users/get", username=f"b{MARK}")
    refused("nobody", "RESOURCE_DOES_NOT_EXIST", f"User with username=b{MARK} not found", absent)
    listed = {user["username"]: user for user in ask("GET", "2.0/mlflow/users/list")["users"]}
    check("users are listed", (listed[ALICE]["id"], listed[ALICE]["roles"]), (made["id"], []))
    with signed_in(ALICE, PASSWORD):
        current = ask("GET", "2.0/mlflow/users/current")
        check("who I am", current, {"user": made, "is_basic_auth": True})
        check("nothing is seen without a role", mlflow.list_workspaces(), [])
        change = {"username": ALICE, "password": NEW_PASSWORD}
        bare = lambda: ask("PATCH", "2.0/mlflow/users/update-password", **change)
        refused("without the present password", "INVALID_PARAMETER_VALUE", "Current password is required", bare)
        ask("PATCH", "2.0/mlflow/users/update-password", current_password=PASSWORD, **change)
    with signed_in(ALICE, NEW_PASSWORD):
        check("the password is another", ask("GET", "2.0/mlflow/users/current")["user"]["username"], ALICE)
        refused("to list users", "PERMISSION_DENIED", "", lambda: ask("GET", "2.0/mlflow/users/list"))
    ask("PATCH", "2.0/mlflow/users/update-admin", username=ALICE, is_admin=True)
    check("an admin", ask("GET", "2.0/mlflow/users/get", username=ALICE)["user"]["is_admin"], True)
    ask("PATCH", "2.0/mlflow/users/update-admin", username=ALICE, is_admin=False)
    check("no admin any more", ask("GET", "2.0/mlflow/users/get", username=ALICE)["user"]["is_admin"], False)
    return made


def roles(alice):
    held = {role["name"]: role for role in ask("GET", "3.0/mlflow/roles/list", workspace=TEAM)["roles"]}
    contributor = held["contributor"]
    levels = {row["resource_type"]: row["permission"] for row in contributor["permissions"]}
    check("what a role may", levels, {"experiment": "EDIT", "registered_model": "EDIT", "workspace": "USE"})
    check("a role by its number", ask("GET", "3.0/mlflow/roles/get", role_id=str(contributor["id"]))["role"], contributor)
    listed = ask("GET", "3.0/mlflow/roles/permissions/list", role_id=str(contributor["id"]))
    check("its permissions", listed["role_permissions"], contributor["permissions"])
    absent = lambda: ask("GET", "3.0/mlflow/roles/get", role_id="1")
    refused("no role", "RESOURCE_DOES_NOT_EXIST", "Role with id=1 not found", absent)
    made = lambda: ask("POST", "3.0/mlflow/roles/create", workspace=TEAM, name="mine")
    refused("a role of MLflow's making", "NOT_IMPLEMENTED", "actions", made)
    order = {"username": ALICE, "role_id": contributor["id"]}
    assigned = ask("POST", "3.0/mlflow/roles/assign", **order)["assignment"]
    check("a role is given", (assigned["user_id"], assigned["role_id"]), (alice["id"], contributor["id"]))
    twice = lambda: ask("POST", "3.0/mlflow/roles/assign", **order)
    refused("a role twice", "RESOURCE_ALREADY_EXISTS", "already exists", twice)
    theirs = ask("GET", "3.0/mlflow/users/roles/list", username=ALICE)["roles"]
    check("the roles of a user", [(role["name"], role["workspace"]) for role in theirs], [("contributor", TEAM)])
    users = ask("GET", "3.0/mlflow/roles/users/list", role_id=str(contributor["id"]))["assignments"]
    check("the users of a role", users, [assigned])
    rows = ask("GET", "3.0/mlflow/users/permissions/list", username=ALICE)["permissions"]
    check("the permissions of a user", {row["workspace"] for row in rows}, {TEAM})
    with signed_in(ALICE, NEW_PASSWORD):
        check("the workspace is seen", [workspace.name for workspace in mlflow.list_workspaces()], [TEAM])
        mlflow.set_workspace(TEAM)
        mlflow.set_experiment(f"by alice {MARK}")
        with mlflow.start_run() as run:
            mlflow.log_metric("m", 3.0)
        check("a run is logged", mlflow.get_run(run.info.run_id).data.metrics, {"m": 3.0})
        asked = {"username": ALICE, "resource_type": "experiment", "resource_id": "*"}
        found = ask("GET", "3.0/mlflow/users/permissions/get", **asked)
        check("what I may", found, {"allowed": True, "permission": "EDIT"})
        mlflow.set_workspace(OTHERS)
        refused("others' workspace", "RESOURCE_DOES_NOT_EXIST", "", lambda: mlflow.search_experiments())
        mlflow.set_workspace(None)
        refused("to give a role", "PERMISSION_DENIED", "", lambda: ask("POST", "3.0/mlflow/roles/assign", **order))
        refused("to make a workspace", "PERMISSION_DENIED", "", lambda: mlflow.create_workspace(f"mine-{MARK}"))
    grant = {"username": ALICE, "resource_type": "experiment", "resource_id": "1", "permission": "EDIT"}
    single = lambda: ask("POST", "3.0/mlflow/users/permissions/grant", **grant)
    refused("a permission on one thing", "NOT_IMPLEMENTED", "assign_role", single)
    ask("DELETE", "3.0/mlflow/roles/unassign", **order)
    check("the role is taken", ask("GET", "3.0/mlflow/users/roles/list", username=ALICE)["roles"], [])
    gone = lambda: ask("DELETE", "3.0/mlflow/roles/unassign", **order)
    refused("a role that is not held", "RESOURCE_DOES_NOT_EXIST", "not found", gone)


def ends():
    ask("DELETE", "2.0/mlflow/users/delete", username=ALICE)
    gone = lambda: ask("DELETE", "2.0/mlflow/users/delete", username=ALICE)
    refused("a user who is gone", "RESOURCE_DOES_NOT_EXIST", "not found", gone)
    refused("a workspace with runs", "INVALID_STATE", "still contains", lambda: mlflow.delete_workspace(TEAM))
    refused("what cannot be moved", "NOT_IMPLEMENTED", "moved", lambda: mlflow.delete_workspace(TEAM, mode="SET_DEFAULT"))
    mlflow.set_workspace(OTHERS)
    mlflow.set_experiment(experiment_id="0")
    with mlflow.start_span("alone"):
        pass
    mlflow.set_workspace(None)
    refused("a workspace with traces", "INVALID_STATE", "still contains traces", lambda: mlflow.delete_workspace(OTHERS))
    mlflow.delete_workspace(OTHERS, mode="CASCADE")
    mlflow.create_workspace(EMPTY)
    mlflow.delete_workspace(EMPTY)
    mlflow.delete_workspace(TEAM, mode="CASCADE")
    left = {workspace.name for workspace in mlflow.list_workspaces()}
    check("workspaces are gone", left & {TEAM, OTHERS}, set())
    refused("the first one", "INVALID_STATE", "reserved", lambda: mlflow.delete_workspace("default"))


workspaces()
runs()
roles(users())
ends()
print("workspaces, users and roles are as MLflow has them")
