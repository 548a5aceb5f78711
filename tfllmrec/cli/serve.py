"""``tfllmrec serve``: serves exported models over TF Serving's REST and gRPC protocols."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfllmrec.cli.arguments import require
from tfllmrec.cli.output import note, say
from tfllmrec.errors import ConfigError

if TYPE_CHECKING:
    from tfllmrec.feedback.exploration import Exploration
    from tfllmrec.server.server import Server

TOKEN_VARIABLE = "TFLLMREC_TOKEN"
#: Each worker needs a pipe to the process of each version, and the system passes at most 253 pipes to a process.
MOST_WORKERS = 64
#: The settings of exploration, and their options.
EXPLORE_OPTIONS = {
    "epsilon": "--explore",
    "max_loss": "--explore-max-loss",
    "places": "--explore-places",
    "tail_exposures": "--explore-tail",
}


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise typer.BadParameter(f"expected a finite number, found {number}.")
    return number


def serve(
    models: Annotated[
        Path,
        typer.Argument(
            metavar="MODELS", help="saved_models/ (all in it), saved_models/NAME, or TF Serving's models.config."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts requests from other machines.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which clients reach this server besides localhost and --host, such as that of a proxy on "
            "this machine (repeatable). If --host is a loopback address or a name is given, REST requests with another "
            "Host or Origin are refused (403), because web pages of other sites can cause them.",
        ),
    ] = None,
    rest_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the REST API; 0 for any free port.")] = 8501,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gRPC API; 0 for any free port.")] = 8500,
    poll_seconds: Annotated[
        float, typer.Option(min=0.05, callback=_finite, help="Seconds between two searches for new versions.")
    ] = 1.0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_WORKERS, help="Number of parallel calls of a model; by default one for each core."
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Maximum number of rows in one call of a model.")] = 64,
    batch_wait_ms: Annotated[
        float,
        typer.Option(
            min=0,
            callback=_finite,
            help="How long a request waits to be joined with others; 0: only while all workers are busy.",
        ),
    ] = 0.0,
    max_queue: Annotated[int, typer.Option(min=1, help="Limit of waiting requests; more are refused (503).")] = 1000,
    max_body_mb: Annotated[
        float,
        typer.Option(min=0.001, callback=_finite, help="Largest body of a request; a larger one is refused (413)."),
    ] = 8.0,
    max_bodies_mb: Annotated[
        float,
        typer.Option(
            min=0.001,
            callback=_finite,
            help="Largest total size of the bodies of all current requests; more are refused (503).",
        ),
    ] = 64.0,
    max_rows: Annotated[
        int, typer.Option(min=1, help="Maximum number of rows in a request; more are refused (400).")
    ] = 10_000,
    timeout_seconds: Annotated[
        float,
        typer.Option(
            min=0.001,
            callback=_finite,
            help="Time limit for a request without a deadline, and for receiving its headers, its body and a TLS "
            "handshake.",
        ),
    ] = 30.0,
    grace_seconds: Annotated[
        float,
        typer.Option(
            min=0, callback=_finite, help="How long running requests may take to finish when the server stops."
        ),
    ] = 30.0,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM). Both protocols then use TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key of the certificate (PEM).")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that each request must have (Authorization: Bearer TOKEN). "
            f"Without it, ${TOKEN_VARIABLE} is used."
        ),
    ] = None,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page",
            help="Show a page at / to try the models in a browser. Default: only if --host is a loopback address "
            "and there is no token.",
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the event log; it is created if it is missing. Clients may send events (POST "
            "/v1/events), and the lists of recommend and search are logged. MODELS may then be an empty folder.",
        ),
    ] = None,
    canary_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the users, such as 0.1, who get the canary if their requests name neither a version nor a "
            "label; the others get the stable version. Default: such requests get the newest version.",
        ),
    ] = None,
    explore: Annotated[
        float | None,
        typer.Option(
            metavar="PROBABILITY",
            help="Explore: each of the last places of a recommended list has a tail item with this probability. The "
            "log has the propensity of each item. Needs --log and --explore-max-loss.",
        ),
    ] = None,
    explore_max_loss: Annotated[
        float | None,
        typer.Option(
            metavar="LOSS",
            help="Largest expected loss of a list by exploration, in the unit of the scores. Where it would be larger, "
            "the probability is lowered.",
        ),
    ] = None,
    explore_places: Annotated[
        int | None, typer.Option(metavar="N", help="Number of last places that are explored; by default 2.")
    ] = None,
    explore_tail: Annotated[
        int | None,
        typer.Option(metavar="N", help="A tail item is in the log at most this many times; by default 100."),
    ] = None,
    allow_reload: Annotated[
        bool,
        typer.Option(
            "--allow-reload",
            help="Clients may choose which models below MODELS are served (gRPC: HandleReloadConfigRequest). With "
            "a token they always may.",
        ),
    ] = False,
) -> None:
    """Serve exported models over REST and gRPC, as TF Serving does.

    Runs until Ctrl-C or SIGTERM, and loads new versions as they appear.

    Loading a SavedModel runs the code in it: serve only models and folders that you trust.

    The ports open when a model is loaded. Other machines cannot reach the server unless --host allows it. This server
    is for a laptop or a small machine. For many clients, TF Serving serves the same folders, and clients need no
    change.
    """
    require(models)
    if canary_share is not None and not 0 < canary_share < 1:
        raise typer.BadParameter(f"--canary-share {canary_share:g}: expected a number above 0 and below 1.")
    token = _token(token_file)
    if page and token:
        raise ConfigError("--page: a browser sends no token, so it would see nothing: leave out one of them.")
    try:
        from tfllmrec.server.engine import Limits
        from tfllmrec.server.server import Settings
        from tfllmrec.server.server import serve as run
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'tfllmrec[serve]'.") from None
    exploration = _exploration(explore, explore_max_loss, explore_places, explore_tail, log)
    limits = Limits(
        body_bytes=int(max_body_mb * 2**20),
        bodies_bytes=int(max_bodies_mb * 2**20),
        rows=max_rows,
        batch_rows=max_batch,
        batch_wait_s=batch_wait_ms / 1000,
        queue=max_queue,
        workers=workers or min(os.cpu_count() or 1, MOST_WORKERS),
        timeout_s=timeout_seconds,
    )
    settings = Settings(
        models,
        host=host,
        allow_hosts=tuple(allow_host or ()),
        rest_port=rest_port,
        grpc_port=grpc_port,
        poll_s=poll_seconds,
        grace_s=grace_seconds,
        certificate=tls_cert,
        key=tls_key,
        token=token,
        page=page,
        allow_reload=allow_reload,
        log=log,
        exploration=exploration,
        canary_share=canary_share,
        limits=limits,
    )
    try:
        run(settings, _say_where)
    except KeyboardInterrupt:
        os._exit(130)


def _exploration(
    epsilon: float | None, max_loss: float | None, places: int | None, tail: int | None, log: Path | None
) -> Exploration | None:
    if epsilon is None:
        if (max_loss, places, tail) != (None, None, None):
            raise typer.BadParameter("--explore-... has no effect without --explore PROBABILITY.")
        return None
    if max_loss is None or log is None:
        raise typer.BadParameter(
            "--explore needs --explore-max-loss, the largest expected loss of a list, and --log, which keeps the "
            "propensities."
        )
    from tfllmrec.feedback.exploration import Exploration

    given: dict[str, Any] = {"epsilon": epsilon, "max_loss": max_loss, "places": places, "tail_exposures": tail}
    try:
        return Exploration(**{name: value for name, value in given.items() if value is not None})
    except ConfigError as error:
        message = str(error)
        for name, option in EXPLORE_OPTIONS.items():
            message = message.replace(f"for {name} of exploration", f"for {option}")
        raise typer.BadParameter(message) from None


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
    # An empty token is a secret that was not set; it must not disable the check.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where}: expected one word of ASCII characters.")
    return token


def _say_where(server: Server) -> None:
    """Prints the addresses, and a command to try them with."""
    settings = server.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    rest = f"{'https' if settings.certificate else 'http'}://{host}:{server.rest_port}"
    if server.has_page:
        say(f"page  {rest}/")
    say(f"REST  {rest}/v1/models/NAME:predict")
    if settings.log is not None:
        say(f"log   {rest}/v1/events -> {settings.log}")
    say(f"gRPC  {host}:{server.grpc_port}")
    for name, numbers in server.loaded().items():
        say(f"model {name}, version {', '.join(map(str, numbers)) or 'none yet'}")
    example = server.example()
    if example:
        name, body = example
        options = f' -H "authorization: Bearer ${TOKEN_VARIABLE}"' if settings.token else ""
        options += f" --cacert {settings.certificate}" if settings.certificate else ""
        say(f"try   curl{options} {rest}/v1/models/{name}:predict -d '{body}'")
    # Without a flush, a pipe or a log file would receive the lines only when the server ends.
    sys.stdout.flush()
    if not any(server.loaded().values()):
        note(
            "no model answers yet: all versions failed to load, or there are none; later ones are served as they appear"
        )
    if not server.local and not settings.token:
        note("other machines can use this server without a token: see --token-file, --tls-cert")
