// SPDX-License-Identifier: GPL-2.0-only
//! `ext4-dio`: the runner's command line. All of the work is in the library, `ext4_dio_runner`.

use std::process::ExitCode;

use clap::Parser;
use ext4_dio_runner::cli::{BootArgs, Cli, Command};
use ext4_dio_runner::{compare, proc, session};

fn main() -> ExitCode {
    let command = Cli::parse().command.unwrap_or(Command::Boot(BootArgs::default()));
    let result = proc::catch_interrupts().and_then(|()| match &command {
        Command::Boot(args) => session::run(args),
        Command::Compare(args) => compare::run(args),
    });
    ExitCode::from(session::exit_status(result))
}
