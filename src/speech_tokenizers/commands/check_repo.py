# SPDX-License-Identifier: Apache-2.0
"""`speech-tokenizers check-repo`: what a stranger would miss in a folder or a repository of the Hub."""

import argparse
import json

from speech_tokenizers.commands.frame import UsageError, one_line, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("repository", metavar="FOLDER|ID", help="folder of a saved model, checkpoint name, or Hub id")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub (default: the main branch)")
    parser.add_argument("--token", help="access token of the Hub (default: HF_TOKEN, or the one of `hf auth login`)")
    parser.add_argument(
        "--load",
        action="store_true",
        help="load it as a stranger would, and code a second of sound; THIS RUNS ITS CODE, so trust it first",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from speech_tokenizers.sharing.findings import errors_of, read_json
    from speech_tokenizers.sharing.load_check import load_as_stranger
    from speech_tokenizers.sharing.repository_check import check_repository, open_repository

    try:
        files = open_repository(args.repository, args.revision, args.token)
    except (ValueError, OSError) as error:
        raise UsageError(one_line(error)) from error
    size = sum(entry.size for entry in files.entries.values())
    findings = check_repository(files)
    loaded = ""
    if args.load:
        if errors_of(findings):
            say("check-repo: it is not loaded, since there are errors")
        else:
            loaded, more = load_as_stranger(files, read_json(files, "config.json", []) or {})
            findings += more
    errors = errors_of(findings)
    if args.json:
        report = {
            "repository": files.name,
            "revision": files.revision,
            "num_files": len(files.entries),
            "num_bytes": size,
            "loaded": loaded or None,
            "findings": [finding._asdict() for finding in findings],
        }
        print(json.dumps(report, indent=2))
        return 1 if errors else 0
    run = "their code was run" if loaded else "nothing in them was run"
    commit = f" at {files.revision[:12]}" if files.revision else ""
    print(f"{files.name}{commit}: {len(files.entries)} files, {size / 1e6:.1f} MB; {run}")
    for finding in findings:
        print(finding)
    if loaded:
        print(loaded)
    print(f"{len(errors)} errors, {len(findings) - len(errors)} warnings")
    return 1 if errors else 0
