"""``python -m previous``: the API process of before the migration, with torch and the models in it, on one port."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh.errors import ModelUnusable
from previous.settings import DEFAULT_CONFIG, ConfigurationError, ModelSection, PreviousSettings

SERVICES = ("embedding", "reranking", "chunking", "gpu")
_EX_CONFIG = 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until ended. Returns 78 where settings or models cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m previous", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"settings of before ({DEFAULT_CONFIG})")
    parser.add_argument("--model", default="", metavar="NAME", help="embedding model, above the file's")
    parser.add_argument("--only", action="append", choices=SERVICES, default=[], help="serve this; may be repeated")
    options = parser.parse_args(arguments)
    try:
        settings = PreviousSettings.load(options.config, os.environ)
        if options.model:
            section = ModelSection(gpu_enabled=settings.embedding.gpu_enabled, model_name=options.model)
            settings = settings.model_copy(update={"embedding": section})
        _serve(settings, frozenset(options.only or SERVICES), host=options.host, port=options.port)
    except (ConfigurationError, ModelUnusable) as error:
        print(error, file=sys.stderr)
        return _EX_CONFIG
    return 0


def _serve(settings: PreviousSettings, wanted: frozenset[str], *, host: str, port: int) -> None:
    import uvicorn

    from previous.api import create_app, load_services

    app = create_app(load_services(settings, wanted))
    uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    raise SystemExit(main())
