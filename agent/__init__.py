"""har-edge-agent: IMU samples in, activity labels out, on the board that the sensor is attached to."""

__version__ = "0.1.0"
