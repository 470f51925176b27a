"""The model zoo: networks of the literature and honest baselines, one config file each, one training loop."""

from har_export.lab.zoo.compare import run

__all__ = ["run"]
