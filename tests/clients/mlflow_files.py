"""Artifacts through mlflow's own client: what is written, listed, read, overwritten and deleted, byte by byte.

usage: mlflow_files.py [--no-multipart] [--presigned], with the server in MLFLOW_TRACKING_URI. The first option is for a server
that takes no uploads in parts, such as MLflow's own on a local folder; the second for one whose object store is asked directly.
"""

import hashlib
import os
import random
import sys
import tempfile
from pathlib import Path

MEBIBYTE = 1024 * 1024
os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] = "true"
os.environ["MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE"] = str(10 * MEBIBYTE)
os.environ["MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE"] = str(1 * MEBIBYTE)
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

import mlflow
import requests
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

PROXY = "/api/2.0/mlflow-artifacts"
RUN_ADDRESSES = "/api/2.0/mlflow/artifacts"
RUN_LIST = f"{RUN_ADDRESSES}/list"
NAMES = [
    "plain.txt",
    "a b.txt",
    "grüße-日本.bin",
    "100%.txt",
    "a+b&c=d.csv",
    "x'(1)[2];,@!$~.dat",
    "MLmodel",
    "empty.bin",
]
has_multipart = "--no-multipart" not in sys.argv[1:]
is_presigned = "--presigned" in sys.argv[1:]
failures = 0


def check(name, is_right, shown=""):
    global failures
    failures += not is_right
    print(f"{'ok' if is_right else 'WRONG'}: {name}{'' if is_right else f': {shown}'}", flush=True)


def same(name, found, expected):
    shown = (found, expected) if len(repr((found, expected))) < 3000 else "they differ"
    check(name, found == expected, shown)


def content(seed, size):
    return random.Random(seed).randbytes(size)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def write(folder, files):
    for name, data in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def listed(files):
    # MLflow's own server leaves the size of an empty file out.
    return [(file.path, file.is_dir, file.file_size or None) for file in files]


def downloaded(client, run_id, path, folder):
    return Path(client.download_artifacts(run_id, path, tempfile.mkdtemp(dir=folder)))


def request(method, path, **options):
    return http_request(get_default_host_creds(mlflow.get_tracking_uri()), path, method, max_retries=0, **options)


def proxied(run):
    """The path of the run's artifacts below the root of the server's store."""
    return run.info.artifact_uri.split("mlflow-artifacts:", 1)[1].strip("/")


def check_writing_and_reading(client, run, folder):
    run_id = run.info.run_id
    files = {f"nested/{name}": content(name, 0 if name.startswith("empty") else 1000) for name in NAMES}
    files["nested/deep/er/file.bin"] = content("deep", 3 * MEBIBYTE + 17)
    files["top.json"] = b'{"a": 1}'
    source = folder / "source"
    write(source, files)
    client.log_artifacts(run_id, str(source))
    single = folder / "single.txt"
    single.write_bytes(b"single")
    client.log_artifact(run_id, str(single))
    client.log_artifact(run_id, str(single), "other/place")
    files |= {"single.txt": b"single", "other/place/single.txt": b"single"}

    root = [("nested", True, None), ("other", True, None), ("single.txt", False, 6), ("top.json", False, 8)]
    same("the root is listed", listed(client.list_artifacts(run_id)), root)
    nested = [(f"nested/{name}", False, len(files[f"nested/{name}"]) or None) for name in NAMES]
    nested.append(("nested/deep", True, None))
    same("a folder is listed", listed(client.list_artifacts(run_id, "nested")), sorted(nested))
    same("a file is listed as nothing", client.list_artifacts(run_id, "single.txt"), [])
    same("what is not there is listed as nothing", client.list_artifacts(run_id, "nowhere"), [])

    same("all is downloaded", read(downloaded(client, run_id, "", folder)), files)
    below = {path.removeprefix("nested/"): data for path, data in files.items() if path.startswith("nested/")}
    same("a folder is downloaded", read(downloaded(client, run_id, "nested", folder)), below)
    for path in ["nested/deep/er/file.bin", "nested/empty.bin", *(f"nested/{name}" for name in NAMES)]:
        found = downloaded(client, run_id, path, folder).read_bytes()
        same(f"{path} is downloaded", found, files[path])
    same("a text is loaded", mlflow.artifacts.load_text(f"{run.info.artifact_uri}/top.json"), '{"a": 1}')


def check_changes(client, run, folder):
    run_id = run.info.run_id
    path = folder / "single.txt"
    path.write_bytes(content("other", 2 * MEBIBYTE))
    client.log_artifact(run_id, str(path))
    found = downloaded(client, run_id, "single.txt", folder).read_bytes()
    same("a file is overwritten", found, path.read_bytes())
    sizes = {path: size for path, _, size in listed(client.list_artifacts(run_id))}
    same("its size is the new one", sizes["single.txt"], 2 * MEBIBYTE)

    repository = MlflowArtifactsRepository(run.info.artifact_uri)
    repository.delete_artifacts("single.txt")
    repository.delete_artifacts("other")
    left = [("nested", True, None), ("top.json", False, 8)]
    same("a file and a folder are deleted", listed(client.list_artifacts(run_id)), left)
    repository.delete_artifacts("nested/deep")
    left = [file.path for file in client.list_artifacts(run_id, "nested")]
    check("a folder goes with what is below it", "nested/deep" not in left, left)
    repository.delete_artifacts("nowhere")
    check("what is not there is deleted without an error", True)
    repository.delete_artifacts()
    same("all of a run is deleted", client.list_artifacts(run_id), [])


def check_parts(client, run, folder):
    sent = []
    original = HttpArtifactRepository._upload_part

    def upload_part(credential, local_file, size, start_byte):
        part = original(credential, local_file, size, start_byte)
        sent.append((part.part_number, part.etag))
        return part

    HttpArtifactRepository._upload_part = staticmethod(upload_part)
    run_id = run.info.run_id
    sizes = {"exact.bin": 10 * MEBIBYTE, "ragged.bin": 12 * MEBIBYTE + 345, "small.bin": 10 * MEBIBYTE - 1}
    parts = {"exact.bin": 10, "ragged.bin": 13, "small.bin": 0}
    for name, size in sizes.items():
        sent.clear()
        path = folder / name
        path.write_bytes(content(name, size))
        client.log_artifact(run_id, str(path), "large")
        expected = list(range(1, parts[name] + 1)) if has_multipart else []
        same(f"{name} is sent in {len(expected)} parts", sorted(number for number, _ in sent), expected)
        check(f"each part of {name} has a tag", all(tag for _, tag in sent), sent)
        found = downloaded(client, run_id, f"large/{name}", folder).read_bytes()
        same(f"{name} is what was sent", digest(found), digest(path.read_bytes()))
    HttpArtifactRepository._upload_part = staticmethod(original)
    if has_multipart:
        check_uploads(run, folder / "ragged.bin")


def check_uploads(run, path):
    """What a client does that is interrupted, mistaken or hostile."""
    import requests

    repository = MlflowArtifactsRepository(run.info.artifact_uri)
    begun = repository.create_multipart_upload(str(path), 2, "large")
    first = begun.credentials[0]
    same("without its secret no part is taken", requests.put(first.url, data=b"x").status_code, 404)
    beyond = first.url.rsplit("/", 1)[0] + "/3"
    same("a part too many is refused", requests.put(beyond, data=b"x", headers=first.headers).status_code, 400)
    body = {"path": str(path), "upload_id": begun.upload_id}
    complete = f"{PROXY}/mpu/complete/{proxied(run)}/large"
    part = {"part_number": 1, "etag": ""}
    answer = request("POST", complete, json=body | {"parts": [part]})
    same("a part that has not arrived is missed", answer.status_code, 400)
    tag = requests.put(first.url, data=b"begin", headers=first.headers).headers["ETag"]
    answer = request("POST", complete, json=body | {"parts": [part | {"etag": '"another"'}]})
    same("a part with another content is refused", answer.status_code, 400)
    for time in ["once", "again"]:
        answer = request("POST", complete, json=body | {"parts": [part | {"etag": tag}]})
        same(f"an upload is completed {time}", answer.status_code, 200)
    answer = request("GET", f"{PROXY}/artifacts/{proxied(run)}/large/{path.name}")
    same("its content took the place of the old one", answer.content, b"begin")
    begun = repository.create_multipart_upload(str(path), 1, "large")
    repository.abort_multipart_upload(str(path), begun.upload_id, "large")
    first = begun.credentials[0]
    same("what was aborted takes no part", requests.put(first.url, data=b"x", headers=first.headers).status_code, 404)


def check_direct(client, run, folder):
    """A large file comes in pieces from the object store, if the server lets it; else through the server."""
    os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] = "true"
    os.environ["MLFLOW_MULTIPART_DOWNLOAD_MINIMUM_FILE_SIZE"] = str(2 * MEBIBYTE)
    os.environ["MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE"] = str(MEBIBYTE)
    run_id = run.info.run_id
    path = folder / "direct.bin"
    path.write_bytes(content("direct", 5 * MEBIBYTE + 3))
    client.log_artifact(run_id, str(path), "large")
    told = request("GET", "/api/3.0/mlflow/server-info").json()
    same("the server says where it can be fetched", told["multipart_downloads_enabled"], is_presigned)
    fetched = []
    # Older clients take every file through the server.
    original = getattr(HttpArtifactRepository, "_multipart_download", None)

    def multipart_download(self, presigned_response, **arguments):
        fetched.append(presigned_response)
        return original(self, presigned_response, **arguments)

    if original:
        HttpArtifactRepository._multipart_download = multipart_download
    found = downloaded(client, run_id, "large/direct.bin", folder).read_bytes()
    if original:
        HttpArtifactRepository._multipart_download = original
    same("it is what was sent, whatever its way", digest(found), digest(path.read_bytes()))
    same("it came by its own way", len(fetched), int(is_presigned))
    if fetched:
        check("the address is the object store's", "X-Amz-Signature" in fetched[0].url, fetched[0].url)
        same("the address tells the size", fetched[0].file_size, path.stat().st_size)
    at = f"{PROXY}/presigned/{proxied(run)}/large"
    expected = [200, 404] if is_presigned else [501, 501]
    shown = [request("GET", f"{at}/{name}").status_code for name in ["direct.bin", "none"]]
    same("addresses are given out for files alone", shown, expected)
    file = {"run_id": run_id, "path": "large/direct.bin"}
    address = request("POST", f"{RUN_ADDRESSES}/presigned-download-url", json=file)
    if is_presigned:
        found = requests.get(address.json()["presigned_url"], timeout=30).content
        same("a run's file is fetched by its address", digest(found), digest(path.read_bytes()))
    else:
        same("a run's file has no address", (address.status_code, "proxied" in address.text), (400, True))
    too_long = request("POST", f"{RUN_ADDRESSES}/presigned-download-url", json=file | {"expiration": 604801})
    same("an address holds for a week at most", (too_long.status_code, "604800" in too_long.text), (400, True))
    sent = request("POST", f"{RUN_ADDRESSES}/presigned-upload-url", json=file)
    same("nothing is sent past the server", (sent.status_code, "proxied" in sent.text), (400, True))


def check_protocol(run):
    run_id, at = run.info.run_id, f"{PROXY}/artifacts/{proxied(run)}"
    data = content("protocol", 3 * MEBIBYTE + 5)
    same("a file is put", request("PUT", f"{at}/p/file.bin", data=data).status_code, 200)
    size = len(data)
    ranges = [
        ("bytes=0-9", 0, 10),
        (f"bytes={2 * MEBIBYTE}-", 2 * MEBIBYTE, size),
        (f"bytes={MEBIBYTE - 1}-{MEBIBYTE}", MEBIBYTE - 1, MEBIBYTE + 1),
        ("bytes=-7", size - 7, size),
    ]
    for header, first, end in ranges:
        answer = request("GET", f"{at}/p/file.bin", extra_headers={"Range": header})
        shown = (answer.status_code, answer.headers.get("Content-Range"))
        same(f"{header} is answered with a part", shown, (206, f"bytes {first}-{end - 1}/{size}"))
        same(f"{header} is what was asked for", answer.content, data[first:end])
    answer = request("GET", f"{at}/p/file.bin", extra_headers={"Range": f"bytes={size}-"})
    shown = (answer.status_code, answer.headers.get("Content-Range"))
    same("what lies behind the end is refused", shown, (416, f"bytes */{size}"))
    answer = request("GET", f"{at}/p/file.bin")
    headers = {name: answer.headers.get(name) for name in ["Content-Length", "X-Content-Type-Options"]}
    same("an answer says what it is", headers, {"Content-Length": str(size), "X-Content-Type-Options": "nosniff"})
    disposition = answer.headers.get("Content-Disposition", "")
    check("an answer is an attachment", disposition.startswith("attachment"), disposition)
    answer = request("HEAD", f"{at}/p/file.bin")
    shown = (answer.status_code, answer.headers.get("Content-Length"), answer.content)
    same("HEAD tells the size", shown, (200, str(size), b""))

    answers = {
        "a missing file": (request("GET", f"{at}/p/none"), 404),
        "a folder as a file": (request("GET", f"{at}/p"), 400),
        "a file without a name": (request("PUT", f"{at}/p/", data=b"x"), 400),
        "a way out, encoded": (request("GET", f"{at}/%252e%252e/x"), 400),
        "a way out, encoded twice": (request("PUT", f"{at}/%25252e%25252e/x", data=b"x"), 400),
        "a way out in a list": (request("GET", f"{PROXY}/artifacts", params={"path": "../x"}), 400),
        "a way out of a run": (request("GET", RUN_LIST, params={"run_id": run_id, "path": "../../x"}), 400),
    }
    for name, (answer, status) in answers.items():
        same(f"{name} is answered with {status}", answer.status_code, status)

    answer = request("GET", RUN_LIST, params={"run_id": run_id, "path": "p"}).json()
    files = [{"path": "p/file.bin", "is_dir": False, "file_size": size}]
    same("a run's files are listed", (answer["root_uri"], answer["files"]), (run.info.artifact_uri, files))
    answer = request("GET", "/get-artifact", params={"run_id": run_id, "path": "p/file.bin"})
    same("a run's file is shown to pages", answer.content, data)


def main():
    mlflow.set_experiment("artifact files")
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        with mlflow.start_run() as run:
            check_writing_and_reading(client, run, Path(folder))
            check_changes(client, run, Path(folder))
        with mlflow.start_run() as run:
            check_parts(client, run, Path(folder))
            check_direct(client, run, Path(folder))
            check_protocol(run)
    sys.exit(failures != 0)


main()
