// SPDX-License-Identifier: GPL-2.0-only
//! The host-side runner: makes an image, boots the guest in QEMU, follows what it tells, and checks what is on the disk
//! afterwards.
//!
//! ```text
//! cli ─ fiojob ─ plan          what to do: job files and modes become the guest's plan
//! deps ─ guest_build ─ image ─ disks   what it takes: programs, the guest, disks
//! qemu ─ run ─ progress        the machine, and the loop that follows it to its end (symbols: names in its backtraces)
//! report ─ plot ─ fiojson      what came out
//! check ─ verdict              what is on the disk: stamps, e2fsck, Linux
//! session                      all of it in order
//! linux_guest ─ compare        the same jobs in a Debian Linux, and both side by side
//! ```
//!
//! Nothing here waits without a limit, and no child outlives the runner ([`proc`]).

pub mod check;
pub mod cli;
pub mod compare;
pub mod deps;
pub mod disks;
pub mod fiojob;
pub mod fiojson;
pub mod guest_build;
pub mod image;
pub mod linux_guest;
pub mod plan;
pub mod plot;
pub mod proc;
pub mod progress;
pub mod qemu;
pub mod report;
pub mod run;
pub mod session;
pub mod symbols;
pub mod verdict;
