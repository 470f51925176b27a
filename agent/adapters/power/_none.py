"""No meter."""

from agent.records import PowerReading

UNMEASURED = PowerReading(None, "none", None)


class NoPower:
    """`ports.PowerMeter` where nothing measures."""

    def read(self) -> PowerReading:
        """Say that there is no figure."""
        return UNMEASURED
