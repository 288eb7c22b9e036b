"""The Flower app that `flwr run deploy/flower_app` starts."""

from pathlib import Path

from metaleak.deploy.simulate.flower import flower_client, flower_server

client = flower_client(Path(__file__).parent)
server = flower_server(Path(__file__).parent)
