// SPDX-License-Identifier: GPL-2.0-only
//! The integration tests, in one binary.

mod alloc;
mod boot;
mod buffered;
mod differential;
mod dio;
mod example;
mod extents;
mod file;
mod hunks;
mod jobs;
mod journal;
mod mount;
mod names;
mod ondisk;
mod parallel;
mod semantics;
mod truncate;
mod verdict;
mod xattr;
