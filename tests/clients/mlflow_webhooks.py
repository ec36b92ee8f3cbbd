"""Webhooks through MLflow's own client; a line for each check, and a failure at the first difference.

usage: MLFLOW_TRACKING_URI=http://HOST:PORT mlflow_webhooks.py [--upstream]

The receiver is a server of this script's own, so that the server must allow http and private addresses. With --upstream
the server is MLflow's own, which shows that what is expected here is what MLflow does.
"""

import base64
import hashlib
import hmac
import json
import os
import queue
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookStatus
from mlflow.exceptions import MlflowException, RestException

UPSTREAM = "--upstream" in sys.argv
# Each run of the script has names of its own, so that it can be repeated on one server.
MARK = uuid.uuid4().hex[:8]
SECRET = "a secret of the receiver"
# Longer than the wait after a first attempt.
PATIENCE_S = 30


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


class Receiver:
    """Takes what comes to its paths, and answers once with the status that a path names."""

    def __init__(self):
        receiver = self
        self.told = queue.Queue()
        self.seen = set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                receiver.told.put((self.path, dict(self.headers.items()), body))
                # `/503-once` fails once, `/400` always.
                name = self.path.strip("/")
                status = int(name[:3]) if name[:3].isdigit() else 200
                if name.endswith("-once") and name in receiver.seen:
                    status = 200
                receiver.seen.add(name)
                content = f"{status} of the receiver".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next(self):
        path, headers, body = self.told.get(timeout=PATIENCE_S)
        return path, {name.lower(): value for name, value in headers.items()}, body

    def data(self, event):
        """What is told of an event, which comes next."""
        _, _, body = self.next()
        told = json.loads(body)
        check(f"{event} is told", f"{told['entity']}.{told['action']}", event)
        return told["data"]


def declared(client, receiver):
    url = f"{receiver.url}/made"
    made = client.create_webhook(
        f"first-{MARK}", url, ["model_version.created", "prompt_tag.set"], description="the first", secret=SECRET, status="DISABLED"
    )
    check("a webhook is made", (made.name, made.url, made.description, str(made.status)), (f"first-{MARK}", url, "the first", "DISABLED"))
    check("its events", {str(event) for event in made.events}, {"model_version.created", "prompt_tag.set"})
    check("its secret is not shown", made.secret, None)
    check("times are milliseconds", made.creation_timestamp == made.last_updated_timestamp and made.creation_timestamp > 10**12, True)
    check("it is found", repr(client.get_webhook(made.webhook_id)), repr(made))

    changed = client.update_webhook(made.webhook_id, name=f"second-{MARK}", events=["prompt.created"], status=WebhookStatus.ACTIVE)
    check("it is changed", (changed.name, [str(event) for event in changed.events], str(changed.status)), (f"second-{MARK}", ["prompt.created"], "ACTIVE"))
    check("the rest stays", (changed.url, changed.description), (url, "the first"))
    check("a description can be emptied", client.update_webhook(made.webhook_id, description="").description, None)

    others = [client.create_webhook(f"other-{MARK}-{number}", url, ["prompt.created"], status="DISABLED") for number in range(3)]
    ids = [webhook.webhook_id for webhook in reversed(others)] + [made.webhook_id]
    first = client.list_webhooks(max_results=3)
    check("the newest come first", [webhook.webhook_id for webhook in first], ids[:3])
    check("the next page", client.list_webhooks(max_results=3, page_token=first.token)[0].webhook_id, ids[3])
    for webhook_id in ids:
        client.delete_webhook(webhook_id)
    missing = f"Webhook with ID {made.webhook_id} not found."
    for what, call in [
        ("found", lambda: client.get_webhook(made.webhook_id)),
        ("changed", lambda: client.update_webhook(made.webhook_id, name="x")),
        ("removed", lambda: client.delete_webhook(made.webhook_id)),
        ("tested", lambda: client.test_webhook(made.webhook_id)),
    ]:
        refused(f"a removed webhook is {what}", "RESOURCE_DOES_NOT_EXIST", missing, call)


def refusals(client, receiver):
    invalid, events = "INVALID_PARAMETER_VALUE", ["model_version.created"]
    for name in ["_a", "a-", "a b", "a/b", "x" * 64]:
        refused(f"the name {name[:9]}", invalid, "It must start and end with a letter or digit", lambda: client.create_webhook(name, receiver.url, events))
    refused("no name", invalid, "Missing value for required parameter 'name'", lambda: client.create_webhook("", receiver.url, events))
    refused("a scheme", invalid, "Invalid webhook URL scheme: 'ftp'. Allowed schemes are: http, https.", lambda: client.create_webhook("a", "ftp://x/", events))
    refused("no host", invalid, "Webhook URL must include a hostname: 'http:///x'", lambda: client.create_webhook("a", "http:///x", events))
    refused("blanks", invalid, "Webhook URL cannot be empty or just whitespace: '  '", lambda: client.create_webhook("a", "  ", events))
    refused("too large a page", invalid, "max_results must be between 1 and 1000.", lambda: client.list_webhooks(max_results=1001))
    refused("a page that is none", invalid, "Invalid page token, could not base64-decode", lambda: client.list_webhooks(page_token="x"))


def tests(client, receiver):
    good = client.create_webhook(f"good-{MARK}", f"{receiver.url}/good", ["model_version.created"], secret=SECRET)
    result = client.test_webhook(good.webhook_id)
    check("a test", (result.success, result.response_status, result.response_body, result.error_message), (True, 200, "200 of the receiver", None))
    _, headers, body = receiver.next()
    told = json.loads(body)
    check("what a test tells", (told["entity"], told["action"], told["data"]["name"], told["data"]["run_id"]), ("model_version", "created", "example_model", "abcd1234abcd5678"))
    signed = f"{headers['x-mlflow-delivery-id']}.{headers['x-mlflow-timestamp']}.{body}"
    signature = base64.b64encode(hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()).decode()
    check("it is signed", headers["x-mlflow-signature"], f"v1,{signature}")
    check("it is JSON", headers["content-type"], "application/json")
    for event in ["prompt_alias.deleted", "prompt_version_tag.set", "budget_policy.exceeded"]:
        client.test_webhook(good.webhook_id, event)
        receiver.data(event)
    client.delete_webhook(good.webhook_id)

    bad = client.create_webhook(f"bad-{MARK}", f"{receiver.url}/400", ["model_version.created"])
    result = client.test_webhook(bad.webhook_id)
    check("a test that is refused", (result.success, result.response_status), (False, 400))
    check("it is not signed", "x-mlflow-signature" in receiver.next()[1], False)
    client.delete_webhook(bad.webhook_id)

    away = client.create_webhook(f"away-{MARK}", "http://127.0.0.1:9/", ["model_version.created"])
    result = client.test_webhook(away.webhook_id)
    check("a test that reaches nobody", (result.success, result.response_status, result.error_message.startswith("Failed to test webhook: ")), (False, None, True))
    client.delete_webhook(away.webhook_id)


def models(client, receiver):
    events = [
        "registered_model.created",
        "model_version.created",
        "model_version_tag.set",
        "model_version_tag.deleted",
        "model_version_alias.created",
        "model_version_alias.deleted",
    ]
    hook = client.create_webhook(f"models-{MARK}", f"{receiver.url}/models", events, secret=SECRET)
    name = f"model_{MARK}"
    client.create_registered_model(name, {"team": "a"}, "a model")
    check("a model", receiver.data(events[0]), {"name": name, "tags": {"team": "a"}, "description": "a model"})
    client.create_model_version(name, "s3://bucket/x", tags={"b": "1"}, description="first")
    expected = {"name": name, "version": "1", "source": "s3://bucket/x", "run_id": None, "tags": {"b": "1"}, "description": "first"}
    check("a version", receiver.data(events[1]), expected)
    client.set_model_version_tag(name, "1", "k", "v")
    check("a tag", receiver.data(events[2]), {"name": name, "version": "1", "key": "k", "value": "v"})
    client.delete_model_version_tag(name, "1", "k")
    check("a tag that goes", receiver.data(events[3]), {"name": name, "version": "1", "key": "k"})
    client.set_registered_model_alias(name, "live", "1")
    check("an alias", receiver.data(events[4]), {"name": name, "alias": "live", "version": "1"})
    client.delete_registered_model_alias(name, "live")
    check("an alias that goes", receiver.data(events[5]), {"name": name, "alias": "live"})
    # MLflow has no event for these.
    client.set_registered_model_tag(name, "c", "d")
    client.update_registered_model(name, "another")
    client.create_registered_model(f"{name}_2")
    check("nothing else", receiver.data(events[0])["name"], f"{name}_2")
    client.delete_webhook(hook.webhook_id)


def prompts(client, receiver):
    events = ["prompt.created", "prompt_version.created", "prompt_tag.set", "prompt_tag.deleted", "prompt_version_tag.set", "prompt_version_tag.deleted", "prompt_alias.created", "prompt_alias.deleted"]
    hook = client.create_webhook(f"prompts-{MARK}", f"{receiver.url}/prompts", events)
    name = f"prompt_{MARK}"
    client.create_prompt(name, "a prompt", {"team": "a"})
    check("a prompt", receiver.data(events[0]), {"name": name, "tags": {"team": "a"}, "description": "a prompt"})
    client.create_prompt_version(name, "Say {{word}}.", "first", {"b": "1"})
    expected = {"name": name, "version": "1", "template": "Say {{word}}.", "tags": {"b": "1"}, "description": "first"}
    check("a version of a prompt", receiver.data(events[1]), expected)
    client.set_prompt_tag(name, "k", "v")
    check("a tag of a prompt", receiver.data(events[2]), {"name": name, "key": "k", "value": "v"})
    client.delete_prompt_tag(name, "k")
    check("a tag of a prompt that goes", receiver.data(events[3]), {"name": name, "key": "k"})
    client.set_prompt_version_tag(name, "1", "k", "v")
    check("a tag of a prompt's version", receiver.data(events[4]), {"name": name, "version": "1", "key": "k", "value": "v"})
    client.delete_prompt_version_tag(name, "1", "k")
    check("a tag of a prompt's version that goes", receiver.data(events[5]), {"name": name, "version": "1", "key": "k"})
    client.set_prompt_alias(name, "live", 1)
    check("an alias of a prompt", receiver.data(events[6]), {"name": name, "alias": "live", "version": "1"})
    client.delete_prompt_alias(name, "live")
    check("an alias of a prompt that goes", receiver.data(events[7]), {"name": name, "alias": "live"})
    client.delete_webhook(hook.webhook_id)


def retries(client, receiver):
    hook = client.create_webhook(f"retried-{MARK}", f"{receiver.url}/503-{MARK}-once", ["registered_model.created"], secret=SECRET)
    client.create_registered_model(f"retried_{MARK}")
    first, second = receiver.next(), receiver.next()
    check("a second attempt tells the same", second[2], first[2])
    check("under the same id", second[1]["x-mlflow-delivery-id"], first[1]["x-mlflow-delivery-id"])
    client.delete_webhook(hook.webhook_id)


def main():
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    client = MlflowClient()
    receiver = Receiver()
    declared(client, receiver)
    refusals(client, receiver)
    tests(client, receiver)
    if UPSTREAM:
        # MLflow keeps in memory for a minute who is told what.
        print("done, but for what MLflow tells late")
        return
    models(client, receiver)
    prompts(client, receiver)
    retries(client, receiver)
    check("nothing was told twice", receiver.told.empty(), True)
    print("done")


if __name__ == "__main__":
    main()
