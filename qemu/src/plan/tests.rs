// SPDX-License-Identifier: GPL-2.0-only
//! Steps, regions, and jobs that contradict each other.

use super::*;
use crate::fiojob::parse;

const SETTINGS: Settings = Settings { count_instructions: false, memory: 512 << 20, rounds: 1 };

fn groups(text: &str) -> Vec<Group> {
    parse(text, "t.fio").unwrap_or_else(|e| panic!("{e}"))
}

fn planned(text: &str, modes: &[Mode]) -> Result<Planned> {
    let groups = groups(text);
    let files = files_needed(&groups)?;
    build(groups, modes, &files, SETTINGS)
}

fn error(text: &str) -> String {
    planned(text, &Mode::ALL).expect_err(text).to_string()
}

#[test]
fn modes_by_name_and_by_mount_option() {
    let list = |s: &str| s.parse::<ModeList>().map(|l| l.0);
    assert_eq!(list("raw,exclusive,i_data_sem,in_flight").unwrap(), Mode::ALL);
    assert_eq!(list("raw,dioread_lock,dioread_nolock,dio_window=i_data_sem,dioread_nolock").unwrap(), Mode::ALL);
    assert_eq!(list("in_flight, raw,in_flight").unwrap(), [Mode::InFlight, Mode::Raw]);
    for mode in Mode::ALL {
        assert_eq!(list(mode.mount_options().unwrap_or("raw")).unwrap(), [mode]);
    }
    assert!(list("").is_err() && list("raw,,exclusive").is_err());
}

#[test]
fn the_default_run_is_six_points_in_turns_under_two_minutes() {
    let groups = default_groups();
    let files = files_needed(&groups).unwrap();
    assert_eq!(files, [FileSpec::written("/data", 256 << 20, 4096)]);
    let p = build(groups, &Mode::ALL, &files, SETTINGS).unwrap();
    assert_eq!(p.plan.steps.len(), 24);
    let modes: Vec<Mode> = p.points.iter().map(|p| p.mode).take(5).collect();
    assert_eq!(modes, [Mode::Raw, Mode::Exclusive, Mode::IDataSem, Mode::InFlight, Mode::Raw]);
    assert_eq!(p.plan.steps[23].jobs[0].numjobs, 32);
    assert_eq!(p.plan.steps[5].label, "2 writers, exclusive");
    assert_eq!(p.plan.steps[5].target, Target::Ext4 { disk: 0, options: "dioread_lock".into() });
    assert_eq!(p.plan.steps[4].target, Target::Raw { disk: 1 });
    assert_eq!((p.raw_bytes, p.raw_unit), (256 << 20, Some(4096)));
    assert!(p.plan.tables && !p.plan.count_instructions);
    let turns = |rounds| super::turns(&[Mode::Raw, Mode::Exclusive], rounds).map(|t| t.1).collect::<Vec<_>>();
    assert_eq!(turns(2), [Mode::Raw, Mode::Exclusive, Mode::Exclusive, Mode::Raw]);
    assert_eq!(turns(0), [Mode::Raw, Mode::Exclusive]);
    let total: u64 = p.plan.steps.iter().map(|s| s.jobs[0].runtime_ms.unwrap()).sum();
    assert!(total * u64::from(DEFAULT_ROUNDS) < 60_000);
    // Steps of one group differ in the target alone.
    let job = |i: usize| Job { size: None, ..p.plan.steps[i].jobs[0].clone() };
    assert_eq!(job(0), job(3));
}

#[test]
fn counting_covers_sync_and_every_depth() {
    let groups = counting_groups();
    let depths: Vec<(Engine, u32)> = groups.iter().map(|g| (g.jobs[0].engine, g.jobs[0].depth())).collect();
    let a = Engine::Async;
    assert_eq!(depths, [(Engine::Sync, 1), (a, 1), (a, 4), (a, 16), (a, 32)]);
    let files = files_needed(&groups).unwrap();
    let p = build(groups, &Mode::ALL, &files, Settings { count_instructions: true, ..SETTINGS }).unwrap();
    assert!(p.plan.count_instructions && !p.plan.tables);
    assert!(p.plan.steps.iter().all(|s| s.jobs[0].number_ios == Some(COUNTED_IOS) && !s.jobs[0].verify));
}

#[test]
fn each_stonewall_is_a_step_for_each_mode() {
    let text = "[global]\nfilename=/f\nsize=1m\nrw=write\n[a]\n[b]\noffset=1m\n[c]\nstonewall\n";
    let p = planned(text, &[Mode::Exclusive, Mode::InFlight]).unwrap();
    let names: Vec<Vec<&str>> = p.plan.steps.iter().map(|s| s.jobs.iter().map(|j| j.name.as_str()).collect()).collect();
    assert_eq!(names, [vec!["a", "b"], vec!["a", "b"], vec!["c"], vec!["c"]]);
    assert_eq!(p.points.iter().map(|p| p.group).collect::<Vec<_>>(), [0, 0, 1, 1]);
    assert_eq!(p.plan.steps.iter().map(|s| s.id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(!p.plan.tables);
    assert_eq!((p.raw_bytes, p.raw_unit), (0, None));
}

#[test]
fn files_are_as_long_as_their_jobs_reach() {
    let text = "[a]\nfilename=/x\nsize=1m\noffset=64k\noffset_increment=2m\nnumjobs=3\n\
                [b]\nfilename=/y\n[c]\nfilename=/z\nsize=10k\n";
    let files = files_needed(&groups(text)).unwrap();
    let lens: Vec<(&str, u64)> = files.iter().map(|f| (f.path.as_str(), f.bytes)).collect();
    assert_eq!(lens, [("/x", (5 << 20) + 65536), ("/y", DEFAULT_FILE_BYTES), ("/z", 12288)]);
    let text = "[a]\nfilename=/x\nsize=50%\nrw=write\nbs=1536\nverify=crc32c\n";
    let files = files_needed(&groups(text)).unwrap();
    assert_eq!(files[0].unit, 1536);
    assert_eq!(files[0].bytes % 1536, 0);
}

#[test]
fn per_cents_are_of_the_file() {
    let files = [FileSpec::written("/x", 1 << 20, 4096)];
    let text = "[a]\nfilename=/x\nsize=25%\noffset=50%\noffset_increment=25%\nnumjobs=2\n";
    let p = build(groups(text), &[Mode::InFlight], &files, SETTINGS).unwrap();
    let j = &p.plan.steps[0].jobs[0];
    assert_eq!((j.size, j.offset, j.offset_increment), (Some(1 << 18), 1 << 19, 1 << 18));
}

#[test]
fn the_raw_disk_holds_each_file_in_a_place_of_its_own() {
    let text = "[a]\nfilename=/x\nsize=10k\n[b]\nfilename=/y\nsize=1m\noffset=4k\n[c]\nfilename=/x\n";
    let groups = groups(text);
    let files = [FileSpec::written("/x", 12288, 4096), FileSpec::written("/y", 2 << 20, 4096)];
    let p = build(groups, &[Mode::Raw, Mode::Exclusive], &files, SETTINGS).unwrap();
    let place = |step: usize, job: usize| (p.plan.steps[step].jobs[job].offset, p.plan.steps[step].jobs[job].size);
    assert_eq!((place(0, 0), place(1, 0)), ((0, Some(10240)), (0, Some(10240))));
    assert_eq!((place(0, 1), place(1, 1)), ((12288 + 4096, Some(1 << 20)), (4096, Some(1 << 20))));
    // To the end of the file, on the raw disk too.
    assert_eq!((place(0, 2), place(1, 2)), ((0, Some(12288)), (0, None)));
    assert_eq!(p.raw_bytes, 12288 + (2 << 20));
}

#[test]
fn neighbours_on_the_raw_disk_that_differ_are_not_verified_there() {
    let text = "[a]\nfilename=/x\nrw=write\nverify=crc32c\nsize=1m\n[b]\nfilename=/y\nrw=write\nsize=1m\n";
    let p = planned(text, &[Mode::Raw, Mode::InFlight]).unwrap();
    let verify = |step: usize| p.plan.steps[step].jobs.iter().map(|j| j.verify).collect::<Vec<_>>();
    assert_eq!((verify(0), verify(1)), (vec![false, false], vec![true, false]));
    assert!(p.raw_note.unwrap().contains("[b] overwrites the raw disk, which [a] verifies"));
    assert!(p.plan.tables);
    assert!(!planned(text, &[Mode::Raw]).unwrap().plan.tables);
    assert_eq!(planned(text, &[Mode::InFlight]).unwrap().raw_note, None);
    let same = planned("[a]\nfilename=/x\nrw=write\nverify=crc32c\nsize=1m\n", &[Mode::Raw]).unwrap();
    assert!(same.plan.steps[0].jobs[0].verify && same.raw_note.is_none());
}

#[test]
fn threads_to_the_end_of_the_file_stay_in_its_place_on_the_raw_disk() {
    let files = [FileSpec::written("/x", 1 << 20, 4096), FileSpec::written("/y", 4096, 4096)];
    let p =
        build(groups("[a]\nfilename=/x\nnumjobs=3\noffset_increment=256k\n"), &[Mode::Raw], &files, SETTINGS).unwrap();
    let j = &p.plan.steps[0].jobs[0];
    assert!(j.offset + 2 * j.offset_increment + j.size.unwrap() <= 1 << 20);
}

#[test]
fn contradictions_are_told_with_their_place() {
    let v = "filename=/x\nrw=write\nverify=crc32c\n";
    assert!(
        error(&format!("[a]\n{v}[b]\n{v}bs=8k\n"))
            .starts_with("t.fio:5: [b] stamps /x every 8192 bytes and [a] every 4096")
    );
    assert!(
        error(&format!("[a]\n{v}[b]\nfilename=/x\nrw=randwrite\n")).contains("[b] overwrites /x, which [a] verifies")
    );
    assert!(
        planned(&format!("[a]\n{v}[b]\nfilename=/x\nrw=read\nbs=8k\n"), &Mode::ALL).is_ok(),
        "readers stamp nothing"
    );
    assert!(error("[a]\nrw=write\n").starts_with("t.fio:1: [a] has no filename"));
    assert!(error("[a]\nfilename=/x\noffset=100\n").contains("multiples of 512"));
    assert!(error(&format!("[a]\n{v}offset=512\n")).contains("multiples of 4096"));
    assert!(error("[a]\nfilename=/x\nsize=512\n").contains("size is smaller than bs"));
    assert!(error("[a]\nfilename=/x\nbs=1m\nnumjobs=256\nioengine=libaio\niodepth=16\n").contains("more than half"));
    assert!(error("[a]\nfilename=/x\nsize=1m\noffset=18446744073709551104\n").contains("past 16 TiB"));
    let files = [FileSpec::written("/x", 1 << 20, 4096)];
    let short = |text: &str| build(groups(text), &[Mode::InFlight], &files, SETTINGS).unwrap_err().to_string();
    assert!(short("[a]\nfilename=/x\nsize=2m\n").contains("reaches past the end of /x, which has 1048576 bytes"));
    assert!(short("[a]\nfilename=/x\noffset=1m\n").contains("reaches past"));
    assert!(short("[a]\nfilename=/y\n").contains("no file /y"));
    assert!(build(groups("[a]\nfilename=/x\n"), &[], &files, SETTINGS).is_err());
}
