// SPDX-License-Identifier: GPL-2.0-only
//! The file system mounted over FUSE, and used as anybody would use it.
//!
//! | module | what |
//! |---|---|
//! | [`lifecycle`] | mounting, unmounting, and what is refused |
//! | [`answers`] | what system calls answer, beside Linux's ext4 on the same image |
//! | [`semantics`] | what several callers see of each other: mappings, appends, deleted files, parallel direct writes |
//! | [`random`] | random operations against models in memory |
//! | [`fio`] | fio's verified writes, by all its ways at once |
//! | [`crash`] | the daemon is killed, or shut down |
//! | [`trees`] | Linux mounts the image afterwards, and sees the same |
//!
//! Each test mounts in a view of mounts of its own, so that nothing of it stays behind. They need root and `/dev/fuse`, and say so
//! where that is missing.

mod answers;
mod crash;
mod fio;
mod lifecycle;
mod random;
mod semantics;
mod support;
mod trees;
