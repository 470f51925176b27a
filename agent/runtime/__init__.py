"""The moving parts around the pipeline: engine and queues."""
