"""``tfllmrec serve``: exported models behind TF Serving's REST and gRPC protocols."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfllmrec.cli.arguments import require
from tfllmrec.cli.output import note, say
from tfllmrec.errors import ConfigError

if TYPE_CHECKING:
    from tfllmrec.serving.embedded.server import Server

TOKEN_VARIABLE = "TFLLMREC_TOKEN"


def serve(
    models: Annotated[
        Path,
        typer.Argument(
            metavar="MODELS", help="saved_models/ (all in it), saved_models/NAME, or TF Serving's models.config."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    rest_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8501,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8500,
    poll_seconds: Annotated[float, typer.Option(min=0.05, help="Between looks for new versions.")] = 1.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Calls of models at the same time; as many as cores.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows that are joined into one call of a model.")] = 64,
    batch_wait_ms: Annotated[
        float, typer.Option(min=0, help="A request waits so long for others to be joined with; 0: while all are busy.")
    ] = 0.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused (503).")] = 1000,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Of a request; more is refused (413).")] = 8.0,
    timeout_seconds: Annotated[float, typer.Option(min=0.001, help="For a request that brings no deadline.")] = 30.0,
    grace_seconds: Annotated[float, typer.Option(min=0, help="To finish what runs when told to stop.")] = 30.0,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM): both protocols speak TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"Holds the token that each request must bring (Authorization: Bearer TOKEN); or ${TOKEN_VARIABLE}."
        ),
    ] = None,
) -> None:
    """Serve exported models as TF Serving does: REST and gRPC, new versions as they appear, until Ctrl-C or SIGTERM.

    Nobody from other machines is let in unless --host says so. For a laptop and a small box: TF Serving serves the same
    folders to many, and clients need no change.
    """
    require(models)
    token = _token(token_file)
    try:
        from tfllmrec.serving.embedded.engine import Limits
        from tfllmrec.serving.embedded.server import Settings
        from tfllmrec.serving.embedded.server import serve as run
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'tfllmrec[serve]'.") from None
    limits = Limits(
        body_bytes=int(max_body_mb * 2**20),
        batch_rows=max_batch,
        batch_wait_s=batch_wait_ms / 1000,
        queue=max_queue,
        workers=workers or os.cpu_count() or 1,
        timeout_s=timeout_seconds,
    )
    settings = Settings(
        models,
        host=host,
        rest_port=rest_port,
        grpc_port=grpc_port,
        poll_s=poll_seconds,
        grace_s=grace_seconds,
        certificate=tls_cert,
        key=tls_key,
        token=token,
        limits=limits,
    )
    # Of a load nothing is to be saved, and waiting for it may take longer than who stops us waits.
    try:
        if run(settings, _say_where):
            os._exit(0)
    except KeyboardInterrupt:
        os._exit(130)


def _token(file: Path | None) -> str | None:
    if file is None:
        where, token = f"${TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE)
        if token is None:
            return None
    else:
        where = f"--token-file {file}"
        try:
            token = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read: {error}.") from None
    # An empty one is a secret that was not filled in, not an open door.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: expected one word of ASCII characters.")
    return token


def _say_where(server: Server) -> None:
    """The addresses, and a line to try them with."""
    settings = server.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    rest = f"{'https' if settings.certificate else 'http'}://{host}:{server.rest_port}"
    say(f"REST  {rest}/v1/models/NAME:predict")
    say(f"gRPC  {host}:{server.grpc_port}")
    for name, numbers in server.loaded().items():
        say(f"model {name}, version {', '.join(map(str, numbers)) or 'none yet'}")
    example = server.example()
    if example:
        name, body = example
        options = f' -H "authorization: Bearer ${TOKEN_VARIABLE}"' if settings.token else ""
        options += f" --cacert {settings.certificate}" if settings.certificate else ""
        say(f"try   curl{options} {rest}/v1/models/{name}:predict -d '{body}'")
    else:
        note(f"no model answers yet: expected version folders such as {settings.path}/NAME/1; they are looked for")
    if not server.local and not settings.token:
        note("other machines are let in, and asked for no token: see --token-file, --tls-cert")
