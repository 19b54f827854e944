"""A small typed client of served classifiers, sync and async, over HTTP or gRPC.

It knows no model: names, shapes, batch sizes and labels are those that the server tells.

from nin.client import Client

with Client() as client:  # 127.0.0.1:8000
    for prediction in client.classify(pixels, top=3)[0]:
        print(prediction.label, prediction.probability)
"""

from nin.client.aio import IN_FLIGHT, AsyncClient
from nin.client.connection import RETRIES, TIMEOUT_S, URLS, Protocol
from nin.client.messages import Prediction
from nin.client.sync import Client

__all__ = [
    "IN_FLIGHT",
    "RETRIES",
    "TIMEOUT_S",
    "URLS",
    "AsyncClient",
    "Client",
    "Prediction",
    "Protocol",
]
