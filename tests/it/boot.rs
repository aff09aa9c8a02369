// SPDX-License-Identifier: GPL-2.0-only
//! One short boot in QEMU, through the runner as `cargo run` starts it.

use std::fs;

use ext4_dio_runner::cli::BootArgs;
use ext4_dio_runner::session;

#[test]
fn a_boot_in_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    let (job, json) = (dir.path().join("job.fio"), dir.path().join("out.json"));
    let text = "[global]\nrw=randwrite\nbs=4k\nsize=16m\nverify=crc32c\nnumber_ios=400\nfilename=data\n\
                [sync]\nioengine=psync\nnumjobs=8\n\
                [async]\nstonewall\nioengine=libaio\niodepth=32\n";
    fs::write(&job, text).expect("a job file");
    let args = BootArgs {
        jobs: vec![job],
        json: Some(json.clone()),
        plot: Some(dir.path().join("out.svg")),
        ..BootArgs::default()
    };
    // The image is checked by the run: stamps and generations, e2fsck, Linux where it may mount.
    assert!(session::run(&args).expect("a run"), "something did not hold");
    let out = fs::read_to_string(json).expect("JSON");
    assert!(
        out.contains("\"total_ios\": 3200") || out.contains("\"total_ios\":3200"),
        "8 threads of 400 writes: {out}"
    );
    assert!(!out.contains("\"error\": 1"), "{out}");
}
