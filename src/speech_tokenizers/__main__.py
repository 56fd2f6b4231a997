# SPDX-License-Identifier: Apache-2.0
"""`python -m speech_tokenizers` is the command `speech-tokenizers`."""

import sys

from speech_tokenizers.cli import main


sys.exit(main())
