from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (HERE / "tfllmrec_client" / "version.py").read_text().splitlines()
    if line.startswith("__version__")
)

# The modules are links to those of ../tfllmrec: one copy of the code, under an import name of its own.
setup(
    name="tfllmrec-client",
    version=version,
    description="Recommendations from a model that TF Serving or tfllmrec serves, by REST or gRPC, without TensorFlow",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=["tfllmrec_client", "tfllmrec_client.client"],
    package_data={"tfllmrec_client": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=["urllib3>=2.2,<3", "grpcio>=1.66", "protobuf>=5.28"],
)
