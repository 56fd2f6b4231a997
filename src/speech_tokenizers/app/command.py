# SPDX-License-Identifier: Apache-2.0
"""Show a page on which models are tried in a browser, or write the files of a Space that does: `app`."""

import argparse
from pathlib import Path

from speech_tokenizers.coding.command_options import add_device_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="checkpoint name, folder or Hub id to offer; may be given several times (default: all of this"
        " installation)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines see the page"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=None,
        help="port to listen at; 0 takes any free one (default: the first free one from 7860)",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    parser.add_argument(
        "--write-space",
        type=Path,
        metavar="FOLDER",
        default=None,
        help="write app.py, requirements.txt and README.md of a Space of the Hub, and show nothing",
    )
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted, or write the files of a Space; returns the exit code."""
    from speech_tokenizers.app.page import check_gradio, serve

    if args.write_space is not None:
        from speech_tokenizers.app.space import write_space

        print("\n".join(map(str, write_space(args.write_space, args.model))))
        return 0
    from speech_tokenizers.commands.frame import UsageError

    if args.port is not None and not 0 <= args.port < 65536:
        raise UsageError(f"--port must lie between 0 and 65535, but is {args.port}")
    check_gradio()

    from tqdm import tqdm
    from transformers.utils import logging

    from speech_tokenizers.app.models import load_models

    logging.disable_progress_bar()
    with tqdm(desc="loading", unit=" models", leave=False) as bar:

        def on_progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        shelf = load_models(args.model, args.device, on_progress)
    serve(shelf, args.host, args.port, open_browser=not args.no_browser)
    return 0
