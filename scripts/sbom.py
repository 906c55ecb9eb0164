"""Put a software bill of materials into a wheel: ``*.dist-info/sboms/NAME.cdx.json``, CycloneDX, as PEP 770 says.

It names what lies in the wheel, third-party files of the operator library's build included, and what the wheel depends on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement

VENDORED = {  # distribution -> (name, version, licence, where it lies) of files of others that went into it
    "fairy2i-runtime": [("onnxruntime", "1.29", "MIT", "custom_ops/third_party/onnxruntime: headers of its C interface")],
}


def add_sbom(wheel: Path, built_with: str) -> None:
    """Add the bill to a wheel, in place.

    Args:
        wheel: the file; its name stays.
        built_with: compiler and target, for people.
    """
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            [sys.executable, "-m", "wheel", "unpack", "--dest", work, str(wheel)], check=True, stdout=subprocess.DEVNULL
        )
        (root,) = Path(work).iterdir()
        (info,) = root.glob("*.dist-info")
        metadata = HeaderParser().parsestr((info / "METADATA").read_text(encoding="utf-8"))
        (info / "sboms").mkdir()
        (info / "sboms" / f"{metadata['Name']}.cdx.json").write_text(bill(metadata, built_with), encoding="utf-8")
        pack = [sys.executable, "-m", "wheel", "pack", "--dest-dir", str(wheel.parent), str(root)]
        subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)


def bill(metadata: Message, built_with: str) -> str:
    """The bill as JSON.

    Args:
        metadata: core metadata of a wheel.
        built_with: compiler and target.

    Its date is that of the environment variable ``SOURCE_DATE_EPOCH``.
    """
    name, version = metadata["Name"], metadata["Version"]
    own = Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        purl=PackageURL("pypi", None, name, version),
        bom_ref=name,
        licenses=[DisjunctiveLicense(id="Apache-2.0")],
        properties=[Property(name="built-with", value=built_with)],
    )
    parts = [
        Component(
            type=ComponentType.LIBRARY,
            name=n,
            version=v,
            licenses=[DisjunctiveLicense(id=licence)],
            description=where,
            bom_ref=where,
        )
        for n, v, licence, where in VENDORED.get(name, [])
    ]
    wanted = []
    for text in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(text)
        optional = requirement.marker is not None and "extra" in str(requirement.marker)
        scope = ComponentScope.OPTIONAL if optional else ComponentScope.REQUIRED
        purl = PackageURL("pypi", None, requirement.name)
        properties = [Property(name="requirement", value=text)]
        wanted.append(
            Component(
                type=ComponentType.LIBRARY,
                name=requirement.name,
                purl=purl,
                scope=scope,
                properties=properties,
                bom_ref=text,
            )
        )
    bom = Bom(components=[*parts, *wanted])
    bom.metadata.component = own
    bom.metadata.timestamp = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    bom.serial_number = uuid5(NAMESPACE_URL, f"{name} {version} {built_with}")
    bom.register_dependency(
        own, [*parts, *(component for component in wanted if component.scope is ComponentScope.REQUIRED)]
    )
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
