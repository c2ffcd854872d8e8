"""An S3 server for a story: moto behind a door that counts, holds and breaks what goes through.

Signatures and rights are looked at. Prints where it is and who may ask, then takes orders, a line of JSON each.
"""
import json
import sys
import threading
import urllib.parse

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "mall-exports"


class Door:
    def __init__(self, app):
        self.app = app
        self.asked = []
        self.held = set()
        self.cut = set()
        self.refusals = 0
        self.open = threading.Event()

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] != "GET" or not environ.get("HTTP_USER_AGENT", "").startswith("lianbo"):
            return self.app(environ, start_response)
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8").removeprefix(f"/{BUCKET}").lstrip("/")
        self.asked.append([path, environ.get("HTTP_RANGE", "")])
        if self.refusals > 0:
            self.refusals -= 1
            start_response("503 Slow Down", [("content-type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        answer = self.app(environ, start_response)
        if path in self.held:
            return self.half(answer, self.open.wait)
        if path in self.cut:
            self.cut.remove(path)
            return self.half(answer, self.drop)
        return answer

    def half(self, answer, then):
        body = b"".join(answer)
        yield body[: len(body) // 2]
        then()
        yield body[len(body) // 2 :]

    def drop(self):
        raise ConnectionAbortedError("as ordered")


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


def people(endpoint):
    """Who may do everything, and who may read one bucket."""
    iam = boto3.client("iam", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    keys = {}
    for name, actions, resource in [
        ("owner", ["s3:*"], "*"),
        ("reader", ["s3:ListBucket", "s3:GetObject"], [f"arn:aws:s3:::{BUCKET}*", "arn:aws:s3:::nobodys-exports"]),
    ]:
        iam.create_user(UserName=name)
        statement = {"Effect": "Allow", "Action": actions, "Resource": resource}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        keys[name] = (key["AccessKeyId"], key["SecretAccessKey"])
    return keys


def main():
    door = Door(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, door, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    keys = people(endpoint)
    from moto import settings

    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    owner = dict(zip(("aws_access_key_id", "aws_secret_access_key"), keys["owner"]))
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **owner)
    for bucket in [BUCKET, "others-exports"]:
        s3.create_bucket(Bucket=bucket)
    print(json.dumps({"endpoint": endpoint, "key_id": keys["reader"][0], "secret": keys["reader"][1]}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        key = order.get("key")
        answer = None
        match order["do"]:
            case "put":
                with open(order["file"], "rb") as file:
                    s3.put_object(Bucket=BUCKET, Key=key, Body=file.read())
            case "delete":
                s3.delete_object(Bucket=BUCKET, Key=key)
            case "hold":
                door.held.add(key)
            case "let_go":
                door.held.clear()
                door.open.set()
            case "cut":
                door.cut.add(key)
            case "refuse":
                door.refusals = order["times"]
            case "asked":
                answer, door.asked = door.asked, []
        print(json.dumps(answer), flush=True)


main()
