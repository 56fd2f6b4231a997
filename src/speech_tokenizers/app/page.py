# SPDX-License-Identifier: Apache-2.0
"""The page itself, in Gradio, and the server of it."""

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

from speech_tokenizers.app.looks import CSS, SCRIPT
from speech_tokenizers.app.models import ModelShelf
from speech_tokenizers.app.page_files import PageFiles
from speech_tokenizers.app.recordings import MAX_SECONDS
from speech_tokenizers.app.results import Results
from speech_tokenizers.app.speech import MAX_CHARACTERS
from speech_tokenizers.commands.frame import environment
from speech_tokenizers.processing.optional_packages import require_package


_TITLE = "speech-tokenizers"
_SENTENCE = "The valley was deep, and the river ran slowly to the sea."
_EXAMPLE = "sense_and_sensibility.flac"
# A minute of audio at 192 kHz in stereo and 32 bits has less.
_MAX_UPLOAD = "200mb"
_AT_A_TIME = 2
_FIRST_PORT, _LAST_PORT = 7860, 7959


def check_gradio() -> None:
    """Raises `MissingPackageError` where Gradio is not installed."""
    require_package("gradio", "The page", command="pip install 'speech-tokenizers[app]'")


def build_page(shelf: ModelShelf, files: PageFiles) -> Any:
    """
    The page of some models.

    Args:
        shelf ([`ModelShelf`]): The models that it offers.
        files ([`PageFiles`]): Where its sounds and pictures lie.

    Returns:
        `gradio.Blocks`: The page, with the endpoints `/codec`, `/units`, `/compare` and `/say`.

    Raises:
        MissingPackageError: If Gradio is not installed.
    """
    check_gradio()
    import gradio as gr

    results = Results(shelf, files)
    with gr.Blocks(title=_TITLE, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{_TITLE}</h1><p>Hear what is left of speech when it becomes tokens.</p>", elem_classes="st-head")
        with gr.Row(equal_height=False):
            recording = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                interactive=True,
                label=f"Your recording, up to {MAX_SECONDS:g} s",
                elem_id="st-recording",
                buttons=[],
                scale=4,
            )
            example = gr.Button("Take the example", elem_id="st-example", scale=1, min_width=160)
        example.click(lambda: _example(files), None, recording, api_visibility="private")

        with gr.Tab("Codec", elem_id="st-tab-codec"):
            _tab(gr, "codec", "Code and decode", results.codec, recording, shelf.codecs, "a codec")
        with gr.Tab("Units", elem_id="st-tab-units"):
            _tab(gr, "units", "Find the units", results.units, recording, shelf.units, "units of one codebook")
        with gr.Tab("Compare", elem_id="st-tab-compare"):
            _tab(gr, "compare", "Compare", results.compare, recording, shelf.speaking, "a model that decodes", True)
        with gr.Tab("Say", elem_id="st-tab-say"):
            if shelf.voices:
                text = gr.Textbox(
                    _SENTENCE, label="Sentence", lines=2, max_length=MAX_CHARACTERS, elem_id="st-sentence"
                )
                _tab(gr, "say", "Say it", results.say, text, shelf.voices, "a voice")
            else:
                gr.HTML(_missing("a voice"))
    return page


def _tab(
    gr: Any,
    name: str,
    action: str,
    answer: Callable[..., str],
    given: Any,
    models: list[str],
    needed: str,
    several: bool = False,
) -> None:
    if not models:
        gr.HTML(_missing(needed))
        return
    with gr.Row(equal_height=False):
        choice = gr.Dropdown(
            models,
            value=models[:3] if several else models[0],
            multiselect=several,
            label="Voice" if name == "say" else "Checkpoints" if several else "Checkpoint",
            elem_id=f"st-{name}-model",
            scale=4,
        )
        button = gr.Button(action, variant="primary", elem_id=f"st-{name}-run", scale=1, min_width=160)
    shown = gr.HTML(elem_id=f"st-{name}-out", elem_classes="st-out", min_height=80)
    asked = [button.click, given.submit] if name == "say" else [button.click]
    gr.on(asked, answer, [given, choice], shown, api_name=name, concurrency_limit=_AT_A_TIME)


def _missing(needed: str) -> str:
    from speech_tokenizers.app.cards import note

    return note(
        f"This page has no model of that kind ({needed}). `pip install speech-tokenizers-checkpoints` brings more"
        " checkpoints and two voices; `speech-tokenizers app --model NAME` offers one of yours."
    )


def _example(files: PageFiles) -> str:
    # A copy, since the page serves files of its own folder alone.
    path = files.uploads / _EXAMPLE
    recording = resources.files("speech_tokenizers").joinpath("recordings", _EXAMPLE)
    if not path.exists():
        with resources.as_file(recording) as packaged:
            shutil.copyfile(packaged, path)
    return str(path)


@contextlib.contextmanager
def served(shelf: ModelShelf, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """
    Serve a page of some models as long as the context lasts; its end removes all files of the page.

    Args:
        shelf ([`ModelShelf`]): The models that it offers.
        host (`str`, *optional*, defaults to `"127.0.0.1"`): Address to listen at. The default is reached from this
            machine alone, `"0.0.0.0"` from all.
        port (`int`, *optional*): Port to listen at; 0 for any that is free. Defaults to the first free one from 7860.

    Yields:
        `str`: Address of the page.

    Raises:
        MissingPackageError: If Gradio is not installed.
        ValueError: If the port is taken, or the address is none of this machine.
    """
    check_gradio()
    with PageFiles() as files, environment(GRADIO_TEMP_DIR=str(files.uploads), GRADIO_ANALYTICS_ENABLED="False"):
        import gradio as gr

        page = build_page(shelf, files)
        page.queue(default_concurrency_limit=_AT_A_TIME)
        try:
            page.launch(
                server_name=host,
                server_port=_free_port(host, port),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                allowed_paths=[str(files.shown)],
                max_file_size=_MAX_UPLOAD,
                css=CSS,
                head=SCRIPT,
                theme=_theme(gr),
            )
            yield page.local_url
        finally:
            page.close(verbose=False)


def serve(shelf: ModelShelf, host: str = "127.0.0.1", port: int | None = None, open_browser: bool = False) -> None:
    """
    Serve a page until the process is interrupted, and print its address.

    Args:
        shelf, host, port: See [`served`].
        open_browser (`bool`, *optional*, defaults to `False`): Whether to open the page in a browser.
    """
    with served(shelf, host, port) as address:
        print(f"The page is at {address} (Ctrl-C ends it).", flush=True)
        if open_browser:
            import webbrowser

            webbrowser.open(address)
        threading.Event().wait()


def _theme(gr: Any) -> Any:
    # Fonts of the system: others would be fetched from a server.
    return gr.themes.Default(
        primary_hue="orange",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def _free_port(host: str, port: int | None) -> int:
    # Gradio does not tell which port 0 became.
    ports = range(_FIRST_PORT, _LAST_PORT + 1) if port is None else [port]
    reason = ""
    for candidate in ports:
        try:
            family = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0][0]
            with socket.socket(family) as probe:
                # As the server does: connections that have just ended keep no port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, candidate))
                return probe.getsockname()[1]
        except OSError as error:
            reason = error.strerror or str(error)
    raise ValueError(
        f"`port` {port if port is not None else f'{_FIRST_PORT} to {_LAST_PORT}'} cannot be used at {host} ({reason});"
        " choose another, or 0 for any that is free."
    )
