// SPDX-License-Identifier: GPL-2.0-only
//! The machine: one PC, q35, long mode, identity mapped.

use core::arch::global_asm;

pub(crate) mod apic;
pub(crate) mod clock;
pub(crate) mod firmware;
pub(crate) mod memfn;
pub(crate) mod paging;
pub(crate) mod percpu;
pub(crate) mod pvh;
pub(crate) mod rtc;
pub(crate) mod smp;
pub(crate) mod tables;
pub(crate) mod trap;

global_asm!(include_str!("boot.s"));
