"""The bill of materials of a release: CycloneDX 1.6, JSON."""

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from email.message import Message
from email.parser import HeaderParser
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import fixup_id
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

INSTALLER = "pip"


def bill_of_materials(agent: Path, wheels: Sequence[Path], models: Path, created: datetime) -> str:
    """List what a release is made of, as JSON that is checked against CycloneDX's schema.

    The agent is the main component. Each distribution is one component, whatever number of wheels it has; every wheel
    is a reference with its SHA-256. pip has the scope `excluded`: it installs, and is not installed. A model bundle is
    a machine-learning model whose hash is that of its manifest, which holds those of its files.

    Args:
        agent: the agent's own wheel.
        wheels: all other wheels of all boards.
        models: the folder of the bundles in the agent's wheel.
        created: when the release was, as its commit says; the same input gives the same text.

    Raises:
        ValueError: the result does not fit the schema.
    """
    main = _distribution([agent])
    main.type = ComponentType.APPLICATION
    bundles = [_bundle(folder) for folder in sorted(models.iterdir()) if (folder / "manifest.json").is_file()]
    groups: dict[NormalizedName, list[Path]] = {}
    for wheel in sorted(wheels, key=lambda path: path.name):
        groups.setdefault(canonicalize_name(wheel.name.split("-")[0]), []).append(wheel)
    parts = {name: _distribution(paths) for name, paths in groups.items()}
    parts[canonicalize_name(INSTALLER)].scope = ComponentScope.EXCLUDED

    bom = Bom(components=[*parts.values(), *bundles])
    bom.metadata.component = main
    bom.metadata.timestamp = created
    # Of the content, not random: the same release is the same document.
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, _sha256(agent) + "".join(_sha256(w) for w in wheels))
    bom.register_dependency(main, [*(parts[n] for n in _requires(agent, parts.keys(), extra="zstd")), *bundles])
    for name, paths in groups.items():
        bom.register_dependency(parts[name], [parts[n] for n in _requires(paths[0], parts.keys())])

    text = JsonV1Dot6(bom).output_as_string(indent=1)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise ValueError(f"the bill of materials does not fit CycloneDX's schema: {problem}")
    return text + "\n"


def _distribution(wheels: Sequence[Path]) -> Component:
    about = _metadata(wheels[0])
    name, version = canonicalize_name(about["Name"]), about["Version"]
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}=={version}",
        purl=PackageURL("pypi", name=name, version=version),
        description=about["Summary"],
        licenses=_licences(about),
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION, url=XsUri(path.name), hashes=[_hash(_sha256(path))]
            )
            for path in wheels
        ],
    )


def _bundle(folder: Path) -> Component:
    manifest = (folder / "manifest.json").read_bytes()
    facts = json.loads(manifest)
    ref = f"{facts['name']}@{facts['version']}"
    return Component(
        name=facts["name"],
        version=facts["version"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=ref,
        hashes=[_hash(sha256(manifest).hexdigest())],
        components=[
            Component(name=name, type=ComponentType.FILE, bom_ref=f"{ref}/{name}", hashes=[_hash(entry["sha256"])])
            for name, entry in facts["files"].items()
        ],
        properties=[
            Property(name="har-edge-agent:training-data", value=f"{data['name']}. Terms: {data['terms']}")
            for data in facts["training"]["data"]
        ],
    )


def _licences(about: Message) -> Iterator[License]:
    """What the distribution says of its licence: SPDX where it does, the words that it uses where not."""
    declared = about["License-Expression"] or about["License"] or ""
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if c.startswith("License :: ")]
    # Some paste the whole text of a licence into the field.
    names = [declared] if declared and "\n" not in declared else classifiers
    for name in names:
        short = fixup_id(name.removesuffix(" License"))
        yield LicenseFactory().make_from_string(short or name)


def _requires(wheel: Path, known: Iterable[NormalizedName], extra: str = "") -> list[NormalizedName]:
    """What of `known` a wheel requires. Markers beside the extra are left out: `known` is what boards install."""
    requirements = [Requirement(line) for line in _metadata(wheel).get_all("Requires-Dist", [])]
    wanted = {
        canonicalize_name(r.name)
        for r in requirements
        if "extra" not in str(r.marker) or (extra and re.search(rf"extra == ['\"]{extra}['\"]", str(r.marker)))
    }
    return sorted(wanted & set(known))


def _metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        return HeaderParser().parsestr(archive.read(name).decode())


def _hash(content: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=content)


def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
