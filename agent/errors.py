"""The error tree. Every adapter turns its vendor's exceptions into one of these with `raise … from`.

AgentError
├── UsageError             a flag has a value that cannot be used
├── ConfigError            configuration unusable; never retried
├── ModelContractError     model bundle unusable: unknown schema, bad hash, wrong shape, golden mismatch
├── InputError             input data unusable: no columns, no units, nothing that can be read
├── OutputError            output cannot be written: closed pipe, full disk
├── SourceUnavailable      a sensor, port or file cannot be opened now; live commands retry for ever
├── SinkUnavailable        a broker or file cannot be reached now; live commands retry for ever
├── InferenceError         the model failed on this turn; counted, N in a row rolls the model back
└── OffloadError           the remote side failed; never fatal, the local result stands

Bad bytes are not errors: decoders report them as `records.BadFrame` values, each counted by its reason.
"""


class AgentError(Exception):
    """Root of every error that the agent raises on purpose. Its text says what to do."""


class UsageError(AgentError):
    """A command was called with a value that cannot be used."""


class ConfigError(AgentError):
    """The configuration cannot be used."""


class ModelContractError(AgentError):
    """A model bundle breaks its contract and is refused."""


class InputError(AgentError):
    """The input data cannot be used."""


class OutputError(AgentError):
    """Output cannot be written."""


class SourceUnavailable(AgentError):  # noqa: N818  an outage is a state, not a mistake
    """A source cannot be opened or read at the moment."""


class SinkUnavailable(AgentError):  # noqa: N818
    """A sink cannot be reached at the moment."""


class InferenceError(AgentError):
    """The model runtime failed on a call."""


class OffloadError(AgentError):
    """The remote side of an offload failed."""
