// SPDX-License-Identifier: GPL-2.0-only
//! Worlds under the scheduler of the `sim` back end: see `tests/src/sim.rs`.
//!
//! * `EXT4_DIO_SIM_SEED`: what a failure printed; makes that run again, and prints its trace.

mod determinism;
