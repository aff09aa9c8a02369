// SPDX-License-Identifier: GPL-2.0-only
//! Each key, each error with its place, and the ways sections combine.

use super::*;

fn jobs(text: &str) -> Vec<Group> {
    parse(text, "t.fio").unwrap_or_else(|e| panic!("{e}"))
}

fn job(keys: &str) -> JobSpec {
    jobs(&format!("[a]\n{keys}\n"))[0].jobs[0].clone()
}

fn error(text: &str) -> String {
    parse(text, "t.fio").expect_err(text).to_string()
}

#[test]
fn defaults_are_fios_and_direct() {
    let mut want = JobSpec::new("a", "t.fio:1");
    want.options = Vec::new();
    assert_eq!(job(""), want);
    assert_eq!((want.rw, want.bs, want.rwmixread, want.numjobs, want.depth()), (Rw::Read, 4096, 50, 1, 1));
}

#[test]
fn every_key_is_taken() {
    let j = job("readwrite=randrw\nrwmixread=70\nblocksize=8k\nsize=50%\noffset=1m\noffset_increment=2m\nnumjobs=3\n\
         iodepth=16\n\
         ioengine=io_uring\ndirect=1\nfsync=8\nfdatasync=4\nsync=dsync\nruntime=1500ms\ntime_based\nnumber_ios=1k\n\
         filename=dir//file\nverify=crc32c\nrandseed=77\ngroup_reporting\nfallocate=keep\nunlink=1\nend_fsync=1\n\
         fsync_on_close=1\nfile_append=0\ncreate_on_open=0\nstonewall");
    assert_eq!((j.fallocate, j.layout()), (Some(Fallocate::Keep), Layout::Fresh));
    assert!(j.unlink && j.end_fsync && j.fsync_on_close);
    assert_eq!((j.rw, j.rwmixread, j.bs), (Rw::RandRw, 70, 8192));
    assert_eq!(
        (j.size, j.offset, j.offset_increment),
        (Some(Amount::Percent(50)), Amount::Bytes(1 << 20), Amount::Bytes(2 << 20))
    );
    assert_eq!((j.numjobs, j.iodepth, j.depth(), j.engine), (3, 16, 16, Engine::Async));
    assert_eq!((j.fsync, j.fdatasync, j.sync), (8, 4, SyncMode::Dsync));
    assert_eq!((j.runtime_ms, j.time_based, j.number_ios), (Some(1500), true, Some(1024)));
    assert_eq!((j.filename.as_deref(), j.verify, j.randseed), (Some("/dir/file"), true, 77));
    assert_eq!(j.options.len(), 27);
    assert!(
        j.options.contains(&("rw".into(), "randrw".into())) && j.options.contains(&("stonewall".into(), "1".into()))
    );
}

#[test]
fn every_pattern_engine_and_sync_value() {
    for (text, want) in [
        ("read", Rw::Read),
        ("write", Rw::Write),
        ("rw", Rw::ReadWrite),
        ("readwrite", Rw::ReadWrite),
        ("randread", Rw::RandRead),
        ("randwrite", Rw::RandWrite),
        ("randrw", Rw::RandRw),
        ("trim", Rw::Trim),
        ("randtrim", Rw::RandTrim),
        ("trimwrite", Rw::TrimWrite),
    ] {
        assert_eq!(job(&format!("rw={text}")).rw, want);
    }
    for (text, want) in [("psync", Engine::Sync), ("libaio", Engine::Async), ("io_uring", Engine::Async)] {
        assert_eq!(job(&format!("ioengine={text}")).engine, want);
    }
    for (text, want) in
        [("none", SyncMode::None), ("0", SyncMode::None), ("1", SyncMode::Sync), ("sync", SyncMode::Sync)]
    {
        assert_eq!(job(&format!("sync={text}")).sync, want);
    }
    for (text, want) in [
        ("none", Fallocate::None),
        ("0", Fallocate::None),
        ("native", Fallocate::Native),
        ("posix", Fallocate::Posix),
        ("1", Fallocate::Posix),
        ("keep", Fallocate::Keep),
        ("truncate", Fallocate::Truncate),
    ] {
        assert_eq!(job(&format!("fallocate={text}")).fallocate, Some(want));
    }
    for (text, want) in [
        ("", Layout::There),
        ("fallocate=none", Layout::Fresh),
        ("fallocate=none\noverwrite=1", Layout::There),
        ("rw=write\ncreate_on_open=1", Layout::OnOpen),
        ("rw=write\ncreate_on_open=1\nfallocate=none", Layout::OnOpen),
        ("rw=write\nfile_append=1\nfallocate=keep", Layout::Append),
    ] {
        assert_eq!(job(text).layout(), want, "{text}");
    }
    let j = job("rw=write:28k");
    assert_eq!((j.rw, j.skip), (Rw::Write, 28 << 10));
    assert!(!job("direct=0").direct && job("direct=1").direct);
    assert!(job("rw=rw").writes() && !job("rw=randread").writes());
    assert_eq!(job("iodepth=8").depth(), 1, "psync has one in flight");
    assert_eq!(job("runtime=0\nnumber_ios=0").runtime_ms, None);
    assert!(!job("verify=crc32c\nverify=0").verify);
}

#[test]
fn comments_blanks_and_the_last_of_two() {
    let j = job("  # a comment\n; another\n\tbs = 8k  ; behind\n  numjobs =2# close\nbs=16k\r\n\r\nrw=write");
    assert_eq!((j.bs, j.numjobs, j.rw), (16384, 2, Rw::Write));
}

#[test]
fn globals_add_up_and_jobs_keep_what_they_got() {
    let groups = jobs("[global]\nbs=8k\nrw=write\n[a]\n[b]\nbs=16k\n[global]\nbs=2k\n[c]\n");
    let got: Vec<(&str, u32, Rw)> = groups[0].jobs.iter().map(|j| (j.name.as_str(), j.bs, j.rw)).collect();
    assert_eq!(got, [("a", 8192, Rw::Write), ("b", 16384, Rw::Write), ("c", 2048, Rw::Write)]);
    assert_eq!(groups[0].jobs[2].origin, "t.fio:9");
}

#[test]
fn stonewall_starts_a_new_group() {
    let names = |text: &str| -> Vec<Vec<String>> {
        jobs(text).iter().map(|g| g.jobs.iter().map(|j| j.name.clone()).collect()).collect()
    };
    assert_eq!(names("[a]\n[b]\n[c]\nstonewall\n[d]\n"), [vec!["a", "b"], vec!["c", "d"]]);
    assert_eq!(names("[a]\nstonewall\n[b]\nstonewall=1\n"), [["a"], ["b"]]);
    assert_eq!(names("[global]\nstonewall\n[a]\n[b]\n"), [["a"], ["b"]]);
    let groups = jobs("[a]\nnumjobs=4\nioengine=libaio\niodepth=8\n[b]\n");
    assert_eq!(groups[0].in_flight(), 33);
    assert_eq!(groups[0].label, "t: a+b");
}

#[test]
fn each_wrong_value_is_told_with_file_line_and_key() {
    for (keys, want) in [
        ("bs=1000", "bs: 1000 bytes is not a multiple of 512 up to 16m"),
        ("bs=0", "bs: 0 bytes is not a multiple of 512"),
        ("bs=4k,8k", "bs: `4k,8k` is no size"),
        ("bs=32m", "bs: 33554432 bytes is not"),
        ("blocksize=x", "blocksize: `x` is no size"),
        ("rw=rtrim", "rw: `rtrim` is not one of read, write, rw, readwrite, randread, randwrite, randrw, trim"),
        ("rw=write:8", "rw: 8 bytes left out is not a multiple of 512"),
        ("rw=write:x", "rw: `x` is no size"),
        ("rw=randwrite:8k", "rw: in [a]: random I/O leaves nothing out"),
        ("fallocate=maybe", "fallocate: `maybe` is not one of none, native, posix, keep, truncate"),
        ("overwrite=0", "overwrite: `0`: files are there"),
        ("unlink=yes", "unlink: `yes` is not 0 or 1"),
        ("create_on_open=1", "create_on_open: in [a]: leaves nothing to read"),
        ("file_append=1", "file_append: in [a]: goes with rw=write"),
        ("sync_file_range=write:8", "sync_file_range: not there"),
        ("rwmixread=101", "rwmixread: `101` is not 0 to 100 per cent of reads"),
        ("size=0", "size: 0 leaves nothing"),
        ("size=101%", "size: `101%` is no size"),
        ("offset=-1", "offset: `-1` is no size"),
        ("offset_increment=", "offset_increment: needs a value"),
        ("numjobs=0", "numjobs: `0` is not 1 to 256 threads"),
        ("numjobs=2x", "numjobs: `2x` is not 1 to 256 threads"),
        ("iodepth=1025", "iodepth: `1025` is not 1 to 1024"),
        ("ioengine=sync", "ioengine: `sync` is not one of psync, libaio, io_uring"),
        ("direct=yes", "direct: `yes` is not 0 or 1"),
        ("direct", "direct: needs a value"),
        ("fsync=-1", "fsync: `-1` is not 0 to"),
        ("fdatasync=5000000000", "fdatasync: `5000000000` is not 0 to"),
        ("sync=2", "sync: `2` is not one of none, 0, sync, 1, dsync"),
        ("runtime=1sec", "runtime: `1sec` is no time"),
        ("time_based=2", "time_based: `2` is not 0 or 1"),
        ("number_ios=ten", "number_ios: `ten` is no number"),
        ("filename=/a:/b", "filename: `/a:/b`: one file"),
        ("filename=/", "filename: `/` does not name a file"),
        ("filename=/a/../b", "filename: `/a/../b` does not name"),
        ("filename=/a\"b", "filename: `/a\"b`: control characters"),
        ("verify=md5", "verify: `md5` is not one of crc32c, 0"),
        ("randseed=x", "randseed: `x` is no number"),
        ("stonewall=0", "stonewall: `0`: the key stands alone"),
        ("group_reporting=0", "group_reporting: `0`: the key stands alone"),
        ("bsrange=4k-8k", "bsrange: unknown key; known are rw, rwmixread, bs, size"),
        ("BS=4k", "BS: unknown key"),
    ] {
        let got = error(&format!("# head\n[a]\n\n{keys}\n"));
        assert!(got.starts_with(&format!("t.fio:4: {want}")), "{keys}: {got}");
    }
}

#[test]
fn sections_that_do_not_fit_together_are_told() {
    assert_eq!(
        error("[a]\nrw=write\ncreate_on_open=1\nfallocate=keep\n"),
        "t.fio:3: create_on_open: in [a]: leaves the file as opening makes it; fallocate= does more"
    );
    assert!(error("[global]\nfile_append=1\n[a]\n[b]\n").starts_with("t.fio:2: file_append: in [a]: goes with"));
    assert!(jobs("[global]\nfile_append=1\n[a]\nfile_append=0\n").len() == 1, "the last one counts");
    assert!(error("[a]\ntime_based\n").starts_with("t.fio:2: time_based: in [a]: needs a runtime"));
    assert!(error("bs=4k\n[a]\n").starts_with("t.fio:1: bs: outside of a section"));
    assert!(error("[a\n").starts_with("t.fio:1: `[a` is not a section"));
    assert!(error("[a] x\n").starts_with("t.fio:1: "));
    assert!(error("[]\n").starts_with("t.fio:1: "));
    assert!(error("").contains("no job section"));
    assert!(error("[global]\nbs=4k\n").starts_with("t.fio:2: no job section"));
}

/// Whatever is in a file, the answer is a value.
#[test]
fn no_line_of_bytes_is_too_odd() {
    let pieces = [
        "[",
        "]",
        "=",
        "bs",
        "4k",
        "%",
        "\0",
        "é",
        "#",
        "\n",
        "size",
        "0x",
        "99999999999999999999",
        " ",
        "rw",
        "[a]\n",
    ];
    let mut x = 1u64;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..12 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text += pieces[(x >> 33) as usize % pieces.len()];
        }
        let _ = parse(&text, "t.fio");
    }
}
