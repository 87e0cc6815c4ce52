"""Keys of `config.json` that say nothing about what a network computes."""

# Any key that is neither here nor known to the family is refused: to ignore a key that matters would give a subtly
# different model.
_METADATA = """
_commit_hash _from_model_config _name_or_path architectures model_type transformers_version dtype torch_dtype
initializer_range use_cache is_decoder return_dict output_attentions output_hidden_states output_scores
return_dict_in_generate torchscript chunk_size_feed_forward bos_token_id eos_token_id pad_token_id sep_token_id
unk_token_id decoder_start_token_id tokenizer_class prefix id2label label2id num_labels problem_type
finetuning_task task_specific_params max_length min_length do_sample early_stopping num_beams num_beam_groups
diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
unsloth_fixed unsloth_version
"""

METADATA = frozenset(_METADATA.split())
