// SPDX-License-Identifier: GPL-2.0-only
//! `ext4-dio`: the runner's command line.
fn main() {}
