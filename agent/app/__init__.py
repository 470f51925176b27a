"""The composition root: builds one agent out of adapters, runtime and configuration."""
