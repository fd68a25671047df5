"""Hospitals train one model together with Flower, and no image leaves any of them: docs/federated.md.

``arguments.py`` has the settings, ``partitions.py`` who holds which slice in a simulation, ``task.py`` what a hospital
does in a round (the project's own trainer). Only ``client_app.py``, ``server_app.py`` and ``simulate.py`` know Flower.
"""
