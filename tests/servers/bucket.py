"""A bucket of moto's on 127.0.0.1, which MLflow's server keeps artifacts in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAME, FOLDER, REGION = "bucket", "mlflow", "us-east-1"
KEY = "test"
"""Whatever one likes: moto asks nobody who they are."""


@dataclass(frozen=True)
class Bucket:
    """Where a server finds it.

    Args:
        endpoint: moto's address.
        client: boto3's.
    """

    endpoint: str
    client: Any

    @property
    def address(self) -> str:
        """As MLflow takes it."""
        return f"s3://{NAME}/{FOLDER}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a server that uses it."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY}
        return {**keys, "AWS_DEFAULT_REGION": REGION, "MLFLOW_S3_ENDPOINT_URL": self.endpoint}

    def names(self, path: str) -> set[str]:
        """The names of a run's files."""
        under = f"{FOLDER}/{path}/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=under)
        return {one["Key"].rpartition("/")[2] for page in pages for one in page.get("Contents", ())}


@contextlib.contextmanager
def serving() -> Iterator[Bucket]:
    """An empty one that is gone in the end."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": KEY}
        client = boto3.client("s3", endpoint_url=endpoint, region_name=REGION, **keys)
        client.create_bucket(Bucket=NAME)
        yield Bucket(endpoint, client)
    finally:
        server.stop()
