// SPDX-License-Identifier: GPL-2.0-only
//! Fixtures of the hosted tests.

pub mod alone;
pub mod clean;
pub mod crash;
pub mod crash_disk;
pub mod crash_step;
pub mod crash_world;
pub mod damage;
pub mod differential;
pub mod dio;
pub mod generator;
pub mod history;
pub mod images;
pub mod invariants;
pub mod linux;
pub mod model;
pub mod oplang;
pub mod ours;
pub mod reader;
pub mod sim;
pub mod sim_dpor;
pub mod sim_policy;
pub mod world;
pub mod worldrun;
