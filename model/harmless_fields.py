"""Fields of a diffusers folder's JSON files that do not change a picture, by file; each group says why.

Those that do are read or checked in `diffusers_config`, which warns of any field that is in neither place.
"""

from __future__ import annotations

TRAINING = (
    "attention_dropout",
    "classifier_dropout",
    "dropout",
    "dropout_rate",
    "finetuning_task",
    "gradient_checkpointing",
    "initializer_factor",
    "initializer_range",
    "problem_type",
    "task_specific_params",
    "tf_legacy_loss",
)
"""Dropout is off in inference, and weights come from the files."""

OUTPUTS = (
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "return_dict",
    "torchscript",
    "use_cache",
    "xla_device",
)
"""What else a forward pass of transformers returns, and how it saves memory."""

NOTES = (
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "name_or_path",
    "num_labels",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_bfloat16",
)
"""Who wrote the file and for which head; a weight's number format is in its file."""

GENERATION = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)
"""Settings for generating text, which an encoder does not."""

DECODER = (
    "cross_attention_hidden_size",
    "is_encoder_decoder",
    "num_decoder_layers",
    "scale_decoder_outputs",
    "tie_encoder_decoder",
    "tie_word_embeddings",
)
"""T5's other half, and its output layer."""

TOKEN_IDS = ("bos_token_id", "pad_token_id", "sep_token_id")
"""The tokenizer's files say which ids it writes."""

TEXT_ENCODER = frozenset(TRAINING + OUTPUTS + NOTES + GENERATION + DECODER + TOKEN_IDS)
"""Of any configuration that transformers 4 or 5 writes for a text encoder."""

CLIP = TEXT_ENCODER | {
    "projection_dim",  # of a layer after the pooled output
}

T5 = TEXT_ENCODER | {
    "eos_token_id",  # the tokenizer's is used
}

TRANSFORMER = frozenset[str]()

AUTOENCODER = frozenset(
    (
        "force_upcast",  # bundles choose the autoencoder's number format themselves
        "latents_mean",  # FLUX's pipelines use scaling_factor and shift_factor only
        "latents_std",
    )
)

SCHEDULER = frozenset[str]()

INDEX = frozenset(
    (
        "feature_extractor",  # only used with an image_encoder
        "requires_safety_checker",
    )
)

TOKENIZER = frozenset(
    (
        "additional_special_tokens",  # these are in tokenizer.json, or sentencepiece's model
        "added_tokens_decoder",
        "extra_ids",
        "extra_special_tokens",
        "model_specific_special_tokens",
        "special_tokens_map_file",
        "add_bos_token",  # the post-processor in tokenizer.json adds them, or that of CLIP or T5
        "add_eos_token",
        "cls_token",
        "mask_token",
        "sep_token",
        "pad_token_id",
        "pad_token_type_id",
        "clean_up_tokenization_spaces",  # only matters when ids become text
        "spaces_between_special_tokens",
        "errors",
        "add_prefix_space",  # settings of the conversion to tokenizer.json
        "legacy",
        "sp_model_kwargs",
        "do_lower_case",  # CLIP's are always lower-cased
        "max_length",  # FLUX's pipelines pass their own
        "pad_to_multiple_of",
        "padding",
        "stride",
        "truncation",
        "truncation_strategy",
        "model_input_names",
        "return_attention_mask",
        "return_tensors",
        "backend",  # notes
        "from_slow",
        "is_local",
        "local_files_only",
        "merges_file",
        "name_or_path",
        "processor_class",
        "tokenizer_class",
        "tokenizer_file",
        "use_fast",
        "vocab_file",
        "chat_template",
    )
)
