// SPDX-License-Identifier: GPL-2.0-only
//! `ext4-dio`: the runner's command line. All of the work is in the library, `ext4_dio_runner`.

use std::process::ExitCode;

use clap::Parser;
use ext4_dio_runner::cli::{BootArgs, Cli, Command};
use ext4_dio_runner::{proc, session};

fn main() -> ExitCode {
    let args = match Cli::parse().command {
        Some(Command::Boot(args)) => args,
        None => BootArgs::default(),
    };
    let result = proc::catch_interrupts().and_then(|()| session::run(&args));
    ExitCode::from(session::exit_status(result))
}
