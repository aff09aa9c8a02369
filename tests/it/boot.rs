// SPDX-License-Identifier: GPL-2.0-only
//! One short boot in QEMU, through the runner as `cargo run` starts it.

use std::fs;

use ext4_dio_runner::cli::BootArgs;
use ext4_dio_runner::plan::FileSpec;
use ext4_dio_runner::{image, session};

/// A script on an image of somebody's own, which the run checks afterwards.
#[test]
fn a_script_in_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    let (script, image) = (dir.path().join("script.txt"), dir.path().join("img"));
    image::make_ext4(&image, 64 << 20, &[FileSpec::written("/data", 1 << 20, 4096)]).expect("an image");
    let run = |text: &str| {
        fs::write(&script, text).expect("a script");
        let args = BootArgs { script: Some(script.clone()), image: Some(image.clone()), ..BootArgs::default() };
        session::run(&args)
    };
    assert!(run("mkdir /d\nwrite /data 8k 4k x direct\nexpect EEXIST mkdir /d\nsync").expect("a run"));
    // What the first run did is there; one that goes wrong leaves a good image, too.
    assert!(!run("rmdir /d\nunlink /none\nunlink /data").expect("a run"), "a wrong line was not noticed");
    assert!(run("expect ENOENT stat /d\nstat /data").expect("a run"));
    // Bad lines never get as far as the guest.
    let error = run("sync\nchmood /data 600").expect_err("a bad line").to_string();
    assert!(error.contains("script.txt:2: `chmood` is no operation"), "{error}");
}

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
