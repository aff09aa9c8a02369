// SPDX-License-Identifier: GPL-2.0-only
//! The little of the Linux kernel that `ext4-dio` stands on, with Rust-for-Linux's names where it has them.
//!
//! | module | stands for |
//! |---|---|
//! | [`error`], [`printk`], [`bug`] | `kernel::error`, `kernel::print`, `<asm/bug.h>` |
//! | [`alloc`] | `kernel::alloc`: `KBox`, `KVec`, `Arc`, GFP flags; fixed pools |
//! | [`sync`] | `spinlock_t`, sleeping `Mutex`, writer-fair `RwSemaphore`, wait queues, completions |
//! | [`sched`] | current, park, unpark, spawn, now: the one seam to a back end |
//! | [`workqueue`], [`time`] | the same |
//! | [`block`] | `struct bio`, plugs, requests, flush sequencing, block devices |
//! | [`fs`] | the VFS's kiocb, file, inode, super block, iov_iter; `fs/direct-io.c`; `fs/buffer.c` |
//! | [`mm`] | `mm/filemap.c` |
//!
//! Everything but the back ends in [`sched`] and the hosted block devices is the same code on
//! every back end, uses no `alloc` crate, and can fail to get memory.
#![no_std]

#[cfg(feature = "host")]
extern crate std;

#[macro_use]
pub mod printk;
#[macro_use]
pub mod bug;
pub mod alloc;
pub mod block;
pub mod error;
pub mod fs;
pub mod mm;
pub mod percpu;
pub mod sched;
pub mod sync;
pub mod testing;
pub mod time;
pub mod workqueue;
