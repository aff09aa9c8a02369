// SPDX-License-Identifier: GPL-2.0-only
//! The integration tests, in one binary.

mod damaged;
mod faults;
mod hunks;
mod ondisk;
mod parallel;
mod races;
mod semantics;
