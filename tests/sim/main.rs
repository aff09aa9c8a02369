// SPDX-License-Identifier: GPL-2.0-only
//! Worlds under the scheduler of the `sim` back end: see `tests/src/sim.rs`.
//!
//! * `EXT4_DIO_SIM_SEED`: what a failure printed; makes that run again, and prints its trace.
//! * `EXT4_DIO_SIM_ALL=runs`: small worlds in so many orders at most; more than the default lets the journal's world go on.
//! * `EXT4_DIO_SIM_PREEMPTIONS=n`: small worlds in orders with at most so many preemptions.
//!
//! The random large worlds have variables of their own: see `large.rs`.

mod determinism;
mod large;
mod reduction;
mod small;
