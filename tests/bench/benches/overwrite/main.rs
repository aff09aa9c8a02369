// SPDX-License-Identifier: GPL-2.0-only
//! What ext4-dio adds to the copy of the data: overwrites of one file on a RAM disk, against copies in memory. And how fast small
//! files are made durable.
//!
//! ```text
//! cargo bench                          all tables; with the hooks for fault injection, which the tests in the workspace turn on
//! cargo bench -p ext4-dio-bench        without those
//! cargo bench -- --quick               a few seconds
//! cargo bench -- --mib 16              another size of the file than 64 MiB
//! ```
//!
//! Nothing here fails for being slow. Without cargo's `--bench`, as under `cargo test --benches`, each subject runs once.

mod files;
mod image;
mod instructions;
mod speed;
mod subject;

use std::process::ExitCode;
use std::time::Duration;

use speed::Effort;

const USAGE: &str = "usage: cargo bench -- [--quick] [--mib MIB] [--speed | --instructions | --files]";

struct Args {
    effort: Effort,
    mib: u64,
    speed: bool,
    instructions: bool,
    files: bool,
    many: usize,
}

fn parse(args: impl Iterator<Item = String>) -> Option<Args> {
    let (mut quick, mut bench, mut mib) = (false, false, None);
    let (mut speed, mut instructions, mut files) = (false, false, false);
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // From cargo.
            "--bench" => bench = true,
            "--quick" => quick = true,
            "--speed" => speed = true,
            "--instructions" => instructions = true,
            "--files" => files = true,
            "--mib" => mib = Some(args.next()?.parse().ok().filter(|mib| (1..=1024).contains(mib))?),
            _ => return None,
        }
    }
    let (rounds, millis) = match (bench, quick) {
        (false, _) => (1, 1),
        (true, true) => (5, 10),
        (true, false) => (21, 30),
    };
    let effort = Effort { rounds, slice: Duration::from_millis(millis) };
    let all = !speed && !instructions && !files;
    let mib = mib.unwrap_or(if bench { 64 } else { 1 });
    let many = if bench { 2000 } else { 32 };
    Some(Args {
        effort,
        mib,
        speed: speed || all,
        instructions: instructions || (all && bench),
        files: files || all,
        many,
    })
}

fn main() -> ExitCode {
    if instructions::child() {
        return ExitCode::SUCCESS;
    }
    let Some(args) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let dir = image::scratch();
    let path = dir.path().join("fs.img");
    let hooks = if kernel_shim::testing::HOOKS { "with" } else { "without" };
    println!("ext4-dio, {hooks} the hooks for fault injection\n");
    if args.speed {
        image::make(&path, args.mib);
        speed::run(args.effort, &path, args.mib);
    }
    if args.instructions {
        println!();
        image::make(&path, instructions::MIB);
        instructions::run(&path);
    }
    if args.files {
        println!();
        image::make(&path, 16);
        files::run(&path, args.many);
    }
    ExitCode::SUCCESS
}
