"""What servers and agents of Procstar must do for each other, line by line, and the tests that show it.

The lists are those of the protocol's description: what a compatible server does, the traps in its way,
and what a compatible agent does. Each line has a row here, in the order of its list, with the tests that
prove it; a row whose test is gone fails.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Rows = list[tuple[str, list[str]]]

SERVER: Rows = [
    (
        "TLS under the host's name, the usual port, any path",
        [
            "test_agent_server::test_agents_connect_by_tls_and_a_renewed_certificate_is_used",
            "test_agent_life::test_tls_trusts_the_servers_own_certificate_and_checks_its_name",
            "test_agent_server::test_other_hosts_may_connect_only_with_certificate_and_token",
            "test_sockets::test_path_headers_and_peer_are_kept",
            "test_config::test_defaults_are_as_documented",
            "test_agent_versions::test_openssl_s_client_is_served_and_sees_a_certificate_renewed_by_sighup",
        ],
    ),
    (
        "an upgrade that negotiates nothing",
        [
            "test_sockets::test_the_answer_has_connection_upgrade_alone_and_negotiates_nothing",
            "test_agent_versions::test_programs_run_and_end_as_they_should",
        ],
    ),
    (
        "messages: any size in, bounded out, binary",
        [
            "test_faults::test_a_message_of_300_megabytes_is_stored_while_others_are_served",
            "test_procstar::test_what_would_end_an_agent_is_not_sent",
            "test_agent_server::test_text_ends_the_connection_and_nothing_else",
        ],
    ),
    (
        "registration: checked, refused late and with 1000, in time both ways",
        [
            "test_agent_server::test_whoever_is_refused_is_told_nothing_before_the_close",
            "test_agent_server::test_a_refused_agent_is_kept_for_a_while_before_it_may_try_again",
            "test_agent_server::test_who_does_not_register_in_time_is_closed",
            "test_agent_server::test_an_agent_that_says_nothing_after_connecting_delays_no_other",
            "test_agent_server::test_an_agent_whose_older_connection_is_stuck_is_answered_in_time",
        ],
    ),
    (
        "silence before Registered, pings after it, pongs in any number",
        [
            "test_agent_server::test_nothing_precedes_registered_and_nothing_but_messages_and_pings_follows",
            "test_agent_server::test_a_silent_agent_is_dropped_and_one_that_answers_pings_is_not",
            "test_agent_server::test_pongs_come_late_twice_or_for_no_ping",
        ],
    ),
    (
        "the newest connection wins, and is what is shown",
        ["test_agent_server::test_the_newest_connection_of_a_conn_id_wins_and_its_facts_are_shown"],
    ),
    (
        "every process that an agent lists is asked about",
        [
            "test_agent_server::test_a_finished_process_that_no_run_knows_is_deleted_only_after_all_runs"
            "_are_restored",
            "test_procstar::test_after_a_restart_output_goes_on_where_the_store_ends",
        ],
    ),
    (
        "requests have exactly their fields",
        [
            "test_wire::test_each_message_is_what_the_protocol_says_in_both_directions",
            "test_wire::test_what_agents_would_drop_in_silence_is_never_sent",
            "test_agent_versions::test_programs_run_and_end_as_they_should",
            "test_procstar::test_nothing_is_sent_before_the_choice_of_agent_is_committed",
            "test_procstar::test_a_sudo_user_and_a_memory_limit_are_in_the_specification",
        ],
    ),
    (
        "specifications that can be meant",
        [
            "test_programs::test_mistakes_are_named_with_their_keys",
            "test_programs::test_what_templates_make_is_checked_when_a_run_is_made",
            "test_procstar::test_nothing_is_sent_before_the_choice_of_agent_is_committed",
            "test_procstar::test_a_program_without_a_slash_that_is_not_found_gets_a_hint",
        ],
    ),
    (
        "one start a request, awaited for so long, answered by any result",
        [
            "test_procstar::test_nothing_is_sent_before_the_choice_of_agent_is_committed",
            "test_procstar::test_an_answer_that_comes_before_the_start_has_returned_is_taken",
            "test_procstar::test_a_start_that_the_agent_drops_in_silence_is_asked_about_and_becomes_an_error",
            "test_procstar::test_verdicts",
        ],
    ),
    (
        "messages go to whom they concern, or nowhere; one verdict",
        [
            "test_agent_server::test_what_is_said_about_a_process_reaches_its_watcher_and_nobody_else",
            "test_agent_server::test_fields_and_processes_that_are_not_known_cost_nothing",
            "test_agent_malice::test_an_agent_that_breaks_every_rule_costs_nobody_else_anything",
            "test_procstar::test_verdicts",
        ],
    ),
    (
        "output, from the first byte to the deletion of the record",
        [
            "test_procstar::test_output_is_pulled_while_running_without_an_end_and_afterwards_with_one",
            "test_procstar::test_an_agent_that_drops_questions_for_output_is_seen_through",
            "test_procstar::test_a_run_from_start_to_deletion_over_a_socket",
            "test_agent_server::test_forgetting_a_process_deletes_it_now_or_when_its_agent_is_back",
        ],
    ),
    ("the agent's own errors, and an end of unknown kind", ["test_procstar::test_verdicts"]),
    (
        "a running process that its agent does not know",
        ["test_procstar::test_a_process_that_its_agent_no_longer_has_is_an_error"],
    ),
    (
        "agents that stay away or are done; leftovers",
        [
            "test_scheduler::test_an_agent_away_for_too_long_is_an_error_and_one_that_returns_is_not",
            "test_agent_server::test_done_with_open_processes_is_told_and_the_agent_forgotten",
            "test_procstar::test_a_process_that_its_agent_no_longer_has_is_an_error",
            "test_agent_server::test_a_finished_process_that_no_run_knows_is_deleted_only_after_all_runs"
            "_are_restored",
        ],
    ),
    (
        "work for active agents only",
        [
            "test_agent_server::test_the_least_loaded_agent_is_chosen_and_a_draining_one_is_not",
            "test_procstar::test_an_agent_that_is_shutting_down_is_left_alone_and_the_start_goes_elsewhere",
        ],
    ),
    ("time enough to come back", ["test_config::test_defaults_are_as_documented"]),
]

CRASHES: Rows = [
    ("nothing to execute", ["test_programs::test_mistakes_are_named_with_their_keys"]),
    (
        "capture in memory, beyond its length: never captured there",
        ["test_procstar::test_nothing_is_sent_before_the_choice_of_agent_is_committed"],
    ),
    (
        "capture in a file, beyond its length",
        [
            "test_procstar::test_long_output_is_fetched_in_slices_within_its_length",
            "test_procstar::test_a_connection_cut_in_the_middle_of_output_costs_no_byte",
        ],
    ),
    (
        "capture in a file, a part while it grows",
        ["test_procstar::test_output_is_pulled_while_running_without_an_end_and_afterwards_with_one"],
    ),
    (
        "signals without a name",
        [
            "test_procstar::test_signals_that_would_end_the_agent_are_not_sent",
            "test_programs::test_mistakes_are_named_with_their_keys",
        ],
    ),
    ("a closing parenthesis in the name", ["test_procstar::test_what_would_end_an_agent_is_not_sent"]),
    (
        "too many notifications at once: a request each, and agents are read though the disk is full",
        [
            "test_procstar::test_nothing_is_sent_before_the_choice_of_agent_is_committed",
            "test_faults::test_a_thousand_runs_at_once_all_end_once",
            "test_faults::test_a_full_disk_starts_nothing_loses_nothing_and_is_over_by_itself",
        ],
    ),
    ("NUL characters", ["test_programs::test_what_templates_make_is_checked_when_a_run_is_made"]),
    (
        "no more processes: the load is spread, and the runs of an agent that died end",
        [
            "test_agent_server::test_the_least_loaded_agent_is_chosen_and_a_draining_one_is_not",
            "test_scheduler::test_an_agent_away_for_too_long_is_an_error_and_one_that_returns_is_not",
        ],
    ),
]

BREAKS: Rows = [
    (
        "fields too many",
        ["test_agent_server::test_fields_and_processes_that_are_not_known_cost_nothing"],
    ),
    (
        "news of processes that are not known",
        ["test_agent_server::test_fields_and_processes_that_are_not_known_cost_nothing"],
    ),
    ("registering twice", ["test_agent_server::test_garbage_and_unknown_messages_are_survived"]),
    (
        "text and garbage",
        [
            "test_agent_server::test_text_ends_the_connection_and_nothing_else",
            "test_agent_server::test_garbage_and_unknown_messages_are_survived",
        ],
    ),
    (
        "a result without descriptors",
        ["test_procstar::test_a_result_may_lack_what_an_agent_could_not_find_out"],
    ),
]

RACES: Rows = [
    (
        "a request dropped in silence",
        ["test_procstar::test_a_start_that_the_agent_drops_in_silence_is_asked_about_and_becomes_an_error"],
    ),
    (
        "an answer faster than the request",
        ["test_procstar::test_an_answer_that_comes_before_the_start_has_returned_is_taken"],
    ),
    (
        "a start into a dying connection, judged by the next registration and not by its own",
        [
            "test_agent_server::test_messages_for_an_agent_that_reads_nothing_are_known_to_be_unwritten"
            "_when_it_goes",
            "test_procstar::test_a_start_lost_with_its_connection_is_sent_again_to_the_same_agent",
            "test_procstar::test_a_start_that_arrived_before_its_connection_was_lost_is_not_sent_again",
            "test_agent_server::test_what_is_said_about_a_process_reaches_its_watcher_and_nobody_else",
        ],
    ),
    (
        "a start repeated elsewhere: only where it was provably not made",
        [
            "test_procstar::test_a_start_that_was_provably_not_written_goes_elsewhere",
            "test_procstar::test_a_start_lost_with_its_connection_is_sent_again_to_the_same_agent",
            "test_procstar::test_a_duplicate_start_is_asked_about",
        ],
    ),
    (
        "a signal after the end",
        [
            "test_procstar::test_a_refused_signal_never_ends_the_run",
            "test_procstar::test_a_process_that_has_ended_is_not_signalled",
        ],
    ),
    (
        "results that an agent did not push",
        [
            "test_procstar::test_after_a_restart_output_goes_on_where_the_store_ends",
            "test_agent_server::test_a_finished_process_that_no_run_knows_is_deleted_only_after_all_runs"
            "_are_restored",
        ],
    ),
    (
        "deletions that nobody confirms: none is waited for, and what is listed is deleted again",
        [
            "test_agent_server::test_forgetting_a_process_deletes_it_now_or_when_its_agent_is_back",
            "test_procstar::test_the_record_is_deleted_only_when_told_to_forget",
        ],
    ),
    (
        "output after the end",
        ["test_procstar::test_output_that_grows_beyond_the_length_at_the_end_makes_no_difference"],
    ),
    (
        "connected, and yet refusing work",
        ["test_procstar::test_an_agent_that_is_shutting_down_is_left_alone_and_the_start_goes_elsewhere"],
    ),
    (
        "a start that meets the end of its agent",
        [
            "test_procstar::test_an_agent_that_is_shutting_down_is_left_alone_and_the_start_goes_elsewhere",
            "test_procstar::test_a_start_that_went_out_as_its_agent_shut_down_is_not_repeated_elsewhere",
        ],
    ),
    (
        "an agent that leaves without a word",
        ["test_scheduler::test_a_start_whose_agent_stays_away_is_an_error_that_does_not_deny_it"],
    ),
    (
        "an agent that is busy",
        [
            "test_agent_server::test_messages_for_an_agent_that_reads_nothing_are_known_to_be_unwritten"
            "_when_it_goes",
            "test_procstar::test_an_agent_that_drops_questions_for_output_is_seen_through",
        ],
    ),
]

DATA: Rows = [
    (
        "results differ each time: stored at an interval, not by comparison",
        ["test_procstar::test_resource_figures_are_asked_for_and_stored_at_their_interval"],
    ),
    (
        "no figures of a process that is gone",
        ["test_procstar::test_a_result_may_lack_what_an_agent_could_not_find_out"],
    ),
    ("units as they come", ["test_procstar::test_figures_are_kept_as_the_agent_gave_them"]),
    (
        "descriptors absent, or null",
        ["test_procstar::test_a_result_may_lack_what_an_agent_could_not_find_out"],
    ),
    ("names of signals as they come", ["test_procstar::test_figures_are_kept_as_the_agent_gave_them"]),
    (
        "restricted agents see sudo, and their refusal is the run's error",
        [
            "test_procstar::test_a_sudo_user_and_a_memory_limit_are_in_the_specification",
            "test_procstar::test_verdicts",
        ],
    ),
    (
        "a conn_id is no secret",
        [
            "test_agent_server::test_a_wrong_token_takes_no_conn_id_over",
            "test_agent_server::test_a_conn_id_that_is_connected_cannot_appear_in_another_group",
        ],
    ),
]

# What a compatible agent does: the other side's list.
AGENT: Rows = [
    (
        "TLS with the system's roots and one's own, no compression, binary only",
        [
            "test_agent_life::test_tls_trusts_the_servers_own_certificate_and_checks_its_name",
            "test_agent_life::test_the_upgrade_has_the_headers_of_other_agents_in_their_order",
            "test_agent_life::test_text_makes_the_agent_connect_anew",
            "test_agent_reference::test_output_of_64_mib_comes_in_one_message",
        ],
    ),
    (
        "a Register of exactly these fields",
        [
            "test_agent_life::test_an_agent_says_who_it_is_and_nothing_else",
            "test_agent_life::test_programs_survive_the_server_and_are_named_when_it_is_back",
            "test_agent_reference::test_a_program_is_started_read_and_deleted",
        ],
    ),
    (
        "registered in time, retries that slow down, pings, and silence that means loss",
        [
            "test_agent_life::test_what_is_not_registered_is_a_failed_attempt",
            "test_agent_life::test_the_delay_grows_between_attempts_and_the_count_ends_them",
            "test_agent_life::test_a_closed_connection_is_followed_by_another_at_once",
            "test_agent_life::test_a_ping_follows_registration_at_once_and_pings_are_answered",
            "test_agent_life::test_a_server_that_falls_silent_is_left_for_a_new_connection",
        ],
    ),
    (
        "what cannot be decoded is passed over; a start gets its answer",
        [
            "test_agent_start::test_unknown_keys_of_a_message_are_ignored",
            "test_agent_start::test_what_is_not_a_request_is_ignored",
            "test_agent_start::test_a_specification_that_cannot_be_meant_is_refused_and_the_agent_lives",
            "test_agent_reference::test_what_cannot_be_started_is_an_error_that_the_server_understands",
            "test_agent_malice::test_an_agent_survives_whatever_a_server_asks",
        ],
    ),
    (
        "refusals in their order and words",
        [
            "test_agent_spec::test_refusals_come_in_the_agreed_order_and_words",
            "test_agent_start::test_fd_data_errors_have_their_texts",
            "test_agent_start::test_a_duplicate_proc_id_is_refused_and_nothing_of_the_request_started",
        ],
    ),
    (
        "a start: no PATH, the rules of environment and descriptors, code 63, two results unasked",
        [
            "test_agent_start::test_a_program_is_not_searched_on_the_path",
            "test_agent_start::test_a_program_leads_its_own_session_with_signals_as_a_shell_gives_them",
            "test_agent_start::test_the_environment_is_inherited_but_for_what_is_secret",
            "test_agent_start::test_a_dup_goes_by_the_order_of_the_entries",
            "test_agent_start::test_a_missing_executable_is_an_error_with_code_63",
            "test_agent_start::test_a_program_is_told_running_then_terminated",
        ],
    ),
    (
        "every key of a result",
        [
            "test_agent_start::test_a_result_has_every_key_in_order",
            "test_agent_results::test_this_very_process_is_described_as_the_kernel_does",
            "cgroup_scenario::test_an_agent_in_a_delegated_cgroup_accounts_for_programs_and_ends_their_descendants",
        ],
    ),
    (
        "the form of captured output in a result",
        [
            "test_agent_reference::test_a_program_is_started_read_and_deleted",
            "test_agent_start::test_captures_come_attached_as_text_or_base64",
        ],
    ),
    (
        "output: its bytes, and its request echoed",
        [
            "test_agent_start::test_every_request_of_the_protocols_description_is_served_and_output_has_its_bytes",
            "test_agent_start::test_an_fd_is_echoed_as_it_was_spelt",
        ],
    ),
    (
        "output that reading cannot spoil, and descriptors that nobody inherits",
        [
            "test_agent_start::test_reading_in_the_midst_does_not_move_the_programs_place",
            "test_agent_start::test_ranges_of_output_are_clamped_to_what_exists",
            "test_agent_start::test_a_program_gets_only_descriptors_that_it_was_given",
        ],
    ),
    (
        "the last deletion is confirmed before the end",
        ["test_agent_life::test_sigusr1_takes_no_more_work_and_ends_with_the_last_record"],
    ),
    (
        "no news twice that a server may not know",
        [
            "test_agent_start::test_unknown_programs_are_unknown_to_every_request",
            "test_agent_reference::test_a_program_is_started_read_and_deleted",
        ],
    ),
    (
        "signals to the agent, and --wait",
        [
            "test_agent_life::test_sigterm_ends_programs_and_waits_for_the_server_to_take_what_they_left",
            "test_agent_life::test_new_starts_are_accepted_while_sigterm_has_its_effect",
            "test_agent_life::test_sigquit_kills_at_once",
            "test_agent_life::test_wait_ends_when_the_last_record_is_deleted",
            "test_agent_life::test_wait_ends_when_no_work_comes",
        ],
    ),
    (
        "limits: applied where there are cgroups, accepted elsewhere",
        [
            "cgroup_scenario::test_a_memory_limit_ends_who_exceeds_it_or_the_run_log_says_that_it_cannot",
            "test_agent_start::test_limits_are_accepted_where_they_cannot_be_applied",
        ],
    ),
]

# How many lines each list has in the description of the protocol, as counted there.
LISTS = [(SERVER, 17), (CRASHES, 9), (BREAKS, 5), (RACES, 12), (DATA, 7), (AGENT, 14)]


@cache
def _functions(module: str) -> frozenset[str]:
    tree = ast.parse((HERE / f"{module}.py").read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize(
    ("rows", "lines"), LISTS, ids=["server", "crashes", "breaks", "races", "data", "agent"]
)
def test_every_line_has_tests_that_exist(rows: Rows, lines: int) -> None:
    assert len(rows) == lines == len({label for label, _ in rows})
    for label, tests in rows:
        assert tests, label
        for test in tests:
            module, _, name = test.partition("::")
            assert name.startswith("test_") and name in _functions(module), f"{label}: no test {test}"
