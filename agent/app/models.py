"""What there is to say of model bundles, for `har-agent models`."""

from typing import Any

from agent.adapters.bundle import builtin_models, load_bundle
from agent.app.compose import open_model


def shipped() -> list[dict[str, Any]]:
    """Describe the bundles that ship with the agent, a row each.

    Raises:
        ModelContractError: one of them breaks its contract.
    """
    folders = sorted(p for p in builtin_models().iterdir() if (p / "manifest.json").is_file())
    return [
        {
            "model": bundle.id,
            "version": bundle.manifest.version,
            "classes": len(bundle.manifest.labels),
            "code_bytes": bundle.manifest.code.bytes,
            "onnx_bytes": sum(f.bytes for n, f in bundle.manifest.files.items() if n.endswith(".onnx")),
            "created": bundle.manifest.created,
        }
        for bundle in map(load_bundle, folders)
    ]


def verify(name: str) -> dict[str, Any]:
    """Check a bundle in every way that loading does, its golden vectors included, and describe it.

    Raises:
        ModelContractError: it breaks its contract.
    """
    model = open_model(name)
    return {"model": model.id, "digest": model.bundle.digest, "golden": "ok"}
