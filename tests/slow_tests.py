"""What ``make test`` leaves out and ``make test-all`` runs: tests that take long, where others keep README's promises.

A file, or a file and a test's name without its parameters. Tests with the mark ``browser`` are slow, too.
"""

SLOW = {
    "test_app_browser.py",
    "benchmarks/test_hostile.py::test_tampered_folders_answer_or_are_refused_and_code_that_runs_is_noticed",
    "benchmarks/test_latency.py::test_a_run_times_every_format_of_the_export_beside_eager_and_the_peer",
    "benchmarks/test_shortcut.py::test_a_blind_classifier_tells_two_collections_apart_by_their_borders",
    "benchmarks/test_shortcut.py::test_a_run_writes_figures_without_paths_and_takes_up_what_it_kept",
    "data/test_br35h.py::test_training_with_them_measures_them_and_external_alone_is_no_protocol_to_train",
    "federated/test_federate_command.py::test_a_simulation_needs_no_network_and_leaves_no_process",
    "federated/test_federate_command.py::test_no_hospital_left_ends_with_1_and_one_line",
    "federated/test_federate_command.py::test_two_supernodes_with_tls_and_keys_reach_the_weights_of_the_simulation",
    "federated/test_federate_command.py::test_a_hospital_killed_in_the_middle_of_a_round_is_named_and_the_other_goes_on",
    "federated/test_rounds.py",
    "hub/test_hub_end_to_end.py",
    "hub/test_publish.py::test_a_registered_version_is_found_by_name_at_its_commit_and_then_without_the_hub",
    "hub/test_publish.py::test_a_training_that_pushes_ends_in_the_same_files_and_card",
    "hub/test_publish.py::test_two_versions_are_loaded_at_their_tags_and_then_from_the_cache_without_the_hub",
    "test_train_command.py::test_a_finished_run_is_not_overwritten",
    "test_train_command.py::test_two_processes_train_under_accelerate",
    "training/test_trainer.py::test_two_processes_train_as_one_does",
    "training/test_trainer.py::test_two_processes_and_accumulation_together_train_as_one_does",
    "hub/test_publish_space.py::test_an_app_that_does_not_start_is_not_sent",
    "hub/test_publish_space.py::test_an_app_that_starts_and_then_gives_no_prediction_is_refused_with_the_end_of_its_log",
    "hub/test_publish_space.py::test_a_check_that_is_stopped_leaves_no_app_and_no_folder",
    "images/test_formats.py::test_hostile_files_end_in_a_line_within_little_time_and_memory",
    "inference/test_run_litert.py::test_an_export_answers_as_pytorch_does_and_int8_is_close_and_small",
    "clinical/test_docs.py::test_the_screen_that_is_copied_and_pasted_ends_with_an_answer",
    "clinical/test_killed_node.py",
    "clinical/test_node_command.py::test_no_identifier_is_in_the_log_an_error_or_a_file_name_and_a_pacs_that_is_off_is_waited_for",
    "clinical/test_real_series.py",
    "clinical/test_node_orthanc.py",
    "inference/test_volume_size.py",
    "web/test_transformers_js.py",
    "web/test_web.py",
}
