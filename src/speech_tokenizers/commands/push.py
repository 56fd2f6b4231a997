# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers push`: a model on the Hub, with its code, its card and sound examples."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from speech_tokenizers.commands.frame import UsageError, one_line, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="name or folder of a model, or a Hub id")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository on the Hub, NAMESPACE/NAME; created if absent")
    parser.add_argument("--private", action="store_true", help="only you may see a repository that is created")
    parser.add_argument("--revision", help="branch to push to; created if absent (default: the main branch)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument(
        "--without-code",
        action="store_true",
        help="leave the code out: the model then loads only where this package is installed",
    )
    parser.add_argument("--card", type=Path, metavar="FILE", help="card to upload (default: the model's own)")
    parser.add_argument("--licence", help="the Hub's name of the weights' licence, such as apache-2.0")
    parser.add_argument(
        "--codec",
        metavar="REPO_ID",
        help="repository of the codec that a speech language model writes for, for its configuration",
    )
    parser.add_argument(
        "--samples",
        type=Path,
        nargs="+",
        default=[],
        metavar="AUDIO",
        help="recordings for sound examples (default: the one that comes with the package)",
    )
    parser.add_argument("--no-samples", action="store_true", help="leave sound examples out")
    parser.add_argument(
        "--stage",
        type=Path,
        metavar="FOLDER",
        help="write what would be uploaded into this folder, and upload nothing",
    )
    parser.add_argument("--token", help="access token of the Hub (default: HF_TOKEN, or the one of `hf auth login`)")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from transformers.utils import logging

    from speech_tokenizers.processing.whole_files import whole_folder
    from speech_tokenizers.sharing.staging import load_shared

    _check(args)
    logging.disable_progress_bar()
    try:
        shared = load_shared(args.model, **({} if args.token is None else {"token": args.token}))
    except (ValueError, OSError) as error:
        raise UsageError(f"the model cannot be loaded: {one_line(error)}") from error
    if args.stage is not None:
        with whole_folder(args.stage) as folder:
            _stage(args, shared, args.repo_id, folder)
            _check_staged(folder, args.repo_id)
        print(f"{args.stage}: what would be uploaded to {args.repo_id}")
        return 0
    return _upload(args, shared)


def _check(args: argparse.Namespace) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(args.repo_id)
    except HFValidationError as error:
        raise UsageError(f"REPO_ID {args.repo_id}: is no Hub id; write NAMESPACE/NAME") from error
    if args.create_pr and args.revision is not None:
        raise UsageError("--create-pr opens a pull request against the main branch; leave out --revision")
    if args.no_samples and args.samples:
        raise UsageError("--samples and --no-samples contradict each other; leave one out")
    for path in [*args.samples, *([args.card] if args.card else [])]:
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file")
    if args.stage is not None and args.stage.exists() and (not args.stage.is_dir() or any(args.stage.iterdir())):
        raise UsageError(f"--stage {args.stage} exists; name a new folder")


def _upload(args: argparse.Namespace, shared: Any) -> int:
    from huggingface_hub import HfApi

    from speech_tokenizers.modeling.hub_export import card_of
    from speech_tokenizers.sharing.uploading import prepare_repository, told_plainly, upload

    api = HfApi(token=args.token)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, args.repo_id.split("/")[-1])
        _stage(args, shared, args.repo_id, folder)
        _check_staged(folder, args.repo_id)
        # Only now: what is refused here leaves no empty repository behind.
        repo_id = prepare_repository(
            api, args.repo_id, private=args.private or None, revision=args.revision, create_pr=args.create_pr
        )
        if args.codec is not None:
            with told_plainly(args.codec):
                if not api.repo_exists(args.codec):
                    say(f"push: warning: {args.codec} is not on the Hub yet; push the codec there, too")
        options: dict[str, Any] = {"revision": args.revision, "create_pr": args.create_pr or None}
        if args.card is None and card_of(shared.model) is None:
            with told_plainly(repo_id):
                there = api.file_exists(repo_id, "README.md", revision=args.revision)
            if there:
                # Somebody wrote it, perhaps with numbers, which a short one has not.
                say("push: the repository's README.md is kept; --card FILE replaces it")
                options["ignore_patterns"] = ["README.md"]
        files = [path for path in folder.rglob("*") if path.is_file()]
        commit = upload(api, folder, repo_id, f"Upload {type(shared.model).__name__}", **options)
        size = sum(path.stat().st_size for path in files) / 1e6
    print(f"{commit.pr_url or commit.commit_url}: {len(files)} files, {size:.1f} MB")
    at = f", revision={args.revision!r}" if args.revision else ""
    trust = "" if args.without_code else ", trust_remote_code=True"
    print(f'load it: AutoModel.from_pretrained("{repo_id}"{at}{trust})')
    if hasattr(shared.model, "generate_speech"):
        _tell_of_codec(args, shared.model, repo_id)
    return 0


def _stage(args: argparse.Namespace, shared: Any, repo_id: str, folder: Path) -> None:
    from speech_tokenizers.coding.loading import load
    from speech_tokenizers.sharing.staging import add_sounds, stage

    codec_name = getattr(shared.model.config, "codec_name", None)
    try:
        stage(
            shared,
            folder,
            repo_id,
            with_code=not args.without_code,
            card=args.card,
            licence=args.licence,
            codec=args.codec,
        )
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    if args.no_samples:
        return
    is_speech_lm = hasattr(shared.model, "generate_speech")
    if is_speech_lm and args.samples:
        raise UsageError("--samples are recordings for a codec; a speech language model says a sentence instead")
    try:
        codec = load(codec_name)[0] if is_speech_lm else None
        examples = add_sounds(shared, folder, repo_id, args.revision, args.samples, codec)
    except (ValueError, OSError) as error:
        if args.samples:
            raise UsageError(f"--samples: {one_line(error)}") from error
        say(f"push: there are no sound examples: {one_line(error)}")
        return
    if not examples.files:
        say(f"push: there are no sound examples: a {type(shared.model).__name__} alone gives out no speech")


def _check_staged(folder: Path, repo_id: str) -> None:
    from speech_tokenizers.sharing.findings import errors_of
    from speech_tokenizers.sharing.repository_check import check_repository
    from speech_tokenizers.sharing.repository_files import FolderFiles

    findings = check_repository(FolderFiles(folder, repo_id))
    for finding in findings:
        say(str(finding))
    if errors := errors_of(findings):
        raise UsageError(f"{len(errors)} errors were found, so nothing was uploaded; mend them and push again")


def _tell_of_codec(args: argparse.Namespace, model: Any, repo_id: str) -> None:
    name = model.config.codec_name or "CODEC"
    if args.codec is not None:
        print(f"its codec is a repository of its own, {args.codec}; `speech-tokenizers push` puts that there, too")
        return
    namespace = repo_id.split("/")[0]
    print(
        f"its codec, {name}, is a repository of its own: `speech-tokenizers push {name} {namespace}/CODEC`, then push"
        f" this again with `--codec {namespace}/CODEC`, so that the model names it"
    )
