"""Pure functions and small state machines. Bytes and times come in as arguments, events go out as values."""
