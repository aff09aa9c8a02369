// SPDX-License-Identifier: GPL-2.0-only
//! All of them: what each harms, where it is closed, and that its test notices.

use super::*;

/// A race, and what becomes of it.
struct Race {
    fix: Fix,
    /// Its path in this binary.
    test: &'static str,
    /// What happens without the fix, in a few words.
    harm: &'static str,
    /// Where it is closed: function, and file here or in kernel-shim.
    closed: &'static str,
}

const fn race(fix: Fix, test: &'static str, harm: &'static str, closed: &'static str) -> Race {
    Race { fix, test, harm, closed }
}

/// In the order of their numbers. The same table, as [`Race::row`] has it, stands in the documentation of ext4-dio.
const RACES: &[Race] = &[
    race(
        Fix::G1,
        "g1_g12::g1_counted_before_the_unlock",
        "one file's data in another's blocks",
        "dio_lock.rs `DioLock::release`: counted, then unlocked",
    ),
    race(
        Fix::G2,
        "g1_g12::g2_punching_a_hole_waits",
        "a write lands in blocks that were freed",
        "fallocate.rs, truncate.rs `stop_direct_io`",
    ),
    race(
        Fix::G3,
        "g1_g12::g3_whoever_moves_blocks_waits",
        "parts of a write land elsewhere in the file",
        "fallocate.rs, truncate.rs `stop_direct_io`",
    ),
    race(
        Fix::G4,
        "g1_g12::g4_each_write_has_its_own_state",
        "acknowledged data reads as zeros",
        "page_io.rs `IoEnd`: owned by its write",
    ),
    race(
        Fix::G5,
        "g1_g12::g5_completion_before_submission_ends",
        "freed memory is used",
        "kernel-shim fs/direct_io.rs `dio_async`: a reference of its own",
    ),
    race(
        Fix::G6,
        "g1_g12::g6_page_faults_come_before_the_window",
        "deadlock with page faults",
        "inode.rs `ext4_ext_direct_IO`: `fault_in` before the window",
    ),
    race(Fix::G7, "g1_g12::g7_fcntl_in_the_middle", "panic", "file.rs `ext4_set_verdict`: always one"),
    race(
        Fix::G8,
        "g1_g12::g8_nothing_is_written_while_frozen",
        "a frozen file system changes",
        "file.rs `ext4_file_write`, sb_remount.rs `ext4_freeze`",
    ),
    race(
        Fix::G9,
        "g1_g12::g9_a_fault_half_way_zeroes_nothing",
        "good data is zeroed",
        "kernel-shim fs/direct_io/submit.rs `submit_mapped`: only what was pinned",
    ),
    race(
        Fix::G10,
        "g1_g12::g10_the_size_does_not_come_back",
        "a truncated file has its old size",
        "kernel-shim mm/filemap.rs `generic_file_direct_write`: the size is not its business",
    ),
    race(
        Fix::G11,
        "g1_g12::g11_pages_are_dropped_when_the_data_is_there",
        "the cache shows old data for good",
        "kernel-shim fs/direct_io.rs `dio_end`",
    ),
    race(
        Fix::G12,
        "g1_g12::g12_buffered_writers_wait",
        "of two writes one is lost",
        "aops.rs `ext4_buffered_write_iter`, `ext4_perform_write`",
    ),
    race(
        Fix::G13,
        "g13_g24::g13_async_dsync_is_durable_when_told",
        "acknowledged O_DSYNC data is lost by a power failure",
        "kernel-shim fs/direct_io.rs `dio_complete`",
    ),
    race(
        Fix::G14,
        "g13_g24::g14_the_end_of_a_write_takes_no_i_mutex",
        "truncate and a write wait for each other",
        "page_io.rs `ext4_end_io_convert`: no `i_mutex`",
    ),
    race(
        Fix::G15,
        "g13_g24::g15_fsync_waits_for_conversions",
        "fsync returns, and the data is not found again",
        "kernel-shim mm/writeback.rs `Writeback::io_done`",
    ),
    race(
        Fix::G16,
        "g13_g24::g16_what_is_under_io_is_not_merged",
        "more is converted than was written, or nothing can be",
        "fallocate.rs, extents/insert.rs `merge_rule`",
    ),
    race(
        Fix::G17,
        "g13_g24::g17_a_write_that_zeroes_is_alone",
        "one write zeroes another's data",
        "inode.rs `ext4_dio_prepare`: alone in the device",
    ),
    race(
        Fix::G18,
        "g13_g24::g18_past_the_end_is_not_aligned",
        "one write zeroes another's data",
        "file.rs `ext4_dio_verdict_change`: whole blocks, wherever the end is",
    ),
    race(
        Fix::G19,
        "g13_g24::g19_newcomers_stand_behind_a_write_that_zeroes",
        "a write waits for ever",
        "inode.rs `ext4_dio_prepare`: waits with `i_mutex`",
    ),
    race(
        Fix::G20,
        "g13_g24::g20_strangers_do_not_wait_for_each_other",
        "strangers wait for each other",
        "page_io.rs `AioInfo`: one per inode",
    ),
    race(
        Fix::G21,
        "g13_g24::g21_readers_do_not_starve_who_waits_for_them",
        "truncate waits for ever",
        "truncate.rs `ext4_inode_dio_begin_unlocked`",
    ),
    race(
        Fix::G22,
        "g13_g24::g22_no_read_between_the_waiting_and_the_size",
        "another file's data is read",
        "setattr.rs `ext4_setattr_size_locked`: the gate stays closed",
    ),
    race(
        Fix::G23,
        "g13_g24::g23_an_overwrite_of_several_extents",
        "overwrites one after the other",
        "file.rs `ext4_overwrite_io_many`",
    ),
    race(
        Fix::G24,
        "g13_g24::g24_past_the_size_on_disk",
        "acknowledged data is past the end after a crash",
        "file.rs `ext4_dio_verdict`: past `i_disksize` extends",
    ),
    race(
        Fix::G25,
        "g25_g37::g25_pages_are_dropped_after_the_size_moved",
        "zeros in the cache over what was written",
        "kernel-shim fs/direct_io.rs `dio_end`: size, then pages",
    ),
    race(
        Fix::G26,
        "g25_g37::g26_the_size_is_durable_when_told",
        "O_SYNC data is past the end after a crash",
        "kernel-shim fs/direct_io.rs `dio_complete`: size, then sync",
    ),
    race(
        Fix::G27,
        "g25_g37::g27_both_sizes_are_seen_under_one_lock",
        "a longer file is short on disk",
        "aops.rs `ext4_update_disksize`, dio.rs `extend_sizes`",
    ),
    race(
        Fix::G28,
        "g25_g37::g28_no_answer_is_older_than_its_lock",
        "data in blocks that are not the file's",
        "file.rs `ext4_dio_write_checked`: one lock throughout",
    ),
    race(
        Fix::G29,
        "g25_g37::g29_no_block_for_a_cut_shows_nothing",
        "deleted data is seen",
        "extents/convert.rs `split_before_io`: whole, or not at all",
    ),
    race(
        Fix::G30,
        "g25_g37::g30_a_failed_write_converts_nothing",
        "deleted data is seen",
        "kernel-shim fs/direct_io.rs `dio_end`, page_io.rs `ext4_end_io_convert`",
    ),
    race(
        Fix::G31,
        "g25_g37::g31_enomem_leaves_the_locks_right",
        "locks are held for ever",
        "inode.rs `ext4_ext_direct_IO`: one way out",
    ),
    race(
        Fix::G32,
        "g25_g37::g32_a_write_that_fails_is_counted_out",
        "who waits for conversions waits for ever",
        "page_io.rs `ext4_end_io_convert`, aops.rs `Unwritten`",
    ),
    race(
        Fix::G33,
        "g25_g37::g33_flags_change_with_nothing_in_flight",
        "a write ends in another mode than it began in",
        "ioctl.rs `setflags_locked`",
    ),
    race(
        Fix::G34,
        "g25_g37::g34_nowait_does_not_sleep",
        "a write sleeps that must not",
        "kernel-shim fs/kiocb.rs `Kiocb::is_nowait`, wherever it is asked",
    ),
    race(
        Fix::G35,
        "g25_g37::g35_overwrites_go_past_reads_in_flight",
        "nothing is written while reads are in the device",
        "inode.rs `ext4_ext_direct_IO`: waits only to zero",
    ),
    race(
        Fix::G36,
        "g25_g37::g36_truncate_waits_without_a_journal",
        "one file's data in another's blocks",
        "truncate.rs `stop_direct_io`: journal or not",
    ),
    race(
        Fix::G37,
        "g25_g37::g37_checks_before_the_verdict",
        "an append is taken for an overwrite",
        "file.rs `ext4_dio_write_checked`: checks first",
    ),
];

impl Race {
    /// What the test is called.
    fn name(&self) -> &'static str {
        self.test.rsplit("::").next().expect("never empty")
    }

    /// Its line of the table in the documentation.
    fn row(&self) -> String {
        let Self { fix, harm, closed, .. } = self;
        format!("//! | {fix:?} | {harm} | {closed} | `{}` |\n", self.name())
    }
}

/// The documentation says what is tested.
#[test]
fn the_documentation_has_the_same_table() {
    const LIB: &str = include_str!("../../src/lib.rs");
    let table: String = RACES.iter().map(Race::row).collect();
    assert!(LIB.contains(&table), "src/lib.rs should have:\n{table}");
}

/// So many tests run beside each other.
const AT_ONCE: usize = 4;

/// Every test is run twice in a process of its own: it passes with its fix, and fails without. Told in a table.
#[test]
fn every_test_fails_without_its_fix() {
    let covered: Vec<Fix> = RACES.iter().map(|race| race.fix).collect();
    assert_eq!(covered, Fix::ALL, "a race without a test");
    let start = Instant::now();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|s| {
        for _ in 0..AT_ONCE {
            s.spawn(|| {
                while let Some(race) = RACES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let fix = format!("{:?}", race.fix);
                    let (on, off) = (run_alone(race.test, None), run_alone(race.test, Some(&fix)));
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((race.fix, on, off));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(fix, ..)| *fix as u8);
    let mut table = format!("{:5} {:54} {:7} {:7} {:53} closed by\n", "race", "test", "with", "without", "harm");
    for (race @ Race { harm, closed, .. }, (fix, on, off)) in RACES.iter().zip(&results) {
        let test = race.name();
        let fix = format!("{fix:?}");
        table += &format!("{fix:5} {test:54} {:7} {:7} {harm:53} {closed}\n", on.0, off.0);
    }
    let took = start.elapsed().as_secs_f64();
    table += &format!("{} races: each test passes with its fix and fails without: {took:.1} s\n", results.len());
    stderr().write_all(table.as_bytes()).expect("stderr");
    results.retain(|(_, on, off)| on.0 != "passes" || !["fails", "hangs"].contains(&off.0));
    for (fix, (on, on_text), (off, off_text)) in &results {
        println!("{fix:?} {on} with the fix:\n{on_text}\n{fix:?} {off} without it:\n{off_text}");
    }
    assert!(results.is_empty(), "{} tests do not show what they should", results.len());
}
