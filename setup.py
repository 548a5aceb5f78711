from pathlib import Path

from setuptools import find_packages, setup

version = next(
    line.split('"')[1]
    for line in Path("tfllmrec/version.py").read_text().splitlines()
    if line.startswith("__version__")
)

# TensorFlow and packages compiled against it are updated together; CONTRIBUTING.md explains what each package is for.
REQUIRES = [
    "tensorflow>=2.20,<2.21",
    "tf-keras>=2.20,<2.21",
    "tensorflow-text>=2.20,<2.21",
    "tensorflow-hub>=0.16.1,<0.17",
    "tensorflow-recommenders>=0.7.7,<0.8",
    "tensorboard>=2.20,<2.21",
    # tensorflow-hub and tensorboard import pkg_resources, which newer setuptools warn about and then no longer contain.
    "setuptools<81",
    "numpy>=2.0",
    "pandas>=3.0,<4",
    "pyarrow>=20",
    "scipy>=1.14",
    "safetensors>=0.4",
    "pydantic>=2.9,<3",
    "pyyaml>=6.0",
    "typer>=0.16,<1",
    "rich>=13.8",
    "packaging>=23",
]
TUNE = ["optuna>=5,<6"]
FEATURES = ["scikit-learn>=1.6,<2"]
REPORT = [*FEATURES, "matplotlib>=3.10,<4", "jinja2>=3.1,<4"]
SERVE = [
    "tensorflow-serving-api>=2.20,<2.21",
    "grpcio>=1.66",
    "starlette>=0.40",
    "uvicorn>=0.30",
    "httptools>=0.6",
    "uvloop>=0.20; sys_platform != 'win32'",
    "prometheus-client>=0.24",
]
MONITOR = ["river>=0.26.1,<0.27"]
NOTEBOOKS = [*REPORT, *SERVE, "ipykernel>=6.29", "nbclient>=0.10,<1"]
SCANN = "scann==1.4.2"
DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2", "nbconvert>=7.16,<8"]
TEST = [
    *TUNE,
    *FEATURES,
    *MONITOR,
    *NOTEBOOKS,
    f"{SCANN}; sys_platform == 'linux' and platform_machine == 'x86_64'",  # other systems have no wheels
    "httpx>=0.27",
    "pyversity>=0.2,<0.3",
    "statsmodels>=0.15,<1",
    "ovmsclient==2023.1",
    "urllib3>=2.2,<3",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff==0.17.6",
    "mypy==2.4.1",
    "pandas-stubs",
    "scipy-stubs",
    "types-PyYAML",
]

setup(
    name="tfllmrec",
    version=version,
    description="Recommenders that read: text-tower recommendation on TensorFlow, Keras and TensorFlow Recommenders",
    long_description=Path("README.md").read_text() if Path("README.md").is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tfllmrec", "tfllmrec.*"]),
    package_data={
        "tfllmrec": ["py.typed"],
        "tfllmrec.explain": ["templates/*"],
        "tfllmrec.server": ["page/*"],
        "tfllmrec.serving.rules": ["rules.bin"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=REQUIRES,
    extras_require={
        "test": TEST,
        "tune": TUNE,
        "features": FEATURES,
        "report": REPORT,
        "serve": SERVE,
        "monitor": MONITOR,
        "notebooks": NOTEBOOKS,
        "scann": [SCANN],
        "docs": DOCS,
    },
    entry_points={"console_scripts": ["tfllmrec = tfllmrec.cli.app:main"]},
)
