// SPDX-License-Identifier: GPL-2.0-only
//! `ext4-dio-fuse IMAGE-OR-DEVICE MOUNTPOINT`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ext4_dio_fuse::cli::main()
}
