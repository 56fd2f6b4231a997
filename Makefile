# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up: a virtual environment in .venv, filled again only when the requirements change.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# The public API, which mypy checks.
TYPED := $(addprefix -m speech_tokenizers,"" .auto_registration .conversion.speechtokenizer .coding.loading .cli .coding.file_coding .demo.command \
	.modeling.configuration_rvq_codec .modeling.modeling_rvq_codec .modeling.configuration_dm_codec \
	.modeling.modeling_dm_codec .modeling.codec_interface .modeling.transformers_codecs .modeling.codec_streaming \
	.modeling.unit_streaming .modeling.speech_lm_unit_coding .modeling.hub_export \
	.processing.audio_files .processing.code_files .processing.latent_files .processing.feature_extraction_rvq_codec \
	.processing.feature_extraction_dm_codec \
	.coding.recording_coding .coding.encoding_threads .commands.units_bpe .commands.units_add_f0 .modeling.configuration_units .modeling.unit_model \
	.modeling.configuration_kmeans_units .modeling.modeling_kmeans_units .modeling.configuration_unit_vocoder \
	.modeling.modeling_unit_vocoder .modeling.windowed_encoding .modeling.padding_invariance \
	.modeling.configuration_hubert_masked_prediction .modeling.modeling_hubert_masked_prediction \
	.modeling.configuration_speech_encoder_ctc .modeling.modeling_speech_encoder_ctc \
	.modeling.configuration_cst .modeling.modeling_cst \
	.processing.unit_sequences .processing.unit_vocabulary .processing.unit_bpe .processing.unit_exports \
	.processing.phonemization .processing.feature_extraction_kmeans_units .processing.feature_extraction_cst \
	.modeling.configuration_speech_lm .modeling.modeling_speech_lm .modeling.processing_speech_lm \
	.modeling.speech_lm_clips .modeling.speech_lm_generation .modeling.speech_lm_grids .modeling.speech_lm_ids \
	.modeling.speech_lm_layouts .modeling.speech_lm_requests .modeling.speech_lm_sequences .modeling.speech_lm_tasks \
	.modeling.speech_lm_answers .modeling.speech_lm_task_inputs \
	.modeling.speech_lm_alarms .modeling.speech_lm_pieces .modeling.speech_lm_plans .modeling.speech_lm_streamer \
	.modeling.speech_lm_streaming .modeling.speech_lm_voices \
	.modeling.speech_lm_text .modeling.speech_lm_checks .modeling.speech_lm_frames .modeling.speech_lm_making \
	.modeling.speech_lm_row_frames .modeling.speech_lm_vocabulary .modeling.speech_lm_writers .modeling.audio_logits .modeling.pronunciations \
	.processing.speech_row_format .processing.speech_row_shards .processing.speech_rows .coding.row_coding \
	.coding.corpus.sources .coding.corpus.plan .coding.corpus.places .coding.corpus.step .coding.corpus.engines \
	.coding.corpus.preparation .coding.corpus.verification .coding.corpus.webdataset .commands.encode_corpus \
	.commands.verify_corpus .commands.row_options .coding.speech_lm_loading .coding.served_speech \
	.conversion.causal_lm_checks .conversion.causal_lm_export .conversion.causal_lm_readme .conversion.speech_grammar \
	.training.language_models.lora_settings .training.language_models.speech_lm_adapters \
	.training.studies.lm_token_study .training.studies.lm_token_report \
	.processing.task_manifests .training.studies.token_study.arguments \
	.evaluation.understanding.metrics .evaluation.understanding.probes .evaluation.understanding.ctc_probe \
	.evaluation.understanding.token_facts \
	.commands.ask .evaluation.understanding.answering .evaluation.understanding.command .evaluation.understanding.answer_report \
	.training.studies.token_study.clips .training.studies.token_study.systems .processing.corpus_layouts .commands.make_manifest \
	.training.studies.token_study.cells .training.studies.token_study.probe_level .training.studies.token_study.lm_level \
	.training.studies.token_study.comparison .training.studies.token_study.report \
	.training.studies.token_study.report_tables .training.studies.token_study.report_verdicts \
	.training.studies.token_study.report_analyses .training.studies.token_study.study .training.language_models.speech_lm_losses \
	.training.language_models.recipe_tasks .training.language_models.row_splits .processing.task_splits \
	.training.units.kept_directions .training.units.kept_labels .training.units.kept_frames .training.units.kept_choice \
	.training.units.excerpts .training.units.frame_files .training.units.units_fit \
	.processing.tone_labels .evaluation.understanding.lstm_probe .training.studies.clip_tokens .training.studies.measured_files \
	.training.studies.tone_study.arguments .training.studies.tone_study.syllables .training.studies.tone_study.folds \
	.training.studies.tone_study.frames .training.studies.tone_study.arms .training.studies.tone_study.information \
	.training.studies.tone_study.cells .training.common.shared_work .training.studies.tone_study.comparison .training.studies.tone_study.report \
	.training.studies.tone_study.study \
	.sharing.repository_files .sharing.findings .sharing.file_checks .sharing.code_checks .sharing.model_checks .sharing.card_checks \
	.sharing.repository_check .sharing.sound_examples .sharing.staging .sharing.uploading .sharing.training_card .sharing.load_check \
	.commands.push .commands.check_repo .coding.foreign_settings .training.common.hub_pushes .training.common.hub_trainer \
	.modeling.pitch_frames .modeling.f0_codebook .training.units.f0_fitting \
	.app.recordings .app.models .app.speech .app.pictures .app.page_files .app.cards .app.results .app.page .app.space .app.command)
# On a few shared cores, tiny models are faster on one thread than on several that wait for each other.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test test-slow test-gpu style quality results dist clean

help:
	@echo "make demo       encode and decode a recording; writes demo/"
	@echo "make test       the tests that need no GPU and little time"
	@echo "make test-slow  the others that need no GPU"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make style      format the code;  make quality  check format, lint and types"
	@echo "make results    write the tables of README.md and docs/ from docs/results.json"
	@echo "make dist       build wheel and sdist into dist/"
	@echo "make clean      remove .venv and what was built"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# A set-up target of its own, so that a demo does not install the test tools.
$(VENV)/installed-demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -e $(INSTALLED) || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

demo: $(VENV)/installed-demo
	$(BIN)/python -m speech_tokenizers demo --output demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope -m "not slow and not gpu"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "slow and not gpu"

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -q -m gpu

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy finds packages by their place, not by setuptools' mapping: show it the installed layout.
	rm -rf $(VENV)/types && mkdir -p $(VENV)/types/speech_tokenizers
	ln -s $(abspath $(wildcard src/speech_tokenizers/*) modeling processing training evaluation model_cards) $(VENV)/types/speech_tokenizers
	MYPYPATH=$(VENV)/types $(BIN)/mypy $(TYPED)

results:
	$(PYTHON) docs/fill_results.py

dist: $(INSTALLED)
	$(BIN)/python -m build
	$(BIN)/python -m build --wheel --outdir dist model_cards

clean:
	rm -rf $(VENV) build dist demo *.egg-info model_cards/build model_cards/*.egg-info
